"""Refuses losses whose examples could see each other (privacy rule 19)."""

import warnings
from collections.abc import Callable
from typing import Any

import jax

from ._cures import KEYS_BY_RECORD
from ._shared_draws import shared_draw
from .jax_internals import (
    CALLBACKS,
    COLLECTIVES,
    CUSTOM_VMAP,
    FOREIGN,
    REFS,
    RNG_OF_BACKENDS,
    foreign_key,
    jaxprs_in_params,
    one_example,
    open_jaxpr,
    source_line,
    vary,
    varying_axes,
)

_COUPLING = {
    "it communicates across a mapped axis, so examples would see each other. Reduce outside the "
    "loss, after clipping": COLLECTIVES,
    "its batching rule is the user's own and may mix examples. Write the loss of one example "
    "without custom_vmap": CUSTOM_VMAP,
    "a callback sees several examples and leaves the program. Take it out of the loss": CALLBACKS,
    "under vmap one draw serves all examples, by the key of the first of them. Use keys of JAX's "
    "default kind (threefry2x32)": RNG_OF_BACKENDS,
    "foreign code sees several examples, and may mix them. Take it out of the loss": FOREIGN,
    "a Ref can carry values from one example to the next. Return values instead": REFS,
}


def check_uncoupled(loss_fn: Callable[..., Any], params: Any, batch: tuple) -> None:
    """Refuses a loss that can see more than its own example, in its value or in its gradient.

    Raises:
      ValueError: names the operation that couples the examples, and its line.
    """
    params = vary(params, varying_axes((params, batch)))
    # The gradient's program too: the rules of a custom_vjp are not in the loss's own.
    closed = jax.make_jaxpr(jax.value_and_grad(loss_fn))(params, *one_example(batch))
    jaxpr = open_jaxpr(closed)[0]
    refuse_coupling(jaxpr)
    line = shared_draw(jaxpr, len(jax.tree.leaves(params)))
    if line is not None:
        where = f" ({line})" if line else ""
        warnings.warn(
            f"the loss draws random numbers{where} that do not depend on the example: all examples "
            "of a batch get the same ones, such as one dropout mask (Flax's nnx.merge(..., "
            f"copy=True) does that). {KEYS_BY_RECORD}. If it is meant, draw outside the loss",
            stacklevel=3,
        )


def refuse_coupling(jaxpr: Any) -> None:
    """Raises a ValueError if any equation of a jaxpr, however deep inside, couples examples."""
    for eqn in jaxpr.eqns:
        for reason, primitives in _COUPLING.items():
            if eqn.primitive in primitives and _reaches_out(eqn):
                raise ValueError(
                    f"the loss uses {eqn.primitive.name}{_line(eqn)}, which has no per-example "
                    f"gradient: {reason}"
                )
        if (kind := foreign_key(eqn)) is not None:
            raise ValueError(
                f"the loss draws random numbers from a key of kind {kind}{_line(eqn)}: "
                "under vmap one draw serves all examples, by the key of the first of them, so that "
                "examples see each other. Derive JAX's own kind of key from it: "
                'jaxdp.dpsgd.jax_key(key, "dropout", step)'
            )
        for inner in jaxprs_in_params(eqn.params):
            refuse_coupling(open_jaxpr(inner)[0])


def _line(eqn: Any) -> str:
    line = source_line(eqn)
    return f" ({line})" if line else ""


def _reaches_out(eqn: Any) -> bool:
    """False for a collective over an axis inside one example: vmap has made such axes numbers."""
    return any(not isinstance(axis, int) for axis in eqn.params.get("axes", ("unknown",)))
