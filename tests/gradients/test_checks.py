"""Bad input is refused, with the value and the cure."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.problems import loss, random_problem

import jaxdp

X = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("loss_fn", "params", "batch", "message"),
    [
        (lambda p, x: p * x, jnp.ones(3), (X,), "shape \\(3,\\)"),
        (lambda p, x: jnp.argmax(p * x), jnp.ones(3), (X,), "int32"),
        (lambda p, x: (jnp.sum(p * x), x), jnp.ones(3), (X,), "tuple"),
        (lambda p, x: 1.0, {}, (X,), "nothing to train"),
        (lambda p, x: 1.0, {"n": jnp.arange(3)}, (X,), "'n'.*int32"),
        (lambda p, x: 1.0, {"n": jnp.ones((0, 3))}, (X,), r"\(0, 3\)"),
        (lambda p, x: 1.0, jnp.ones(3), (X, np.ones(5)), r"batch\[0\] has 4, batch\[1\] has 5"),
        (lambda p, x: 1.0, jnp.ones(3), X, "tuple of the loss's arguments"),
        (lambda p, x: 1.0, jnp.ones(3), (X, np.float32(1)), "leading axis"),
        (lambda p, x: 1.0, jnp.ones(3), (np.ones((0, 3)),), "0 rows"),
        (
            lambda p, x: 1.0,
            {"params": {"a": jnp.ones(3)}, "batch_stats": {"BatchNorm_0": {"mean": jnp.ones(3)}}},
            (X,),
            "BatchNorm_0.*GroupNorm",
        ),
    ],
)
def test_bad_input_names_the_value_and_the_cure(loss_fn, params, batch, message):
    with pytest.raises((ValueError, TypeError), match=message):
        jaxdp.per_example_grads(loss_fn)(params, batch)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_microbatch_size_must_be_a_whole_number(size):
    with pytest.raises(ValueError, match="microbatch_size"):
        jaxdp.per_example_grads(loss, microbatch_size=size)


def test_unknown_method_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'vmap'"):
        jaxdp.per_example_grads(loss, method="ghost")


@pytest.mark.parametrize("mask", [np.ones(3, bool), np.ones(6)])
def test_bad_mask(mask):
    p = random_problem(1)
    with pytest.raises(ValueError, match=r"expected \(6,\) and bool"):
        jaxdp.per_example_grads(loss)(p.params, p.batch, mask)
