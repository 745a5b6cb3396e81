"""A limit on memory as users write it: 4GB, 500MB, or a number of bytes."""

import re

from ..datasets.config import require

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def bytes_of(option: str, limit: int | str) -> int:
    """The number of bytes. Units are decimal, and with an i binary: 1 GiB is 2^30 bytes.

    Args:
      option: as users write it, for the message.
      limit: what it is set to.

    Raises:
      ValueError: for a text that is no size, or one below a byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(I?))?B?", str(limit).upper())
    count = 0
    if match and type(limit) in (int, str):
        number, unit, binary = match.groups()
        count = int(float(number) * (BINARY_UNITS if binary else UNITS)[unit or ""])
    shown = repr(limit) if isinstance(limit, str) else limit
    require(count >= 1, option, shown, "a size, as 4GB or 500MB, or a whole number of bytes")
    return count


def as_size(count: int) -> str:
    """A number of bytes as text that `bytes_of` reads, rounded up to a tenth of its unit."""
    name, unit = max(
        ((name, unit) for name, unit in UNITS.items() if unit <= max(count, 1)),
        key=lambda pair: pair[1],
    )
    tenths = -(-count * 10 // unit)
    return f"{tenths / 10:.10g}{name.replace('K', 'k')}B"
