"""Loads a data set and takes its private, public and test records apart."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..types import Tell
from . import splits
from .config import DataConfig
from .dataset import USES, Dataset, parse_rules
from .decoding import difference
from .features import with_scattering
from .folders import open_folder
from .sources import Format, SplitSet, characters, digits
from .tables import open_table
from .tfds import open_tfds

Earlier = tuple[DataConfig, Mapping[str, str]]  # data of a segment; digests of its splits


def load(
    config: DataConfig, tell: Tell = lambda line: None, earlier: Sequence[Earlier] = ()
) -> tuple[Dataset, Format]:
    """Loads the data set and the splits that the configuration names.

    Args:
      config: the data section of a configuration.
      tell: gets a line about everything that takes long.
      earlier: the data of the run's earlier segments. The records must be the same as theirs, and
        a record that is private in one segment must not be public or a test record in another
        (privacy rule 15).

    Returns:
      The records, each a pair (input, label), and what they are.

    Raises:
      ValueError: if the data are missing, damaged or of the wrong kind, if splits are empty or
        overlap, or if they don't agree with the earlier segments.
    """
    plain = _open(config, tell)
    opened = plain
    if config.features == "scattering":
        opened = with_scattering(plain, config.mirrored, tell)
    rules = _rules(config)
    title = lambda use: _title(config, use)
    parts = parse_rules(rules, opened.sizes, title)
    needed = [
        name for name in opened.sizes if any(p.name == name for u in parts.values() for p in u)
    ]
    read = {name: opened.read(name) for name in needed}
    digests = {name: split.digest for name, split in read.items()}
    for name, other in itertools.combinations(digests, 2):
        if config.split_by is None and digests[name] == digests[other]:
            raise ValueError(
                f"the records of {name!r} and {other!r} are the same: each has one use only. Give "
                "other ones, or slices of one, as train[:90%] and train[90%:]"
            )
    # Also of splits that are not used any more: a file could stand in the place of another.
    known_names = {name for _, known in earlier for name in known} & opened.sizes.keys()
    digests |= {name: plain.read(name).digest for name in known_names - digests.keys()}
    for before, known in earlier:
        _check_same_records(before, config, known, digests)
        _check_same_uses(before, config, opened.sizes)
        if config.kind == "table":  # rows that were protected may have made a schema since
            _open(replace(config, private=before.private), tell)
    dataset = Dataset.of_splits(
        read,
        opened.sizes,
        rules,
        title,
        name=config.name,
        test_is_public=_is_test_public(config, opened, parts),
        source=config.kind,
        fields=opened.format.fields,
        window=config.window if config.kind == "text" else None,
        skips_bad=config.skip_bad,
    )
    return dataset, opened.format


def _is_test_public(
    config: DataConfig, opened: SplitSet, parts: Mapping[str, Sequence[splits.Part]]
) -> bool:
    """Whether the test records are public: as declared; else, if they are a published set's own.

    They are not, where they are a part of the split whose other records are protected.
    """
    if config.test_is_public is not None:
        return config.test_is_public
    private, test = ({part.name for part in parts.get(use, ())} for use in ("private", "test"))
    return opened.published and private.isdisjoint(test)


def _rules(config: DataConfig) -> dict[str, str | None]:
    return {use: getattr(config, use) for use in USES}


def _title(config: DataConfig, use: str) -> str:
    return f"data.{use} = {getattr(config, use)!r}"


def _check_same_uses(before: DataConfig, now: DataConfig, sizes: Mapping[str, int]) -> None:
    """Refuses records that are private now and had another use before, or the other way round."""
    old, new = (
        parse_rules(_rules(config), sizes, lambda use: _title(config, use))
        for config in (before, now)
    )
    for use, other in itertools.product(new, old):
        if use != other and "private" in (use, other):
            title = f"{_title(before, other)} in an earlier segment of the run"
            splits.check_disjoint({title: old[other], _title(now, use): new[use]})


def _check_same_records(
    before: DataConfig, now: DataConfig, known: Mapping[str, str], digests: Mapping[str, str]
) -> None:
    """Refuses other records: nobody could tell which of them were protected before."""
    for option, fixed in (("name", True), ("window", now.kind == "text"), ("split_by", True)):
        old, new = getattr(before, option), getattr(now, option)
        if fixed and old != new:
            raise ValueError(
                f"data.{option.replace('_', '-')} is {new!r}, and the run began with {old!r}: it "
                "decides which records there are, and the guarantee is about those. Leave the "
                "option out, or start another run"
            )
    for name, digest in digests.items():
        others = [other for other in known if other != name and known[other] == digest]
        if name not in known and others and before.split_by is None:
            raise ValueError(
                f"the records of {name!r} are those that the run began with as {others[0]!r}: what "
                "was protected must stay so. Name them as they were, or start another run"
            )
    for name in sorted(known.keys() & digests.keys()):
        if known[name] != digests[name]:
            raise ValueError(
                f"the records of {name!r} are not those that the run began with, which its "
                f"guarantee is about: {difference(known[name], digests[name])}. Put them back, or "
                "start another run"
            )


def _open(config: DataConfig, tell: Tell) -> SplitSet:
    if config.kind == "digits":
        return digits()
    if config.kind == "text":
        if config.file is None:
            raise ValueError("data.name is 'text', and no file is given: give --data.file TEXT.txt")
        return characters(config.file, config.window)
    openers = {"table": open_table, "folder": open_folder, "tfds": open_tfds}
    return openers[config.kind](config, tell)
