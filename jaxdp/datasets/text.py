"""A text file as records for a character-level language model."""

from pathlib import Path

import numpy as np

from ._files import unreadable

# A fixed alphabet, so that nothing is learnt from the text: line feed and printable ASCII.
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))

UNKNOWN = len(CHARACTERS)  # the code of all other characters

VOCABULARY_SIZE = len(CHARACTERS) + 1

TEST_SHARE = 0.1  # of the windows, at the end of the text


def read_windows(path: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text into windows that don't overlap (privacy rule 18). Each is one record.

    Args:
      path: a text file in UTF-8.
      length: number of characters to predict in a window. A window has one more.

    Returns:
      `(inputs uint8 [n, length], targets int32 [n, length])`, codes of characters. A target is the
      character after its input. What is too short for a window at the end is not used.

    Raises:
      ValueError: if `length` is below 1, or the file can't be read, is not UTF-8, or is shorter
        than two windows.
    """
    if length < 1:
        raise ValueError(f"windows of {length} characters were asked for: give at least 1")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise unreadable(f"the text file {path}", error) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the text file {path} is not UTF-8 from byte {error.start} on: convert it"
        ) from error
    count = len(text) // (length + 1)
    if count < 2:
        raise ValueError(
            f"the text file {path} has {len(text)} characters: too few for two windows of "
            f"{length + 1}, one to train on and one to test"
        )
    windows = encode(text)[: count * (length + 1)].reshape(count, length + 1)
    return windows[:, :-1], windows[:, 1:].astype(np.int32)


def encode(text: str) -> np.ndarray:
    """Returns each character's place in CHARACTERS, or UNKNOWN, as `[n] uint8`."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    table = np.full(128, UNKNOWN, np.uint8)
    table[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))
    return np.where(codes < 128, table[np.minimum(codes, 127)], np.uint8(UNKNOWN))


def train_size(count: int) -> int:
    """Returns how many of `count` windows are the split `train`; the rest are `test`."""
    return count - max(1, round(TEST_SHARE * count))
