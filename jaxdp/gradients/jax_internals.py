"""Everything that JAX does not export: the one module to change when JAX moves.

Written against the parts of jaxprs that JAX 0.10 and the newest JAX share.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax._src import core as jax_core
from jax._src import source_info_util
from jax._src.interpreters.batching import BatchTrace


def is_traced() -> bool:
    """Whether this code runs under jit, vmap or another transformation."""
    return not jax_core.trace_state_clean()


def is_vmapped() -> bool:
    """Whether the innermost transformation around this code is vmap."""
    return isinstance(jax_core.trace_ctx.trace, BatchTrace)


def varying_axes(tree: Any) -> frozenset:
    """The mesh axes of a surrounding `shard_map` along which any of the arrays differs."""
    axes: set = set()
    for leaf in jax.tree.leaves(tree):
        aval = jax.typeof(leaf)
        manual = getattr(aval, "manual_axis_type", None)
        axes |= set(getattr(manual, "varying", None) or getattr(aval, "vma", None) or ())
    return frozenset(axes)


def vary(tree: Any, axes: frozenset) -> Any:
    """Marks arrays as differing along mesh axes.

    Inside `shard_map`, the gradient with respect to an array that all devices share is summed over
    the devices at once: for per-example gradients that would mix examples before they are clipped.
    """

    def one(leaf: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - varying_axes(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(one, tree) if axes else tree


def line(eqn: Any) -> str:
    return source_info_util.summarize(eqn.source_info)


def scan_counts(eqn: Any) -> tuple[int, int]:
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # JAX 0.11 and newer
    return len(consts), len(carry)


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and the values of its constants; newer JAX keeps them in one object."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def bind(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return results if eqn.primitive.multiple_results else [results]
