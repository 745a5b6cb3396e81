"""A stand-in: documents as tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """How documents become tokens."""

    vocabulary: int
    about: str
    told: str
    encode: Callable[[Sequence[str]], np.ndarray]


def make_tokens(kind: str, vocabulary: int, length: int) -> Tokens:
    """Bytes, numbered from 1, cut or filled up with zeros."""

    def encode(documents: Sequence[str]) -> np.ndarray:
        tokens = np.zeros((len(documents), length), np.int32)
        for row, document in enumerate(documents):
            values = np.frombuffer(document.encode()[:length], np.uint8)
            tokens[row, : len(values)] = values.astype(np.int32) + 1
        return tokens

    return Tokens(257, f"{kind} {length}", "documents become tokens by bytes", encode)
