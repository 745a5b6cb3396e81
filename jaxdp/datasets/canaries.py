"""Canaries: made-up records that are added to the private ones, to audit a run.

Each of them takes part or not by a coin of its own. Those that don't keep their number, and are
taken out of every sample, as rows that can't be used are.

No canary is made of a private record. If one held a part of it, that record would act through two
records, and its guarantee would be the weaker one for two. So canaries are drawn from public
constants or public records, by randomness of their own. For every outcome of it, canaries and coins
are a fixed part of the data, and two data sets that are neighbours stay neighbours with them. So
the guarantee for N records, canaries included, holds for each outcome, also for whoever knows it.
"""

import copy
from collections.abc import Sequence

import jax
import numpy as np

from ..types import PyTree
from .dataset import Canaries, Dataset
from .digests import arrays_digest
from .records import Part
from .rows import MOST_ROWS, ArrayRows
from .sources import PADDING, Format


def add_canaries(
    data: Dataset,
    count: int,
    rows_key: np.ndarray,
    coins_key: np.ndarray,
    data_format: Format | None = None,
) -> Dataset:
    """Returns the data with canaries behind the private records.

    Args:
      data: the records.
      count: m, how many.
      rows_key, coins_key: keys of Philox, `[2] uint64`, which decide them and their coins.
      data_format: what the records are. Canaries are then random values of this form. None: their
        fields are those of public records, or of test records that are declared public, each field
        in a random order of its own.

    Raises:
      ValueError: if nothing public is known that canaries could be made of, or there are too many.
    """
    own = [r.numbers() for r in (data.private, data.test, data.public) if r is not None]
    first = 1 + max(int(numbers.max()) for numbers in own)
    if first + count > MOST_ROWS:
        raise ValueError(
            f"{count:,} canaries are too many beside records up to number {first - 1:,}: records "
            f"have numbers up to {MOST_ROWS:,}"
        )
    rng = np.random.Generator(np.random.Philox(key=rows_key))
    if data_format is None:
        fields = _of_public(data, count, rng)
    else:
        fields = _of_format(data.private.form, data_format, count, rng)
    coins = np.random.Generator(np.random.Philox(key=coins_key)).random(count) < 0.5
    ids = first + np.arange(count, dtype=np.int32)
    made = copy.copy(data)
    real = data.private
    made.private = real.followed_by(Part(ArrayRows(fields), range(count)), ids, ~coins)
    digest = arrays_digest([*jax.tree.leaves(fields), coins], "canaries")
    made.canaries = Canaries(fields, ids, coins, digest, real)
    return made


def _of_public(data: Dataset, count: int, rng: np.random.Generator) -> PyTree:
    """Public records whose fields are mixed: an input with the label of another, say."""
    public = data.public
    if public is None and data.test_is_public:
        public = data.test
    if public is None:
        raise ValueError(
            "canaries can't be made of private records, and no others are known: give public ones, "
            "as Dataset(private=..., public=...), or test records with test_is_public=True"
        )
    good = np.flatnonzero(public.good())
    leaves = []
    for i in range(len(jax.tree.leaves(public.form))):
        # Each row once before any is taken again: equal canaries can't be told apart.
        orders = [np.argsort(rng.random(len(good))) for _ in range(-(-count // len(good)))]
        rows = good[np.concatenate(orders)[:count]]
        leaves.append(np.array(jax.tree.leaves(public.take(rows))[i]))
    private = jax.tree.leaves(data.private.form)
    return jax.tree.unflatten(
        jax.tree.structure(data.private.form),
        [leaf.astype(like.dtype) for leaf, like in zip(leaves, private, strict=True)],
    )


def _of_format(form: PyTree, about: Format, count: int, rng: np.random.Generator) -> PyTree:
    """Random inputs within the declared range, with random targets."""
    inputs, target = form
    if about.target == "tokens":
        assert about.vocabulary is not None  # inputs are tokens, too
        text = _below(about.vocabulary, (count, inputs.shape[0] + 1), rng)
        return text[:, :-1].astype(inputs.dtype), text[:, 1:].astype(target.dtype)
    drawn: PyTree
    if about.inputs == "mixed":
        drawn = {
            "features": _between(inputs["features"], about.center, about.scale, count, rng),
            "tokens": _tokens(inputs["tokens"], about, count, rng),
        }
    elif about.inputs == "tokens":
        drawn = _tokens(inputs, about, count, rng)
    else:
        drawn = _between(inputs, about.center, about.scale, count, rng)
    if about.target == "class":
        return drawn, _below(about.outputs, (count, *target.shape), rng).astype(target.dtype)
    return drawn, _between(target, about.target_center, about.target_scale, count, rng)


def _tokens(
    form: jax.ShapeDtypeStruct, about: Format, count: int, rng: np.random.Generator
) -> np.ndarray:
    assert about.vocabulary is not None
    first = PADDING + 1
    drawn = first + _below(about.vocabulary - first, (count, *form.shape), rng)
    return drawn.astype(form.dtype)


def _between(
    form: jax.ShapeDtypeStruct,
    center: float | Sequence[float] | None,
    scale: float | Sequence[float] | None,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Numbers, uniform within a scale around a center."""
    middle, width = np.asarray(center, np.float64), np.asarray(scale, np.float64)
    low, high = middle - width, middle + width
    uniform = rng.random((count, *form.shape))
    if form.dtype.kind not in "iu":
        return np.asarray(low + uniform * (high - low)).astype(form.dtype)
    limits = np.iinfo(form.dtype)
    low, high = np.maximum(np.ceil(low), limits.min), np.minimum(np.floor(high), limits.max)
    return np.floor(low + uniform * (high - low + 1)).astype(form.dtype)


def _below(end: int, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Whole numbers from 0 to end - 1."""
    # By `random`, whose numbers are the same in every version of NumPy.
    return np.floor(rng.random(shape) * end).astype(np.int64)
