"""A text file as records for a character-level language model."""

from pathlib import Path

import numpy as np

# Fixed, so that nothing is learnt from the text: what one types in English, and one for the rest.
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))

UNKNOWN = len(CHARACTERS)

VOCABULARY_SIZE = len(CHARACTERS) + 1

TEST_SHARE = 0.1


def read_windows(path: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text into windows that have no character in common: each is one record.

    Args:
      path: a text file in UTF-8.
      length: characters that are predicted in a window, which is one longer.

    Returns:
      `(inputs uint8 [n, length], targets int32 [n, length])`: the targets are the inputs' next
      characters. What is left over at the end of the text is not used.

    Raises:
      ValueError: if the file can't be read, is no text, or is shorter than two windows.
    """
    if length < 1:
        raise ValueError(f"windows of {length} characters were asked for: give at least 1")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"the text file {path} can't be read: {error.strerror}") from error
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
    """Characters as their places in CHARACTERS, `[n] uint8`; UNKNOWN for those it lacks."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    table = np.full(128, UNKNOWN, np.uint8)
    table[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))
    return np.where(codes < 128, table[np.minimum(codes, 127)], np.uint8(UNKNOWN))


def train_size(count: int) -> int:
    """How many windows, from the start of the text, are the split `train`; the rest is `test`."""
    return count - max(1, round(TEST_SHARE * count))
