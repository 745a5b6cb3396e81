"""An imitation of how tensor cores add up the products of bfloat16 numbers."""

import numpy as np

BLOCK = 8


def accumulated(terms):
    """Adds up exact products along the last axis as tensor cores without spare bits would.

    Eight of them and the sum so far are cut below the 24th bit of the largest, added, and the
    result is cut to 24 bits. All hardware that is known keeps at least as much.
    """
    total = np.zeros(terms.shape[:-1])
    for start in range(0, terms.shape[-1], BLOCK):
        block = np.concatenate([terms[..., start : start + BLOCK], total[..., None]], axis=-1)
        _, exponents = np.frexp(np.max(np.abs(block), axis=-1))
        last = np.exp2(exponents - 24.0)
        added = np.sum(np.trunc(block / last[..., None]), axis=-1) * last
        _, exponents = np.frexp(added)
        last = np.exp2(exponents - 24.0)
        total = np.trunc(added / last) * last
    return total
