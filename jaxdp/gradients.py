"""Per-example gradients as a lazy value: computed inside the step, never promised as arrays."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NoReturn, TypeVar

import jax
import jax.numpy as jnp

from .accounting import Unit
from .factored import auto_engine, factored_engine
from .representations import Dense, Representation
from .tracing import check_uncoupled, vary, varying_axes

PyTree = Any
Carry = TypeVar("Carry")
Engine = Callable[[Callable[..., jax.Array], PyTree, tuple], tuple[jax.Array, list[Representation]]]
Method = Literal["auto", "factored", "vmap"]


def per_example_grads(
    loss_fn: Callable[..., jax.Array],
    *,
    method: Method = "auto",
    unit: Unit = "example",
    microbatch_size: int | None = None,
) -> Callable[..., "PerExampleGrads"]:
    """Turns the loss of one example into the lazy gradients of a batch.

    Args:
      loss_fn: `loss_fn(params, *example) -> scalar`, the loss of a *single* example, without a
        batch axis (layers that want one get `x[None]`). Only `params` is differentiated. Randomness
        (dropout) comes in as a per-example key in the batch.
        With unit="batch", `loss_fn(params, *records, mask) -> scalar`, the *mean* loss of a whole
        unit: records have a leading axis, and only those where `mask` is True count.
      method: "vmap" differentiates every example on its own; "factored" holds the gradients by
        what they are products of, where it has a rule; "auto" picks the cheaper leaf by leaf.
      unit: "example", or "batch" for losses that couple the records of a unit (`clip_batch`).
      microbatch_size: how many examples (or units) are differentiated at a time. It bounds the
        memory and changes nothing else. None takes the whole batch at once. A unit is never split:
        one takes the memory of plain training on its records (`mean_loss` needs less).

    Returns:
      A function `(params, batch, mask=None) -> PerExampleGrads`. `batch` is the tuple of the
      loss's arguments after `params`, every leaf with a leading axis of length B; `mask [B] bool`
      is False for padding rows, which contribute exactly zero, whatever they hold. With
      unit="batch" the leaves are `[m, capacity, ...]` and the mask `[m, capacity]`: the loss sees
      zeros in place of masked records, and a unit without any record contributes zero.

    Raises:
      ValueError, TypeError: for what is no loss, no batch or no parameters, when called.

    Example:
      >>> loss = lambda params, x, y: (params @ x - y) ** 2
      >>> grads = per_example_grads(loss)(jnp.ones(3), (jnp.ones((5, 3)), jnp.zeros(5)))
      >>> grads.materialize().shape
      (5, 3)
    """
    if method not in ENGINES:
        raise ValueError(f"method is {method!r}: choose one of {', '.join(map(repr, ENGINES))}")
    if unit not in ("example", "batch"):
        raise ValueError(f"unit is {unit!r}: give 'example' or 'batch'")
    _check_microbatch_size(microbatch_size)
    engine = ENGINES[method]

    def transform(params: PyTree, batch: tuple, mask: jax.Array | None = None) -> "PerExampleGrads":
        _check_params(params)
        if not isinstance(batch, tuple | list):
            raise TypeError(
                f"batch is a {type(batch).__name__}: pass the tuple of the loss's arguments after "
                "params, e.g. (x, y), or (x,) for one"
            )
        batch, size = tuple(batch), _batch_size(batch)
        if unit == "batch":
            batch, mask = _unit_rows(batch, mask)
        mask = _check_mask(mask, size)
        _check_loss(loss_fn, params, batch)
        check_uncoupled(loss_fn, params, batch)

        def compute(rows: tuple) -> tuple[jax.Array, list[Representation]]:
            # The gradient of one row is its weighted sum but for a factor: nothing to save.
            alone = method == "auto" and jax.tree.leaves(rows)[0].shape[0] == 1
            return (_single_engine if alone else engine)(loss_fn, params, rows)

        return PerExampleGrads(compute, batch, mask, params, microbatch_size, unit)

    return transform


def from_dense(
    grads: PyTree,
    mask: jax.Array | None = None,
    *,
    unit: Unit = "example",
    microbatch_size: int | None = None,
) -> "PerExampleGrads":
    """Takes per-example gradients that were computed elsewhere, as a user's own `vmap(grad)`.

    Args:
      grads: pytree like the parameters, every leaf `[B, ...]`: row i must depend on example i only.
      mask: `[B] bool`, False for padding rows.
      unit: "batch" if a row is the gradient of a batch unit's mean loss.
      microbatch_size: as in `per_example_grads`.
    """
    _check_microbatch_size(microbatch_size)
    _check_params(grads)
    size = _batch_size(grads)
    like = jax.tree.map(lambda g: jax.ShapeDtypeStruct(g.shape[1:], g.dtype), grads)

    def compute(rows: PyTree) -> tuple[jax.Array, list[Representation]]:
        leaves = jax.tree.leaves(rows)
        unknown_loss = jnp.full(leaves[0].shape[:1], jnp.nan, jnp.float32)
        return unknown_loss, [Dense(leaf) for leaf in leaves]

    return PerExampleGrads(compute, grads, _check_mask(mask, size), like, microbatch_size, unit)


class Microbatch:
    """The gradients of the b rows (examples, or batch units) that are differentiated at a time."""

    def __init__(
        self, values: jax.Array, leaves: Sequence[Representation], mask: jax.Array | None
    ) -> None:
        self.values = values  # [b] losses
        self.leaves = leaves
        self._mask = mask

    @cached_property
    def mask(self) -> jax.Array:
        """`[b] bool`: the rows that are no padding."""
        return jnp.ones(self.values.shape, bool) if self._mask is None else self._mask

    @cached_property
    def squared_norms(self) -> list[jax.Array]:
        """For every leaf the squared norms `[b]`, as upper bounds, float32 or wider."""
        return [leaf.squared_norms() for leaf in self.leaves]

    @cached_property
    def finite(self) -> jax.Array:
        """`[b] bool`: rows whose squared norm is finite (in float32: norms below 1.8e19)."""
        return jnp.isfinite(sum(self.squared_norms))

    @cached_property
    def valid(self) -> jax.Array:
        """`[b] bool`: the rows that contribute. A masked or non-finite row contributes zero."""
        return self.mask & self.finite

    def weighted_sum(self, coefficients: Sequence[jax.Array]) -> list[jax.Array]:
        """Σ_b c_b·g_b for every leaf, given its coefficients `[b]`; invalid rows count as zero."""
        weights = [jnp.where(self.valid, c, 0) for c in coefficients]

        all_finite = jnp.all(self.finite)

        def total(leaf: Representation, weights: jax.Array) -> jax.Array:
            # 0·inf is NaN, so invalid rows are zeroed themselves, but only where there are such;
            # leaf by leaf, so that at most one leaf is there twice. (A sum outside of the cond is
            # no faster on CPUs, and takes up to twice the memory.)
            return jax.lax.cond(
                all_finite,
                lambda: leaf.weighted_sum(weights),
                lambda: leaf.keep(self.valid).weighted_sum(weights),
            )

        return [total(leaf, w) for leaf, w in zip(self.leaves, weights, strict=True)]


_NO_ARRAY = (
    "PerExampleGrads are un-noised gradients of single examples, held lazily: they are no array "
    "and no pytree, so they can't be rescaled, mixed, or passed into or out of jit. Put "
    "jaxdp.privatize(plan) (or a jaxdp clipping) first in the optax.chain and other "
    "transformations after it; call .materialize() to look at the gradients themselves"
)


class PerExampleGrads:
    """The gradients of B examples, held as a computation. Make and use it inside one `jit`.

    It is no pytree on purpose: a transformation that would mix or rescale examples before they
    are clipped (and so break the privacy of the result) fails with an error instead.
    """

    def __init__(
        self,
        compute: Callable[[PyTree], tuple[jax.Array, list[Representation]]],
        batch: PyTree,
        mask: jax.Array | None,
        like: PyTree,
        microbatch_size: int | None,
        unit: Unit,
    ) -> None:
        self.unit = unit
        self._compute = compute
        self._batch = batch
        self._mask = mask
        self._like = like
        self._size = jax.tree.leaves(batch)[0].shape[0]
        self._microbatch_size = min(microbatch_size or self._size, self._size)

    @property
    def like(self) -> PyTree:
        """A pytree of the parameters' shapes and dtypes: what a sum of these gradients is like."""
        return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), self._like)

    def fold(self, body: Callable[[Carry, Microbatch], Carry], init: Carry) -> Carry:
        """Folds `body(carry, microbatch) -> carry` over the physical microbatches.

        Microbatches of trailing padding rows are skipped, by a trip count that is data: batches of
        uneven size share one compiled step.
        """
        m = self._microbatch_size
        if m >= self._size:
            return body(init, self._differentiate(self._batch, self._mask))
        batch, mask = self._padded()
        last_row = jnp.max(jnp.where(mask, jnp.arange(1, mask.size + 1), 0))

        def step(k: jax.Array, carry: Carry) -> Carry:
            rows, rows_mask = jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, k * m, m), (batch, mask)
            )
            return body(carry, self._differentiate(rows, rows_mask))

        # Each device of a shard_map folds its own rows.
        init = vary(init, varying_axes((batch, mask)))
        return jax.lax.fori_loop(0, (last_row + m - 1) // m, step, init)

    def sum(self, part: Callable[[Microbatch], Carry], like: Any) -> Carry:
        """Adds up `part(microbatch)`, a pytree of floating arrays like `like`, over all of them.

        With compensation: one number more or less would else change the rounding of every later
        addition, and together these can move a float32 sum by more than any one example may.
        """
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        if self._microbatch_size >= self._size:
            return self.fold(lambda _, microbatch: part(microbatch), zeros)

        def add(carry: tuple, microbatch: Microbatch) -> tuple:
            total, lost = carry
            terms = part(microbatch)
            new = jax.tree.map(jnp.add, total, terms)
            error = jax.tree.map(_rounding_error, total, terms, new)
            return new, jax.tree.map(jnp.add, lost, error)

        return jax.tree.map(jnp.add, *self.fold(add, (zeros, zeros)))

    def squared_norms(self) -> PyTree:
        """Squared norms per leaf and example: a pytree like the parameters of `[B]` arrays."""
        return self._rows(lambda rows: rows.squared_norms)

    def materialize(self) -> PyTree:
        """The gradients as arrays `[B, ...]`, invalid rows zero. Takes the memory that it takes."""
        return self._rows(
            lambda rows: [leaf.keep(rows.valid).materialize() for leaf in rows.leaves]
        )

    def _rows(self, look: Callable[[Microbatch], list[jax.Array]]) -> PyTree:
        m, structure = self._microbatch_size, jax.tree.structure(self._like)
        if m >= self._size:
            return jax.tree.unflatten(structure, look(self._differentiate(self._batch, self._mask)))
        split = lambda leaf: leaf.reshape(-1, m, *leaf.shape[1:])
        leaves = jax.lax.map(
            lambda rows: look(self._differentiate(*rows)), jax.tree.map(split, self._padded())
        )
        joined = [leaf.reshape(-1, *leaf.shape[2:])[: self._size] for leaf in leaves]
        return jax.tree.unflatten(structure, joined)

    def _padded(self) -> tuple[PyTree, jax.Array]:
        """Batch and mask, padded to whole microbatches."""
        extra = -self._size % self._microbatch_size
        mask = jnp.ones(self._size, bool) if self._mask is None else self._mask
        # Padding repeats the last row rather than inventing one: a key of zeros may be no key.
        pad = lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], extra, axis=0)])
        batch = jax.tree.map(pad, self._batch) if extra else self._batch
        return batch, jnp.pad(mask, (0, extra))

    def _differentiate(self, rows: PyTree, mask: jax.Array | None) -> Microbatch:
        values, leaves = self._compute(rows)
        return Microbatch(values, leaves, mask)

    def __repr__(self) -> str:
        return f"PerExampleGrads({self._size} rows, microbatches of {self._microbatch_size})"

    def __getattr__(self, name: str) -> NoReturn:
        # Transformations that look at an array's shape or dtype get the reason too.
        raise AttributeError(f"no attribute {name!r}. {_NO_ARRAY}")

    def _refuse(self, *_: object) -> NoReturn:
        raise ValueError(_NO_ARRAY)

    # JAX asks for `__jax_array__` wherever it takes or returns a value (and swallows a TypeError).
    __jax_array__ = property(_refuse)
    __array__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __neg__ = __pow__ = __abs__ = __getitem__ = __iter__ = _refuse


def _rounding_error(a: jax.Array, b: jax.Array, total: jax.Array) -> jax.Array:
    """a + b - total exactly, where total is a + b rounded (Knuth's TwoSum)."""
    b_kept = total - a
    return (a - (total - b_kept)) + (b - b_kept)


def _vmap_engine(
    loss_fn: Callable[..., jax.Array], params: PyTree, rows: tuple
) -> tuple[jax.Array, list[Representation]]:
    """The reference: differentiate every example on its own."""
    in_axes = (None, *[0] * len(rows))
    # Inside shard_map, the gradients of shared parameters would be summed over the devices at once.
    params = vary(params, varying_axes((params, rows)))
    values, grads = jax.vmap(jax.value_and_grad(loss_fn), in_axes)(params, *rows)
    return values, [Dense(g) for g in jax.tree.leaves(grads)]


def _single_engine(
    loss_fn: Callable[..., jax.Array], params: PyTree, rows: tuple
) -> tuple[jax.Array, list[Representation]]:
    """Differentiates one row, a whole unit say, without a batch axis that XLA would move about."""
    params = vary(params, varying_axes((params, rows)))
    row = jax.tree.map(lambda leaf: leaf[0], rows)
    value, grads = jax.value_and_grad(loss_fn)(params, *row)
    return value[None], [Dense(g[None]) for g in jax.tree.leaves(grads)]


ENGINES: dict[str, Engine] = {
    "auto": auto_engine,
    "factored": factored_engine,
    "vmap": _vmap_engine,
}


def _check_microbatch_size(size: int | None) -> None:
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(
            f"microbatch_size is {size!r}: it counts examples, so give a whole number of at least "
            "1, or None for the whole batch at once"
        )


def _check_params(params: PyTree) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"params is {params!r}, which has no arrays: there is nothing to train")
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path) or "params"
        if not hasattr(leaf, "dtype"):
            raise TypeError(f"parameter {name} is {leaf!r}: pass JAX arrays")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"parameter {name} has dtype {leaf.dtype}, which has no gradient here: pass real "
                "floating parameters only, and close over everything else"
            )
        if leaf.size == 0:
            raise ValueError(f"parameter {name} has shape {leaf.shape}: it holds no numbers")
    if isinstance(params, Mapping) and "batch_stats" in params:
        layers = jax.tree_util.tree_leaves_with_path(params["batch_stats"])
        where = jax.tree_util.keystr(layers[0][0][:-1]) if layers else "batch_stats"
        raise ValueError(
            f"the model has BatchNorm (layer {where}), whose batch_stats are in params: it mixes "
            "the examples of a batch, so no gradient belongs to one example. Use GroupNorm or "
            "LayerNorm; or clip batch units, with jaxdp.batchnorm.unit_loss and params alone"
        )


def _batch_size(batch: PyTree) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError("batch has no arrays: pass the loss's arguments after params, e.g. (x, y)")
    sizes = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        if not hasattr(leaf, "shape") or leaf.shape == ():
            raise ValueError(
                f"batch{name} is {leaf!r}, without a leading axis of examples: close over what all "
                "examples share"
            )
        sizes[name] = leaf.shape[0]
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"batch{name} has {size}" for name, size in sizes.items())
        raise ValueError(f"the batch's leaves disagree in their number of examples: {told}")
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError(
            "the batch has 0 rows. An empty Poisson sample is a step too: pass one padding row "
            "with mask=[False] (plan.batches() does)"
        )
    return size


def _unit_rows(batch: tuple, mask: jax.Array | None) -> tuple[tuple, jax.Array]:
    """Arguments of a unit's loss, with masked records zeroed, and which units have any record."""
    shapes = {leaf.shape[:2] for leaf in jax.tree.leaves(batch)}
    if len(shapes) > 1 or len(next(iter(shapes))) < 2:
        raise ValueError(
            f'the batch\'s leaves begin with the axes {sorted(shapes)}: unit="batch" takes '
            "[units, capacity, ...] arrays that agree in both"
        )
    shape = next(iter(shapes))
    mask = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask)
    if mask.shape != shape or mask.dtype != bool:
        raise ValueError(
            f"mask has shape {mask.shape} and dtype {mask.dtype}: expected {shape} and bool, True "
            "for the records that count"
        )

    def clean(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jnp.where(mask.reshape(shape + (1,) * (leaf.ndim - 2)), leaf, 0)

    return (*jax.tree.map(clean, batch), mask), jnp.any(mask, axis=1)


def _check_mask(mask: jax.Array | None, size: int) -> jax.Array | None:
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.shape != (size,) or mask.dtype != bool:
        raise ValueError(
            f"mask has shape {mask.shape} and dtype {mask.dtype}: expected ({size},) and bool, "
            "True for the rows that count"
        )
    return mask


def _check_loss(loss_fn: Callable[..., jax.Array], params: PyTree, batch: tuple) -> None:
    # Slices inside the traced function, so that typed keys and tracers need no special case.
    out = jax.eval_shape(
        lambda p, b: loss_fn(p, *jax.tree.map(lambda leaf: leaf[0], b)), params, batch
    )
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise TypeError(
            f"loss_fn returned {type(out).__name__}: return the loss of one example alone, a scalar"
        )
    if out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"loss_fn returned shape {out.shape} and dtype {out.dtype}: it gets one example, "
            "without a batch axis, and must return one real floating number (reduce it, e.g. with "
            ".mean() or .sum())"
        )
