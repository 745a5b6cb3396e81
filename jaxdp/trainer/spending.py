"""What runs have spent on the same records, one by one and together.

A run's ledger says what it has spent. A release that came without its run says what was spent until
then, and counts as a run. All mechanisms of all runs are composed, at one δ.

Nothing is counted once that may have been spent twice. Two folders are the same spending only if
one ledger is the beginning of the other, with all checksums, or if a release has the parameters of
another, byte for byte: who sees the second learns nothing new then.
"""

import functools
import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..accounting import composition
from ..accounting.mechanism import Mechanism
from ..types import Adjacency
from .release.parameters import load_release, releases
from .release.statement import DataUse, MechanismFacts
from .run.evidence import check_paid
from .run.ledger import Ledger
from .run.segment import SavedSegment, load_segment, segment_file


@dataclass(frozen=True)
class Composed:
    """What several runs on the same records have spent together.

    Attributes:
      epsilon: ε of all of them at `delta`; infinite if one was made with a seed.
      delta: δ at which it holds.
      adjacency: which data sets are neighbours.
      runs: how many there are.
      mechanisms: all that they have spent.
    """

    epsilon: float
    delta: float
    adjacency: Adjacency
    runs: int
    mechanisms: tuple[Mechanism, ...] = field(repr=False)


@dataclass(frozen=True)
class Spending:
    """What one run, or one release without its run, has spent.

    Attributes:
      folder: of the run or the release.
      mechanisms: what was spent.
      target: ε that it may reach; infinite: it promises nothing.
      delta: δ of its guarantee.
      adjacency: which data sets are neighbours.
      units: what the guarantee protects, in words; more than one only in damaged files.
      names: the declared names of its records. They are several if they were changed.
      seeded: whether a seed was given, so that it is not private.
      ledger: of the run; None: this is a release without its run.
      segments: of the run, without their secrets' use; empty for a release.
    """

    folder: Path
    mechanisms: tuple[Mechanism, ...]
    target: float
    delta: float
    adjacency: Adjacency
    units: frozenset[str]
    names: tuple[str, ...]
    seeded: bool
    ledger: Ledger | None = None
    segments: tuple[SavedSegment, ...] = ()

    @property
    def epsilon(self) -> float:
        """ε of it alone, at its δ, if its noise is secret."""
        return composition.epsilon(self.mechanisms, self.delta)


def compose(*runs: str | Path, delta: float | None = None) -> Composed:
    """Returns what several runs on the same records have spent together.

    Runs that differ in sampling are composed for each sampling, and those results are added. The
    number of runs and their settings are taken to be chosen without looking at private numbers.

    Args:
      *runs: the folders of runs, or of releases. A run counts by its ledger, if it is there, and
        else by its releases. A release that is given without its run counts as a run of its own:
        together with its run it would count twice, and is refused if it is recognised.
      delta: δ at which ε is told. None: the smallest δ of the runs, so that ε is never below that
        of one of them.

    Raises:
      ValueError: if a folder holds neither run nor release, or is damaged; if one run is given
        twice; if adjacencies or privacy units differ, whose ε do not add up; or for a δ of 1/N or
        more.

    Example:
      >>> jaxdp.compose("runs/first", "runs/second").epsilon  # doctest: +SKIP
      4.31
    """
    if not runs:
        raise ValueError("no run is given: give the folders of some, as jaxdp.compose('runs/a')")
    spent = [read_spending(Path(run)) for run in runs]
    for one, other in itertools.combinations(spent, 2):
        if is_same(one, other):
            raise ValueError(
                f"{one.folder} and {other.folder} are the same run, or a release of it: its "
                "spending counts once, so leave one out"
            )
    return composed(spent, delta)


def composed(spent: Sequence[Spending], delta: float | None = None) -> Composed:
    """As `compose`, for what was read. Nothing in it may be the same run.

    Raises:
      ValueError: if it can't be composed.
    """
    for what, found in (
        ("adjacencies", {one.adjacency for one in spent}),
        ("privacy units", {unit for one in spent for unit in one.units}),
    ):
        if len(found) > 1:
            raise ValueError(
                f"the runs have different {what} ({', '.join(sorted(found))}): their guarantees "
                "are about different neighbours, and their ε do not add up. Compose those that "
                "have the same"
            )
    mechanisms = tuple(m for one in spent for m in one.mechanisms)
    delta = min(one.delta for one in spent) if delta is None else delta
    most = max((m.num_examples or 1 for m in mechanisms), default=1)
    if not 0 < delta < 1 / most:
        raise ValueError(f"delta is {delta}: give a number above 0 and below 1/N = {1 / most:.3g}")
    private = not any(one.seeded for one in spent)
    return Composed(
        epsilon=composition.epsilon_of_all(mechanisms, delta) if private else math.inf,
        delta=delta,
        adjacency=spent[0].adjacency,
        runs=len(spent),
        mechanisms=mechanisms,
    )


def is_same(one: Spending, other: Spending) -> bool:
    """Whether two are one spending: a run and a copy of it, or a run and its release.

    Raises:
      ValueError: for copies of one run that both went on, whose releases may share noise.
    """
    if covers(one, other) or covers(other, one):
        return True
    books = [spending.ledger for spending in (one, other) if spending.ledger is not None]
    secrets = [{segment.secrets for segment in book.segments} for book in books]
    private = not (one.seeded or other.seeded)
    if private and len(secrets) == 2 and not secrets[0].isdisjoint(secrets[1]):
        raise ValueError(
            f"{one.folder} and {other.folder} are copies of one run that both went on: the same "
            "noise may be in both, so no ε holds for them together. Keep one, and publish nothing "
            "of the other"
        )
    return False


def covers(one: Spending, other: Spending) -> bool:
    """Whether the first counts all that the second has spent, because it is the same spending."""
    if one.ledger is not None and other.ledger is not None:
        # Without a segment it has spent nothing, and many ledgers begin like it.
        return bool(other.segments) and one.ledger.holds(other.ledger.position)
    if other.ledger is not None:
        return False
    return _released(other.folder) <= _released(one.folder)


def read_spending(path: Path) -> Spending:
    """Reads what a run or a release has spent.

    Raises:
      ValueError: if the folder holds neither, or something in it is damaged.
    """
    folder = path
    if (path / "privacy.json").is_file() and (path.resolve().parent / "private").is_dir():
        folder = path.resolve().parent
    if (folder / "private").is_dir():
        return _of_run(folder)
    found = [path] if (path / "privacy.json").is_file() else releases(path)
    if not found:
        raise ValueError(
            f"{path} holds no run (private/ledger.txt) and no release (privacy.json): give a "
            "folder that jaxdp.fit or `python -m jaxdp.train` made"
        )
    # Later releases of a run count what was spent for the earlier ones.
    return max((_of_release(path, one) for one in found), key=_steps)


def _steps(spending: Spending) -> int:
    return sum(m.steps for m in spending.mechanisms)


def _of_run(folder: Path) -> Spending:
    ledger = Ledger.read(folder / "private" / "ledger.txt")
    segments = tuple(
        load_segment(segment_file(folder, number)) for number in range(1, len(ledger.segments) + 1)
    )
    check_paid(folder, ledger)
    return Spending(
        folder=folder,
        mechanisms=tuple(ledger.mechanisms()),
        target=ledger.budget.epsilon,
        delta=ledger.budget.delta,
        adjacency=ledger.budget.adjacency,
        units=frozenset(_unit("record", segment.facts.data) for segment in segments),
        names=tuple(dict.fromkeys(map(_name, segments))),
        seeded=any(segment.facts.seed is not None for segment in segments),
        ledger=ledger,
        segments=segments,
    )


def _of_release(path: Path, folder: Path) -> Spending:
    statement = load_release(folder).statement
    text = " (of a file that is not known)" if statement.data.window is not None else ""
    return Spending(
        folder=path,
        mechanisms=tuple(_mechanism(facts, statement.adjacency) for facts in statement.mechanisms),
        target=statement.target_epsilon or statement.claimed_epsilon,
        delta=statement.delta,
        adjacency=statement.adjacency,
        units=frozenset({_unit(statement.privacy_unit.kind, statement.data)}),
        names=(statement.data.name + text,),
        seeded=not statement.private,
    )


def _mechanism(facts: MechanismFacts, adjacency: Adjacency) -> Mechanism:
    noise = facts.noise_multiplier
    return Mechanism(
        noise_multiplier=(
            tuple((part.noise_multiplier, part.steps) for part in noise)
            if isinstance(noise, tuple)
            else noise
        ),
        steps=facts.steps,
        sampling_probability=facts.sampling.probability,
        sampling=facts.sampling.kind,
        adjacency=adjacency,
        unit=facts.clipping.unit,
        num_examples=facts.sampling.num_examples,
        noise_draws_per_step=facts.noise_draws_per_step,
    )


def _name(segment: SavedSegment) -> str:
    """The declared name of a segment's records: of a text, with that of its file."""
    name, config = segment.facts.data.name, segment.config
    if segment.facts.data.window is not None and config is not None and config.data.file:
        return f"{name} {Path(config.data.file).name}"
    return name


def _unit(kind: str, data: DataUse) -> str:
    """What the guarantee protects. Windows of another length are other records."""
    return kind if data.window is None else f"window of {data.window} characters"


def _released(folder: Path) -> set[str]:
    """Digests of all parameters that a folder holds as releases."""
    found = [folder] if (folder / "privacy.json").is_file() else releases(folder)
    return {_digest(one.resolve() / "params.safetensors") for one in found}


@functools.lru_cache(maxsize=1000)
def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror}): put it back") from None
