"""The sound combinations of sampling and adjacency, and a small mechanism of each."""

from jaxdp.accounting import Mechanism

SAMPLINGS = ("poisson", "shuffled", "fixed_size", "full_batch")
ADJACENCIES = ("add_remove", "replace_one", "zero_out")

# The accountants that are sound, the tightest first.
SOUND = {
    ("poisson", "add_remove"): ("pld", "rdp"),
    ("poisson", "zero_out"): ("pld", "rdp"),
    ("poisson", "replace_one"): ("pld",),
    ("shuffled", "replace_one"): ("pld", "rdp"),
    ("shuffled", "zero_out"): ("pld", "rdp"),
    ("full_batch", "add_remove"): ("pld", "rdp"),
    ("full_batch", "replace_one"): ("pld", "rdp"),
    ("full_batch", "zero_out"): ("pld", "rdp"),
    ("fixed_size", "replace_one"): ("rdp",),
}


def small_run(sampling, adjacency, unit="example", z=1.3, steps=20, q=0.01, n=1000):
    q = 1.0 if sampling == "full_batch" else q
    return Mechanism(z, steps, q, sampling, adjacency, unit, n)
