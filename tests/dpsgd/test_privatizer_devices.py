"""Eight devices equal one: shard_map of the fold and one psum, then one release."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
import jaxdp
from jax.sharding import AxisType, PartitionSpec as P

assert jax.device_count() == 8
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
f32 = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
params = {"e": f32(7, 4), "c": f32(3, 4, 6), "d": f32(1, 1, 6), "w": f32(6, 5), "b": f32(5),
          "l": f32(2, 5, 5), "unused": f32(3)}

def conv(x, k, **options):
    layout = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=layout, **options)

def loss(q, tokens, y):
    x = conv(jnp.take(q["e"], tokens, axis=0)[None], q["c"])
    x = conv(jax.nn.relu(x), q["d"], feature_group_count=6)[0] @ q["w"] + q["b"]
    x, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, q["l"])
    return jnp.sum((x - y) ** 2)

batch = (jnp.asarray(rng.integers(0, 7, (32, 9))), f32(32, 1, 5))
mask = jnp.arange(32) % 5 != 0
batch = (batch[0], jnp.where(mask[:, None, None], batch[1], jnp.nan))
clipping = jaxdp.clip_individual(1.0)

def total(method, size):
    grads = jaxdp.per_example_grads(loss, method=method, microbatch_size=size)
    return lambda p, b, m: clipping.update(grads(p, b, m), clipping.init(p))[0]

expected = jax.jit(total("vmap", None))(params, batch, mask)
for method in ("vmap", "factored", "auto"):
    for check_vma in (True, False):
        for size in SIZES:
            reduced = lambda p, b, m: jax.tree.map(
                lambda x: jax.lax.psum(x, "data"), total(method, size)(p, b, m)
            )
            sharded = jax.shard_map(
                reduced, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P(),
                check_vma=check_vma,
            )
            got = jax.jit(sharded)(params, batch, mask)
            for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
                scale = np.linalg.norm(a) + 1e-6
                assert np.linalg.norm(a - b) <= 1e-4 * scale, (method, check_vma, size, a, b)
plan = jaxdp.Plan(
    num_examples=100, expected_batch_size=10, steps=5, clipping=clipping, noise_multiplier=1.0
)
tx = jaxdp.privatize(plan, key=jax.random.key(0))
grads = jaxdp.per_example_grads(loss)
alone, _ = tx.update(grads(params, batch, mask), tx.init(params), params)

def release(reduce):
    def step(p, b, m, state):
        sums = tx.sums(grads(p, b, m), state)
        return tx.release(jax.lax.psum(sums, "data") if reduce else sums, state, p)[0]

    return jax.jit(jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P("data"), P("data"), P()), out_specs=P(),
    ))(params, batch, mask, tx.init(params))

for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(release(True)), strict=True):
    assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(a), (a, b)
try:
    release(False)
except ValueError as error:
    assert "the sums differ along the mesh axes ['data']" in str(error), error
else:
    raise AssertionError("sums of single devices were released")
print("equal")
"""


def test_eight_devices_equal_one():
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    environment["JAX_PLATFORMS"] = "cpu"
    program = PROGRAM.replace("SIZES", "(None, 2)")
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "equal", done.stderr[-3000:]
