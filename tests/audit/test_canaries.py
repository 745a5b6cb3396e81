"""Canaries: the two batches are neighbours, and padding comes last."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.audit import canaries
from jaxdp.audit.canaries import ROWS


def plan_of(clipping=None, **more):
    given = dict(num_examples=100, expected_batch_size=100, steps=2, noise_multiplier=1.0)
    return jaxdp.Plan(**given | more, clipping=clipping or jaxdp.clip_individual(1.0))


def batch_of(*shape):
    x = np.arange(np.prod(shape) * 3, dtype=np.float32).reshape(*shape, 3) + 1
    return x, np.arange(np.prod(shape), dtype=np.int32).reshape(shape)


def records(given):
    """The records that count, as text: a row each."""
    x, y = (np.asarray(leaf) for leaf in given.rows)
    return sorted(f"{a.tolist()} {b}" for a, b in zip(x[given.mask], y[given.mask], strict=True))


def only_in(a, b):
    left = list(b)
    return [row for row in a if row not in left or left.remove(row)]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("shape", [(8,), (5,), (3, 6)])
def test_neighbours_differ_by_one_record(name, shape):
    units = dict(clipping=jaxdp.clip_batch(1.0), num_units=3, expected_batch_size=18)
    for of_row in range(canaries.CANDIDATES):
        plan = plan_of(**(units if len(shape) == 2 else {}))
        canary = canaries.row_canary(name, plan, batch_of(*shape), of_row)
        one, other = records(canary.with_it), records(canary.without)
        assert (len(only_in(one, other)), len(only_in(other, one))) == (1, 0)
        for given in canary[1:3]:
            assert (given.mask[..., :-1] >= given.mask[..., 1:]).all()
            assert given.mask.shape == shape
            assert not given.mask.all()


@pytest.mark.parametrize("name", ROWS)
def test_a_replaced_record_has_another_in_its_place(name):
    plan = plan_of(adjacency="replace_one")
    canary = canaries.row_canary(name, plan, batch_of(8), 0)
    one, other = records(canary.with_it), records(canary.without)
    assert len(only_in(one, other)) == len(only_in(other, one)) == 1
    np.testing.assert_array_equal(canary.with_it.mask, canary.without.mask)


def test_padding_is_made_of_the_canary():
    canary = canaries.row_canary("huge", plan_of(), batch_of(8), 0)
    x, y = canary.with_it.rows
    assert (x[6:] == x[0]).all()
    assert (x[0, 0], y[0]) == (1e6, 0)
    assert not (canary.without.rows[0] == x[0]).any()


def test_rows_are_changed_as_their_names_say():
    of = lambda name: canaries.row_canary(name, plan_of(), batch_of(8), 1).with_it.rows[0]
    assert np.isnan(of("nan")[:6]).any(axis=1).tolist() == [True] + [False] * 5
    assert 0 < of("tiny")[0].max() < 1e-28
    np.testing.assert_array_equal(of("cancelling")[0], [10_004, -9_995, 10_006])
    against = of("against")
    assert (against[1:6] == against[1]).all()
    assert against[0, 0] < -1e12
    assert (of("duplicate")[0] == of("duplicate")[1]).all()
    assert of("last")[5, 0] == 4  # row 1, in the last place before the padding


def test_keys_among_the_records_are_moved_and_not_changed():
    keys = jax.random.split(jax.random.key(0), 8)
    given = canaries.row_canary("huge", plan_of(), (keys, np.ones((8, 2), np.float32)), 0)
    found = jax.random.key_data(given.without.rows[0])
    np.testing.assert_array_equal(found[:5], jax.random.key_data(keys)[1:6])


LOSS = lambda params, x, y: jnp.sum(params["w"] * x) + params["b"] * y.astype(float)
PARAMS = {"b": jnp.zeros(()), "w": jnp.zeros(3)}


@pytest.mark.parametrize("name", canaries.GRADIENTS)
def test_gradients_are_as_long_as_the_clipping_allows(name):
    clipping = jaxdp.clip_layerwise({"b": 0.5, "w": 2.0})
    plan = plan_of(clipping)
    lazily = jaxdp.per_example_grads(LOSS)
    grads = lambda params, batch, mask: lazily(params, batch, mask)
    canary = canaries.gradient_canary(
        name, plan, grads, PARAMS, batch_of(8), clipping.groups(PARAMS)
    )
    assert canary.kind == "lazy"
    rows = canary.with_it.rows
    length = {leaf: float(np.linalg.norm(rows[leaf][0])) for leaf in rows}
    wanted = {"coordinate": (0, 2), "spread": (5, 20), "emptiest": (0.5, 0)}[name]
    assert (length["b"], length["w"]) == pytest.approx(wanted)
    assert canary.with_it.mask.sum() == canary.without.mask.sum() + 1
    np.testing.assert_array_equal(rows["w"][1:6], canary.without.rows["w"][:5])


@pytest.mark.parametrize("adjacency", ["replace_one", "add_remove"])
def test_the_neighbour_of_a_replaced_gradient_is_its_opposite(adjacency):
    plan = plan_of(adjacency=adjacency)
    grads = lambda params, batch, mask: jax.vmap(jax.grad(LOSS), (None, 0, 0))(params, *batch)
    canary = canaries.gradient_canary(
        "spread", plan, grads, PARAMS, batch_of(8), plan.clipping.groups(PARAMS)
    )
    assert canary.kind == "arrays"
    first, other = (given.rows["w"][0] for given in canary[1:3])
    # What is given as arrays may be clipped already.
    squares = [np.sum(leaf[0] ** 2) for leaf in canary.with_it.rows.values()]
    assert sum(squares) == pytest.approx(1)
    assert np.array_equal(first, -other) == (adjacency == "replace_one")


def test_a_batch_that_is_too_small_is_refused():
    for batch in (batch_of(3), (np.ones(()),)):
        with pytest.raises(ValueError, match=r"the batch has arrays .*give arrays \[B, ...\]"):
            canaries.row_canary("huge", plan_of(), batch, 0)
