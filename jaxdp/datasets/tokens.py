"""Turns documents into tokens, by a numbering that no document decides."""

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._distribution import missing
from ._files import why
from .sources import PADDING

WORD = re.compile(r"\w+|[^\w\s]")  # a word, a number, or one other sign
WORDS_HELD = 2**18  # words whose number is remembered


@dataclass(frozen=True)
class Tokens:
    """How documents become tokens.

    Attributes:
      vocabulary: tokens are 0 to vocabulary - 1. 0 is PADDING, and no other token.
      about: everything that decides the tokens of a document, as text.
      told: where the numbering comes from, in words for the privacy statement.
      encode: documents -> `int32 [n, length]`. Longer ones are cut, shorter ones are filled up with
        PADDING; an empty one is PADDING alone. It raises a ValueError, in one line, if the
        tokenizer can't number a document.
    """

    vocabulary: int
    about: str
    told: str
    encode: Callable[[Sequence[str]], np.ndarray]


def make_tokens(kind: str, vocabulary: int, length: int) -> Tokens:
    """Returns how documents become tokens.

    Args:
      kind: "bytes", "hash", or a file of the library tokenizers. See `DataConfig.tokens`.
      vocabulary: of "hash": how many tokens there are, with PADDING.
      length: tokens of a document.

    Raises:
      ValueError: in one line, if there is no such file, it holds no tokenizer, or the library is
        not installed.
    """
    if kind == "bytes":
        return _bytes(length)
    if kind == "hash":
        return _hashed(vocabulary, length)
    return _of_file(kind, length)


def _bytes(length: int) -> Tokens:
    def encode(documents: Sequence[str]) -> np.ndarray:
        cut = (document[:length].encode("utf-8", "replace")[:length] for document in documents)
        return _filled([np.frombuffer(row, np.uint8) for row in cut], length)

    return Tokens(
        vocabulary=257,
        about=f"bytes, {length}",
        told=f"documents are bytes of UTF-8, {_brought_to(length)}",
        encode=encode,
    )


def _hashed(vocabulary: int, length: int) -> Tokens:
    @functools.lru_cache(WORDS_HELD)
    def number(word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
        return int.from_bytes(digest, "little") % (vocabulary - 1)

    def encode(documents: Sequence[str]) -> np.ndarray:
        words = (WORD.finditer(document.lower()) for document in documents)
        cut = (itertools.islice(found, length) for found in words)
        return _filled([[number(match.group()) for match in found] for found in cut], length)

    return Tokens(
        vocabulary=vocabulary,
        about=f"hash, {vocabulary}, {length}",
        told=f"words are numbered by a fixed hash, and documents are {_brought_to(length)}",
        encode=encode,
    )


def _of_file(file: str, length: int) -> Tokens:
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ValueError(
            f"data.tokens is {file!r}, a file that can't be read ({why(error)}): give hash, "
            "bytes, or a file of the library tokenizers, as tokenizer.json"
        ) from None
    tokenizer = _opened(file, content)
    # What the file says about padding and cutting would depend on the other documents of a chunk.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 1 <= size < np.iinfo(np.int32).max:
        raise ValueError(
            f"{file} has {size} tokens: give a tokenizer that was trained, on public documents"
        )

    def encode(documents: Sequence[str]) -> np.ndarray:
        clean = [document.encode("utf-8", "replace").decode() for document in documents]
        try:
            rows = [found.ids[:length] for found in tokenizer.encode_batch(clean)]
        except Exception:  # the library has no type of its own; its message may hold a word
            raise ValueError(
                f"{file} can't number every document: give a tokenizer that has a token for "
                "unknown words"
            ) from None
        if max(map(max, filter(None, rows)), default=0) >= size:
            raise ValueError(
                f"{file} gives numbers beyond its {size} tokens: save the tokenizer anew, with its "
                "special tokens in its vocabulary"
            )
        return _filled(rows, length)

    return Tokens(
        vocabulary=size + 1,
        about=f"tokenizer {hashlib.sha256(content).hexdigest()}, {length}",
        told="documents are numbered by a tokenizer file that was declared public, and "
        + _brought_to(length),
        encode=encode,
    )


def _opened(file: str, content: bytes) -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise ValueError(missing(f"data.tokens = {file!r}", str(error.name), "text")) from None
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except Exception:  # the library has no type of its own
        raise ValueError(
            f"{file} is no tokenizer of the library tokenizers: give hash, bytes, or a file that "
            "its `save` has written, as tokenizer.json"
        ) from None


def _brought_to(length: int) -> str:
    return f"cut or filled up to {length} tokens"


def _filled(rows: Sequence[Sequence[int] | np.ndarray], length: int) -> np.ndarray:
    """Numbers from 0 on -> tokens `int32 [n, length]`."""
    tokens = np.full((len(rows), length), PADDING, np.int32)
    for row, numbers in zip(tokens, rows, strict=True):
        row[: len(numbers)] = numbers
        row[: len(numbers)] += 1
    return tokens
