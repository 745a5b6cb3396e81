"""Training loops that people have already: they work as they are, or say what to do."""

import pickle
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training.train_state import TrainState
from helpers.cases import slow

import jaxdp

N = 60
X = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
ALL = jaxdp.all_rows(N)
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def make_plan(clipping=None, **changes):
    numbers = dict(num_examples=N, expected_batch_size=20, steps=5, noise_multiplier=1.0)
    clipping = jaxdp.clip_individual(1.0) if clipping is None else clipping
    return jaxdp.Plan(**{**numbers, "clipping": clipping, **changes})


def chain(plan):
    return optax.chain(jaxdp.privatize(plan, key=jax.random.key(3)), optax.adam(1e-2))


def by_hand(plan, loss, params, steps=3):
    """The parameters after some steps of the plain Optax chain."""
    tx, grads = chain(plan), jaxdp.per_example_grads(loss, microbatch_size=16)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(grads(params, (X, Y), ALL), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params


def assert_same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    assert all(np.array_equal(x, y) for x, y in pairs)


class Net(nnx.Module):
    def __init__(self, rate=0.0):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs) if rate else None
        self.out = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x, key=None):
        x = nnx.relu(self.hidden(x))
        return self.out(x if self.dropout is None else self.dropout(x, rngs=key))


def nnx_loss(model):
    graph, _, rest = nnx.split(model, nnx.Param, ...)
    return lambda p, x, y: cross_entropy(nnx.merge(graph, p, rest)(x), y)


@pytest.mark.slow
def test_a_train_state_of_flax_takes_the_same_steps_as_the_plain_chain():
    plan, model = make_plan(), nn.Dense(2)
    params = model.init(jax.random.key(0), X)["params"]
    loss = lambda params, x, y: cross_entropy(model.apply({"params": params}, x), y)
    grads = jaxdp.per_example_grads(loss, microbatch_size=16)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=chain(plan))

    @jax.jit
    def step(state):
        return state.apply_gradients(grads=grads(state.params, (X, Y), ALL))

    for _ in range(3):
        state = step(state)
    assert_same(state.params, by_hand(plan, loss, params))
    assert plan.epsilon_spent(state) == plan.epsilon_spent(state.opt_state) == plan.epsilon(3)


def test_what_a_train_state_would_take_past_privatize_is_refused():
    # The parameters that Flax overwrites with their gradient: it would have no noise.
    params = {"params": jnp.zeros((4, 2)), OVERWRITE_WITH_GRADIENT: jnp.zeros(2)}
    loss = lambda p, x, y: cross_entropy(x @ p["params"] + p[OVERWRITE_WITH_GRADIENT], y)
    state = TrainState.create(apply_fn=None, params=params, tx=chain(make_plan()))
    with pytest.raises(ValueError, match=r"Put jaxdp\.privatize\(plan\)"):
        state.apply_gradients(grads=jaxdp.per_example_grads(loss)(params, (X, Y), ALL))


def test_lazy_gradients_know_the_keys_of_the_parameters_and_give_nothing():
    grads = jaxdp.per_example_grads(lambda p, x, y: (x @ p["w"] - y) ** 2)
    lazy = grads({"w": jnp.zeros(4)}, (X, Y), ALL)
    assert "w" in lazy
    assert "b" not in lazy
    for use in (lambda: lazy["w"], lambda: list(lazy), lambda: dict(lazy)):
        with pytest.raises(ValueError, match="neither arrays nor a pytree"):
            use()
    dense = jaxdp.from_dense(jnp.ones((3, 4)), jaxdp.all_rows(3), like=jnp.ones(4))
    assert "w" not in dense


@pytest.mark.slow
@pytest.mark.parametrize("transform", [slow(lambda f: f), nnx.jit])
def test_an_optimizer_of_nnx_takes_the_same_steps_as_the_plain_chain(transform):
    plan, model = make_plan(), Net()
    loss, params = nnx_loss(model), nnx.state(model, nnx.Param)
    expected = by_hand(plan, loss, params)
    grads = jaxdp.per_example_grads(loss, microbatch_size=16)
    optimizer = nnx.Optimizer(model, chain(plan), wrt=nnx.Param)
    assert plan.epsilon_spent(optimizer.opt_state) == 0

    @transform
    def step(model, optimizer):
        optimizer.update(model, grads(nnx.state(model, nnx.Param), (X, Y), ALL))

    for _ in range(3):
        step(model, optimizer)
    pairs = zip(
        jax.tree.leaves(nnx.state(model, nnx.Param)), jax.tree.leaves(expected), strict=True
    )
    for mine, other in pairs:  # eager steps are rounded otherwise than jitted ones
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)
    for state in (optimizer.opt_state, optimizer, nnx.state(optimizer)):
        assert plan.epsilon_spent(state) == plan.epsilon(3)


@pytest.mark.slow
def test_an_optimizer_of_nnx_for_a_part_of_the_model():
    model = Net()
    head = nnx.All(nnx.Param, nnx.PathContains("out"))
    graph, trained, rest = nnx.split(model, head, ...)
    loss = lambda p, x, y: cross_entropy(nnx.merge(graph, p, rest)(x), y)
    optimizer = nnx.Optimizer(model, chain(make_plan()), wrt=head)
    before = nnx.as_pure(nnx.state(model))
    optimizer.update(model, jaxdp.per_example_grads(loss)(trained, (X, Y), ALL))
    after = nnx.as_pure(nnx.state(model))
    assert_same(before["hidden"], after["hidden"])
    assert not np.array_equal(before["out"]["kernel"], after["out"]["kernel"])
    every = jaxdp.per_example_grads(nnx_loss(model))(nnx.state(model, nnx.Param), (X, Y), ALL)
    with pytest.raises(ValueError, match=r"2 of the 4 parameters.*nnx\.state\(model, wrt\)"):
        optimizer.update(model, every)


def test_nothing_gets_in_between_an_optimizer_of_nnx_and_privatize():
    model = Net()
    grads = jaxdp.per_example_grads(nnx_loss(model))
    lazy = grads(nnx.state(model, nnx.Param), (X, Y), ALL)
    for first in (optax.scale(0.5), optax.clip_by_global_norm(1.0), optax.trace(0.9)):
        optimizer = nnx.Optimizer(
            model, optax.chain(first, jaxdp.privatize(make_plan())), wrt=nnx.Param
        )
        with pytest.raises((ValueError, AttributeError), match=r"Put jaxdp\.privatize\(plan\)"):
            optimizer.update(model, lazy)
    zeroed = optax.chain(optax.masked(optax.set_to_zero(), True), jaxdp.privatize(make_plan()))
    with pytest.raises((ValueError, TypeError), match="jaxdp"):
        nnx.Optimizer(model, zeroed, wrt=nnx.Param).update(model, lazy)
    for leave in (nnx.jit(lambda: lazy), lambda: nnx.jit(lambda g: 0)(lazy)):
        with pytest.raises((ValueError, TypeError), match="PerExampleGrads"):
            leave()
    with pytest.raises(ValueError, match=r"can't be passed into or out of nnx\.jit"):
        nnx.merge(*nnx.split(lazy))


@pytest.mark.parametrize("graph", [True, False])
def test_privatize_beside_an_optimizer_of_nnx(graph):
    plan, model = make_plan(), Net()
    loss, params = nnx_loss(model), nnx.state(model, nnx.Param)
    expected = by_hand(plan, loss, params)
    privatizer = jaxdp.privatize(plan, key=jax.random.key(3))
    private = privatizer.init(params)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param, graph=graph)
    grads = jaxdp.per_example_grads(loss, microbatch_size=16)

    @nnx.jit
    def step(model, optimizer, private):
        lazy = grads(nnx.state(model, nnx.Param), (X, Y), ALL)
        gradient, private = privatizer.update(lazy, private)
        optimizer.update(model, gradient)
        return private

    for _ in range(3):
        private = step(model, optimizer, private)
    trained = jax.tree.leaves(nnx.state(model, nnx.Param))
    for mine, other in zip(trained, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)
    assert plan.epsilon_spent(private) == plan.epsilon(3)


def test_an_optimizer_of_nnx_refuses_gradients_of_plain_arrays():
    model = Net()
    plain = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    loss = lambda p, x, y: cross_entropy(x @ p["hidden"]["kernel"][:, :2], y)
    optimizer = nnx.Optimizer(model, chain(make_plan()), wrt=nnx.Param)
    with pytest.raises(ValueError, match=r"plain arrays: give .* nnx\.state\(model, nnx\.Param\)"):
        optimizer.update(model, jaxdp.per_example_grads(loss)(plain, (X, Y), ALL))


def test_a_module_of_nnx_is_clipped_as_one():
    groups = jaxdp.clip_layerwise(1.0, layer="module").groups
    assert groups(nnx.state(Net(), nnx.Param)).names == ("hidden", "out")
    named = jaxdp.clip_layerwise({"hidden/kernel": 1.0, "hidden/bias": 2.0, "out": 1.0}).groups
    assert named(nnx.state(Net(), nnx.Param)).names == ("hidden/bias", "hidden/kernel", "out")


PARAMS = {"w": jnp.zeros(4), "b": jnp.zeros(())}


def squared(p, x, y):
    return (x @ p["w"] + p["b"] - y) ** 2


def lazy_gradients():
    return jaxdp.per_example_grads(squared)(PARAMS, (X, Y), ALL)


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"w": PARAMS["w"]}, r"the gradients have \['b'\], and the parameters have not"),
        ({**PARAMS, "c": jnp.zeros(2)}, r"the parameters have \['c'\], and the gradients have not"),
        ([PARAMS["w"]], r"the gradients have \['b'\], \['w'\], .*; the parameters have \[0\]"),
        ({**PARAMS, "w": jnp.zeros(3)}, r"\['w'\] has shape \(4,\), and the parameter \(3,\)"),
    ],
)
def test_other_parameters_than_those_of_the_gradients_are_named(params, what):
    tx = jaxdp.privatize(make_plan())
    with pytest.raises(ValueError, match=what) as caught:
        tx.update(lazy_gradients(), tx.init(PARAMS), params)
    assert len(str(caught.value)) < 250


def test_a_tree_of_many_other_parameters_is_not_printed_whole():
    tx = jaxdp.privatize(make_plan())
    many = {f"layer_{i:03}": jnp.zeros(1) for i in range(500)}
    with pytest.raises(ValueError, match=r"\['layer_002'\] and 497 more, and the") as caught:
        tx.update(lazy_gradients(), tx.init(PARAMS), many)
    assert len(str(caught.value)) < 300


def test_the_same_names_in_another_container():
    tx = jaxdp.privatize(make_plan())
    with pytest.raises(ValueError, match="in other containers: a dict and a FrozenDict"):
        tx.update(lazy_gradients(), tx.init(PARAMS), nn.FrozenDict(PARAMS))


@pytest.mark.parametrize("second", [jaxdp.privatize(make_plan()), jaxdp.clip_individual(1.0)])
def test_a_second_privatize_or_clipping_is_named(second):
    for first in (jaxdp.privatize(make_plan()), jaxdp.clip_individual(1.0)):
        tx = optax.chain(first, second)
        with pytest.raises(TypeError, match=r"After another privatize or clipping .* keep one"):
            tx.update(lazy_gradients(), tx.init(PARAMS), PARAMS)
    tx = optax.chain(*[jaxdp.privatize(make_plan())] * 2)
    with pytest.raises(ValueError, match=r"2 step counts of privatize.*no second one"):
        make_plan().epsilon_spent(tx.init(PARAMS))


def named_schedule(step):
    return 1.0 + step


def test_a_plan_and_its_state_survive_pickle():
    def told(plan):
        again = pickle.loads(pickle.dumps(plan))
        assert again == plan
        return again.epsilon(3)

    plan = make_plan()
    next(plan.batches(X, Y))
    assert told(plan) == plan.epsilon(3)
    told(make_plan(noise_multiplier=lambda step: 1.0 + step))  # kept as numbers
    told(make_plan(jaxdp.clip_layerwise({"w": 1.0, "b": 0.0})))
    told(make_plan(jaxdp.clip_individual(named_schedule)))  # a lambda has no name for pickle
    tx = jaxdp.privatize(plan, key=jaxdp.secret_key())
    state = tx.init(PARAMS)
    again, kept = pickle.loads(pickle.dumps((tx, state)))
    updates = [t.update(lazy_gradients(), s, PARAMS)[0] for t, s in ((tx, state), (again, kept))]
    assert_same(*updates)


def test_arguments_of_the_loss_that_are_in_no_tuple():
    grads = jaxdp.per_example_grads(squared)
    with pytest.raises(TypeError, match=r"got 4 arguments, .* as in grads\(params, \(x, y\), mask"):
        grads(PARAMS, X, Y, ALL)
    with pytest.raises(TypeError, match=r"batch is a ndarray: pass the tuple"):
        grads(PARAMS, X, Y)


def test_the_numbers_of_privatize_belong_to_the_plan():
    for rubbish in ((1.0, 1.1), (make_plan(), jaxdp.secret_key()), (make_plan(), 1.0)):
        with pytest.raises(TypeError, match=r"privatize takes the plan.*jaxdp\.Plan\(.*key=key"):
            jaxdp.privatize(*rubbish)


def test_parts_are_added_by_sum():
    tx = jaxdp.privatize(make_plan())
    state = tx.init(PARAMS)
    grads = jaxdp.per_example_grads(squared)
    rows = [slice(0, 30), slice(30, 60)]
    parts = [
        tx.sums(grads(PARAMS, (X[r], Y[r]), ALL[r]), state, part=(i, 2)) for i, r in enumerate(rows)
    ]
    added = tx.release(sum(parts), state, PARAMS)[0]
    assert_same(added, tx.release(parts[0] + parts[1], state, PARAMS)[0])
    assert np.isnan(tx.release(sum([parts[0], parts[0]]), state, PARAMS)[0]["w"]).all()
    for other in (1, 0.0, None):
        with pytest.raises(TypeError, match="Sums can be added to Sums only"):
            other + parts[0]


def test_lists_in_place_of_arrays_are_answered_with_arrays():
    with pytest.raises(ValueError, match=r"\[0\]\[0\]\[0\] is .*a list is .*np\.asarray\(rows\)"):
        next(make_plan().batches(X.tolist(), Y.tolist()))
    grads = jaxdp.per_example_grads(squared)
    with pytest.raises(ValueError, match=r"batch\[1\]\[0\] is \d, .*a list is .*jnp\.asarray\(row"):
        grads(PARAMS, (X, Y.tolist()), ALL)


KEY = jax.random.key(0)
KEYS = jax.vmap(jax.random.fold_in, (None, 0))(KEY, np.arange(N))


def kept(key, x):
    return x * jax.random.bernoulli(key, 0.5, x.shape)


def merged(p, x, y):
    graph, _, rest = nnx.split(Net(rate=0.5), nnx.Param, ...)
    return cross_entropy(nnx.merge(graph, p, rest, copy=True)(x), y)


def repeated(p, x, y):
    body = lambda x, i: (kept(jax.random.fold_in(KEY, i), x), None)
    return cross_entropy(jax.lax.scan(body, x, jnp.arange(3))[0][:2] * p["w"], y)


W = {"w": jnp.ones(2)}


@pytest.mark.parametrize(
    ("loss", "params"),
    [
        (merged, nnx.state(Net(rate=0.5), nnx.Param)),
        (lambda p, x, y: cross_entropy(kept(KEY, x)[:2] * p["w"], y), W),
        (lambda p, x, y: cross_entropy(jax.jit(kept)(KEY, x)[:2] * p["w"], y), W),
        (lambda p, x, y: cross_entropy(jax.checkpoint(kept)(KEY, x)[:2] * p["w"], y), W),
        (repeated, W),
    ],
)
def test_one_draw_for_all_examples_is_told(loss, params):
    grads = jaxdp.per_example_grads(loss)
    with pytest.warns(
        UserWarning, match=r"that do not depend on the example.*record's number"
    ) as w:
        jax.jit(lambda p: grads(p, (X, Y), ALL).materialize())(params)
    assert w[0].filename == __file__


def carried(p, x, y, key):
    def body(carry, _):
        x, key = carry
        key, own = jax.random.split(key)
        return (kept(own, x), key), None

    (x, _), _ = jax.lax.scan(body, (x, key), length=3)
    return cross_entropy(x[:2] * p["w"], y)


def late(p, x, y, key):
    """The first iteration draws from a constant, and the others from the example's key."""

    def body(last, own):
        return own, kept(last, x)

    _, draws = jax.lax.scan(body, KEY, key)
    return cross_entropy(draws[-1][:2] * p["w"], y)


def nnx_by_record(p, x, y, key):
    graph, _, rest = nnx.split(Net(rate=0.5), nnx.Param, ...)
    return cross_entropy(nnx.merge(graph, p, rest, copy=True)(x, key), y)


@pytest.mark.parametrize(
    ("loss", "params", "keys"),
    [
        (lambda p, x, y, key: cross_entropy(kept(key, x)[:2] * p["w"], y), W, KEYS),
        (carried, W, KEYS),
        (late, W, jax.vmap(lambda key: jax.random.split(key, 3))(KEYS)),
        # It draws initial parameters too, of which nothing is used.
        (nnx_by_record, nnx.state(Net(rate=0.5), nnx.Param), KEYS),
    ],
)
def test_draws_from_keys_of_the_records_are_no_cause_for_words(loss, params, keys):
    grads = jaxdp.per_example_grads(loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(lambda p: grads(p, (X, Y, keys), ALL).materialize())(params)
