"""Refuses losses whose examples could see each other."""

from collections.abc import Callable
from typing import Any

import jax
from jax._src import callback, custom_batching, debugging
from jax._src import core as jax_core
from jax._src.lax import parallel
from jax._src.state import primitives as state_primitives
from jax.extend.core import Primitive, jaxprs_in_params, mapped_aval
from jax.extend.core import primitives as p

from .jax_internals import line, open_jaxpr, vary, varying_axes


def check_uncoupled(loss_fn: Callable[..., Any], params: Any, batch: tuple) -> None:
    """Refuses a loss that can see more than its own example, in its value or in its gradient.

    Raises:
      ValueError: naming what couples the examples (DESIGN rule 19).
    """
    example = jax.tree.map(lambda leaf: mapped_aval(leaf.shape[0], 0, jax.typeof(leaf)), batch)
    params = vary(params, varying_axes((params, batch)))
    # The gradient's program too: the rules of a custom_vjp are not in the loss's own.
    closed = jax.make_jaxpr(jax.value_and_grad(loss_fn))(params, *example)
    refuse_coupling(open_jaxpr(closed)[0])


def _primitives(*modules: Any) -> set[Any]:
    return {v for module in modules for v in vars(module).values() if isinstance(v, Primitive)}


_COUPLING = {
    "it communicates across a mapped axis, so examples would see each other. Reduce outside the "
    "loss, after clipping": _primitives(parallel) - {p.axis_index_p, jax_core.pvary_p},
    "its batching rule is the user's own and may mix examples. Write the loss of one example "
    "without custom_vmap": {custom_batching.custom_vmap_p},
    "a callback sees several examples and leaves the program. Take it out of the loss": _primitives(
        callback, debugging
    ),
    "a Ref can carry values from one example to the next. Return values instead": _primitives(
        state_primitives
    )
    | {jax_core.ref_p},
}


def _reaches_out(eqn: Any) -> bool:
    """False for a collective over an axis of one example's own, which vmap has made positional."""
    return any(not isinstance(axis, int) for axis in eqn.params.get("axes", ("unknown",)))


def refuse_coupling(jaxpr: Any) -> None:
    for eqn in jaxpr.eqns:
        for reason, primitives in _COUPLING.items():
            if eqn.primitive in primitives and _reaches_out(eqn):
                raise ValueError(
                    f"the loss uses {eqn.primitive.name} ({line(eqn)}), which has no per-example "
                    f"gradient: {reason}"
                )
        for inner in jaxprs_in_params(eqn.params):
            refuse_coupling(open_jaxpr(inner)[0])
