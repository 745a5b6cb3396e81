"""Refuses losses whose examples could see each other (privacy rule 19)."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ._cures import KEYS_BY_RECORD
from ._shared_draws import shared_draw
from .isolation import has_convolution
from .jax_internals import (
    CALLBACKS,
    COLLECTIVES,
    CUSTOM_VMAP,
    FOREIGN,
    REFS,
    RNG_OF_BACKENDS,
    foreign_key,
    live_equations,
    one_example,
    open_jaxpr,
    own_vmap_rule,
    source_line,
    vary,
    varying_axes,
)

_COUPLING = {
    "it communicates across a mapped axis, so examples would see each other. Reduce outside the "
    "loss, after clipping": COLLECTIVES,
    "its batching rule is the user's own and may mix examples. Write the loss of one example "
    "without custom_vmap": CUSTOM_VMAP,
    "a callback sees several examples, and what it returns may mix them. Take it out of the loss, "
    "or let it return nothing. Where it checks for errors (equinox.error_if, diffrax), set the "
    "environment variable EQX_ON_ERROR=off before Equinox is imported": CALLBACKS,
    "under vmap one draw serves all examples, by the key of the first of them. Use keys of JAX's "
    "default kind (threefry2x32)": RNG_OF_BACKENDS,
    "foreign code sees several examples, and may mix them. Take it out of the loss": FOREIGN,
    "a Ref can carry values from one example to the next. Return values instead": REFS,
}

# Its primitives compute with JAX alone, so that without vmap an example is on its own. (noinline
# calls back to the host.)
_ALONE = "equinox"
_NEVER = "noinline"


class Seen(NamedTuple):
    """What a loss does that must not be under any `vmap`, or under some.

    Attributes:
      never_vmap: whether it has code that may mix examples under `vmap`.
      convolves: whether its gradient has a convolution.
    """

    never_vmap: bool
    convolves: bool

    def guarded(self, tree: Any) -> Any:
        """Returns the tree; refuses a `vmap` outside of the whole step: of an ensemble, say."""
        if self.never_vmap:
            return _never_vmapped(
                tree, "uses code that is not JAX's own, and that may mix examples"
            )
        if self.convolves and jax.default_backend() == "cpu":
            return _never_vmapped(
                tree,
                "has convolutions: on CPUs, XLA may compute those of all members as one, with "
                "zeros between them, so that a record that is not finite in one member makes "
                "others so",
            )
        return tree


def _never_vmapped(tree: Any, reason: str) -> Any:
    @jax.custom_batching.custom_vmap
    def same(tree: Any) -> Any:
        return tree

    @same.def_vmap
    def _(axis_size: int, in_batched: Any, tree: Any) -> Any:
        raise ValueError(
            f"a step is vmapped {axis_size} times whose loss {reason}. Use jax.lax.map in place of "
            "jax.vmap"
        )

    return same(tree)


def check_uncoupled(loss_fn: Callable[..., Any], params: Any, batch: tuple, *, alone: bool) -> Seen:
    """Refuses a loss that can see more than its own example, as `refuse_coupling` does.

    `batch` is the loss's other arguments, with an axis of examples.
    """
    params = vary(params, varying_axes((params, batch)))
    return refuse_coupling(loss_fn, params, one_example(batch), alone=alone)


def refuse_coupling(
    loss_fn: Callable[..., Any], params: Any, example: tuple, *, alone: bool
) -> Seen:
    """Refuses a loss that can see more than its own example, in its value or in its gradient.

    Args:
      loss_fn: the loss.
      params: pytree of parameters, or their shapes.
      example: the loss's other arguments, or their shapes.
      alone: whether the loss is differentiated without `vmap`, one example at a time.

    Raises:
      ValueError: names the operation that couples the examples, and its line.
    """
    # The gradient's program too: the rules of a custom_vjp are not in the loss's own.
    closed = jax.make_jaxpr(jax.value_and_grad(loss_fn))(params, *example)
    needs_alone = False
    for eqn in live_equations(closed)[0]:
        needs_alone |= _refuse(eqn, alone)
    _warn_of_shared_draws(closed, len(jax.tree.leaves(params)))
    return Seen(needs_alone, has_convolution(closed))


def _warn_of_shared_draws(closed: Any, num_params: int) -> None:
    line = shared_draw(open_jaxpr(closed)[0], num_params)
    if line is not None:
        where = f" ({line})" if line else ""
        warnings.warn(
            f"the loss draws random numbers{where} that do not depend on the example: all examples "
            "of a batch get the same ones, such as one dropout mask (Flax's nnx.merge(..., "
            f"copy=True) does that). {KEYS_BY_RECORD}. If it is meant, draw outside the loss",
            stacklevel=5,
        )


def _refuse(eqn: Any, alone: bool) -> bool:
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
    module = own_vmap_rule(eqn.primitive)
    if module:
        _refuse_foreign(eqn, module.split(".")[0], alone)
    return bool(module)


def _refuse_foreign(eqn: Any, package: str, alone: bool) -> None:
    may_be_alone = package == _ALONE and eqn.primitive.name != _NEVER
    if alone and may_be_alone:
        return
    cure = "Take it out of the loss"
    if may_be_alone:
        cure = (
            "Take one example at a time, without vmap: per_example_grads(loss, microbatch_size=1). "
            "Or, if it only checks for errors (equinox.error_if), set the environment variable "
            "EQX_ON_ERROR=off before Equinox is imported"
        )
    raise ValueError(
        f"the loss uses {eqn.primitive.name}{_line(eqn)}, which has no per-example gradient: under "
        f"vmap it is {package}'s own code, which may mix examples. {cure}"
    )


def _line(eqn: Any) -> str:
    line = source_line(eqn)
    return f" ({line})" if line else ""


def _reaches_out(eqn: Any) -> bool:
    """False for what brings nothing from one example to another.

    That is a collective over an axis inside one example, since vmap has made such axes numbers; and
    a callback that returns nothing to the program.
    """
    if eqn.primitive in CALLBACKS:
        return bool(eqn.outvars)
    return any(not isinstance(axis, int) for axis in eqn.params.get("axes", ("unknown",)))
