"""The ways to get a gradient that are measured: plain, and clipped in several ways."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxdp

from .problems import Problem

CLIPPING_NORM = 1.0
Method = Callable[[Any, tuple], Any]  # (params, batch) -> a gradient like the parameters


def plain(problem: Problem) -> Method:
    """Returns `jax.grad` of the mean loss."""

    def mean_loss(params: Any, batch: tuple) -> jax.Array:
        return jnp.mean(jax.vmap(problem.loss, (None, 0, 0))(params, *batch))

    m = problem.microbatch_size
    if m is None:
        return jax.grad(mean_loss)

    def gradient(params: Any, batch: tuple) -> Any:
        parts = jax.tree.map(lambda leaf: leaf.reshape(-1, m, *leaf.shape[1:]), batch)
        add = lambda total, part: (
            jax.tree.map(jnp.add, total, jax.grad(mean_loss)(params, part)),
            None,
        )
        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
        return jax.tree.map(lambda leaf: leaf * m / len(batch[0]), total)

    return gradient


def plain_default(problem: Problem) -> Method:
    """The same at the device's own precision, TF32 on GPUs: the usual speed of plain training."""
    gradient = plain(problem)

    def at_default(params: Any, batch: tuple) -> Any:
        with jax.default_matmul_precision("default"):
            return gradient(params, batch)

    return at_default


def private(method: Any) -> Callable[[Problem], Method]:
    """Returns a builder of jaxdp's clipped sum, with that `method` of `per_example_grads`."""

    def build(problem: Problem) -> Method:
        clipping = jaxdp.clip_individual(CLIPPING_NORM)
        grads = jaxdp.per_example_grads(
            problem.loss, method=method, microbatch_size=problem.microbatch_size
        )

        def gradient(params: Any, batch: tuple) -> Any:
            return clipping.update(grads(params, batch), clipping.init(params))[0]

        return gradient

    return build


def optax_contrib(problem: Problem) -> Method:
    """Optax's own clipping, of gradients by vmap(grad)."""
    aggregate = optax.contrib.differentially_private_aggregate(CLIPPING_NORM, 0.0, 0)

    def gradient(params: Any, batch: tuple) -> Any:
        grads = jax.vmap(jax.grad(problem.loss), (None, 0, 0))(params, *batch)
        return aggregate.update(grads, aggregate.init(params), params)[0]  # a mean

    return gradient


def jax_privacy(problem: Problem) -> Method:
    import jax_privacy  # only where it is installed

    clipped = jax_privacy.clipped_grad(
        problem.loss,
        l2_clip_norm=CLIPPING_NORM,
        batch_argnums=(1, 2),
        keep_batch_dim=False,
        microbatch_size=problem.microbatch_size,
    )

    def gradient(params: Any, batch: tuple) -> Any:
        return clipped(params, *batch)

    return gradient


def available() -> dict[str, Callable[[Problem], Method]]:
    """Returns the methods that this machine can run, by name."""
    methods = {
        "plain": plain,
        "auto": private("auto"),
        "factored": private("factored"),
        "vmap": private("vmap"),
        "optax.contrib": optax_contrib,
    }
    if importlib.util.find_spec("jax_privacy") is not None:
        methods["jax_privacy"] = jax_privacy
    if jax.default_backend() != "cpu":
        methods["plain_default"] = plain_default
    return methods
