"""Tasks that predict, and releases of them, without any training."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from helpers.small_runs import make_run

from jaxdp.datasets.records import Records
from jaxdp.tasks.task import Task
from jaxdp.trainer.release.model import export_task
from jaxdp.trainer.release.parameters import load_release, save_params


class Layer:
    """A custom pytree, as Equinox makes them: its leaves are not in the order of their names."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias


jax.tree_util.register_pytree_with_keys(
    Layer,
    lambda layer: (
        [(jax.tree_util.GetAttrKey(name), getattr(layer, name)) for name in ("weight", "bias")],
        None,
    ),
    lambda _, leaves: Layer(*leaves),
)


class Case(NamedTuple):
    """A task with parameters, some inputs, and what it predicts for them."""

    task: Task
    params: object
    inputs: object
    expected: object

    @property
    def private(self):
        """Two records of their form: pairs of the input and a label."""
        return Records((jax.tree.map(lambda a: a[:2], self.inputs), np.zeros(2, np.int32)))


def make_case(predict, params, inputs):
    task = Task(init=lambda key, record: params, loss=lambda *_: 0.0, predict=predict)
    each = [predict(params, jax.tree.map(lambda a: a[i], inputs)) for i in range(5)]
    return Case(task, params, inputs, jax.tree.map(lambda *leaves: np.stack(leaves), *each))


def random(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def secretly_named_classifier(params, x):
    scores = jnp.matmul(x, params["layer"].weight, precision="highest") + params["layer"].bias
    return {"class": jnp.argmax(scores).astype(jnp.int32), "scores": scores}


def custom_pytree():
    # Both arrays have the same shape: if they were exchanged, no shape would tell.
    params = {"layer": Layer(random(3, 3), random(3, 3)[0] + np.zeros((3,), np.float32))}
    params["layer"].bias = random(3)
    return make_case(secretly_named_classifier, params, random(5, 3))


def swapped():
    """Leaves of one shape: an exchange of the two would only show in the values."""
    predict = lambda params, x: x * params.weight - params.bias
    return make_case(predict, Layer(random(4), random(4) + 7), random(5, 4))


def dict_inputs():
    predict = lambda params, x: params["w"] * x["dose"] + jnp.sum(x["scan"].astype(jnp.float32))
    inputs = {"scan": np.arange(5 * 6, dtype=np.uint8).reshape(5, 2, 3), "dose": random(5)}
    return make_case(predict, {"w": random(1)[0]}, inputs)


@jax.custom_batching.custom_vmap
def _for_so_many(x):
    return 2 * x


@_for_so_many.def_vmap
def _rule(axis_size, in_batched, x):
    return x * np.full(int(axis_size), 2, np.float32)[:, None], in_batched[0]


def no_symbolic_batch():
    """JAX can't write this program for any number of records."""
    return make_case(
        lambda params, x: _for_so_many(x) + params["b"], {"b": random(4)}, random(5, 4)
    )


CASES = {f.__name__: f for f in (custom_pytree, swapped, dict_inputs, no_symbolic_batch)}


def make_release(folder, case):
    """The folder of a run that released the parameters of a case, with their program."""
    make_run(folder, released=False)
    other = make_run(folder.with_name(f"{folder.name}-statement"))
    program = export_task(case.task, case.params, None, case.private)
    save_params(folder, case.params, None, program)
    released = (folder / "release.partial").rename(folder / "release")
    for name in ("privacy.json", "PRIVACY.md"):
        (other / "release" / name).rename(released / name)
    return load_release(folder)
