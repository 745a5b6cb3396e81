"""Options that make no sense are refused with their name, their value and a cure."""

import pytest

from jaxdp.datasets.config import require


def test_the_message_says_what_to_give():
    require(True, "training.momentum", 0.9, "a number in [0, 1)")
    with pytest.raises(ValueError, match=r"^training\.momentum is 2: give a number in \[0, 1\)$"):
        require(False, "training.momentum", 2, "a number in [0, 1)")
