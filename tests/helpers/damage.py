"""Files cut, flipped and swapped at offsets of every kind."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FEW = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MANY = settings(FEW, max_examples=1000, derandomize=False)
examples = pytest.mark.parametrize(
    "examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
)

MARKS = b'\n {}[]",:=_+-.0123456789'


@st.composite
def damages(draw, whole):
    """Damaged bytes: a few changes of `whole`, at drawn offsets, at ends and at marks of a text."""
    data = bytes(whole)
    for _ in range(draw(st.integers(1, 3))):
        data = draw(st.sampled_from(CHANGES))(draw, data)
    return data


def _offset(draw, data):
    marks = [i for i, byte in enumerate(data[:100_000]) if byte in MARKS]
    anywhere = st.integers(0, len(data))
    ends = st.sampled_from([0, len(data), max(len(data) - 1, 0), len(data) // 2])
    return draw(st.one_of(anywhere, ends, st.sampled_from(marks)) if marks else anywhere | ends)


def _part(draw, data):
    start = _offset(draw, data)
    size = draw(st.sampled_from([1, 1, 2, 8, 64, 4096]))
    return start, min(start + size, len(data))


def cut(draw, data):
    return data[: _offset(draw, data)]


def behead(draw, data):
    return data[_offset(draw, data) :]


def flip(draw, data):
    if not data:
        return data
    place = min(_offset(draw, data), len(data) - 1)
    mask = draw(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 255]))
    return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


def remove(draw, data):
    start, stop = _part(draw, data)
    return data[:start] + data[stop:]


def repeat(draw, data):
    start, stop = _part(draw, data)
    return data[:stop] + data[start:]


def overwrite(draw, data):
    start, stop = _part(draw, data)
    byte = draw(st.sampled_from([0, 0x30, 0x39, 0x2D, 0xFF]))
    return data[:start] + bytes([byte]) * (stop - start) + data[stop:]


def swap(draw, data):
    (a, b), (c, d) = sorted([_part(draw, data), _part(draw, data)])
    if b > c:
        return data
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def swap_lines(draw, data):
    lines = data.split(b"\n")
    i, j = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
    lines[i], lines[j] = lines[j], lines[i]
    return b"\n".join(lines)


def drop_lines(draw, data):
    lines = data.split(b"\n")
    i = draw(st.integers(0, len(lines) - 1))
    return b"\n".join([*lines[:i], *lines[i + draw(st.integers(1, 3)) :]])


CHANGES = (cut, behead, flip, flip, remove, repeat, overwrite, swap, swap_lines, drop_lines)


def one_line(action, *args, secret=None):
    """What an action returns, or None where it refuses in one line; all else is raised.

    Args:
      action: a function.
      *args: of it.
      secret: what no message may show.
    """
    try:
        return action(*args)
    except ValueError as error:
        refused = error
    text = str(refused)
    assert type(refused) is ValueError, repr(refused)  # not that of a decoder, without a cure
    assert len(text.splitlines()) == 1, text
    assert len(text) > 20, text
    assert secret is None or secret not in text, text
    return None
