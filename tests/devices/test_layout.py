"""A step on eight devices is that of one: the same sums, the same bits of noise.

`tests/test_devices.py` runs this file where JAX has eight devices.
"""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.cases import slow
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxdp
from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling.collectives import collectives

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="for eight devices")

ROWS, CLASSES = 44, 16


def normal(*shape):
    return np.asarray(np.random.default_rng(sum(shape)).normal(size=shape), np.float32)


PARAMS = {
    "table": normal(50, 64),
    "wide": normal(64, 2048) / 8,
    "deep": normal(2048, 64) / 45,
    "out": normal(64, CLASSES) / 8,
    "bias": normal(CLASSES),
}
BATCH = (np.random.default_rng(1).integers(0, 50, (ROWS, 6)).astype(np.int32), normal(ROWS, 1))
MASK = np.arange(ROWS) < 37
NOBODY = np.zeros(ROWS, bool)


def loss(params, tokens, y):
    x = jnp.take(params["table"], tokens, axis=0)
    x = jnp.tanh(jnp.tanh(x @ params["wide"]) @ params["deep"])
    return jnp.sum((x.mean(0) @ params["out"] + params["bias"] - y) ** 2)


def unit_loss(params, tokens, y, mask):
    losses = jax.vmap(partial(loss, params))(tokens, y)
    return jnp.sum(jnp.where(mask, losses, 0)) / jnp.maximum(jnp.sum(mask), 1)


def mesh_of(**axes):
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types)


def tensor_parallel(path, shape):
    return {"['wide']": P(None, "model"), "['deep']": P("model", None)}.get(path, P())


LAYOUTS = {
    "data": lambda: jaxdp.Layout(mesh_of(data=8)),
    "fsdp": lambda: jaxdp.Layout(mesh_of(fsdp=8), ("fsdp",), jaxdp.fsdp_rule("fsdp", 8)),
    "both": lambda: jaxdp.Layout(
        mesh_of(data=2, fsdp=4), ("data", "fsdp"), jaxdp.fsdp_rule("fsdp", 4)
    ),
    "model": lambda: jaxdp.Layout(mesh_of(data=4, model=2), ("data",), tensor_parallel),
}

CLIPPINGS = {
    "individual": jaxdp.clip_individual(1.0),
    "layerwise": jaxdp.clip_layerwise(0.5),
    "quantile": jaxdp.clip_quantile(1.0),
}


def make_privatizer(clipping, **changes):
    plan = jaxdp.Plan(
        num_examples=1000,
        expected_batch_size=40,
        steps=5,
        clipping=clipping,
        noise_multiplier=1.0,
        delta=1e-5,
        **changes,
    )
    return jaxdp.privatize(plan, key=jax.random.key(0))


def step_of(privatizer, sums):
    def step(params, batch, mask, state):
        found = sums(params, batch, mask, state)
        mean, state = privatizer.release(found, state, params)
        return mean, state, found

    return jax.jit(step)


def alone(privatizer, grads):
    return step_of(privatizer, lambda p, b, m, s: privatizer.sums(grads(p, b, m), s))


def program_of(layout, privatizer, grads, batch=BATCH, mask=MASK):
    params = layout.place(PARAMS)
    arguments = (params, *layout.deal(batch, mask), layout.spread(privatizer.init(params)))
    return step_of(privatizer, layout.sums(privatizer, grads)).lower(
        *arguments
    ).compile(), arguments


def run(layout, *args, **kwargs):
    program, arguments = program_of(layout, *args, **kwargs)
    return program(*arguments)


# A record whose gradient is not finite, and padding that is not.
BAD = (BATCH[0], np.where(np.isin(np.arange(ROWS), [5, 40])[:, None], np.nan, BATCH[1]))


@functools.cache
def expected_of(clipping, method="auto"):
    privatizer = make_privatizer(CLIPPINGS[clipping])
    grads = jaxdp.per_example_grads(loss, method=method)
    return alone(privatizer, grads)(PARAMS, BAD, MASK, privatizer.init(PARAMS))


@functools.cache
def noise_alone():
    """Sums of nothing are zero, so that a release is noise alone."""
    privatizer, grads = make_privatizer(CLIPPINGS["individual"]), jaxdp.per_example_grads(loss)
    return alone(privatizer, grads)(PARAMS, BATCH, NOBODY, privatizer.init(PARAMS))[0]


def assert_close(got, expected, tolerance=2e-6):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other) + 1e-12


@pytest.mark.parametrize(
    ("name", "method", "size", "clipping"),
    [
        ("both", "auto", 2, "quantile"),
        ("model", "auto", 2, "individual"),
        *(
            slow(name, method, size, clipping)
            for name in LAYOUTS
            for method in ("auto", "vmap", "two_pass")
            for size in (None, 2)
            for clipping in CLIPPINGS
        ),
    ],
)
def test_sums_are_those_of_one_device(name, method, size, clipping):
    privatizer = make_privatizer(CLIPPINGS[clipping])
    grads = jaxdp.per_example_grads(loss, method=method, microbatch_size=size)
    # Two passes divide coefficients by a little.
    expected = expected_of(clipping, "two_pass" if method == "two_pass" else "auto")
    mean, _, sums = run(LAYOUTS[name](), privatizer, grads, BAD)
    tolerance = 2e-6 if method == "auto" else 2e-5
    assert_close(sums.gradient, expected[2].gradient, tolerance)
    assert_close(sums.counts, expected[2].counts)
    assert_close(sums.diagnostics, expected[2].diagnostics, 1e-5)
    assert_close(mean, expected[0], 1e-4)
    assert np.all(np.isfinite(mean["wide"]))
    assert sums.diagnostics.nonfinite == 1


@pytest.mark.parametrize("name", [slow("data"), "fsdp", slow("both"), "model"])
def test_noise_has_the_same_bits_everywhere(name):
    privatizer = make_privatizer(CLIPPINGS["individual"])
    mean, _, _ = run(LAYOUTS[name](), privatizer, jaxdp.per_example_grads(loss), mask=NOBODY)
    for one, other in zip(jax.tree.leaves(mean), jax.tree.leaves(noise_alone()), strict=True):
        assert np.std(other) > 0
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_batch_units_are_dealt_whole():
    units = (BATCH[0][:40].reshape(10, 4, 6), BATCH[1][:40].reshape(10, 4, 1))
    mask = np.arange(4) < np.array([4, 3, 0, 1, 2, 4, 4, 4, 0, 2])[:, None]
    privatizer = make_privatizer(jaxdp.clip_batch(1.0), num_units=10)
    grads = jaxdp.per_example_grads(unit_loss, unit="batch", microbatch_size=1)
    expected = alone(privatizer, grads)(PARAMS, units, mask, privatizer.init(PARAMS))
    _, _, sums = run(LAYOUTS["both"](), privatizer, grads, units, mask)
    assert_close(sums.gradient, expected[2].gradient)


@pytest.mark.parametrize("microbatch_size", [slow(None), 2])
def test_data_parallel_reduces_once_and_gathers_nothing(microbatch_size):
    privatizer = make_privatizer(jaxdp.clip_individual(1.0))
    grads = jaxdp.per_example_grads(loss, microbatch_size=microbatch_size)
    program, _ = program_of(LAYOUTS["data"](), privatizer, grads)
    (found,) = collectives(program.as_text())
    assert (found.kind, found.computation) == ("all-reduce", "ENTRY")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    assert parameters <= found.numbers <= 1.1 * parameters


def test_fsdp_makes_the_noise_of_its_own_part():
    privatizer = make_privatizer(jaxdp.clip_individual(1.0))
    grads = jaxdp.per_example_grads(loss, microbatch_size=2)
    program, _ = program_of(LAYOUTS["fsdp"](), privatizer, grads)
    text = program.as_text()
    scattered = [each.numbers for each in collectives(text) if each.kind == "reduce-scatter"]
    assert scattered == [2**14, 2**14]
    # The words of a cipher are integers in the shape of what gets the noise.
    sizes = lambda shape: int(np.prod([int(n) for n in shape.split(",")]))
    drawn = {sizes(shape) for shape in re.findall(r"u32\[([\d,]+)\]", text)}
    assert 2**14 in drawn
    assert 2**17 not in drawn
    mean, _, _ = run(LAYOUTS["fsdp"](), privatizer, grads)
    assert mean["wide"].sharding.spec == P(None, "fsdp")
    assert mean["wide"].addressable_shards[0].data.shape == (64, 256)


@pytest.mark.slow
def test_a_device_has_an_eighth_of_the_work_and_the_batch():
    privatizer = make_privatizer(jaxdp.clip_individual(1.0))
    grads = jaxdp.per_example_grads(loss)
    rows = (np.zeros((512, 6), np.int32), np.zeros((512, 1), np.float32))
    mask = np.ones(512, bool)
    sums = lambda p, b, m, s: privatizer.sums(grads(p, b, m), s)
    one = jax.jit(sums).lower(PARAMS, rows, mask, privatizer.init(PARAMS)).compile()
    layout = LAYOUTS["data"]()
    placed = layout.place(PARAMS)
    state = layout.spread(privatizer.init(placed))
    many = jax.jit(layout.sums(privatizer, grads))
    many = many.lower(placed, *layout.deal(rows, mask), state).compile()
    assert many.cost_analysis()["flops"] <= 1.2 / 8 * one.cost_analysis()["flops"]
    temporary = lambda program: program.memory_analysis().temp_size_in_bytes
    assert temporary(many) <= temporary(one) / 4


def test_every_device_has_its_records_first():
    layout = LAYOUTS["both"]()
    (rows,), mask = layout.deal((np.arange(ROWS),), MASK)
    assert rows.shape == mask.shape == (48,)
    hands = [np.asarray(shard.data) for shard in mask.addressable_shards]
    assert sorted(int(hand.sum()) for hand in hands) == [4, 4, 4, 5, 5, 5, 5, 5]
    assert all(np.all(hand[:-1] >= hand[1:]) for hand in hands)
    kept = np.asarray(rows)[np.asarray(mask)]
    np.testing.assert_array_equal(np.sort(kept), np.arange(37))


@pytest.mark.parametrize(
    "walk",
    [
        lambda w, x: jax.lax.scan(lambda h, row: (jnp.tanh(h @ w + row), None), jnp.zeros(8), x)[0],
        slow(
            lambda w, x: jax.lax.fori_loop(0, 3, lambda i, h: jnp.sin(h @ w + x[i]), jnp.zeros(8))
        ),
        slow(lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda: x[0] @ w, lambda: jnp.ones(8))),
    ],
)
def test_loops_of_the_loss_may_begin_with_a_constant(walk):
    privatizer = make_privatizer(jaxdp.clip_individual(1.0))
    grads = jaxdp.per_example_grads(lambda w, x: jnp.sum(walk(w, x) ** 2))
    w, x, mask = normal(8, 8), normal(24, 4, 8), np.arange(24) < 20
    expected = alone(privatizer, grads)(w, (x,), mask, privatizer.init(w))[2].gradient
    layout = LAYOUTS["data"]()
    state = layout.spread(privatizer.init(w))
    got = jax.jit(layout.sums(privatizer, grads))(layout.place(w), *layout.deal((x,), mask), state)
    assert_close(got.gradient, expected)


def test_sums_are_scattered_where_they_are_added_up_only():
    """Else devices would be added up that are not counted."""
    privatizer = make_privatizer(jaxdp.clip_individual(1.0))
    grads = jaxdp.per_example_grads(lambda w, x: jnp.sum(jnp.tanh(x @ w)))
    w, x = np.ones((8, 16), np.float32), np.ones((16, 8), np.float32)
    rows = P(("data", "fsdp"))

    def reduced(axes, scattered):
        def sums(w, x, state):
            own = privatizer.sums(grads(w, (x,), jaxdp.all_rows(x.shape[0])), state)
            return privatizer.psum(own, axes, scattered).gradient

        mapped = jax.shard_map(
            sums,
            mesh=mesh_of(data=2, fsdp=4),
            in_specs=(P(), rows, P()),
            out_specs=P("fsdp"),
            check_vma=False,
        )
        return jax.jit(mapped)(w, x, privatizer.init(w))

    assert reduced(("data", "fsdp"), P("fsdp")).shape == (8, 16)
    for axes, spec in (("data", P("fsdp")), (("data", "fsdp"), P("fsdp", "fsdp"))):
        with pytest.raises(
            ValueError, match=r"scattered along the mesh axes \['fsdp'\], and added"
        ):
            reduced(axes, spec)
    with pytest.raises(ValueError, match=r"axis is \('data', 'data'\): give every axis once"):
        reduced(("data", "data"), P())


@pytest.mark.slow
def test_axes_may_have_names_that_are_parts_of_others():
    layout = jaxdp.Layout(
        mesh_of(dp=2, fsdp=4), ("dp", "fsdp"), jaxdp.fsdp_rule("fsdp", 4, small=1)
    )
    privatizer = make_privatizer(CLIPPINGS["individual"])
    _, _, sums = run(layout, privatizer, jaxdp.per_example_grads(loss), BAD)
    assert_close(sums.gradient, expected_of("individual")[2].gradient)


def test_batches_that_do_not_fit_are_not_dealt():
    layout = LAYOUTS["data"]()
    with pytest.raises(ValueError, match=r"an array of shape \(18,\), and the mask has the shape"):
        layout.deal((np.ones(24), np.ones(18)), np.ones(24, bool))
    with pytest.raises(ValueError, match="Padding comes last"):
        layout.deal((np.ones(8),), np.arange(8) >= 3)


def test_wrong_layouts_are_told():
    with pytest.raises(ValueError, match="the mesh axis 'rows', and the mesh has 'data'"):
        jaxdp.Layout(mesh_of(data=8), ("rows",))
    with pytest.raises(ValueError, match=r'batch is \'data\': give the mesh axes .* \("data",\)'):
        jaxdp.Layout(mesh_of(data=8), "data")
    explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"'data' has the type Explicit: make the mesh with"):
        jaxdp.Layout(explicit)
    layout = jaxdp.Layout(mesh_of(data=8), params=lambda path, shape: P("data"))
    with pytest.raises(ValueError, match=r"\['table'\] of shape \(50, 64\) is split into 8"):
        layout.place(PARAMS)
    for spec, says in (
        (P("data", "data"), "names the mesh axis 'data' twice"),
        (P("rows"), "the rule for \\['table'\\] names the mesh axis 'rows', and the mesh has"),
        (P(None, None, "data"), "at most one entry for each of its axes"),
        ("data", "give a PartitionSpec"),
    ):
        layout = jaxdp.Layout(mesh_of(data=8), params=lambda path, shape, spec=spec: spec)
        with pytest.raises(ValueError, match=says):
            layout.place({"table": PARAMS["deep"]})
    privatizer = make_privatizer(jaxdp.clip_individual(1.0))
    sums = LAYOUTS["data"]().sums(privatizer, jaxdp.per_example_grads(loss))
    with pytest.raises(ValueError, match="the batch has 44 rows, and 8 devices share them"):
        jax.jit(sums)(PARAMS, BATCH, MASK, privatizer.init(PARAMS))


@pytest.mark.parametrize("what", ["parameters", "batch"])
def test_explicit_axes_are_refused_by_name(what):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    w, x = np.ones((8, 3), np.float32), np.ones((16, 8), np.float32)
    w, x = (put(w, "data"), put(x)) if what == "parameters" else (put(w), put(x, "data"))
    grads = jaxdp.per_example_grads(lambda w, x: jnp.sum(jnp.tanh(x @ w)))
    norms = jax.jit(lambda w, x: grads(w, (x,)).squared_norms())
    with pytest.raises(
        ValueError, match=f"arrays of the {what} lie along the mesh axis 'data', whose type"
    ):
        norms(w, x)


def test_parts_of_gradients_are_not_clipped_alone():
    """Manual tensor parallelism: each device would clip its own columns to C."""
    privatizer = make_privatizer(jaxdp.clip_individual(1.0))
    grads = jaxdp.per_example_grads(lambda w, x: jnp.sum(jnp.tanh(x @ w)))
    w, x = np.ones((8, 16), np.float32), np.ones((16, 8), np.float32)
    state = privatizer.init(w)

    def sums(w, x, state):
        own = privatizer.sums(grads(w, (x,), jaxdp.all_rows(x.shape[0])), state)
        return privatizer.psum(own, "data").gradient

    specs = (P(None, "model"), P("data"), P())
    mapped = jax.shard_map(
        sums, mesh=mesh_of(data=4, model=2), in_specs=specs, out_specs=P(None, "model")
    )
    with pytest.raises(ValueError, match=r"the parameters differ along the mesh axes \['model'\]"):
        jax.jit(mapped)(w, x, state)


def test_a_plan_with_a_bound_must_know_the_devices():
    vector = lambda w, x: jnp.sum(jnp.tanh(x @ w))
    clipping = jaxdp.clip_individual(1.0)
    plan = make_privatizer(clipping).plan
    layout = LAYOUTS["data"]()
    batch, mask = layout.deal((np.ones((16, 4), np.float32),), np.ones(16, bool))
    grads = jaxdp.per_example_grads(vector, method="vmap")

    def release(plan):
        privatizer = jaxdp.privatize(plan, key=jax.random.key(0))
        state, w = privatizer.init(jnp.ones((4, 3))), jnp.ones((4, 3))
        step = step_of(privatizer, layout.sums(privatizer, grads))
        return step(w, batch, mask, layout.spread(state))[0]

    with pytest.raises(ValueError, match="the sums have 8 parts, and the plan's rounding bound"):
        release(plan.with_rounding_bound(2))
    assert np.isfinite(release(plan.with_rounding_bound(2, parts=layout.parts))).all()


@pytest.mark.slow
def test_the_program_counts_every_layout(capsys, monkeypatch):
    small = functools.partial(scaling.PROBLEMS["mlp_small"], small=True)
    monkeypatch.setitem(scaling.PROBLEMS, "mlp_small", small)
    monkeypatch.setattr(scaling, "COUNTS", (1, 8))
    scaling.main(["--only", "mlp_small"])
    _, head, *rows = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in rows] == ["1", "data", "fsdp", "model"]
    assert max(map(len, (head, *rows))) <= 90


@pytest.mark.parametrize("name", [slow("data"), "fsdp"])
def test_the_estimate_is_about_what_xla_says(name):
    privatizer, optimizer = make_privatizer(jaxdp.clip_individual(1.0)), optax.adam(1e-3)
    plan, layout = privatizer.plan, LAYOUTS[name]()
    sums = layout.sums(privatizer, jaxdp.per_example_grads(loss, microbatch_size=4))

    def step(params, private, moments, batch, mask):
        found = sums(params, batch, mask, private)
        mean, private = privatizer.release(found, private, params)
        updates, moments = optimizer.update(mean, moments, params)
        return optax.apply_updates(params, updates), private, moments

    params = layout.place(PARAMS)
    state = layout.spread((privatizer.init(params), optimizer.init(params)))
    rows = lambda x: np.zeros((plan.capacity, *x.shape[1:]), x.dtype)
    dealt = layout.deal(jax.tree.map(rows, BATCH), np.ones(plan.capacity, bool))
    program = jax.jit(step, donate_argnums=(0, 1, 2)).lower(params, *state, *dealt).compile()
    example = jax.tree.map(lambda x: x[0], BATCH)
    found = jaxdp.estimate(loss, PARAMS, example, plan, optimizer, layout=layout, microbatch_size=4)
    memory = program.memory_analysis()
    kept = found.parameters + found.optimizer + found.records
    assert memory.argument_size_in_bytes == pytest.approx(kept, rel=0.05)
    taken = found.gathered + found.gradients + found.sums + found.noise
    assert taken / 2 <= memory.temp_size_in_bytes <= 1.2 * taken
    assert f"total        {found.total / 1e6:12.3f} MB" in str(found)
