"""Matrix products with a parameter in them, against vmap(grad)."""

import jax.numpy as jnp
import pytest
from helpers.cases import slow
from helpers.engines import B, agree, factored, normal


def test_linear_layers_and_biases():
    params = {"w": normal(0, 4, 6), "b": normal(1, 6), "v": normal(2, 6)}
    loss = lambda q, x, y: (jnp.tanh(x @ q["w"] + q["b"]) @ q["v"] - y) ** 2
    batch = (normal(3, B, 4), normal(4, B))
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "a", "w"),
    [
        ("td,dp->tp", (7, 4), (4, 3)),
        ("td,pd->tp", (7, 4), (3, 4)),
        slow("dt,pd->pt", (4, 7), (3, 4)),
        slow("tuc,cpq->tupq", (2, 3, 4), (4, 2, 5)),
        ("tde,edp->tp", (7, 4, 2), (2, 4, 3)),
        slow("std,sdp->stp", (2, 7, 4), (2, 4, 3)),
        ("tsd,dps->pts", (7, 2, 4), (4, 3, 2)),
        ("td,dp->", (7, 4), (4, 3)),
        ("t,p->tp", (7,), (3,)),
        slow("hd,khd->hk", (2, 4), (3, 2, 4)),
    ],
)
@pytest.mark.parametrize("swap", [False, True])
def test_einsum_with_several_axes_on_either_side(spec, a, w, swap):
    def loss(q, x):
        ins, out = spec.split("->")
        left, right = ins.split(",")
        y = jnp.einsum(f"{right},{left}->{out}", q, x) if swap else jnp.einsum(spec, x, q)
        return jnp.sum(jnp.sin(y * 2))

    batch = (normal(1, B, *a),)
    agree(loss, normal(2, *w), batch)
    if spec != "td,dp->":  # einsum sums over the free axes of its operands first
        assert factored(loss, normal(2, *w), batch) == [True]


def test_product_of_two_parameters():
    loss = lambda q, x: jnp.sum(jnp.sin(x @ (q["a"] @ q["b"])))
    agree(loss, {"a": normal(0, 4, 2), "b": normal(1, 2, 3)}, (normal(2, B, 6, 4),))


def test_lora_with_a_frozen_base():
    base = normal(0, 8, 6)
    loss = lambda q, x: jnp.sum(jnp.sin(x @ base + x @ q["a"] @ q["b"]))
    params, batch = {"a": normal(1, 8, 2), "b": normal(2, 2, 6)}, (normal(3, B, 4, 8),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [True, True]
