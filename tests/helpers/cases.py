"""Cases of a parametrized test."""

import pytest


def slow(*values):
    """A case that takes long, and that others nearly cover."""
    return pytest.param(*values, marks=pytest.mark.slow)


def some(cases, quick):
    """The cases, each of several values, of which all that are not in `quick` are slow."""
    return [case if case in quick else slow(*case) for case in cases]
