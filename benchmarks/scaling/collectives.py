"""Finds what a compiled program sends between devices."""

import re
from typing import NamedTuple

import numpy as np

_KINDS = "all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute"


class Collective(NamedTuple):
    """An operation between devices.

    Attributes:
      kind: its name in HLO.
      numbers: how many each device has of the result.
      computation: the name of that in which it stands: ENTRY, or that of a loop or a branch.
    """

    kind: str
    numbers: int
    computation: str


def collectives(text: str) -> list[Collective]:
    """Returns the operations between devices in the text of a compiled program."""
    found = []
    for block in re.split(r"\n(?=%|ENTRY)", text):
        name = block.partition(" ")[0]
        for shapes, kind in re.findall(rf"= (.*?) ({_KINDS})(?:-start)?\(", block):
            numbers = sum(
                int(np.prod([int(n) for n in shape.split(",") if n]))
                for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)
            )
            found.append(Collective(kind, numbers, name))
    return found
