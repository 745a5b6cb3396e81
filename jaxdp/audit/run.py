"""The audit of a run of the trainer by the canaries in it."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from ..accounting.rounding import round_up, shown_delta
from ..datasets.dataset import Dataset
from ..datasets.feeding import record_keys
from ..datasets.rows import ROWS_AT_A_TIME, in_chunks
from ..tasks.task import Task, variables_of
from ..trainer.command import load_parts
from ..trainer.release.parameters import load_release
from ..trainer.run.canaries import load_canaries, read_canaries
from ..trainer.run.resume import saved_config
from ..types import PyTree
from .one_run import EpsilonBound, GaussianBound, epsilon_bound, mu_bound

KEY = 0  # of what a loss draws

WIDTH = 80

SHOWS = (
    "The bound is proved, but for that chance: who trains like this can't promise less than it. "
    "A bound below the claim proves nothing: another attack, or other canaries, may find more. It "
    "sees the released parameters alone, by one loss for each canary, and only how canaries are "
    "treated: what harms some other record goes unseen."
)
EXCEEDS = (
    "THE BOUND IS ABOVE THE CLAIM: the run is less private than it says (or the bound is wrong, by "
    "chance). Release nothing of it, and look for what sees a record past clipping and noise."
)
GAUSSIAN = (
    "The bound on μ is for a mechanism that is Gaussian DP. DP-SGD with sampling is only nearly "
    "so: take it as a comparison."
)
SEEDED = "The run had a seed: the claim is what it would promise with secret keys."


@dataclass(frozen=True)
class RunAudit:
    """What the canaries of a run show. It is private.

    Attributes:
      folder: of the run.
      claimed: ε that the release's statement claims.
      delta: δ of that claim.
      bound: the lower bound on ε at this δ.
      gaussian: the lower bound on μ, and its ε, if the run is taken to be Gaussian DP.
      claimed_mu: μ that the statement names.
      canaries: how many there are.
      included: how many took part.
      most: the bound if all guesses were right: so many canaries can't show more.
      scores: `[m]`, minus the loss of each canary at the released parameters.
      reproducible: whether the run had a seed, so that there is no claim against who knows it.
    """

    folder: Path
    claimed: float
    delta: float
    bound: EpsilonBound
    gaussian: GaussianBound
    claimed_mu: float
    canaries: int
    included: int
    most: float
    scores: np.ndarray = field(repr=False)
    reproducible: bool

    @property
    def exceeds(self) -> bool:
        """Whether the bound is above the claim: the run is less private than it says."""
        return self.bound.epsilon > self.claimed

    def __str__(self) -> str:
        """The result in lines of 80 columns."""
        bound, gaussian = self.bound, self.gaussian
        confidence = f"{100 * (1 - bound.significance):g} %"
        rows = [
            ("claimed", f"ε = {self.claimed:g} at δ = {shown_delta(self.delta):g}"),
            ("lower bound", f"ε ≥ {_down(bound.epsilon):g} at the same δ, confidence {confidence}"),
            (
                "at most",
                f"ε ≥ {_down(self.most):g} could have been shown, by guesses that are all right",
            ),
            (
                "as Gaussian DP",
                f"μ ≥ {_down(gaussian.mu):g} (ε ≥ {_down(gaussian.epsilon):g}), where "
                f"μ = {self.claimed_mu:g} is claimed",
            ),
        ]
        told = [EXCEEDS] if self.exceeds else []
        told += [SHOWS, GAUSSIAN, *([SEEDED] if self.reproducible else [])]
        lines = [
            "PRIVATE: keep this to yourself, as everything in private/ of the run.",
            f"{self.folder}: {self.included:,} of {self.canaries:,} canaries took part.",
            "",
            *(f"{name:16}{text}" for name, text in rows),
            "",
            "guesses   right   ε ≥",
            *(f"{g.number:7}{g.right:8}   {_down(g.bound):g}" for g in bound.guesses),
            "(The largest of them is the bound; all of them are paid for.)",
        ]
        return "\n".join([*lines, *(f"\n{textwrap.fill(text, WIDTH)}" for text in told)])


def audit_run(
    folder: str | Path,
    *,
    task: Task | None = None,
    data: Dataset | None = None,
    significance: float = 0.05,
    guesses: Sequence[int] | None = None,
) -> RunAudit:
    """Measures what the release of a run gives away about its canaries.

    A canary's score is minus its loss at the released parameters. Nothing else of the run is used,
    but the coins at the end.

    Args:
      folder: of a run that was trained with canaries and has a release.
      task, data: for a run of `jaxdp.fit`, what it was given. Otherwise leave them out.
      significance, guesses: as in `epsilon_bound`.

    Raises:
      ValueError: for a run without canaries or release, or whose data have changed; and for
        arguments out of range.

    Example:
      >>> result = jaxdp.fit(task, data, plan, optimizer=sgd, audit_canaries=1000)  # doctest: +SKIP
      >>> audit = jaxdp.audit.audit_run(result.folder, task=task, data=data)  # doctest: +SKIP
      >>> audit.bound.epsilon, audit.claimed  # doctest: +SKIP
      (0.82, 8.0)
    """
    place = Path(folder)
    read_canaries(place)  # first: loading data may take long
    release = load_release(place)
    whole, learnt = _load(place, task, data)
    canaries = whole.canaries
    assert canaries is not None
    like = jax.eval_shape(learnt.init, jax.random.key(0), whole.private.zero())
    variables = variables_of(release.params_like(like), release.batch_stats)
    scores = -losses(learnt, variables, canaries.fields, canaries.ids)
    statement = release.statement
    delta, coins = statement.delta, canaries.included

    def bound(scores: np.ndarray) -> EpsilonBound:
        return epsilon_bound(
            scores,
            coins,
            delta=delta,
            significance=significance,
            guesses=guesses,
            theorem="sharp",
        )

    return RunAudit(
        folder=place,
        claimed=statement.claimed_epsilon,
        delta=delta,
        bound=bound(scores),
        gaussian=mu_bound(scores, coins, delta=delta, significance=significance, guesses=guesses),
        claimed_mu=statement.gaussian_dp.mu,
        canaries=len(coins),
        included=int(coins.sum()),
        most=bound(coins.astype(float)).epsilon,
        scores=scores,
        reproducible=statement.reproducible,
    )


def losses(task: Task, variables: PyTree, records: PyTree, ids: np.ndarray) -> np.ndarray:
    """The loss of each of some records, `[n]`: nothing in it is random.

    It is the task's score "loss", or else its loss with the same key for all time.

    Args:
      task: what was learnt.
      variables: what the task scores with.
      records: `[n, ...]`.
      ids: their numbers.

    Raises:
      ValueError: if the task has neither.
    """
    of_records = jax.jit(jax.vmap(_loss_of_record(task, variables, records), (None, 0, 0)))
    every = record_keys(jax.random.key(KEY), jax.numpy.asarray(ids))
    found = [
        np.asarray(of_records(variables, _rows(records, rows), every[rows.start : rows.stop]))
        for rows in in_chunks(len(ids), ROWS_AT_A_TIME)
    ]
    return np.concatenate(found).astype(np.float64)


def _loss_of_record(task: Task, variables: PyTree, records: PyTree) -> Callable[..., jax.Array]:
    """A function of variables, a record and a key."""
    scores, one = task.scores, jax.tree.map(lambda array: array[0], records)
    if scores is not None and "loss" in jax.eval_shape(scores, variables, one):
        return lambda variables, record, key: scores(variables, record)["loss"]
    if task.loss is None:
        raise ValueError(
            "a record has no loss of its own, as with BatchNorm: give the task scores with one "
            "called 'loss', as jaxdp.tasks.classifier does"
        )
    return task.loss


def _rows(records: PyTree, rows: range) -> PyTree:
    return jax.tree.map(lambda array: array[rows.start : rows.stop], records)


def _load(folder: Path, task: Task | None, data: Dataset | None) -> tuple[Dataset, Task]:
    """The data with the canaries of a run, and its task."""
    if (task is None) != (data is None):
        raise ValueError("give both task and data, those of jaxdp.fit, or neither")
    if not (folder / "private" / "config.json").is_file():
        if task is None or data is None:
            raise ValueError(
                f"{folder} is a run of jaxdp.fit, whose task and data are not known: call "
                f"jaxdp.audit.audit_run({str(folder)!r}, task=..., data=...) with them"
            )
        return load_canaries(folder, data, None), task
    if task is not None:
        raise ValueError(f"{folder} is a run of the command, which has its own: leave task out")
    parts = load_parts(saved_config(str(folder)))
    return load_canaries(folder, parts.data, parts.data_format), parts.task


def _down(value: float) -> float:
    """Rounded down for print: a lower bound must not be told too high."""
    return -round_up(-value, 4)
