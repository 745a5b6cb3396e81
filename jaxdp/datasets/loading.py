"""Loads a data set and takes its private, public and test records apart."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from ..types import Tell
from . import splits
from .config import DataConfig
from .records import Dataset, Records, arrays_digest
from .sources import Source, characters, digits, images

Use = tuple[DataConfig, Mapping[str, str]]  # the data of a segment, and the digests of its splits


def load(
    config: DataConfig, tell: Tell = lambda line: None, earlier: Sequence[Use] = ()
) -> Dataset:
    """Loads the data set and the splits that the configuration names.

    Args:
      config: the data section of a configuration.
      tell: gets a line about everything that takes long.
      earlier: the data of the run's earlier segments. The records must be the same as theirs, and
        a record that is private in one segment must not be public or a test record in another
        (privacy rule 15).

    Raises:
      ValueError: if the data are missing, damaged or of the wrong kind, if splits are empty or
        overlap, or if they don't agree with the earlier segments.
    """
    source = _open(config, tell)
    parts = _parts(config, source.sizes)
    splits.check_disjoint({_title(config, use): part for use, part in parts.items()})
    whole = {name: source.read(name) for name in {p.name for ps in parts.values() for p in ps}}
    digests = {name: arrays_digest(arrays) for name, arrays in whole.items()}
    for before, known in earlier:
        _check_same_records(before, config, known, digests)
        _check_same_uses(before, config, source.sizes)
    chosen = {use: _select(part, whole, source.sizes) for use, part in parts.items()}
    return Dataset(
        private=chosen["private"],
        test=chosen["test"],
        public=chosen.get("public"),
        num_classes=source.num_classes,
        center=source.center,
        scale=source.scale,
        scaling=source.scaling,
        digests=digests,
    )


def _parts(config: DataConfig, sizes: Mapping[str, int]) -> dict[str, list[splits.Part]]:
    specs = {"private": config.private, "public": config.public, "test": config.test}
    return {use: splits.parse_split(spec, sizes) for use, spec in specs.items() if spec is not None}


def _title(config: DataConfig, use: str) -> str:
    return f"data.{use} = {getattr(config, use)!r}"


def _check_same_uses(before: DataConfig, now: DataConfig, sizes: Mapping[str, int]) -> None:
    """Refuses records that are private now and had another use before, or the other way round."""
    old, new = _parts(before, sizes), _parts(now, sizes)
    for use, other in itertools.product(new, old):
        if use != other and "private" in (use, other):
            title = f"{_title(before, other)} in an earlier segment of the run"
            splits.check_disjoint({title: old[other], _title(now, use): new[use]})


def _check_same_records(
    before: DataConfig, now: DataConfig, known: Mapping[str, str], digests: Mapping[str, str]
) -> None:
    """Refuses other records: nobody could tell which of them were protected before."""
    if before.name != now.name:
        raise ValueError(
            f"data.name is {now.name!r}, and the run began with {before.name!r}: its guarantee is "
            "about those records. Leave the option out, or start another run"
        )
    if before.window != now.window and now.name == "text":
        raise ValueError(
            f"data.window is {now.window}, and the run began with {before.window}: a window is a "
            "record, which the guarantee protects. Leave the option out, or start another run"
        )
    changed = [name for name in known.keys() & digests.keys() if known[name] != digests[name]]
    if changed:
        raise ValueError(
            f"the records of {min(changed)!r} are not those that the run began with, which its "
            "guarantee is about. Put them back, or start another run"
        )


def _open(config: DataConfig, tell: Tell) -> Source:
    if config.name == "digits":
        return digits()
    if config.name == "text":
        if config.file is None:
            raise ValueError("data.name is 'text', and no file is given: give --data.file TEXT.txt")
        return characters(config.file, config.window)
    return images(config.name, config.dir, tell)


def _select(
    parts: Sequence[splits.Part],
    whole: Mapping[str, tuple[np.ndarray, np.ndarray]],
    sizes: Mapping[str, int],
) -> Records:
    """Joins the rows of some parts. Ids number the records of all splits together."""
    names = list(sizes)
    first = {name: sum(sizes[before] for before in names[:i]) for i, name in enumerate(names)}
    join = lambda arrays: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return Records(
        inputs=join([whole[p.name][0][p.start : p.stop] for p in parts]),
        labels=join([whole[p.name][1][p.start : p.stop] for p in parts]),
        ids=join([first[p.name] + np.arange(p.start, p.stop, dtype=np.int32) for p in parts]),
    )
