"""The functions of a task, and what a record's inputs are."""

from typing import NamedTuple

import jax.numpy as jnp
import pytest

import jaxdp
from jaxdp.tasks import Task, inputs_of


def init(key, record):
    return jnp.zeros(3)


def loss(params, record, key):
    return jnp.sum(params * record)


def test_a_task_of_own_functions():
    task = jaxdp.Task(init, loss)
    assert (task.scores, task.predict, task.unit_loss, task.statistics) == (None,) * 4
    assert task.name == "custom"
    assert Task(init, None, unit_loss=loss).loss is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((jnp.zeros(3), loss), TypeError, r"init is Array.*give a function init\(key, record\)"),
        ((None, loss), TypeError, "init is None: give a function"),
        ((init, 3), TypeError, r"loss is 3: give a function loss\(params, record, key\)"),
        ((init, loss, "accuracy"), TypeError, r"scores is 'accuracy'.*\(variables, record\)"),
        ((init, loss, None, 1), TypeError, r"predict is 1.*\(variables, inputs\)"),
        ((init, None), ValueError, r"loss is None, and so is unit_loss: give loss\(params"),
        ((init, loss, None, None, None, None, ""), ValueError, "name is '': say what is learnt"),
    ],
)
def test_what_is_no_function_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        Task(*arguments)
    assert "\n" not in str(caught.value)


def test_inputs_are_the_first_part_of_a_tuple():
    class Pair(NamedTuple):
        image: str
        label: int

    assert inputs_of(("x", "y")) == inputs_of(Pair("x", 1)) == "x"
    for whole in ({"x": 1, "y": 2}, ["x", "y"], "tokens"):
        assert inputs_of(whole) is whole
