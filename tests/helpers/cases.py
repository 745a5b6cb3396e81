"""Cases of a parametrized test."""

import pytest


def slow(*values):
    """A case that takes long, and that others nearly cover."""
    return pytest.param(*values, marks=pytest.mark.slow)
