"""The sums of a batch before the noise, and private facts about the batch."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..gradients.clip import Rows
from ..gradients.jax_internals import varying_axes
from ..gradients.lazy import PerExampleGrads
from ._numbers import whole
from .clipping import Clipping

#: Norms are counted in bins whose edges grow by 2^(1/4); the first and last bins are open.
NORM_BIN_EDGES = np.exp2(np.arange(-80, 81) / 4).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Diagnostics:
    """Facts about a batch, without noise: private, for the owner of the data only."""

    count: jax.Array  # units (examples) without the padding
    loss_sum: jax.Array  # over the units with a finite gradient
    clipped: jax.Array  # units with a gradient above C, in some group
    nonfinite: jax.Array  # units whose gradient was not finite; they contribute zero
    norm_histogram: jax.Array  # [162] units per bin of gradient norm; edges: NORM_BIN_EDGES


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums:
    """The sums of a batch, or of a part of it, before the noise. Add the parts with `+`.

    Row i of `parts` is 1, the step and the clipping norms of part i, once part i is in the sums,
    and 0 before; it is NaN if padding came before records in this part. `release` asks for every
    part once, of its own step and norms: else the noise would not make the sum private.
    """

    gradient: Any  # pytree like the parameters, float32 or wider: the clipped sum, without noise
    counts: jax.Array  # [groups] units within C minus units above it, halved, without noise
    diagnostics: Diagnostics
    parts: jax.Array  # [parts, 2 + groups]
    clipping: Clipping = field(metadata=dict(static=True))
    # Mesh axes of which the devices have rows of their own, and are not added up yet.
    row_axes: frozenset = field(metadata=dict(static=True))

    def __add__(self, other: "Sums") -> "Sums":
        if not isinstance(other, Sums):
            raise TypeError(f"Sums can be added to Sums only, not to {type(other).__name__}")
        if self.clipping != other.clipping:
            raise ValueError(
                f"these sums were clipped by {self.clipping!r} and {other.clipping!r}: add sums of "
                "one clipping"
            )
        if self.parts.shape != other.parts.shape:
            raise ValueError(
                f"these are sums of {self.parts.shape[0]} and of {other.parts.shape[0]} parts: "
                "call sums(grads, state, part=(i, n)) with the same n for all parts of a batch"
            )
        if self.row_axes != other.row_axes:
            raise ValueError(
                f"these sums differ along the mesh axes {sorted(self.row_axes)} and "
                f"{sorted(other.row_axes)}: call privatizer.psum on both, or on their sum"
            )
        check_wide(self)
        check_wide(other)
        return jax.tree.map(jnp.add, self, other)

    def __radd__(self, other: object) -> "Sums":
        """Lets `sum([part, ...])` begin, at 0."""
        if isinstance(other, int) and other == 0:
            return self
        raise TypeError(f"Sums can be added to Sums only, not to {other!r}")


def check_wide(sums: Sums) -> None:
    """Refuses sums that were cast: the bound on rounding is for float32 (privacy rule 8)."""
    for leaf in jax.tree.leaves((sums.gradient, sums.counts, sums.parts)):
        if jnp.promote_types(leaf.dtype, jnp.float32) != leaf.dtype:
            raise ValueError(
                f"the sums have dtype {leaf.dtype}, which is too narrow to add them up: leave them "
                "as privatizer.sums made them, float32 or wider"
            )


class Strength(NamedTuple):
    """Norms of the clipped mean gradient and of its noise. Private: the first has no noise."""

    clipped_mean_norm: jax.Array  # norm of the clipped sum over the divisor, before the noise
    noise_norm: jax.Array  # root mean square norm of the noise on it


def diagnose(rows: Rows, within: jax.Array) -> Diagnostics:
    count = lambda which: jnp.sum(which, dtype=jnp.float32)
    norms = jnp.sqrt(rows.squared_norm).astype(jnp.float32)
    # Not `searchsorted`, which JAX can't partition.
    bins = jnp.sum(norms[:, None] > NORM_BIN_EDGES, axis=1)
    losses = jnp.where(rows.valid, rows.values, 0)
    return Diagnostics(
        count=count(rows.mask),
        loss_sum=jnp.sum(losses, dtype=jnp.float32),
        clipped=count(rows.valid & ~jnp.all(within, axis=0)),
        nonfinite=count(rows.mask & ~rows.finite),
        norm_histogram=jnp.zeros(len(NORM_BIN_EDGES) + 1, jnp.float32).at[bins].add(rows.valid),
    )


def stamp(
    grads: PerExampleGrads,
    step: jax.Array,
    clipping_norms: jax.Array,
    part: tuple[int | jax.Array, int],
) -> jax.Array:
    """What `Sums.parts` is for the sums of one part: `[n, 2 + groups]`."""
    mask = grads.record_mask
    if mask is None:
        raise ValueError(
            "the gradients were made without a mask, so padding rows would count as records: pass "
            "the mask of plan.batches(), grads(params, batch, mask), or mask=jaxdp.all_rows(B) for "
            "a batch without padding"
        )
    # NumPy, where the mask is known: inside jit, `jnp` would trace it.
    known: Any = mask if isinstance(mask, jax.core.Tracer) else np.asarray(mask)
    padding_last = (known[..., :-1] >= known[..., 1:]).all()
    if not isinstance(padding_last, jax.core.Tracer) and not padding_last:
        raise ValueError(
            "the mask is False for a row before one for which it is True. Padding comes last, as "
            "plan.batches() gives it: is the mask inverted, or of another batch?"
        )
    try:
        number, count = part
    except (TypeError, ValueError):
        raise TypeError(f"part is {part!r}: give (i, n) for part i of n") from None
    count = whole("the n of part=(i, n)", count, "the number of parts of a batch")
    if not jnp.issubdtype(jnp.result_type(number), jnp.integer):
        raise TypeError(f"part is {part!r}: i counts the parts, from 0 to n - 1")
    if not isinstance(number, jax.core.Tracer) and not 0 <= number < count:
        raise ValueError(f"part is {part!r}: i counts the parts, from 0 to n - 1")
    alone = varying_axes(number) - grads.row_axes
    if alone:
        raise ValueError(
            f"part differs along the mesh axes {sorted(alone)}, and not every array of the batch "
            "does: devices with the same rows would count them several times. Give every device "
            "its own rows (in_specs)"
        )
    row = jnp.where(padding_last, _row(step, clipping_norms), jnp.nan)
    return jnp.where((jnp.arange(count) == number)[:, None], row, 0)


def is_whole(sums: Sums, step: jax.Array, clipping_norms: jax.Array) -> jax.Array:
    """Whether every part of this step is in the sums once, padding last, clipped to these norms.

    Adding zeros is exact, in any order, so that the comparison is, too.
    """
    return jnp.all(sums.parts == _row(step, clipping_norms))


def _row(step: jax.Array, clipping_norms: jax.Array) -> jax.Array:
    exact = jnp.stack([jnp.int32(1), step & (2**24 - 1)])  # whole numbers that float32 holds
    return jnp.concatenate([exact.astype(jnp.float32), clipping_norms.astype(jnp.float32)])
