"""Eight devices equal one: shard_map of the fold and one psum, then one release."""

import os
import subprocess
import sys

import pytest

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
for method in METHODS:
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
# The records are dealt to the devices, each with its padding last.
mask = jnp.arange(32) % 4 < 3
batch = (batch[0], jnp.where(mask[:, None, None], f32(32, 1, 5), jnp.nan))
order = np.argsort(~np.asarray(mask), kind="stable")
first = jax.tree.map(lambda leaf: leaf[order], (batch, mask))
alone, _ = tx.update(grads(params, *first), tx.init(params), params)

def mapped(step, rows=P("data"), **options):
    return jax.jit(jax.shard_map(
        step, mesh=mesh, in_specs=(P(), rows, rows, P()), out_specs=P(), **options
    ))(params, batch, mask, tx.init(params))

def release(reduce, rows=P("data"), **options):
    def step(p, b, m, state):
        return tx.release(reduce(tx.sums(grads(p, b, m), state)), state, p)[0]

    return mapped(step, rows, **options)

def is_refused(text, *args, **options):
    try:
        release(*args, **options)
    except ValueError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no error: {text}")

def same(got):
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(got), strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(a), (a, b)

psum = lambda sums: tx.psum(sums, "data")
same(release(psum))
# Without JAX's knowledge of what differs, sums may be added inside and are released outside.
state = tx.init(params)
outside = mapped(lambda p, b, m, s: psum(tx.sums(grads(p, b, m), s)), check_vma=False)
same(tx.release(outside, state, params)[0])
is_refused("the sums differ along the mesh axes ['data']", lambda sums: sums)
is_refused("with check_vma=False, over the axes ('data',)", psum, check_vma=False)
twice = "along the mesh axis 'data' were added up already, or not every array of the batch"
is_refused(twice, lambda sums: psum(psum(sums)))
is_refused(twice, lambda sums: psum(jax.lax.pcast(psum(sums), ("data",), to="varying")))
# A plain psum does not say that it added up; after it and psum, parts are there twice.
is_refused("the sums differ along the mesh axes ['data']", lambda sums: jax.lax.psum(sums, "data"))
for leaf in jax.tree.leaves(release(lambda sums: jax.lax.psum(psum(sums), "data"))):
    assert np.isnan(leaf).all()
try:
    mapped(lambda p, b, m, s: psum(psum(tx.sums(grads(p, b, m), s))), check_vma=False)
except ValueError as error:
    assert twice in str(error), error
else:
    raise AssertionError("added up twice without checks")

# The same rows on every device, also where something else differs.
everywhere, dealt = P(), (mask, batch)
mask, batch = jnp.ones(32, bool), jax.tree.map(jnp.nan_to_num, batch)
is_refused(twice, psum, everywhere)
vary = lambda tree: jax.tree.map(lambda x: jax.lax.pcast(x, ("data",), to="varying"), tree)
index = lambda: jax.lax.axis_index("data")
for text, wrong in (
    (twice, lambda p, b, m, s: psum(tx.sums(grads(vary(p), b, m), s))),
    ("part differs along the mesh axes ['data']",
     lambda p, b, m, s: jax.lax.psum(tx.sums(grads(p, b, m), s, part=(index(), 8)), "data")),
):
    try:
        mapped(lambda *args: tx.release(wrong(*args), args[-1])[0], everywhere)
    except ValueError as error:
        assert text in str(error), error
    else:
        raise AssertionError(text)
mask, batch = dealt

# Every device a run of its own: not with copies of one key.
def own_runs(states):
    def step(p, b, m, s):
        s = jax.tree.map(lambda leaf: leaf[0], s)
        made = tx.release(tx.sums(grads(p, b, m), s), s, p)[0]
        return jax.tree.map(lambda leaf: leaf[None], made)

    data = P("data")
    return jax.jit(jax.shard_map(
        step, mesh=mesh, in_specs=(P(), data, data, data), out_specs=data
    ))(params, batch, mask, states)

stacked = lambda states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
others = [jaxdp.privatize(plan, key=jax.random.key(i)).init(params) for i in range(8)]
assert np.isfinite(own_runs(stacked(others))["w"]).all()
copies = own_runs(stacked([others[0]] * 2 + others[2:]))["w"]
assert np.isnan(copies[:2]).all() and np.isfinite(copies[2:]).all()
update = lambda x, y, m, s: tx.update(grads(params, (x, y), m), s, params)[0]
dealt = jax.tree.map(lambda leaf: leaf.reshape(8, 4, *leaf.shape[1:]), (*batch, mask))
try:
    jax.pmap(update, in_axes=(0, 0, 0, None))(*dealt, state)
except ValueError as error:
    assert "release is under pmap" in str(error), error
else:
    raise AssertionError("pmap released")
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "sizes"),
    [
        (("auto",), (2,)),
        (("vmap", "factored", "two_pass", "auto"), (None, 2)),
    ],
    ids=["auto", "all methods"],
)
def test_eight_devices_equal_one(methods, sizes):
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    environment["JAX_PLATFORMS"] = "cpu"
    program = PROGRAM.replace("METHODS", repr(methods)).replace("SIZES", repr(sizes))
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "equal", done.stderr[-3000:]
