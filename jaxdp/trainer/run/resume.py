"""Lets a run go on after a stop: with the same computation, or in a new segment."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from ...accounting import composition
from ...accounting.rounding import round_up
from ...dpsgd import processes
from ...dpsgd.plan import Plan
from ...types import PyTree, Tell
from .. import config as configs
from .. import parsing
from ..distributed import first
from ..microbatches import Microbatches
from ..release import typed_json
from ..release.claims import SpentSegment
from ..step import TrainState
from .checkpoint import FROZEN, Checkpoint, Checkpoints, from_arrays, split_frozen, state_digest
from .evidence import check_paid, facts_in
from .files import write_private
from .fingerprint import (
    DETERMINISTIC,
    Fingerprint,
    changes,
    fingerprint_digest,
    steps_repeat_exactly,
)
from .ledger import Budget, Ledger, Segment
from .segment import (
    SavedSegment,
    Secrets,
    draw_secrets,
    keys_of_all,
    load_segment,
    save_segment,
    secrets_digest,
    segment_file,
    words_of_all,
)


@dataclass(frozen=True)
class History:
    """What a run's folder says about the steps that were taken."""

    folder: Path
    ledger: Ledger
    checkpoints: Checkpoints
    newest: Checkpoint | None
    last: SavedSegment

    @property
    def step(self) -> int:
        """The step to go on with."""
        return 0 if self.newest is None else self.newest.step

    @property
    def is_current(self) -> bool:
        """Whether the newest checkpoint is of the newest segment."""
        return self.newest is not None and self.newest.segment == len(self.ledger.segments)

    def close(self) -> None:
        self.checkpoints.close()
        self.ledger.close()


@dataclass(frozen=True)
class Past:
    """What all processes know of a run that goes on. Process 0, which has its files, tells them.

    Attributes:
      step: to go on with.
      segments: how many there are.
      start: the first step of the newest segment.
      seed: of the run.
      secrets: of the newest segment; None: they are destroyed.
      microbatches: of the newest segment.
      delta: that was promised.
      has_checkpoint: whether there is one.
      is_current: whether it is of the newest segment.
    """

    step: int
    segments: int
    start: int
    seed: int | None
    secrets: Secrets | None
    microbatches: Microbatches
    delta: float
    has_checkpoint: bool
    is_current: bool


def past_of(history: History | None) -> Past:
    """What is known of a run that goes on, in all processes. Process 0 gives its history."""

    def told() -> dict[str, Any]:
        assert history is not None  # process 0 has opened it
        ledger, last = history.ledger, history.last
        return {
            "step": history.step,
            "segments": len(ledger.segments),
            "start": ledger.segments[-1].start,
            "seed": last.facts.seed,
            "secrets": None if last.secrets is None else words_of_all(last.secrets),
            "microbatches": typed_json.to_json(last.microbatches),
            "delta": ledger.budget.delta,
            "has_checkpoint": history.newest is not None,
            "is_current": history.is_current,
        }

    facts = first("the run so far", told)
    secrets = facts["secrets"]
    keys = None if secrets is None else keys_of_all(secrets)
    microbatches = typed_json.from_json(Microbatches, facts["microbatches"])
    return Past(**facts | {"secrets": keys, "microbatches": microbatches})


def saved_config(folder: str) -> configs.Config:
    """The settings of a run, ready to resume it: `output` is None and `resume` its folder.

    In several processes, all get them from process 0.
    """
    if not processes.several():
        return _saved_config(folder)
    told = lambda: dataclasses.asdict(_saved_config(folder))
    return parsing.from_json(configs.Config, first("the settings", told))


def _saved_config(folder: str) -> configs.Config:
    path = Path(folder) / "private" / "config.json"
    try:
        config = parsing.read_config(path)
    except OSError as error:
        if path.with_name("segment-1.json").exists():
            raise ValueError(
                f"{folder} is a run of jaxdp.fit, whose task and data the command does not know: "
                f"call jaxdp.fit again, with resume={folder!r}"
            ) from None
        what = path if Path(folder).is_dir() else folder
        reason = (error.strerror or "it can't be read").lower()
        raise ValueError(
            f"{folder} can't be resumed, {what}: {reason}. Name the folder that "
            "`python -m jaxdp.train` made"
        ) from None
    return dataclasses.replace(config, output=None, resume=folder)


def open_history(folder: Path, keep: int, tell: Tell) -> History:
    """Reads the files of a run that was stopped.

    Raises:
      ValueError: if the ledger or the secrets are missing or damaged, or if a checkpoint has steps
        that the ledger has not paid for.
    """
    private = folder / "private"
    ledger = open_ledger(private / "ledger.txt")
    if ledger.torn:
        tell("The last line of the ledger was half written: no step had been taken for it.")
    if not ledger.segments:
        if any((private / "checkpoints").glob("*")):
            raise ValueError(
                f"the checkpoints are ahead of the ledger {ledger.path}, which has no step: it is "
                "not known what was spent. Put back the ledger that belongs to them"
            )
        raise ValueError(f"{folder} stopped before its first step: start the run anew")
    last = _load_newest(folder, ledger)
    checkpoints = Checkpoints(private / "checkpoints", keep)
    newest = checkpoints.newest(tell)
    if newest is not None:
        paid = newest.segment <= len(ledger.segments) and newest.step <= ledger.stop(newest.segment)
        if not (paid and ledger.holds(newest.position)):
            raise ValueError(
                f"the checkpoint of step {newest.step} is ahead of its ledger {ledger.path}, which "
                f"has {ledger.position.lines} lines where {newest.position.lines} had been "
                "written, or has other lines: it is not known what was spent. Put back the ledger "
                "that belongs to the checkpoint"
            )
    check_paid(folder, ledger)
    return History(folder, ledger, checkpoints, newest, last)


def open_ledger(path: Path) -> Ledger:
    """Opens the ledger of a run.

    Raises:
      ValueError: if it is missing or damaged, or can't be written to.
    """
    try:
        return Ledger.open(path)
    except OSError as error:
        raise ValueError(
            f"{path} can't be written to ({error.strerror}): make the folder writable, because no "
            "step can be paid for otherwise"
        ) from None


def _load_newest(folder: Path, ledger: Ledger) -> SavedSegment:
    """Reads the newest segment. Its secrets must be those that the ledger paid for (rule 15)."""
    path = segment_file(folder, len(ledger.segments))
    saved = load_segment(path)
    if ledger.is_sealed:
        # Also if the file has some, because a seal was cut short or a copy was put back.
        return dataclasses.replace(saved, secrets=None)
    if saved.secrets is None or secrets_digest(saved.secrets) != ledger.segments[-1].secrets:
        raise ValueError(
            f"{path} does not hold the secrets with which the ledger began the segment: charged "
            "steps would be repeated with other noise. Put back the file that belongs to the "
            f"ledger; or run `python -m jaxdp.seal {folder}`, after which a resume begins a new "
            "segment"
        )
    return saved


def spent_segments(history: History) -> list[SpentSegment]:
    """Every segment with what it spent, from the first to the newest."""
    return [
        SpentSegment(saved.facts, spent)
        for saved, spent in zip(saved_segments(history), history.ledger.mechanisms(), strict=True)
    ]


def saved_segments(history: History) -> list[SavedSegment]:
    """Every segment, from the first to the newest.

    Raises:
      ValueError: for a file that is not the one that the ledger speaks of.
    """
    saved = []
    for number, segment in enumerate(history.ledger.segments, 1):
        path = segment_file(history.folder, number)
        saved.append(load_segment(path))
        if fingerprint_digest(saved[-1].fingerprint) != segment.fingerprint:
            raise ValueError(
                f"{path} is not the one that the ledger speaks of: it would say what other steps "
                "were. Put back the file that belongs to the ledger"
            )
    return saved


def check_budget(history: History, seed: int | None, plan: Plan) -> None:
    """Refuses settings that would change what the run promised when it began."""
    promised = vars(history.ledger.budget) | {"seed": history.last.facts.seed}
    now = vars(make_budget(plan)) | {"seed": seed}
    for name, value in promised.items():
        if now[name] != value:
            raise ValueError(
                f"{name} is {now[name]}, and the run began with {value}: what it promises is fixed "
                "at its first step. Leave the option out, or start another run, whose budget adds "
                "to this one's"
            )


def make_budget(plan: Plan) -> Budget:
    """What a run may spend: the plan's target ε, or the ε that the given noise costs.

    That may be infinite: noise as small as the paper's promises nothing, and is told as that.
    """
    if plan.noise_multiplier == 0:
        raise ValueError(
            "plan.noise-multiplier is 0, for which no ε holds: give noise, or train without "
            "privacy by a program of your own"
        )
    target = plan.target_epsilon
    epsilon = round_up(plan.epsilon()) if target is None else target
    return Budget(
        epsilon=epsilon,
        delta=plan.delta,
        adjacency=plan.adjacency,
        unit=plan.clipping.unit,
        sampling=plan.sampling,
    )


def begin(
    folder: Path, budget: Budget, plan: Plan, saved: SavedSegment, state: TrainState, keep: int
) -> History:
    """Starts the private files of a new run, with its first segment.

    `keep` is the number of checkpoints to keep.
    """
    ledger = Ledger.create(folder / "private" / "ledger.txt", budget)
    open_segment(folder, ledger, 0, plan, saved, state)
    return History(
        folder, ledger, Checkpoints(folder / "private" / "checkpoints", keep), None, saved
    )


def open_segment(
    folder: Path, ledger: Ledger, start: int, plan: Plan, saved: SavedSegment, state: TrainState
) -> None:
    """Begins a segment: first writes its secrets to disk, then enters it into the ledger."""
    if not isinstance(plan.noise_multiplier, float):
        raise ValueError("the plan's noise is a schedule: the ledger keeps constant noise only")
    save_segment(segment_file(folder, len(ledger.segments) + 1), saved)
    _save_config(folder, saved)
    ledger.open_segment(
        Segment(
            start=start,
            noise_multiplier=plan.noise_multiplier,
            sampling_probability=plan.sampling_probability,
            num_examples=plan.num_examples,
            num_parameters=math.ceil(plan.mechanism().noise_draws_per_step),
            state=state_digest(state),
            fingerprint=fingerprint_digest(saved.fingerprint),
            secrets=secrets_digest(saved.keys),
        )
    )


def why_sealed(past: Past) -> str | None:
    """Says that no step can be repeated because the secrets are destroyed; None if they are not."""
    return None if past.secrets else "the run was sealed, which destroyed the old ones"


def why_not_free(history: History, fingerprint: Fingerprint, state: TrainState) -> str | None:
    """Says why the steps from this state on must be paid for; None if they are free.

    They are free if they repeat the newest segment: the computation is the same, the state is one
    of that segment, and this device gives the same bits again. The last condition does not matter
    if no charged step is repeated.
    """
    ledger = history.ledger
    current = ledger.segments[-1]
    if fingerprint_digest(fingerprint) != current.fingerprint:
        changed = changes(history.last.fingerprint, fingerprint)
        return f"not the computation that was stopped: {changed}"
    begun = history.step == current.start and state_digest(state) == current.state
    if not (history.is_current or begun):
        return "the checkpoint is of an earlier segment"
    stop = ledger.stop(len(ledger.segments))
    if history.step < stop and not steps_repeat_exactly():
        cure = f" (a GPU gives the same with XLA_FLAGS={DETERMINISTIC})"
        if processes.several():
            cure = " (several processes add up in an order that may change)"
        return (
            f"steps {history.step + 1} to {stop} would be repeated, and this device may give other "
            f"bits{cure}"
        )
    return None


def check_a_step_is_left(history: History, plan: Plan) -> None:
    """Refuses other records or sampling if no step is left: the statement would name them."""
    spent = [m for m in history.ledger.mechanisms() if m.steps]
    taken = lambda m: (m.num_examples, m.sampling_probability)
    if not spent or taken(plan.mechanism(0)) == taken(spent[-1]):
        return
    if not steps_left(history, plan, repeats=False):
        raise ValueError(
            f"after {history.step} steps no step is left with N = {plan.num_examples:,} and "
            f"sampling probability {plan.sampling_probability:g}: leave the changed options out, "
            "or start another run"
        )


def steps_left(history: History, plan: Plan, repeats: bool) -> int:
    """How many steps of a plan can be taken without exceeding the budget.

    Args:
      history: of the run.
      plan: to go on with.
      repeats: whether the run goes on in its newest segment; else in a new one.
    """
    ledger, step = history.ledger, history.step
    if repeats:
        return max(0, affordable_end(ledger, plan) - step)
    spent = [m for m in ledger.mechanisms() if m.steps]
    more = plan.mechanism(max(0, plan.steps - step))
    if not more.steps:
        return 0
    budget = ledger.budget
    return composition.affordable_steps(spent, more, budget.epsilon, budget.delta)


def affordable_end(ledger: Ledger, plan: Plan) -> int:
    """The step before which the newest segment must end to keep ε within the budget."""
    *spent, _ = ledger.mechanisms()
    start = ledger.segments[-1].start
    if start >= plan.steps or not any(m.steps for m in spent):
        return plan.steps
    more = plan.mechanism(plan.steps - start)
    budget = ledger.budget
    return start + composition.affordable_steps(spent, more, budget.epsilon, budget.delta)


def restore(history: History, clipping: str, state: TrainState, tell: Tell) -> TrainState:
    """Puts the newest checkpoint into a run's state. The noise key of the state stays.

    Parameters must fit. Other parts that do not fit changed settings start anew.

    Args:
      history: of the run.
      clipping: what decides the clipping norms now, from `SavedSegment.clipping`.
      state: the state of the run before its first step.
      tell: gets a line about each part that starts anew.
    """
    if history.newest is None:
        return state
    restored = state._asdict()
    arrays, _ = split_frozen(history.newest.arrays)
    before = load_segment(segment_file(history.folder, history.newest.segment)).clipping
    for name, like in restored.items():
        if name == "privatize" and clipping != before:
            continue  # it holds the old clipping norms, which would replace the new ones
        own = {key: value for key, value in arrays.items() if key.partition(".")[0] == name}
        try:
            restored[name] = from_arrays(own, {name: like})[name]
        except ValueError:
            if name in ("params", "measured"):
                raise
            tell(f"The state of the {name} does not fit any more: it starts anew.")
    private = restored["privatize"]._replace(privatize_step=jax.numpy.int32(history.step))
    return TrainState(**(restored | {"privatize": private}))


def restore_frozen(history: History, like: PyTree) -> PyTree | None:
    """The frozen parameters of the newest checkpoint, or None if there is no checkpoint."""
    if history.newest is None:
        return None
    _, arrays = split_frozen(history.newest.arrays)
    return from_arrays(arrays, {FROZEN: like})[FROZEN]


def drop_metrics_after(path: Path, step: int) -> None:
    """Removes the metrics of steps that will be taken again."""
    if not path.exists():
        return
    facts = [fact for _, fact in facts_in(path) if fact is not None]  # others were half written
    kept = [fact for fact in facts if type(fact.get("step")) is int and fact["step"] <= step]
    write_private(path, "".join(f"{json.dumps(fact)}\n" for fact in kept))


def next_secrets(past: Past) -> Secrets:
    """Draws the secrets of a new segment. The key of the first parameters stays, if it is there."""
    init = None if past.secrets is None else past.secrets.init
    return draw_secrets(past.seed, past.segments + 1, init)


def _save_config(folder: Path, saved: SavedSegment) -> None:
    """Writes the settings for `saved_config` and for people. Segments have their own copy."""
    if saved.config is None:
        return
    text = json.dumps(dataclasses.asdict(saved.config), indent=2) + "\n"
    write_private(folder / "private" / "config.json", text)
