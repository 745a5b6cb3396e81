"""A step in two processes is that of one device: the same key, sums and bits of noise.

`tests/test_processes.py` runs this file in two processes at once, with four devices each. Both run
the same tests in the same order.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.cases import slow
from jax.experimental import multihost_utils
from jax.sharding import AxisType

import jaxdp
from jaxdp.datasets import feeding
from jaxdp.datasets.dataset import Dataset
from jaxdp.dpsgd import devices, processes
from jaxdp.gradients import jax_internals

N, ROWS = 400, 44


def normal(*shape):
    return np.asarray(np.random.default_rng(sum(shape)).normal(size=shape), np.float32)


PARAMS = {"wide": normal(16, 8192) / 4, "out": normal(8192, 4) / 64, "bias": normal(4)}
BATCH = (normal(ROWS, 16), normal(ROWS, 4))
MASK = np.arange(ROWS) < 37


def loss(params, x, y):
    return jnp.sum((jnp.tanh(x @ params["wide"]) @ params["out"] + params["bias"] - y) ** 2)


def make_plan(steps=20, **options):
    settings = jaxdp.PlanSettings(
        noise_multiplier=1.0,
        steps=steps,
        expected_batch_size=30,
        delta=1e-5,
        clipping=jaxdp.clip_individual(1.0),
        **options,
    )
    return settings.solve(N, settings.clipping, 163844, None)


def everywhere(value):
    """The values of both processes: `[2, ...]`."""
    return multihost_utils.process_allgather(np.asarray(value))


def words(key):
    return jax.random.key_data(key)


def mesh_of(**axes):
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types)


LAYOUTS = {
    "data": lambda: jaxdp.Layout(mesh_of(data=8)),
    "fsdp over all": lambda: jaxdp.Layout(mesh_of(fsdp=8), ("fsdp",), jaxdp.fsdp_rule("fsdp", 8)),
    "model between processes": lambda: jaxdp.Layout(
        mesh_of(model=2, data=4), ("data",), jaxdp.fsdp_rule("model", 2)
    ),
}


def test_all_processes_have_one_secret_key():
    first, second = everywhere(words(jaxdp.secret_key()))
    np.testing.assert_array_equal(first, second)
    assert (first != everywhere(words(jaxdp.secret_key()))[0]).any()


def test_no_secret_stays_with_the_coordinator():
    key = np.asarray(words(jaxdp.secret_key())).tolist()
    processes.check_same("that both are here", "", "")
    kept = jax_internals.coordinator().key_value_dir_get("jaxdp/")
    assert not [name for name, value in kept if str(key[0]) in value]
    assert len(kept) < 6


def test_keys_that_are_drawn_inside_are_the_same():
    plan = make_plan()
    state = jaxdp.privatize(plan).init(PARAMS)
    first, second = everywhere(words(state.privatize_key))
    np.testing.assert_array_equal(first, second)
    rows = [indices for indices, _ in plan.batches()]
    for sampled in rows:
        first, second = everywhere(sampled)
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("use", ["noise", "sampling"])
def test_a_key_of_one_s_own_is_refused_in_both(use):
    own = jax.random.key(jax.process_index())
    plan = make_plan()
    calls = {
        "noise": lambda: jaxdp.privatize(plan, key=own).init(PARAMS),
        "sampling": lambda: plan.batches(key=own),
    }
    with pytest.raises(
        ValueError, match="process 1 and process 0 differ in the key, plan or start of"
    ):
        calls[use]()


def test_keys_of_two_uses_are_not_swapped(monkeypatch):
    monkeypatch.setattr(processes, "LIMIT_SECONDS", 3.0)
    plan = make_plan()
    if processes.is_first():
        with pytest.raises(ValueError, match="process 1 has not come to the same point"):
            jaxdp.privatize(plan).init(PARAMS)
    else:
        with pytest.raises(ValueError, match=r"asks for the key of plan\.batches, and process 0"):
            plan.batches()
        next(processes._numbers)  # process 0 has asked whether the keys are the same


@pytest.mark.parametrize("what", ["plan", "start", "threads"])
def test_what_differs_in_one_process_is_refused_in_both(what):
    me = jax.process_index()
    plan = make_plan(steps=20 + me) if what == "plan" else make_plan()
    key = jax.random.key(1)
    calls = {
        "plan": lambda: jaxdp.privatize(plan, key=key).init(PARAMS),
        "start": lambda: plan.batches(key=key, start=me),
        "threads": lambda: ThreadPoolExecutor(1).submit(plan.batches).result(),
    }
    says = "in a second thread" if what == "threads" else "differ in the key, plan or start of"
    with pytest.raises(ValueError, match=says):
        calls[what]()


@pytest.mark.parametrize("what", ["key", "step", "parameters", "batch"])
def test_arrays_that_differ_are_not_laid_out(what):
    layout, me = LAYOUTS["data"](), jax.process_index()
    state = jaxdp.privatize(make_plan()).init(PARAMS)
    own = state._replace(privatize_key=jax.random.key(me, impl="rbg"))
    calls = {
        "key": lambda: layout.spread(own),
        "step": lambda: layout.spread(state._replace(privatize_step=jnp.int32(me))),
        "parameters": lambda: layout.place({**PARAMS, "bias": PARAMS["bias"] + me}),
        "batch": lambda: layout.deal((BATCH[0] + me, BATCH[1]), MASK),
    }
    with pytest.raises(ValueError, match="process 1 and process 0 differ in the arrays that"):
        calls[what]()


def test_init_may_be_traced():
    init = jaxdp.privatize(make_plan(), key=jaxdp.secret_key()).init
    found, wanted = jax.jit(init)(PARAMS), init(PARAMS)
    np.testing.assert_array_equal(words(found.privatize_key), words(wanted.privatize_key))


def test_calls_in_another_order_end():
    """Whoever asks for something else is told at once, also where process 0 waits for all."""
    for call in (
        lambda what: processes.from_first(what, lambda: 1),
        lambda what: processes.check_same(what, "1", "cure"),
    ):
        if processes.is_first():
            processes.from_first("test", lambda: 1)
        else:
            with pytest.raises(ValueError, match="asks for mine, and process 0 tells test"):
                call("mine")
    if processes.is_first():
        with pytest.raises(ValueError, match="process 1 has not come to the same point within 2 s"):
            processes._from_all("test", "1", limit=2.0)
    else:
        with pytest.raises(ValueError, match="asks for mine, and process 0 tells test"):
            processes.from_first("mine", lambda: 1)


def test_what_the_first_makes_reaches_all_as_it_is():
    made = {"epsilon": 0.1 + 0.2, "none": None, "list": [1, "é"], "inf": float("inf")}
    for _ in range(2 * processes.SETTLED_EVERY):  # older messages are removed
        assert processes.from_first("test", lambda: made) == made
    if not processes.is_first():
        assert processes.from_first("test", lambda: 1 / 0) == 3
    else:
        assert processes.from_first("test", lambda: 3) == 3


@pytest.mark.parametrize("name", ["fsdp over all", slow("data"), slow("model between processes")])
def test_a_step_is_that_of_one_device(name):
    layout, key = LAYOUTS[name](), jaxdp.secret_key()
    plan = make_plan()
    privatizer = jaxdp.privatize(plan, key=key)
    grads = jaxdp.per_example_grads(loss, microbatch_size=4)
    sums = layout.sums(privatizer, grads)

    @jax.jit
    def step(params, state, batch, mask):
        found = sums(params, batch, mask, state)
        return found.gradient, privatizer.release(found, state, params)[0]

    @jax.jit
    def noise(params, state, batch):
        found = sums(params, batch, jnp.zeros(batch[0].shape[:1], bool), state)
        return privatizer.release(found, state, params)[0]

    params = layout.place(PARAMS)
    state = layout.spread(privatizer.init(params))
    batch, mask = layout.deal(BATCH, MASK)
    total, released = devices.held(step(params, state, batch, mask))
    only_noise = devices.held(noise(params, state, batch))

    own = privatizer.init(PARAMS)
    alone = privatizer.sums(grads(PARAMS, BATCH, MASK), own)
    nobody = privatizer.sums(grads(PARAMS, BATCH, np.zeros(ROWS, bool)), own)
    for found, wanted in (
        (total, alone.gradient),
        (released, privatizer.release(alone, own, PARAMS)[0]),
    ):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, wanted)
    wanted = privatizer.release(nobody, own, PARAMS)[0]
    jax.tree.map(np.testing.assert_array_equal, only_noise, wanted)  # bit for bit


def test_no_process_holds_more_than_its_part():
    layout = LAYOUTS["fsdp over all"]()
    params = layout.place(PARAMS)
    moments = layout.spread(optax.adam(1e-3).init(params))
    for leaf in (params["wide"], moments[0].mu["wide"]):
        assert [part.data.shape for part in leaf.addressable_shards] == [(16, 1024)] * 4
        np.testing.assert_array_equal(devices.held(leaf).shape, (16, 8192))


class Counted:
    """Rows that remember which of them were read."""

    def __init__(self):
        self.x = normal(N, 16)
        self.read = []

    def __len__(self):
        return N

    def __getitems__(self, rows):
        self.read += [int(row) for row in rows]
        return {"x": self.x[np.asarray(rows)]}

    def digest(self):
        return "counted"


@pytest.mark.parametrize("placement", ["host", "device"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_process_reads_its_own_rows(name, placement):
    source = Counted()
    records = Dataset(private=source).private
    source.read.clear()
    layout, plan = LAYOUTS[name](), make_plan(steps=3)
    key = jax.random.key(1)
    batches = feeding.feed(
        records,
        plan.batches(key=key),
        step_key=partial(jax.random.fold_in, key),
        placement=placement,
        dealer=layout,
    )
    found = [(devices.held(batch.records["x"]), devices.held(mask)) for batch, mask in batches]
    samples = list(plan.batches(key=key))
    for (x, mask), (indices, of_sample) in zip(found, samples, strict=True):
        wanted = np.concatenate([source.x, np.zeros((1, 16), np.float32)])[indices]
        np.testing.assert_array_equal(mask, layout.order(of_sample, False))
        np.testing.assert_array_equal(x[mask], layout.order(wanted, 0)[mask])
    if placement == "device":
        return
    sampled = [int(row) for indices, mask in samples for row in indices[mask]]
    if name == "model between processes":  # both have all rows, for a part of the model
        assert sorted(source.read) == sorted(sampled)
        return
    assert set(source.read) < set(sampled)
    assert everywhere(len(source.read)).sum() == len(sampled)
