"""Per-example gradients of any JAX function at nearly the cost of plain ones.

The loss of one example is traced. Every parameter leaf with exactly one use for which there is a
rule (matrix product, convolution, look-up) gets a tap there, and one vmapped backward pass with
respect to the taps gives all cotangents. The gradients of such a leaf are then held as the factors
of a product. Every other leaf is differentiated per example, as by vmap(grad).

References:
  Bu et al. 2023, Differentially Private Optimization on Large Model at Small Cost (2210.00038).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .choice import Choice, choose
from .convolution import SUBSTITUTES, Conv
from .jax_internals import one_example, vary, varying_axes
from .lookup import Lookup, LookupShape
from .matmul import Matmul, MatmulShape, Norms
from .program import trace, with_taps
from .representations import Dense, Representation, Zero, accumulation_dtype
from .uses import Use


def factored_engine(
    loss_fn: Callable[..., jax.Array], params: Any, batch: tuple
) -> tuple[jax.Array, list[Representation]]:
    """Losses `[b]`, and every leaf's gradients, held as factors wherever there is a rule."""
    return _engine(loss_fn, params, batch, thrifty=False)


def auto_engine(
    loss_fn: Callable[..., jax.Array], params: Any, batch: tuple
) -> tuple[jax.Array, list[Representation]]:
    """Losses `[b]`, and every leaf's gradients, held in the form that its shapes make cheapest."""
    return _engine(loss_fn, params, batch, thrifty=True)


def _engine(
    loss_fn: Callable[..., jax.Array], params: Any, batch: tuple, thrifty: bool
) -> tuple[jax.Array, list[Representation]]:
    axes = varying_axes((params, batch))
    params = vary(params, axes)
    program = trace(loss_fn, params, one_example(batch))
    leaves = jax.tree.leaves(params)
    choices = choose(program, thrifty)
    size = jax.tree.leaves(batch)[0].shape[0]

    sites: dict[int, Any] = {}
    taps: dict[int, Any] = {}
    for choice in choices:
        if choice.shape is not None:
            _add_site(sites, taps, choice.use, axes)
    dense = [i for i, choice in enumerate(choices) if choice.form == "dense"]
    at_site = with_taps(SUBSTITUTES)

    def tapped(taps: Any, materialised: list[jax.Array], example: list[Any]) -> Any:
        inputs = list(leaves)
        for i, leaf in zip(dense, materialised, strict=True):
            inputs[i] = leaf
        (value, *_), recorded = program.replay([*inputs, *example], sites, taps, at_site)
        return value, (value, recorded)

    differentiate = jax.vmap(
        jax.grad(tapped, argnums=(0, 1), has_aux=True), in_axes=(None, None, 0)
    )
    (cotangents, gradients), (values, recorded) = differentiate(
        taps, [leaves[i] for i in dense], jax.tree.leaves(batch)
    )
    rows = dict(zip(dense, gradients, strict=True))
    representations = [
        _represent(choice, rows.get(i), leaves[i], size, sites, cotangents, recorded)
        for i, choice in enumerate(choices)
    ]
    return values, representations


def _add_site(sites: dict[int, Any], taps: dict[int, Any], use: Use, axes: frozenset) -> None:
    """Adds a use to the trees of sites and of zero taps."""
    *way, last = use.path
    for index in way:
        sites, taps = sites.setdefault(index, {}), taps.setdefault(index, {})
    loops = tuple(length for length, _ in use.view.loops)
    # Made to vary: a tap that the devices of a shard_map shared would add up their cotangents.
    taps[last] = vary(jnp.zeros(loops + use.result.shape, use.result.dtype), axes)
    sites[last] = (*sites.get(last, ()), _recorded_operand(use))


def _recorded_operand(use: Use) -> int:
    """The position of the operand that is not the leaf, of two."""
    return 1 - use.operand


def _represent(
    choice: Choice,
    gradients: jax.Array | None,
    leaf: jax.Array,
    size: int,
    sites: Any,
    cotangents: Any,
    recorded: Any,
) -> Representation:
    if choice.form == "zero":
        return Zero(size, leaf.shape, accumulation_dtype(leaf.dtype))
    if choice.form == "dense":
        assert gradients is not None
        return Dense(gradients)
    use = choice.use
    for index in use.path:
        sites, cotangents, recorded = sites[index], cotangents[index], recorded[index]
    operand = recorded[sites.index(_recorded_operand(use))]
    made = in_factors(choice, operand, cotangents)
    return Dense(made.materialize()) if choice.form == "product" else made


def in_factors(choice: Choice, operand: jax.Array, cotangents: jax.Array) -> Representation:
    """The gradients of a leaf whose form has a rule, from the two arrays that it reads."""
    if isinstance(choice.shape, LookupShape):
        return Lookup.make(operand, cotangents, choice.shape)
    norms: Norms = "gram" if choice.form == "gram" else "direct"
    if isinstance(choice.shape, MatmulShape):
        return Matmul.make(operand, cotangents, choice.shape, norms)
    assert choice.shape is not None
    return Conv.make(operand, cotangents, choice.shape, norms)
