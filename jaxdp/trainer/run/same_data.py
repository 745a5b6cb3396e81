"""Refuses to go on with a run on other records than those that it began with (rule 15)."""

from ...datasets import loading
from ...datasets.dataset import Dataset
from .resume import History, saved_segments

OWN_SPLITS = frozenset({"private", "rows"})  # what `Dataset` calls the rows that it is given


def earlier_data(history: History) -> list[loading.Earlier]:
    """The records that every segment used, and what it used them for, if they have a name.

    Raises:
      ValueError: for a run of `fit`, or on data that a config file defines.
    """
    uses = []
    for one in saved_segments(history):
        splits = one.fingerprint["splits"]
        if one.config is None:
            raise ValueError(
                f"{history.folder} is a run of jaxdp.fit, whose task and data the command does not "
                f"know: call jaxdp.fit again, with resume={str(history.folder)!r}"
            )
        if not OWN_SPLITS.isdisjoint(splits):
            raise ValueError(
                "the run began with data that a config file defines, which its guarantee is about: "
                f"name the file, as `python -m jaxdp.train CONFIG.py --resume {history.folder}`"
            )
        uses.append((one.config.data, splits))
    return uses


def check_made_by_fit(history: History) -> None:
    """Refuses to go on by `fit` with a run of the command.

    Raises:
      ValueError: for a run of the command.
    """
    if any(one.config is not None for one in saved_segments(history)):
        raise ValueError(
            f"{history.folder} is a run of the command: go on with `python -m jaxdp.train "
            f"--resume {history.folder}`"
        )


def check_same_data(history: History, data: Dataset) -> None:
    """Refuses other records than those that the run began with, if they have no name (rule 15).

    Raises:
      ValueError: for other records.
    """
    for one in saved_segments(history):
        known = one.fingerprint["splits"]
        for use, digest in known.items():
            # "test" may also be the name of a split, whose records are private.
            may_change = use == "test" and not OWN_SPLITS.isdisjoint(known)
            if not may_change and data.digests.get(use) != digest:
                raise ValueError(
                    f"the {use} rows are not those that the run began with, which its guarantee is "
                    "about. Give the same ones in the same order, or start another run"
                )
        rules, before = dict(data.rules), one.facts.data
        if rules.get("private") != before.private:
            raise ValueError(
                f"the private rows are {rules.get('private')!r}, and the run began with "
                f"{before.private!r}: its guarantee is about those. Give the same rule, or start "
                "another run"
            )
        if one.fingerprint["data"] != data.private.digest():
            raise ValueError(
                "the private rows are not those that the run began with: they were changed in "
                "place after the Dataset was made, or are decoded in another way. Make it of "
                "unchanged rows"
            )
