"""The canaries of a run: their file `private/canaries.json`, and the same ones after a stop.

The file holds the key that decides them, and their coins. The canaries themselves are made again.
The key is no secret of the mechanism: nothing of a private record, of the noise or of the sampling
follows from it. So `seal` keeps it, and an audit is possible afterwards. It stays in private/,
because an audit is worth nothing if its guesses could know the coins.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import jax

from ...datasets.canaries import add_canaries
from ...datasets.dataset import Dataset
from ...datasets.sources import Format
from ...dpsgd import keys
from ..distributed import first
from .files import write_private
from .resume import History, saved_segments
from .segment import key_of, words_of


@dataclass(frozen=True)
class SavedCanaries:
    """What the file says.

    Attributes:
      count: how many there are.
      key: which decides them.
      digest: a checksum of them and of their coins.
    """

    count: int
    key: jax.Array
    digest: str


def with_canaries(
    data: Dataset,
    count: int,
    option: str,
    seed: int | None,
    history: History | None,
    data_format: Format | None,
) -> Dataset:
    """Returns the data of a run with its canaries: new ones, or those that it began with.

    Args:
      data: the records.
      count: how many canaries; 0: none.
      option: that gives the number, for messages.
      seed: makes them reproducible. None: from the operating system.
      history: of the run that goes on; None: a new one.
      data_format: as in `add_canaries`.

    Raises:
      ValueError: for another number than the run began with, a file that is missing or damaged,
        or canaries that can't be made.
    """
    if history is not None:
        began_with = history.last.facts.data.canaries
        if count != began_with:
            raise ValueError(
                f"{option} is {count}, and the run began with {began_with}: they are a part of N, "
                f"which is fixed. Give {began_with}, or start another run"
            )
    if count == 0:
        return data
    saved = None if history is None else read_canaries(history.folder)
    key = key_of(first("key of the canaries", lambda: _key_words(saved, seed)))
    made = _made(data, count, key, data_format)
    if history is None or saved is None:
        return made
    _check_digest(history.folder, saved, made)
    if any(one.fingerprint.get("canaries") != digest_of(made) for one in saved_segments(history)):
        raise ValueError(
            f"{_file(history.folder)} holds other canaries than the run began with: put back the "
            "file that belongs to it"
        )
    return made


def load_canaries(folder: Path, data: Dataset, data_format: Format | None) -> Dataset:
    """Returns the data of a run with the canaries that its file decides.

    Raises:
      ValueError: if there is no such file, it is damaged, or the canaries come out differently.
    """
    saved = read_canaries(folder)
    made = _made(data, saved.count, saved.key, data_format)
    _check_digest(folder, saved, made)
    return made


def _key_words(saved: SavedCanaries | None, seed: int | None) -> list[int]:
    if saved is not None:
        return words_of(saved.key)
    if seed is not None:
        return words_of(keys.derived(jax.random.key(seed), "canaries"))
    return keys.drawn_words()


def _check_digest(folder: Path, saved: SavedCanaries, made: Dataset) -> None:
    if digest_of(made) != saved.digest:
        raise ValueError(
            f"the canaries come out differently than {_file(folder)} says: the data they are made "
            "of have changed. Put back what the run began with"
        )


def save_canaries(folder: Path, data: Dataset) -> None:
    """Writes the file of a run, if it has canaries. Only its owner may read it."""
    made = data.canaries
    if made is None:
        return
    fact = {
        "canaries": len(made.included),
        "key": list(made.key),
        "included": "".join("01"[coin] for coin in made.included.astype(int)),
        "digest": made.digest,
    }
    write_private(_file(folder), json.dumps(fact, indent=1) + "\n")


def read_canaries(folder: Path) -> SavedCanaries:
    """Reads the file of a run.

    Raises:
      ValueError: if there is none, or it is damaged.
    """
    path = _file(folder)
    if not path.parent.is_dir():
        raise ValueError(f"{folder} is no folder of a run: give one that has private/ in it")
    if not path.is_file():
        raise ValueError(
            f"{folder} has no canaries ({path.name}): name a run that was trained with "
            "--audit.canaries M, or put back the file"
        )
    try:
        fact = json.loads(path.read_text())
        saved = SavedCanaries(int(fact["canaries"]), key_of(fact["key"]), str(fact["digest"]))
        if saved.count < 1 or saved.count != len(fact["included"]):
            raise ValueError(f"it has {len(fact['included'])} coins for {saved.count} canaries")
    except (OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} can't be read ({error}): put back an undamaged copy of the file"
        ) from None
    return saved


def digest_of(data: Dataset) -> str | None:
    """A checksum of the canaries and their coins; None: there are none."""
    return None if data.canaries is None else data.canaries.digest


def _made(data: Dataset, count: int, key: jax.Array, data_format: Format | None) -> Dataset:
    made = add_canaries(
        data,
        count,
        keys.philox_key(key, "canaries"),
        keys.philox_key(key, "coins of canaries"),
        data_format,
    )
    assert made.canaries is not None
    made.canaries = made.canaries._replace(key=tuple(words_of(key)))
    return made


def _file(folder: Path) -> Path:
    return folder / "private" / "canaries.json"
