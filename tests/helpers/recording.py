"""What samplers, clippings and `privatize` give for one fixed key: `tests/dpsgd/recording.npz`.

After a change of bits that is meant, `python tests/helpers/recording.py` writes it again.
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxdp
from jaxdp.dpsgd.rounded_gaussian import rounded_gaussian

FILE = Path(__file__).parent.parent / "dpsgd" / "recording.npz"
COMMAND = "python tests/helpers/recording.py"
N, STEPS = 60, 2
PARAMS = {"dense": {"kernel": jnp.zeros((5, 4)), "bias": jnp.zeros(4)}, "scale": jnp.ones(4)}

CLIPPINGS = {
    "clip_individual": jaxdp.clip_individual(0.5),
    "clip_batch": jaxdp.clip_batch(0.5),
    "clip_layerwise": jaxdp.clip_layerwise({"dense": 0.5, "scale": 0.25}),
    "clip_multiplied": jaxdp.clip_multiplied({"dense": 0.5, "scale": 0.25}),
    "clip_normalised": jaxdp.clip_normalised(0.5),
    "clip_quantile": jaxdp.clip_quantile(0.5, count_std=4.0),
}
SAMPLINGS = {
    "poisson": dict(),
    "shuffled": dict(sampling="shuffled", adjacency="zero_out"),
    "fixed_size": dict(sampling="fixed_size", adjacency="replace_one"),
    "full_batch": dict(sampling="full_batch", expected_batch_size=N),
    "units": dict(clipping=jaxdp.clip_batch(0.5), num_units=3),
}

# Sums of several floats: XLA may add them in another order. Of all else every bit is compared.
ROUNDED = ("sums", "released", "norms")


def secret_key():
    """A key of 128 bits, which is none since it is known."""
    return jax.random.wrap_key_data(jnp.array([3, 1, 4, 15], jnp.uint32), impl="rbg")


def make_plan(**changes):
    numbers = dict(num_examples=N, expected_batch_size=12, steps=STEPS, noise_multiplier=1.5)
    numbers |= dict(clipping=CLIPPINGS["clip_individual"])
    return jaxdp.Plan(**{**numbers, **changes})


def records():
    """All records: exact numbers, made without a generator."""
    x = ((np.arange(N * 5).reshape(N, 5) * 37) % 101 - 50) / 32
    return x.astype(np.float32), ((np.arange(N) * 29) % 17 - 8).astype(np.float32)


def loss(params, x, y):
    """Of a network of two layers."""
    hidden = jnp.tanh(x @ params["dense"]["kernel"] + params["dense"]["bias"] + 0.5)
    return (params["scale"] @ hidden - y) ** 2


def of_sampling(name):
    """The batches of a sampling, by the step."""
    batches = enumerate(make_plan(**SAMPLINGS[name]).batches(key=secret_key()))
    pairs = {step: zip(("indices", "mask"), batch, strict=True) for step, batch in batches}
    return {f"{name}/{step}/{what}": a for step, pair in pairs.items() for what, a in pair}


def of_clipping(name):
    """Sums, noise and releases of a clipping, by the step."""
    return {f"{name}/{what}": array for what, array in _steps(CLIPPINGS[name])}


def _steps(clipping):
    in_units = clipping.unit == "batch"
    plan = make_plan(clipping=clipping, num_units=3 if in_units else None)
    tx = jaxdp.privatize(plan, key=secret_key())
    one, at_once = (jaxdp.mean_loss(loss), None) if in_units else (loss, 4)
    grads = jaxdp.per_example_grads(one, unit=clipping.unit, microbatch_size=at_once)
    take_sums = jax.jit(lambda batch, mask, state: tx.sums(grads(PARAMS, batch, mask), state))
    release = jax.jit(tx.release)
    state = tx.init(PARAMS)
    yield "key", np.asarray(jax.random.key_data(state.privatize_key))
    for step, (batch, mask) in enumerate(plan.batches(*records(), key=secret_key())):
        sums = take_sums(batch, mask, state)
        nothing = replace(sums, gradient=jax.tree.map(jnp.zeros_like, sums.gradient))
        yield f"{step}/noise alone", _flat(release(nothing, state)[0])
        released, state = release(sums, state)
        yield f"{step}/sums", _flat(sums.gradient)
        yield f"{step}/counts", np.asarray(sums.counts)
        yield f"{step}/released", _flat(released)
        yield f"{step}/norms", np.asarray(state.clipping.clipping_norms)


def of_key():
    """The noise and the keys for what a loss draws, by their use and step."""
    found = {f"noise/{step}/numbers": _noise(step) for step in range(STEPS)}
    for use, step in (("dropout", 0), ("dropout", 7), ("init", 0)):
        key = jaxdp.dpsgd.jax_key(secret_key(), use, step)
        found[f"{use}/{step}/key"] = np.asarray(jax.random.key_data(key))
    return found


def _noise(step):
    """The whole numbers that leaves of some shapes get at a step."""
    words, shapes = jax.random.key_data(secret_key()), [(4,), (5, 4), (3, 2, 2)]
    draw = lambda: [rounded_gaussian(words, step, i, shape) for i, shape in enumerate(shapes)]
    return _flat(jax.jit(draw)())


def _flat(tree):
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)])


def main():
    found = of_key()
    for name in SAMPLINGS:
        found |= of_sampling(name)
    for name in CLIPPINGS:
        found |= of_clipping(name)
    np.savez_compressed(FILE, **found)
    print(f"{FILE.name}: {len(found)} arrays, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
