"""Stub."""

from typing import Any


def open_table(config: Any, tell: Any) -> Any:
    raise NotImplementedError
