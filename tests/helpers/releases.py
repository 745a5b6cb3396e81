"""A plan, gradients that are all zero, and what `privatize` makes of them: noise alone."""

import jax
import jax.numpy as jnp
from helpers.dense import from_dense

import jaxdp

FALSE_ALARM = 1e-6  # of each statistical test; keys are fixed, so a pass stays a pass
PARAMS = {"a": jnp.zeros((40, 50)), "b": jnp.zeros(3000)}
CLIPPING = jaxdp.clip_individual(2.0)


def make_plan(clipping=CLIPPING, noise_multiplier=1.5, **changes):
    numbers = dict(num_examples=1000, expected_batch_size=100, steps=50)
    return jaxdp.Plan(
        clipping=clipping, noise_multiplier=noise_multiplier, **{**numbers, **changes}
    )


def zero_gradients(params=PARAMS, unit="example", size=4):
    rows = jax.tree.map(lambda p: jnp.zeros((size, *p.shape), p.dtype), params)
    return from_dense(rows, unit=unit)


def releases(plan, key, steps, params=PARAMS, **options):
    """The released means of the first steps: noise alone."""
    tx = jaxdp.privatize(plan, key=key, **options)
    state = tx.init(params)
    step = jax.jit(lambda s: tx.update(zero_gradients(params, plan.clipping.unit), s))
    out = []
    for _ in range(steps):
        mean, state = step(state)
        out.append(mean)
    return out
