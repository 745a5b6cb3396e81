"""The audited step, compiled for many keys at once."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..dpsgd.plan import Plan
from ..types import PyTree
from . import canaries
from .attackers import Features
from .canaries import Canary, Grads, Input

MOST_FEATURES = 32  # for a step; leaves beyond share them

AT_A_TIME = 500  # releases in one call: always so many, so that one program is compiled
MOST_NUMBERS = 2**26  # in these releases

PAIRS = 4  # of releases under equal keys


class _Compiled(NamedTuple):
    """`(keys of n runs, first input, later input)`, and for features directions, of a step."""

    whole: Callable[..., Any]
    features: Callable[..., jax.Array]


class Shift(NamedTuple):
    """What a canary does to a release.

    Attributes:
      directions: of unit length, for every leaf.
      of_features: how far it moves every feature.
      length: how far it moves the first release.
    """

    directions: list[jax.Array]
    of_features: np.ndarray
    length: float


class Harness:
    """The step, compiled for many keys at once."""

    def __init__(
        self,
        plan: Plan,
        privatizer: optax.GradientTransformation,
        grads: Grads,
        params: PyTree,
        batch: PyTree,
        steps: int,
        random: np.random.Generator,
    ) -> None:
        self._plan, self._privatizer, self._grads = plan, privatizer, grads
        self._params, self._batch, self._steps, self._random = params, batch, steps, random
        self._groups = plan.clipping.groups(params)
        self._keys = _Keys(privatizer.init(params))
        self._run = {kind: self._compiled(kind) for kind in get_args(canaries.Kind)}

    def canary(self, name: str) -> tuple[Canary, Shift]:
        """The canary of that name which moves the release most, of a few, and how far it does."""
        tried = [(canary, self._shift(canary)) for canary in self._candidates(name)]
        return max(tried, key=lambda pair: pair[1].length)

    def _candidates(self, name: str) -> list[Canary]:
        if name in canaries.ROWS:
            return [
                canaries.row_canary(name, self._plan, self._batch, of_row)
                for of_row in range(canaries.CANDIDATES)
            ]
        return [
            canaries.gradient_canary(
                name, self._plan, self._grads, self._params, self._batch, self._groups
            )
        ]

    def _compiled(self, kind: canaries.Kind) -> _Compiled:
        """The step for many keys: all of its releases, or their features `[n, features]`."""
        plan, params = self._plan, self._params
        of_input = lambda given: canaries.gradients(given, kind, plan, self._grads, params)

        def one(keys: list[jax.Array], first: Input, later: Input, look: Callable) -> Any:
            state, seen = self._keys.put(keys), []
            for given in (first, later)[: self._steps]:
                release, state = self._privatizer.update(of_input(given), state, params)
                seen.append(look([*jax.tree.leaves(release), *_clipping_norms(plan, state)]))
            return seen

        def features(
            keys: list[jax.Array], first: Input, later: Input, directions: list[jax.Array]
        ) -> jax.Array:
            look = lambda leaves: _products(leaves, directions)
            of_one = lambda keys: jnp.concatenate(one(keys, first, later, look))
            return jax.vmap(of_one)(keys)

        def whole(keys: list[jax.Array], first: Input, later: Input) -> Any:
            return jax.vmap(lambda keys: one(keys, first, later, lambda leaves: leaves))(keys)

        return _Compiled(jax.jit(whole), jax.jit(features))

    def _shift(self, canary: Canary) -> Shift:
        """How far the canary moves a release, without noise: under equal keys it cancels."""
        run = self._run[canary.kind].whole
        keys = self._keys.draw(self._random, PAIRS)
        pair = [run(keys, given, canary.without) for given in (canary.with_it, canary.without)]
        moved = jax.tree.map(_mean_difference, *pair)
        units = _with_controls([leaf / (np.linalg.norm(leaf) or 1.0) for leaf in moved[0]])
        directions = [jnp.asarray(leaf, jnp.float32) for leaf in units]
        of_features = np.concatenate([_products(step, units) for step in moved])
        length = math.sqrt(sum(np.sum(np.square(leaf)) for leaf in moved[0]))
        return Shift(directions, of_features, length)

    def features(self, canary: Canary, shift: Shift, each: int) -> Features:
        """Features of fresh releases, `[each, features] float64`, with the canary and without."""
        run = self._run[canary.kind].features
        numbers = self._steps * sum(leaf.size for leaf in jax.tree.leaves(self._params))
        at_a_time = min(AT_A_TIME, max(1, MOST_NUMBERS // numbers))

        def made(given: Input) -> np.ndarray:
            parts = []
            for _ in range(-(-each // at_a_time)):
                keys = self._keys.draw(self._random, at_a_time)
                parts.append(run(keys, given, canary.without, shift.directions))
            return np.concatenate(parts).astype(np.float64)[:each]

        return Features(made(canary.with_it), made(canary.without))


class _Keys:
    """The keys in a state, which are put in anew for every run."""

    def __init__(self, state: PyTree) -> None:
        self._leaves, self._structure = jax.tree.flatten(state)
        self._where = [
            i
            for i, leaf in enumerate(self._leaves)
            if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        ]
        if not self._where:
            raise ValueError(
                "the state of the privatizer holds no typed key, so that its noise can't be drawn "
                "anew: keep one in the state, made by jax.random.key(seed) or jaxdp.secret_key()"
            )

    def draw(self, random: np.random.Generator, runs: int) -> list[jax.Array]:
        """Fresh keys of some runs."""
        drawn = []
        for i in self._where:
            leaf = self._leaves[i]
            shape = (runs, *jax.random.key_data(leaf).shape)
            words = random.integers(0, 2**32, shape, dtype=np.uint32)
            drawn.append(
                jax.random.wrap_key_data(jnp.asarray(words), impl=jax.random.key_impl(leaf))
            )
        return drawn

    def put(self, keys: list[jax.Array]) -> PyTree:
        """The state with these keys."""
        leaves = list(self._leaves)
        for i, key in zip(self._where, keys, strict=True):
            leaves[i] = key
        return jax.tree.unflatten(self._structure, leaves)


def _mean_difference(one: Any, other: Any) -> np.ndarray:
    """Of runs under equal keys; 0 where it is not finite: such a release shows itself."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.mean(np.asarray(one, np.float64) - np.asarray(other), axis=0)
    return np.where(np.isfinite(difference), difference, 0.0)


def _with_controls(units: list[np.ndarray]) -> list[np.ndarray]:
    """The directions, with one for leaves that the canary does not move: that of the first it does.

    If both have the same noise, their difference shows the canary. Such a leaf must not share its
    feature with one that moves.
    """
    moving = [i for i, unit in enumerate(units) if unit.any()]
    if not moving:
        return units
    groups, first = _groups(len(units)), units[moving[0]].ravel()
    fitted = lambda like: np.resize(np.pad(first, (0, max(0, like.size - first.size))), like.shape)
    still = ~np.isin(groups, groups[moving])
    return [fitted(unit) if still[i] else unit for i, unit in enumerate(units)]


def _clipping_norms(plan: Plan, state: PyTree) -> list[jax.Array]:
    """Clipping norms that follow the records are released, too."""
    if plan.clipping.quantile is None:
        return []
    named = lambda entry: getattr(entry, "name", getattr(entry, "key", None))
    return [
        jnp.log(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if "clipping_norms" in map(named, path)
    ]


def _products(leaves: Sequence[Any], directions: Sequence[Any]) -> Any:
    """Products with the directions, for every leaf, or for several together: `[features]`."""
    numpy = np if isinstance(directions[0], np.ndarray) else jnp
    each = numpy.stack([numpy.sum(a * b) for a, b in zip(leaves, directions, strict=True)])
    groups = _groups(len(leaves))
    return numpy.stack([numpy.sum(each[groups == g]) for g in range(groups[-1] + 1)])


def _groups(leaves: int) -> np.ndarray:
    """The number of the feature that each of some leaves belongs to."""
    return np.arange(leaves) * min(MOST_FEATURES, leaves) // leaves
