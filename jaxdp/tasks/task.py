from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Task:
    init: Any
    loss: Any
    scores: Any = None
    predict: Any = None
    unit_loss: Any = None
    statistics: Any = None
    name: str = "custom"


class WithStatistics(NamedTuple):
    params: Any
    statistics: Any


def inputs_of(record):
    return record[0] if isinstance(record, tuple) else record
