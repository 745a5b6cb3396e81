"""Loads a data set and takes its private, public and test records apart."""

import itertools
from collections.abc import Mapping, Sequence

from ..types import Tell
from . import splits
from .config import DataConfig
from .records import USES, Dataset, Records, arrays_digest, parse_rules, split_records
from .sources import Format, Source, characters, digits, images

Use = tuple[DataConfig, Mapping[str, str]]  # the data of a segment, and the digests of its splits


def load(
    config: DataConfig, tell: Tell = lambda line: None, earlier: Sequence[Use] = ()
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
    source = _open(config, tell)
    rules = _rules(config)
    title = lambda use: _title(config, use)
    parts = parse_rules(rules, source.sizes, title)
    needed = {part.name for use in parts.values() for part in use}
    whole = {name: Records(source.read(name)) for name in source.sizes if name in needed}
    for name, records in whole.items():
        _check_labels(name, records, source.format.num_classes)
    digests = {name: arrays_digest(records.fields) for name, records in whole.items()}
    for before, known in earlier:
        _check_same_records(before, config, known, digests)
        _check_same_uses(before, config, source.sizes)
    dataset = Dataset.of_parts(
        split_records(whole, source.sizes, rules, title),
        name=config.name,
        test_is_public=config.test_is_public,
        rules={use: rule for use, rule in rules.items() if rule is not None},
        digests=digests,
        window=config.window if config.name == "text" else None,
    )
    return dataset, source.format


def _check_labels(split: str, records: Records, num_classes: int) -> None:
    labels = records.fields[1]
    low, high = labels.min(), labels.max()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"the labels of {split!r} go from {low} to {high}: expected 0 to {num_classes - 1}"
        )


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
