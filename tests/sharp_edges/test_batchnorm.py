"""BatchNorm and dropout as users write them: an error, or a word from `explain`, never silence.

Equinox's and Haiku's BatchNorm are imitated in plain JAX.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxdp

X = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Linen(nn.Module):
    axis_name: str | None = None
    use_running_average: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="hidden")(x)
        norm = nn.BatchNorm(self.use_running_average, axis_name=self.axis_name, name="norm")
        return nn.Dense(2, name="out")(nn.relu(norm(x)))


class Nnx(nnx.Module):
    def __init__(self, rate=0.0):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(5, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs) if rate else lambda x: x
        self.out = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def linen():
    # The initialiser sees no axis with a name.
    made = Linen().init(jax.random.key(0), X)
    return made["params"], made["batch_stats"]


PLAIN = {
    "hidden": jax.random.normal(jax.random.key(0), (5, 6)),
    "bias": jnp.zeros(6),
    "scale": jnp.ones(6),
    "shift": jnp.zeros(6),
    "out": jax.random.normal(jax.random.key(1), (6, 2)),
}


def normalised(p, h, mean, variance):
    h = (h - mean) / jnp.sqrt(variance + 1e-5) * p["scale"] + p["shift"]
    return jax.nn.relu(h) @ p["out"]


def gradients(loss, params, *batch):
    batch = batch or (X, Y)
    grads = jaxdp.per_example_grads(loss)
    return jax.jit(lambda p: grads(p, batch, jaxdp.all_rows(8)).materialize())(params)


def told(loss, params, *example):
    explained = jaxdp.explain(loss, params, example or (X[0], Y[0]))
    assert ("is exactly zero" in str(explained)) == bool(explained.without_gradient)
    return set(explained.without_gradient), explained.warning


def closed_over_linen():
    params, statistics = linen()

    def loss(p, x, y):
        variables = {"params": p, "batch_stats": statistics}
        logits, _ = Linen().apply(variables, x[None], mutable=["batch_stats"])
        return cross_entropy(logits[0], y)

    return loss, params, {"['hidden']['kernel']", "['hidden']['bias']", "['norm']['scale']"}


def over_itself():
    def loss(p, x, y):
        h = x[None] @ p["hidden"] + p["bias"]
        return cross_entropy(normalised(p, h, h.mean(0), h.var(0))[0], y)

    return loss, PLAIN, {"['hidden']", "['bias']", "['scale']"}


def as_equinox():
    def one(p, x):
        h = x @ p["hidden"] + p["bias"]
        mean = jax.lax.pmean(h, "batch")
        return normalised(p, h, mean, jax.lax.pmean((h - mean) ** 2, "batch"))

    def loss(p, x, y):
        batched = jax.vmap(one, (None, 0), axis_name="batch")
        return cross_entropy(batched(p, x[None])[0], y)

    return loss, PLAIN, {"['hidden']", "['bias']", "['scale']"}


def as_haiku():
    """`hk.transform_with_state`: the state goes in and out, and the loss drops what comes out."""
    state = {"average": jnp.zeros(6), "variance": jnp.ones(6)}

    def apply(p, state, x, is_training=True):
        h = x @ p["hidden"] + p["bias"]
        mean, variance = h.mean(0), h.var(0)
        state = {
            "average": 0.9 * state["average"] + 0.1 * mean,
            "variance": 0.9 * state["variance"] + 0.1 * variance,
        }
        return normalised(p, h, mean, variance), state

    def loss(p, x, y):
        logits, _ = apply(p, state, x[None])
        return cross_entropy(logits[0], y)

    return loss, PLAIN, {"['hidden']", "['bias']", "['scale']"}


@pytest.mark.parametrize("code", [closed_over_linen, over_itself, as_equinox, as_haiku])
def test_statistics_over_one_example_are_told(code):
    loss, params, dead = code()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(loss, params)):
        if jax.tree_util.keystr(path) in dead:
            np.testing.assert_array_equal(leaf, 0)  # they would get noise only
    names, warning = told(loss, params)
    assert names == dead
    assert "statistics over one example?" in warning
    assert "docs/guides/batchnorm.md" in warning
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    abstract = (jax.ShapeDtypeStruct((5,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    assert told(loss, shapes, *abstract)[0] == dead


def test_an_nnx_model_without_its_parameters_apart_is_refused():
    model = Nnx()
    graph, state = nnx.split(model)
    loss = lambda p, x, y: cross_entropy(nnx.merge(graph, p)(x[None])[0], y)
    for params in (state, {"model": state}):
        with pytest.raises(ValueError, match=r"\['norm'\]\['mean'\] in params is an nnx.BatchStat"):
            gradients(loss, params)
    with pytest.raises(ValueError, match=r"params = nnx.state\(model, nnx.Param\).*GroupNorm"):
        jaxdp.explain(loss, state, (X[0], Y[0]))
    with pytest.raises(ValueError, match=r"mean in params is an nnx.BatchStat"):
        gradients(lambda model, x, y: cross_entropy(model(x[None])[0], y), model)


@pytest.mark.parametrize(
    ("variable", "kind", "cure"),
    [
        (lambda: nnx.state(nnx.Dropout(0.5, rngs=nnx.Rngs(0))), "RngCount", "fold_in"),
        (lambda: nnx.Cache(jnp.ones(3)), "Cache", "changed by noise"),
    ],
)
def test_other_nnx_state_among_the_parameters_is_refused_by_name(variable, kind, cure):
    params = {"w": nnx.Param(jnp.ones((5, 2))), "rest": variable()}
    loss = lambda p, x, y: cross_entropy(x @ p["w"][...], y)
    with pytest.raises(ValueError, match=rf"is an nnx.{kind}, and no nnx.Param.*nnx.split.*{cure}"):
        gradients(loss, params)
    assert gradients(loss, {"w": params["w"]})["w"][...].shape == (8, 5, 2)


def test_linen_statistics_among_the_parameters_are_refused_however_deep():
    variables = Linen().init(jax.random.key(0), X)
    loss = lambda p, x, y: jnp.sum(p["net"]["params"]["out"]["kernel"])
    for wrong in (variables, {"net": variables}, {"a": jnp.ones(2), "net": [variables]}):
        with pytest.raises(
            ValueError, match=r"BatchNorm \(layer .*\['norm'\]\), whose batch_stats"
        ):
            gradients(loss, wrong)


def axis_without_vmap():
    params, statistics = linen()
    variables = lambda p: {"params": p, "batch_stats": statistics}
    model = Linen(axis_name="batch")
    loss = lambda p, x, y: cross_entropy(
        model.apply(variables(p), x, mutable=["batch_stats"])[0], y
    )
    return loss, params, "communicates over the axis 'batch'"


def immutable_linen():
    params, statistics = linen()
    variables = lambda p: {"params": p, "batch_stats": statistics}
    loss = lambda p, x, y: cross_entropy(Linen().apply(variables(p), x[None])[0], y)
    return loss, params, r'ModifyScopeVariableError: Cannot update variable "mean" in "/norm"'


def linen_without_statistics():
    params, _ = linen()
    model = Linen(use_running_average=True)
    loss = lambda p, x, y: cross_entropy(model.apply({"params": p}, x[None])[0], y)
    return loss, params, "ScopeCollectionNotFound: Tried to access"


def merged_nnx():
    graph, params, rest = nnx.split(Nnx(), nnx.Param, ...)
    loss = lambda p, x, y: cross_entropy(nnx.merge(graph, p, rest)(x[None])[0], y)
    return loss, params, "TraceContextError: Cannot mutate BatchStat"


@pytest.mark.parametrize(
    "code", [axis_without_vmap, immutable_linen, linen_without_statistics, merged_nnx]
)
def test_what_batch_norm_raises_under_a_trace_is_told_with_the_cure(code):
    loss, params, what = code()
    for call in (gradients, told):
        with pytest.raises(ValueError, match=rf"(?s)^.*{what}.*GroupNorm.*docs/guides") as caught:
            call(loss, params)
        assert caught.value.__cause__ is not None


def test_other_errors_stay_as_they_are():
    def loss(p, x, y):
        return undefined  # noqa: F821

    with pytest.raises(NameError, match="name 'undefined' is not defined"):
        gradients(loss, PLAIN)
    model, params = Nnx(), nnx.state(Nnx(), nnx.Param)
    with pytest.raises(Exception, match="Cannot mutate Param"):
        gradients(lambda p, x, y: nnx.update(model, p), params)


def dropped(p, x, y, key):
    kept = jax.random.bernoulli(key, 0.5, x.shape)
    return cross_entropy(jnp.where(kept, 2 * x, 0) @ p, y)


W = jnp.ones((5, 2))


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)])
def test_one_dropout_key_for_the_batch_is_answered_with_keys_by_record(key):
    # "Close over what all examples share" was the answer, which gives all the same mask.
    for call in (
        lambda: gradients(dropped, W, X, Y, key),
        lambda: gradients(lambda p, x, y: dropped(p["w"], x, y, p["key"]), {"w": W, "key": key}),
    ):
        with pytest.raises((ValueError, TypeError), match="record's number and never") as caught:
            call()
        assert 'jax_key(dropout_key, "dropout", step)' in str(caught.value)
        assert "jax.vmap(jax.random.fold_in, (None, 0))(step_key, indices)" in str(caught.value)
        assert "close over" not in str(caught.value)


def test_nnx_dropout_with_its_own_state_is_answered_with_keys_by_record():
    layer = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"Cannot mutate RngCount.*fold_in.*dropout\(x, rngs=key"):
        gradients(lambda p, x, y: cross_entropy(layer(x) @ p, y), W)
    graph, params, rest = nnx.split(Nnx(rate=0.5), nnx.Param, ...)
    with pytest.raises(ValueError, match="Cannot mutate"):
        gradients(lambda p, x, y: cross_entropy(nnx.merge(graph, p, rest)(x[None])[0], y), params)


def test_keys_by_record_give_a_record_the_same_mask_wherever_it_is():
    step_key = jaxdp.dpsgd.jax_key(jaxdp.secret_key(), "dropout", 3)
    keys = lambda indices: jax.vmap(jax.random.fold_in, (None, 0))(step_key, indices)
    grads = lambda rows: gradients(dropped, W, X[rows], Y[rows], keys(rows))
    rows, moved = np.arange(8), np.roll(np.arange(8), 3)
    np.testing.assert_array_equal(grads(rows)[moved], grads(moved))
    # And nnx.Dropout takes such a key.
    layer = nnx.Dropout(0.5)
    same = lambda p, x, y, key: cross_entropy(layer(jnp.ones(5), rngs=key) @ p, y)
    assert len(np.unique(gradients(same, W, X, 0 * Y, keys(rows)), axis=0)) > 1


def test_fixed_statistics_and_other_norms_are_no_cause_for_words():
    params, statistics = linen()
    fixed = Linen(use_running_average=True)

    def loss(p, x, y):
        logits = fixed.apply({"params": p, "batch_stats": statistics}, x[None])
        return cross_entropy(logits[0], y)

    assert told(loss, params) == (set(), "")
    groups = nn.Sequential([nn.Dense(6), nn.GroupNorm(3), nn.relu, nn.LayerNorm(), nn.Dense(2)])
    params = groups.init(jax.random.key(0), X)
    assert told(lambda p, x, y: cross_entropy(groups.apply(p, x[None])[0], y), params)[0] == set()


def test_batch_norm_in_a_batch_unit_is_no_cause_for_words():
    from jaxdp.models import batchnorm

    params, _ = linen()
    loss = batchnorm.unit_loss(Linen(), cross_entropy)
    unit = (X[:1], Y[:1], np.ones(1, bool))  # of one record, which may be
    assert jaxdp.explain(loss, params, unit).without_gradient != ()
    assert jaxdp.explain(loss, params, unit, unit="batch").without_gradient == ()
