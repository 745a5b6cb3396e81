"""Limits on memory as text."""

import pytest

from jaxdp.trainer.memory_limit import as_size, bytes_of


@pytest.mark.parametrize(
    ("limit", "count"),
    [
        (1, 1),
        (4_000_000_000, 4 * 10**9),
        ("4GB", 4 * 10**9),
        ("4 gb", 4 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5kB", 1500),
        ("1.5GiB", 3 * 2**29),
        ("2T", 2 * 10**12),
        ("12", 12),
        ("12B", 12),
    ],
)
def test_sizes_are_read(limit, count):
    assert bytes_of("memory_limit", limit) == count


@pytest.mark.parametrize(
    "limit", ["4 apples", "", "GB", "-4GB", "4GBs", "1e9", "inf", "0.5", 0, -1, 2.5, True]
)
def test_what_is_no_size_is_refused(limit):
    says = r"^memory_limit is .*: give a size, as 4GB or 500MB, or a whole number of bytes$"
    with pytest.raises(ValueError, match=says):
        bytes_of("memory_limit", limit)


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "1B"), (999, "999B"), (53_136, "53.2kB"), (2 * 10**6, "2MB"), (12_340_000_000, "12.4GB")],
)
def test_a_size_is_told_rounded_up(count, text):
    assert as_size(count) == text
    assert count <= bytes_of("memory_limit", text) < 1.1 * count + 1
