"""The factored engine: per-example gradients of any JAX function at nearly the cost of plain ones.

The loss of one example is traced; every parameter leaf with exactly one use for which there is a
rule (matrix product, convolution, look-up) gets a tap there; one vmapped backward pass with respect
to the taps gives all cotangents. Such a leaf's gradients are then held by what they are a product
of. Every other leaf is differentiated per example as in the reference. Unknown means materialised.

References:
  Bu et al. 2023, Differentially Private Optimization on Large Model at Small Cost (2210.00038).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from .convolution import SUBSTITUTES, Conv, ConvShape, conv_shape
from .jax_internals import vary, varying_axes
from .lookup import Lookup, LookupShape, lookup_shape
from .matmul import Matmul, MatmulShape, Norms, matmul_shape
from .program import Program, one_example, trace
from .representations import Dense, Representation
from .uses import Path, Use

Form = Literal["gram", "direct", "product", "embedding", "dense", "zero"]

Shape = MatmulShape | ConvShape | LookupShape


@dataclass(frozen=True)
class Choice:
    """How the gradients of one leaf are to be held, and why."""

    form: Form
    reason: str
    use: Use | None = None
    shape: Shape | None = None
    path: Path | None = None


def factored_engine(
    loss_fn: Callable[..., jax.Array], params: Any, batch: tuple
) -> tuple[jax.Array, list[Representation]]:
    """Holds every leaf in factors that can be."""
    return _engine(loss_fn, params, batch, thrifty=False)


def auto_engine(
    loss_fn: Callable[..., jax.Array], params: Any, batch: tuple
) -> tuple[jax.Array, list[Representation]]:
    """Holds every leaf as is cheapest, judged by its shapes."""
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
            assert choice.use is not None
            _add_site(sites, taps, choice.use, axes)
    dense = [i for i, choice in enumerate(choices) if choice.form == "dense"]

    def tapped(taps: Any, materialised: list[jax.Array], example: list[Any]) -> Any:
        inputs = list(leaves)
        for i, leaf in zip(dense, materialised, strict=True):
            inputs[i] = leaf
        (value, *_), recorded = program.replay([*inputs, *example], sites, taps, SUBSTITUTES)
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


def choose(program: Program, thrifty: bool) -> list[Choice]:
    """Picks a form for every leaf's gradients."""
    return [_choose(uses, thrifty) for uses in program.uses]


def _choose(uses: list[Use], thrifty: bool) -> Choice:
    if not uses:
        return Choice("zero", "the loss does not use it")
    if len(uses) > 1:
        return Choice("dense", "used " + " and ".join(sorted(use.what for use in uses)))
    (use,) = uses
    if (lookup := lookup_shape(use)) is not None:
        return Choice("embedding", "look-up", use, lookup)
    shape = matmul_shape(use) or conv_shape(use)
    if shape is None:
        return Choice("dense", f"no rule for {use.what}", use)
    form, reason = _cheapest(shape, thrifty)
    return Choice(form, reason, use, shape)


# Writing a number of a stored product and reading it twice costs about as much time as this many
# floating point operations of a matrix product. Measured on CPUs; the choice is not sensitive.
OPERATIONS_PER_NUMBER = 100


def _cheapest(shape: MatmulShape | ConvShape, thrifty: bool) -> tuple[Form, str]:
    _, t, d, p = shape.sizes
    if t == 1:
        return "gram", "one position: norms are products of norms"
    gram, direct = 2 * t * t * (d + p), 2 * t * d * p
    stored = OPERATIONS_PER_NUMBER * d * p
    if thrifty and d * p <= t * (d + p) and stored < gram:
        return "product", "smaller than its factors"
    if gram <= direct:
        return "gram", "few positions"
    return "direct", "many positions"


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
        return Zero(size, leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))
    if choice.form == "dense":
        assert gradients is not None
        return Dense(gradients)
    use = choice.use
    assert use is not None
    for index in use.path:
        sites, cotangents, recorded = sites[index], cotangents[index], recorded[index]
    operand = recorded[sites.index(_recorded_operand(use))]
    if isinstance(choice.shape, LookupShape):
        return Lookup.make(operand, cotangents, choice.shape)
    norms: Norms = "gram" if choice.form == "gram" else "direct"
    made: Matmul | Conv
    if isinstance(choice.shape, MatmulShape):
        made = Matmul.make(operand, cotangents, choice.shape, norms)
    else:
        assert choice.shape is not None
        made = Conv.make(operand, cotangents, choice.shape, norms)
    return Dense(made.materialize()) if choice.form == "product" else made


@dataclass(frozen=True)
class Zero:
    """The gradients of a leaf that the loss does not use."""

    size: int
    shape: tuple[int, ...]
    dtype: jnp.dtype

    def squared_norms(self) -> jax.Array:
        return jnp.zeros(self.size, self.dtype)

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        return jnp.zeros(self.shape, self.dtype)

    def keep(self, valid: jax.Array) -> "Zero":
        return self

    def materialize(self) -> jax.Array:
        return jnp.zeros((self.size, *self.shape), self.dtype)
