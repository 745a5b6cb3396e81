"""Steps with a privacy bug, each audited at default settings: `python -m benchmarks.audit.planted`.

Every bug is one that somebody's own loop may have. The step is that of the digits by a linear
model, at the noise multiplier of configs/digits_linear.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdp
from jaxdp.audit import audit_step

from ..hardware import hardware
from .digits import Problem, problem

Step = tuple[optax.GradientTransformation, Callable[..., Any]]


def by_hand(
    plan: jaxdp.Plan,
    clipping_norm: float = 1.0,
    noise_norm: float = 1.0,
    without_noise: str = "",
    new_key: bool = True,
) -> optax.GradientTransformation:
    """DP-SGD in a few lines, as people write it, with what can go wrong as arguments.

    Args:
      plan: gives the noise multiplier and the divisor.
      clipping_norm: of the gradients.
      noise_norm: the clipping norm for which there is noise.
      without_noise: the name of a parameter that gets none.
      new_key: whether every step has a key of its own.
    """
    std = float(plan.noise_multipliers()[0]) * noise_norm

    def init(params: Any) -> jax.Array:
        del params
        return jax.random.key(0)

    def update(updates: Any, state: jax.Array, params: Any = None) -> tuple[Any, jax.Array]:
        del params
        rows = updates.materialize()
        squares = sum(jnp.sum(jnp.square(g), axis=range(1, g.ndim)) for g in rows.values())
        factor = jnp.minimum(1, clipping_norm / jnp.sqrt(jnp.maximum(squares, 1e-30)))
        key, later = jax.random.split(state)
        noised = {}
        for i, (name, g) in enumerate(rows.items()):
            total = jnp.tensordot(factor, g, axes=1)
            noise = jax.random.normal(jax.random.fold_in(key, i), total.shape)
            noised[name] = (total + (0 if name == without_noise else std) * noise) / plan.divisor
        return noised, later if new_key else state

    return optax.GradientTransformation(init, update)


def _half_the_noise(p: Problem) -> Step:
    return by_hand(p.plan, noise_norm=0.5), p.grads


def _reused_key(p: Problem) -> Step:
    return by_hand(p.plan, new_key=False), p.grads


def _clipped_mean(p: Problem) -> Step:
    def mean_gradient(params: Any, batch: Any, mask: Any) -> jaxdp.PerExampleGrads:
        rows = p.grads(params, batch, mask).materialize()
        mean = jax.tree.map(lambda g: jnp.sum(g, axis=0, keepdims=True) / jnp.sum(mask), rows)
        return jaxdp.from_dense(mean, jnp.ones(1, bool), like=params)

    return jaxdp.privatize(p.plan), mean_gradient


def _forgotten_mask(p: Problem) -> Step:
    grads = lambda params, batch, mask: p.grads(params, batch, np.ones(mask.shape, bool))
    return jaxdp.privatize(p.plan), grads


def _wrong_norm(p: Problem) -> Step:
    return by_hand(p.plan, clipping_norm=2.0), p.grads


def _leaf_without_noise(p: Problem) -> Step:
    return by_hand(p.plan, without_noise="bias"), p.grads


BUGS: dict[str, Callable[[Problem], Step]] = {
    "half the noise": _half_the_noise,
    "reused key": _reused_key,
    "clipping of the mean": _clipped_mean,
    "forgotten mask": _forgotten_mask,
    "wrong norm": _wrong_norm,
    "leaf without noise": _leaf_without_noise,
}
"""The steps that have them, by name."""


def main() -> None:
    """Prints a row for every bug, and for two steps without any."""
    print(hardware())
    print(f"{'step':<24} {'claimed mu':>10} {'at least':>9}  found by")
    steps: dict[str, Callable[[Problem], Step]] = {
        "privatize": lambda p: (jaxdp.privatize(p.plan), p.grads),
        "by hand, without a bug": lambda p: (by_hand(p.plan), p.grads),
        **BUGS,
    }
    p = problem(3.0)
    for name, step in steps.items():
        found = audit_step(p.plan, *step(p), p.params, p.batch)
        told = ", ".join(found.found) or "-"
        print(f"{name:<24} {found.claimed_mu:>10.3f} {found.mu:>9.3f}  {told}", flush=True)


if __name__ == "__main__":
    main()
