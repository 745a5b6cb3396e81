"""Models and records as users give them to a task: one line that names the cure."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.networks import INPUTS, NETWORKS, Equinox, Linen, Nnx

import jaxdp
from jaxdp.tasks import classifier, language_model, regressor

KEY = jax.random.key(0)
ROW = (jnp.zeros(4), jnp.zeros((), int))


def refused(call, message, error=ValueError):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def start(model, record=ROW, task=classifier, **options):
    made = task(model, **options)
    return made, made.init(KEY, record)


def linen(call, **fields):
    """A linen module whose compact call is the given function."""
    return type("Net", (nn.Module,), {"__call__": nn.compact(call), **fields})()


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x,
        None,
        {"w": 1},
        hk.multi_transform(lambda: (lambda x: x, (lambda x: x,))),
        jax.jit(lambda params, x: x),
    ],
)
def test_other_models_are_answered_with_a_task_of_own_functions(model):
    refused(lambda: classifier(model), r"^model is .*Haiku; .*write a jaxdp\.Task", TypeError)


def test_a_class_is_no_model():
    for cls in (Linen, Nnx, Equinox):
        refused(lambda: classifier(cls), f"class {cls.__name__}: give an instance", TypeError)

    class Mute(eqx.Module):
        weight: jax.Array

    refused(lambda: classifier(Mute(jnp.ones(3))), "Mute has no __call__", TypeError)


def test_options_that_are_no_functions():
    refused(lambda: classifier(Linen(), preprocess=255), "preprocess is 255: give a", TypeError)
    refused(lambda: classifier(Linen(), augment="flip"), r"'flip'.*augment\(key, in", TypeError)


# BatchNorm and other state.


class LinenNorm(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(6)(x))
        return nn.Dense(3)(nn.Dropout(self.rate, deterministic=not train)(x))


class NnxNorm(nnx.Module):
    def __init__(self, rate=0.0):
        rngs = nnx.Rngs(0)
        self.hidden, self.norm = nnx.Linear(4, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        if rate:
            self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.out = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.norm(self.hidden(x)))


def equinox_norm():
    norm = eqx.nn.BatchNorm(6, "batch", mode="ema")
    return eqx.nn.Sequential([eqx.nn.Linear(4, 6, key=KEY), norm, eqx.nn.Linear(6, 3, key=KEY)])


def haiku_norm(x, is_training):
    return hk.Linear(3)(hk.BatchNorm(True, True, 0.9)(hk.Linear(6)(x), is_training))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LinenNorm, "BatchNorm in layer 'norm'.*flax.linen.GroupNorm.*batch_norm=True"),
        (NnxNorm, "BatchNorm in layer 'norm'.*nnx.GroupNorm.*batch_norm=True"),
        (equinox_norm, r"BatchNorm in .*layers.*1.*eqx\.nn\.GroupNorm"),
        (lambda: hk.transform(haiku_norm), "as hk.BatchNorm does.*hk.GroupNorm"),
        (
            lambda: hk.transform_with_state(haiku_norm),
            "state .* in 'batch_norm/~/mean_ema', .*hk.GroupNorm",
        ),
    ],
)
def test_batch_norm_is_refused_by_name(model, message):
    refused(lambda: start(model()), message)


@pytest.mark.parametrize("library", ["equinox", "haiku"])
def test_batch_norm_in_units_is_for_flax_only(library):
    refused(lambda: classifier(NETWORKS[library](), batch_norm=True), "only the BatchNorm of Flax")


def test_batch_norm_in_units_without_batch_norm_or_with_dropout():
    record = (jnp.zeros(INPUTS), 0)
    for model in (Linen(), Nnx()):
        # Nnx has a dropout of rate 0, which is not looked at before BatchNorm is missing.
        refused(lambda: start(model, record, batch_norm=True), "the model has no BatchNorm: leave")
    refused(lambda: start(NnxNorm(0.5), batch_norm=True), "the model keeps random state")
    task, params = start(LinenNorm(0.5), batch_norm=True)
    unit = ((jnp.ones((3, 4)), jnp.zeros(3, int)), jax.random.split(KEY, 3), jnp.ones(3, bool))
    refused(lambda: task.unit_loss(params, *unit), "BatchNorm and draws random numbers.*must go")
    two = (({"a": jnp.zeros(4), "b": jnp.zeros(4)}), 0)
    refused(lambda: start(LinenNorm(), two, batch_norm=True), "inputs are 2 arrays: make them one")


def test_batch_norm_is_scored_with_statistics():
    task, params = start(LinenNorm(), batch_norm=True)
    refused(lambda: task.scores(params, ROW), r"are a dict.*WithStatistics\(params", TypeError)
    always = linen(lambda self, x: nn.BatchNorm(use_running_average=False)(nn.Dense(3)(x)))
    task, params = start(always, batch_norm=True)
    public = (jnp.ones((3, 4)), jnp.zeros(3, int))
    variables = jaxdp.tasks.WithStatistics(params, task.statistics(params, public))
    refused(lambda: task.predict(variables, ROW[0]), "use_running_average=not train")


def cached_linen(self, x):
    self.variable("cache", "seen", lambda: jnp.zeros(()))
    return nn.Dense(3)(x)


class CachedNnx(nnx.Module):
    def __init__(self):
        self.seen = nnx.Cache(jnp.zeros(()))
        self.out = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.out(x)


class CachedEquinox(eqx.Module):
    out: eqx.nn.Linear
    seen: eqx.nn.StateIndex

    def __init__(self):
        self.out, self.seen = eqx.nn.Linear(4, 3, key=KEY), eqx.nn.StateIndex(jnp.zeros(()))

    def __call__(self, x):
        return self.out(x)


def cached_haiku(x):
    hk.set_state("seen", hk.get_state("seen", (), init=jnp.zeros) + 1)
    return hk.Linear(3)(x)


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (lambda: linen(cached_linen), "in 'cache'"),
        (CachedNnx, "in 'seen'"),
        (CachedEquinox, r"in \.seen"),
        (lambda: hk.transform(cached_haiku), "as hk.BatchNorm does"),
        (lambda: hk.transform_with_state(cached_haiku), "in '~'"),
    ],
)
def test_other_state_is_refused(model, where):
    refused(lambda: start(model()), rf"state beside its parameters, {where}.*without such state")


# Random numbers.


def test_random_state_of_another_model_is_refused():
    outside = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    class Net(nnx.Module):
        def __init__(self):
            self.out = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return outside(self.out(x))

    task, params = start(Net())
    refused(
        lambda: jax.jit(task.loss)(params, ROW, KEY),
        "Cannot mutate RngCount.*Make every layer an attribute of the model, with rngs of its own",
    )


def test_nnx_dropout_without_rngs_is_told():
    class Net(nnx.Module):
        def __init__(self):
            self.out, self.dropout = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5)

        def __call__(self, x):
            return self.dropout(self.out(x))

    task, params = start(Net())
    refused(lambda: task.loss(params, ROW, KEY), r"has no rngs: .*nnx\.Dropout\(rate, rngs=rngs")
    assert np.isfinite(task.scores(params, ROW)["loss"])


class AlwaysNnx(nnx.Module):
    def __init__(self):
        self.out, self.rngs = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Rngs(0)

    def __call__(self, x):
        return self.out(x) + jax.random.normal(self.rngs(), (1, 3))


def always_linen(self, x):
    return nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(x))


def always_haiku(x):
    return hk.dropout(hk.next_rng_key(), 0.5, hk.Linear(3)(x))


@pytest.mark.parametrize(
    "model",
    [lambda: linen(always_linen), AlwaysNnx, lambda: hk.transform(always_haiku)],
)
def test_dropout_that_does_not_stop_in_evaluation_is_told(model):
    task, params = start(model())
    assert np.isfinite(task.loss(params, ROW, KEY))
    for call in (task.scores, jax.jit(task.scores)):
        refused(lambda: call(params, ROW), "draws random numbers in evaluation .*argument `train`")


def test_equinox_dropout_without_a_key_is_told():
    class Net(eqx.Module):
        out: eqx.nn.Linear
        dropout: eqx.nn.Dropout

        def __call__(self, x):
            return self.dropout(self.out(x))

    task, params = start(Net(eqx.nn.Linear(4, 3, key=KEY), eqx.nn.Dropout(0.5)))
    refused(lambda: task.loss(params, ROW, KEY), "needs a key.*an argument `key`, and pass it on")
    assert np.isfinite(task.scores(params, ROW)["loss"])


def test_a_key_of_another_kind_is_refused_by_the_engine():
    record = (jnp.zeros(INPUTS), jnp.zeros((), int))
    task, params = start(Linen(0.5), record)
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 3)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), record)
    grads = jaxdp.per_example_grads(task.loss)
    refused(lambda: grads(params, (batch, keys)), "draws random numbers from a key of kind")


# Calls and shapes.


def test_other_arguments_are_named():
    more = linen(lambda self, x, mask, train: nn.Dense(3)(x * mask))
    refused(lambda: classifier(more), "needs the argument 'mask'.*default, or put it", TypeError)
    assert classifier(linen(lambda self, x, mask=1: nn.Dense(3)(x * mask)))
    transformed = hk.transform(lambda x, mask: hk.Linear(3)(x * mask))
    refused(lambda: classifier(transformed), "needs the argument 'mask'", TypeError)


def test_parameters_that_can_t_be_trained():
    refused(lambda: start(linen(lambda self, x: x)), "the model has no parameters")
    whole = linen(lambda self, x: x @ self.param("w", lambda key: jnp.ones((4, 3), int)))
    refused(lambda: start(whole), r"\['w'\] of the model has dtype int32: only real")
    model = Nnx()
    model.out.bias = nnx.Param(jnp.zeros(3, int))
    refused(lambda: classifier(model), r"\['out'\]\['bias'\] of the model has dtype int32")
    linear = eqx.nn.Linear(4, 3, dtype=jnp.complex64, key=KEY)
    refused(lambda: classifier(linear), r"\.weight of the model has dtype complex64")
    pixels = (jnp.zeros(4, jnp.uint8), 0)
    haiku = hk.transform(lambda x: hk.nets.MLP([3], w_init=jnp.ones, b_init=jnp.zeros)(x))
    refused(lambda: start(haiku, pixels), "has dtype uint8.*make those float32 with preprocess")
    assert start(haiku, pixels, preprocess=lambda x: x.astype(jnp.float32) / 255)


def test_a_model_that_drops_the_batch_axis():
    task, params = start(linen(lambda self, x: nn.Dense(3)(x.reshape(-1))))
    refused(lambda: task.loss(params, ROW, KEY), r"returns shape \(3,\) for a batch of one record")


@pytest.mark.parametrize(
    ("label", "shape", "message", "error"),
    [
        (jnp.zeros(2, int), (3,), r"returns shape \(3,\).*\(2,\): return logits \[2, C\]", None),
        (0, (), r"returns shape \(\) .*label has shape \(\): return logits \[C\]", None),
        (0, (1,), "one for each of C classes, two or more", None),
        (0, (2, 3), r"returns shape \(2, 3\).*return logits \[C\]", None),
        (jnp.zeros(3), (3,), "label has dtype float32.*argmax of one-hot", TypeError),
        (True, (2,), "label has dtype bool", TypeError),
    ],
)
def test_labels_and_logits_that_do_not_belong_together(label, shape, message, error):
    net = linen(lambda self, x: nn.Dense(int(np.prod(shape)))(x).reshape(-1, *shape))
    task, params = start(net)
    record = (ROW[0], label)
    for call in (lambda: task.loss(params, record, KEY), lambda: task.scores(params, record)):
        refused(call, message, error or ValueError)


def test_outputs_that_are_no_numbers():
    several = linen(lambda self, x: (nn.Dense(3)(x), x))
    task, params = start(several)
    refused(lambda: task.loss(params, ROW, KEY), "returns 2 arrays: return one", TypeError)
    classes = linen(lambda self, x: jnp.argmax(nn.Dense(3)(x), axis=-1))
    task, params = start(classes)
    refused(lambda: task.loss(params, ROW, KEY), "dtype int32: return real floating", TypeError)


def test_a_regressor_s_target_is_not_broadcast():
    one = linen(lambda self, x: nn.Dense(1)(x))
    task, params = start(one, task=regressor)
    for target in (jnp.zeros(()), jnp.zeros(3)):
        refused(lambda: task.loss(params, (ROW[0], target), KEY), r"\(1,\) for a target of shape")


def test_records_of_other_forms():
    task, params = start(linen(lambda self, x: nn.Dense(3)(x)))
    for record, what in (
        ({"x": ROW[0], "y": 0}, "is a dict: give a pair"),
        (ROW[0], "is a .*Array.*: give a pair"),
        ((*ROW, 1), "is a tuple of 3 parts"),
    ):
        refused(lambda: task.loss(params, record, KEY), what, TypeError)
    text = language_model(nn.Sequential([nn.Embed(7, 4), nn.Dense(7)]))
    refused(lambda: text.init(KEY, jnp.zeros(5, int)), "is a .*Array.*: give a pair", TypeError)
    words = (jnp.zeros(5), jnp.zeros(5, int))
    refused(lambda: text.init(KEY, words), "tokens have dtype float32", TypeError)
