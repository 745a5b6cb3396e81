"""The table tells what the engine does."""

import jax
import jax.numpy as jnp
import pytest

import jaxdp
from jaxdp.gradients.engine import auto_engine
from jaxdp.gradients.matmul import Matmul
from jaxdp.gradients.representations import Dense

PARAMS = {
    "bias": jnp.ones(5),
    "conv": jnp.ones((3, 4, 5)),
    "few": jnp.ones((5, 200)),
    "many": jnp.ones((4, 4)),
    "table": jnp.ones((9, 4)),
    "tied": jnp.ones((200, 200)),
    "unused": jnp.ones(3),
}


def loss(q, tokens):
    x = jnp.take(q["table"], tokens, axis=0) @ q["many"]
    layout = ("NWC", "WIO", "NWC")
    x = jax.lax.conv_general_dilated(x[None], q["conv"], (1,), "SAME", dimension_numbers=layout)
    x = (jnp.sin(x[0]) + q["bias"]).mean(0) @ q["few"]
    return jnp.sum(jnp.sin(x @ q["tied"]) @ q["tied"])


TOKENS = jnp.arange(64) % 9


def test_forms_and_reasons():
    plans = {plan.leaf: plan for plan in jaxdp.explain(loss, PARAMS, (TOKENS,)).leaves}
    assert plans["['bias']"].form == "dense"
    assert plans["['few']"].form == "gram"
    assert plans["['many']"].form == "product"
    assert plans["['table']"].form == "lookup"
    assert plans["['unused']"].form == "zero"
    assert plans["['tied']"].reason == "few positions, used 2 times"
    assert "conv_general_dilated at" in plans["['conv']"].site
    assert "test_explanation.py" in plans["['conv']"].site
    assert plans["['few']"].numbers == 205
    assert plans["['few']"].dense_numbers == 1000


def test_the_table_reads_well():
    text = str(jaxdp.explain(loss, PARAMS, (TOKENS,)))
    assert "['tied']" in text.splitlines()[6]
    assert "Most time: ['tied']; most memory: ['tied']." in text


def test_what_is_told_is_what_is_done():
    _, leaves = auto_engine(loss, PARAMS, (jnp.stack([TOKENS, TOKENS]),))
    plans = jaxdp.explain(loss, PARAMS, (TOKENS,)).leaves
    kinds = {"dense": Dense, "product": Dense, "gram": Matmul}
    for plan, leaf in zip(plans, leaves, strict=True):
        assert isinstance(leaf, kinds.get(plan.form, object))


def test_factored_stores_no_products():
    forms = [p.form for p in jaxdp.explain(loss, PARAMS, (TOKENS,), method="factored").leaves]
    assert "product" not in forms


def test_abstract_examples_do():
    spec = jax.ShapeDtypeStruct((64,), jnp.int32)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
    assert len(jaxdp.explain(loss, shapes, (spec,)).leaves) == 7


def test_vmap_has_nothing_to_explain():
    with pytest.raises(ValueError, match="holds every leaf as dense"):
        jaxdp.explain(loss, PARAMS, (TOKENS,), method="vmap")


def test_where_an_example_adds_one_term_to_each_number_is_told():
    plans = {plan.leaf: plan for plan in jaxdp.explain(loss, PARAMS, (TOKENS,)).leaves}
    assert {name for name, plan in plans.items() if not plan.one_term} == {"['table']", "['tied']"}
    # Of the factors, only those of "few" have one position.
    factored = jaxdp.explain(loss, PARAMS, (TOKENS,), method="factored")
    names = {leaf.leaf for leaf in factored.leaves if not leaf.one_term}
    assert names == {"['conv']", "['many']", "['table']", "['tied']"}
    assert not factored.one_term
    alone = jaxdp.explain(loss, PARAMS, (TOKENS,), microbatch_size=1)
    assert alone.one_term
    assert {leaf.form for leaf in alone.leaves} == {"dense"}
    one = lambda w, token: jnp.sum(jnp.sin(jnp.take(w, token[:1], axis=0)))
    assert jaxdp.explain(one, jnp.ones((9, 4)), (TOKENS,), method="factored").one_term
    # A convolution with one position is none: there are algorithms that add other terms.
    layout = ("NWC", "WIO", "NWC")
    conv = lambda k, x: jnp.sum(
        jax.lax.conv_general_dilated(x[None], k, (1,), "VALID", dimension_numbers=layout) ** 2
    )
    assert not jaxdp.explain(conv, jnp.ones((3, 2, 2)), (jnp.ones((3, 2)),)).one_term


def test_bound_and_estimate_of_the_rounding_are_told():
    plan = jaxdp.Plan(
        num_examples=60_000,
        expected_batch_size=1000,
        steps=100,
        clipping=jaxdp.clip_individual(1.0),
        noise_multiplier=1.0,
    )
    linear = lambda w, x: jnp.sum(jnp.sin(x @ w))
    told = lambda *args, **options: str(jaxdp.explain(*args, **options)).splitlines()[-1]
    params, one, many = jnp.ones((20, 30)), (jnp.ones(20),), (jnp.ones((99, 20)),)
    assert told(linear, params, one) == (
        "Rounding of the sum: bounded, since an example adds one term to each number."
    )
    bounded = plan.with_rounding_bound(8)
    estimate, bound = f"estimate {plan.rounding_estimate:.2g}", f"{bounded.rounding_bound:.2g}"
    text = told(linear, params, one, plan=plan, microbatch_size=8)
    assert f"at most {bound}, since" in text
    assert (
        f"{estimate}. A plan made by with_rounding_bound(8) raises the noise by {bound}; one"
        in text
    )
    text = told(linear, params, many, plan=plan, method="factored", microbatch_size=8)
    assert "no bound, since an example adds several terms to each number of params" in text
    assert f"{estimate}. The noise is raised by the estimate." in text


def test_uses_are_counted_with_their_lines():
    def cell(q, h, x):
        return jnp.tanh(
            x @ q["i"]
            + h @ q["h"]
            + q["b"]
        )  # fmt: skip

    def loss(q, x):
        h = jnp.zeros(4)
        for row in x:
            h = cell(q, h, row)
        return jnp.sum(h @ q["h"]) + jnp.sum(q["h"])

    params = {"i": jnp.ones((3, 4)), "h": jnp.ones((4, 4)), "b": jnp.ones(4)}
    plans = {p.leaf: p for p in jaxdp.explain(loss, params, (jnp.ones((20, 3)),)).leaves}
    first = cell.__code__.co_firstlineno
    at = lambda offset: f"test_explanation.py:{first + offset}"
    end = f"test_explanation.py:{loss.__code__.co_firstlineno + 4}"
    assert plans["['i']"].site == f"dot_general × 20 at {at(2)}"
    assert plans["['i']"].reason == "many positions, used 20 times"
    assert plans["['h']"].site == f"dot_general × 21 at {at(3)}, {end}, reduce_sum at {end}"
    assert plans["['h']"].reason == "used 22 times"


def test_many_lines_are_counted():
    def loss(q, x):
        y = x @ q
        y = y @ q
        y = y @ q
        y = y @ q
        return jnp.sum(y @ q)

    (plan,) = jaxdp.explain(loss, jnp.ones((3, 3)), (jnp.ones(3),)).leaves
    assert plan.site.endswith(f":{loss.__code__.co_firstlineno + 3} and 2 more")
    assert plan.site.startswith("dot_general × 5 at test_explanation.py:")
