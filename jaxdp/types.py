"""The words that all parts of jaxdp share."""

from typing import Literal

Sampling = Literal["poisson", "shuffled", "fixed_size", "full_batch"]

Adjacency = Literal["add_remove", "replace_one", "zero_out"]

Unit = Literal["example", "batch"]

Accountant = Literal["pld", "rdp"]

Schedule = tuple[tuple[float, int], ...]
