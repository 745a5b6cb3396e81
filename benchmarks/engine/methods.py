"""The ways to get a gradient and to take a step that are measured: plain, and private ones."""

import contextlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax

import jaxdp
from jaxdp.gradients import per_example

from .problems import Problem

CLIPPING_NORM = 1.0
NOISE_MULTIPLIER = 1.0
INDIVIDUAL = jaxdp.clip_individual(CLIPPING_NORM)
LAYERWISE = jaxdp.clip_layerwise(CLIPPING_NORM)

Gradient = Callable[[Any, tuple], Any]  # (params, batch) -> like the parameters
Step = Callable[[Any, Any, tuple], tuple[Any, Any]]  # (params, state, batch) -> (params, state)
Transform = Callable[[Problem], optax.GradientTransformation]


@dataclass(frozen=True)
class Method:
    """How the gradients of a batch are computed, clipped and, for a step, released with noise.

    `clip` and `release` take what the function of `grads` returns: lazy gradients, say. `clipping`
    is jaxdp's clipping that does the same.
    """

    grads: Callable[[Problem], Callable[[Any, tuple], Any]]
    clip: Transform
    release: Transform
    clipping: jaxdp.Clipping = INDIVIDUAL

    def gradient(self, problem: Problem) -> Gradient:
        """Returns the whole clipped gradient, without noise: a sum or a mean."""
        grads, clip = self.grads(problem), self.clip(problem)

        def gradient(params: Any, batch: tuple) -> Any:
            return clip.update(grads(params, batch), clip.init(params), params)[0]

        return gradient

    def step(self, problem: Problem) -> tuple[Step, Any]:
        """Returns a step of training by Adam, and its first state."""
        grads = self.grads(problem)
        optimizer = optax.chain(self.release(problem), optax.adam(1e-3))

        def step(params: Any, state: Any, batch: tuple) -> tuple[Any, Any]:
            updates, state = optimizer.update(grads(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        return step, optimizer.init(problem.params)


def _unchanged(problem: Problem) -> optax.GradientTransformation:
    del problem
    return optax.identity()


def mean_gradient(problem: Problem) -> Gradient:
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
        return jax.tree.map(lambda leaf: leaf * m / problem.rows, total)

    return gradient


def _at_default_precision(problem: Problem) -> Gradient:
    """The same at the device's own precision, TF32 on GPUs: the usual speed of plain training."""
    gradient = mean_gradient(problem)

    def at_default(params: Any, batch: tuple) -> Any:
        with jax.default_matmul_precision("default"):
            return gradient(params, batch)

    return at_default


def of_jaxdp(
    engine: Any, release: Transform | None = None, clipping: jaxdp.Clipping = INDIVIDUAL
) -> Method:
    """Returns jaxdp's method of that name in `per_example_grads`."""

    def grads(problem: Problem) -> Callable[[Any, tuple], Any]:
        lazily = jaxdp.per_example_grads(
            problem.loss, method=engine, microbatch_size=problem.microbatch_size
        )
        return lambda params, batch: lazily(params, batch, jaxdp.all_rows(problem.rows))

    own = lambda problem: privatized(problem, NOISE_MULTIPLIER, clipping)
    return Method(grads, lambda problem: clipping, release or own, clipping)


def privatized(
    problem: Problem, noise_multiplier: float, clipping: jaxdp.Clipping = INDIVIDUAL
) -> optax.GradientTransformation:
    """Returns jaxdp's release of a plan with that much noise."""
    plan = jaxdp.Plan(
        num_examples=100 * problem.rows,
        expected_batch_size=problem.rows,
        steps=1000,  # more than are measured
        noise_multiplier=noise_multiplier,
        clipping=clipping,
    )
    return jaxdp.privatize(plan)


def _every_gradient(problem: Problem) -> Callable[[Any, tuple], Any]:
    return lambda params, batch: jax.vmap(jax.grad(problem.loss), (None, 0, 0))(params, *batch)


def _aggregated(noise_multiplier: float) -> Transform:
    """Optax's own clipping, which divides by the batch size and adds noise itself."""
    return lambda problem: optax.contrib.differentially_private_aggregate(
        CLIPPING_NORM, noise_multiplier, 0
    )


def _jax_privacy_grads(problem: Problem) -> Callable[[Any, tuple], Any]:
    import jax_privacy  # type: ignore[import-not-found,unused-ignore]  # where it is installed

    clipped = jax_privacy.clipped_grad(
        problem.loss,
        l2_clip_norm=CLIPPING_NORM,
        batch_argnums=(1, 2),
        keep_batch_dim=False,
        microbatch_size=problem.microbatch_size,
    )
    return lambda params, batch: clipped(params, *batch)


def _jax_privacy_release(problem: Problem) -> optax.GradientTransformation:
    from jax_privacy import noise_addition  # type: ignore[import-not-found,unused-ignore]

    privatizer = noise_addition.gaussian_privatizer(
        stddev=CLIPPING_NORM * NOISE_MULTIPLIER, prng_key=jax.random.key(0)
    )
    return optax.chain(privatizer, optax.scale(1 / problem.rows))


def rivals() -> dict[str, str | None]:
    """Returns the versions of the other libraries, None for one that is not installed."""
    versions: dict[str, str | None] = {"optax": None, "jax-privacy": None}
    for package in versions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def available() -> dict[str, Method]:
    """Returns the methods by name. A rival that is not installed fails when it is built."""
    methods: dict[str, Method] = {
        "plain": Method(mean_gradient, _unchanged, _unchanged),
        **{name: of_jaxdp(name) for name in get_args(per_example.Method)},
        "layerwise": of_jaxdp("two_pass", clipping=LAYERWISE),
        "optax.contrib": Method(_every_gradient, _aggregated(0.0), _aggregated(NOISE_MULTIPLIER)),
        "jax_privacy": Method(_jax_privacy_grads, _unchanged, _jax_privacy_release),
    }
    if jax.default_backend() != "cpu":
        methods["plain_default"] = Method(_at_default_precision, _unchanged, _unchanged)
    return methods
