"""How far rounding moves a float32 sum: never further than the bound (privacy rule 9)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.dense import from_dense
from helpers.tensor_cores import accumulated
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdp
from jaxdp.dpsgd import sampling, sum_rounding
from jaxdp.gradients import precision
from jaxdp.gradients.clip import Clip
from jaxdp.gradients.lazy import PerExampleGrads
from jaxdp.gradients.lookup import Lookup
from jaxdp.gradients.matmul import Matmul

COEFFICIENT = np.float32(0.7)


def furthest(rows, at_once, parts=1):
    """The bound for contributions of norm 1, without what else the slack covers."""
    slack = sum_rounding.bound(rows, at_once, parts, moved=2)
    return slack - sum_rounding.CONTRIBUTION - sum_rounding.DEVIATIONS


def sequential(rows):
    return np.add.accumulate(rows, axis=0)[-1]


def pairwise(rows):
    while len(rows) > 1:
        rows = np.concatenate([rows[: len(rows) // 2 * 2 : 2] + rows[1::2], rows[len(rows) & ~1 :]])
    return rows[0]


def lanes(rows):
    """Eight running sums that are added at the end, as vector units do it."""
    return sequential(np.stack([sequential(rows[i::8]) for i in range(min(8, len(rows)))]))


def product(rows):
    return np.ones((1, len(rows)), np.float32) @ rows


ORDERS = {"sequential": sequential, "pairwise": pairwise, "lanes": lanes, "product": product}


def fold(rows, at_once, order):
    """The sum as `PerExampleGrads.sum` takes it, with an order of one's own in a microbatch."""
    if at_once >= len(rows):
        return order(rows)
    total = lost = np.zeros(rows.shape[1], np.float32)
    for start in range(0, len(rows), at_once):
        term = order(rows[start : start + at_once]).reshape(total.shape)
        new = total + term
        kept = new - total
        lost = lost + ((total - (new - kept)) + (term - kept))
        total = new
    return total + lost


def rounds_up(count, at_once):
    """Numbers of at most 1 that are rounded up by nearly half an ulp whenever one is added."""
    row, values = np.float32(0), []
    for i in range(count):
        row = row if i % at_once else np.float32(0)
        values.append(np.float32(1 - 0.49 * np.spacing(row + np.float32(1))))
        row = row + values[-1]
    return np.array(values)[:, None]


def scaled(total, scale):
    """What scaling to the noise grid makes of a sum: the one rounding that follows it."""
    return (np.asarray(total, np.float32) * scale).astype(np.float64) / np.float64(scale)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    count=st.integers(1, 600),
    at_once=st.sampled_from([1, 2, 7, 64, 1000]),
    order=st.sampled_from(sorted(ORDERS)),
    rows=st.sampled_from(["aligned", "random", "rounds up", "cancels"]),
)
def test_no_order_of_additions_is_off_by_more_than_the_bound(seed, count, at_once, order, rows):
    rng = np.random.default_rng(seed)
    if rows == "rounds up":
        values = rounds_up(count, at_once)
    else:
        values = rng.standard_normal((1 if rows == "aligned" else count, 5))
        if rows == "cancels":
            values = np.sign(values[:1]) * (-1) ** np.arange(count)[:, None]
        values = np.broadcast_to(values, (count, 5)) * rng.uniform(0.9, 1, (count, 1))
        values = (values / np.linalg.norm(values, axis=1).max()).astype(np.float32)
    scale = np.float32(rng.uniform(1, 2))
    got = scaled(fold(values, at_once, ORDERS[order]), scale)
    exact = np.sum(values, axis=0, dtype=np.float64)
    assert np.linalg.norm(got - exact) <= furthest(count, at_once)


@pytest.mark.parametrize(("count", "at_once"), [(4096, 4096), (4096, 64), (100, 100)])
def test_the_bound_is_not_far_above_what_can_happen(count, at_once):
    values = rounds_up(count, at_once)
    got = fold(values, at_once, sequential)
    off = np.linalg.norm(got - np.sum(values, axis=0, dtype=np.float64))
    assert furthest(count, at_once) / 8 <= off <= furthest(count, at_once)


def dense(values, size):
    return from_dense(values, microbatch_size=size)


def matmul(values, size):
    # The product of x and 1 in one column; the activations and cotangents are the data themselves.
    grads = jaxdp.per_example_grads(
        lambda w, x: (x @ w)[0], method="factored", microbatch_size=size
    )
    return grads(jnp.ones((values.shape[1], 1)), (values,))


def lookup(values, size):
    grads = jaxdp.per_example_grads(
        lambda w, y, i: jnp.sum(jnp.take(w, i, axis=0) * y), method="factored", microbatch_size=size
    )
    return grads(jnp.ones((3, values.shape[1])), (values, np.zeros((len(values), 1), np.int32)))


def times(coefficient):
    """Adds up the gradients of one leaf, each times the same number."""
    each = lambda squared: [jnp.full(squared[0].shape, coefficient)]
    return Clip([0], jnp.ones(1), each, None, lambda *_: True, strict=True)


def weighted(values, size, form):
    """The float32 sum of the rows times a coefficient, by the code that steps run."""
    kinds = {matmul: Matmul, lookup: Lookup}

    @jax.jit
    def total(values):
        grads: PerExampleGrads = form(values, size)

        def part(microbatch):
            assert isinstance(microbatch.gradients.leaves[0], kinds.get(form, object))
            return microbatch.clipped_sum(times(COEFFICIENT))[0]

        return grads.sum(part, [jax.ShapeDtypeStruct(grads.like.shape, jnp.float32)])[0]

    whole = np.asarray(total(values))
    return whole[0] if form is lookup else whole.reshape(-1)


@pytest.mark.parametrize("form", [dense, matmul, lookup])
@pytest.mark.parametrize("size", [1, 16, 333, 4096])
def test_the_sums_of_a_step_are_within_the_bound(form, size):
    count, worst = 4096, 0.0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        values = rng.uniform(0.9, 1, (count, 1)) * rng.standard_normal(33)
        values[:, 0] = rounds_up(count, size)[:, 0]
        values = (values / np.linalg.norm(values, axis=1).max() / COEFFICIENT).astype(np.float32)
        exact = np.float64(COEFFICIENT) * np.sum(values, axis=0, dtype=np.float64)
        worst = max(worst, np.linalg.norm(weighted(values, size, form) - exact))
    assert furthest(count, size) / 1000 <= worst <= furthest(count, size)


def test_parts_that_are_added_are_within_the_bound():
    values = rounds_up(1024, 16)
    exact = np.sum(values, axis=0, dtype=np.float64)
    for parts in (2, 16, 64):
        total = sequential(np.stack([fold(v, 16, sequential) for v in np.split(values, parts)]))
        assert np.linalg.norm(total - exact) <= furthest(1024, 16, parts)
    # Nothing but adding the parts is rounded: a bound that left them out would be too small.
    ones = rounds_up(1024, 1024)
    off = abs(float(sequential(ones)[0]) - np.sum(ones, dtype=np.float64))
    assert furthest(1024, 1, 1) < off <= furthest(1024, 1, 1024)


def test_several_terms_of_an_example_can_be_off_by_more():
    # Two terms of 1e4 that cancel: no bound follows from the norm of their sum.
    rng = np.random.default_rng(0)
    x = 1e4 * rng.uniform(1, 2, (64, 1, 1)).astype(np.float32)
    x = np.concatenate([x, -x], axis=1) + rng.uniform(-0.1, 0.1, (64, 2, 1)).astype(np.float32)
    grads = jax.jit(
        lambda x: jaxdp.per_example_grads(lambda w, x: jnp.sum(x @ w), method="factored")(
            jnp.ones((1, 1)), (x,)
        ).sum(lambda rows: rows.clipped_sum(times(1.0))[0], [jnp.ones((1, 1))])[0]
    )(x)
    rows = np.sum(x, axis=(1, 2), dtype=np.float64)
    assert np.max(np.abs(rows)) < 0.2
    assert abs(float(grads[0, 0]) - np.sum(rows)) > furthest(64, 64) * np.sum(np.abs(rows)) / 64


def make_plan(**changes):
    numbers = dict(
        num_examples=60_000,
        expected_batch_size=1000,
        steps=100,
        clipping=jaxdp.clip_individual(1.0),
        noise_multiplier=1.0,
    )
    return jaxdp.Plan(**{**numbers, **changes})


def test_the_noise_is_raised_by_the_bound_or_else_by_the_estimate():
    plan = make_plan()
    assert plan.rounding_bound is None
    assert plan.rounding_slack == plan.rounding_estimate == 1e-5 + 6 * plan.capacity * 2.0**-24
    assert not plan.rounding_is_bounded
    small = plan.with_rounding_bound(8)
    assert plan.rounding_estimate < small.rounding_slack == small.rounding_bound < 0.01
    assert small.rounding_is_bounded
    # More than 1 % of noise is too much.
    large = plan.with_rounding_bound(256)
    assert large.rounding_bound > 0.01
    assert large.rounding_slack == plan.rounding_estimate
    assert not large.rounding_is_bounded
    # Nothing lowers the noise: the estimate stays where it is above the bound.
    replaced = make_plan(sampling="shuffled", adjacency="replace_one").with_rounding_bound(1)
    assert replaced.rounding_bound < replaced.rounding_slack == replaced.rounding_estimate
    assert replaced.rounding_is_bounded
    assert plan.rounding_bound is None  # a plan does not change
    assert (small.noise_multiplier, small.epsilon()) == (1.0, plan.epsilon())
    # The figures of docs/design.md.
    figures = [f"{plan.with_rounding_bound(size).rounding_bound:.2g}" for size in (8, 64)]
    assert figures == ["0.0019", "0.011"]


def test_the_bound_is_for_the_most_rows_of_a_plan():
    plan = make_plan()
    rows = sampling.most_rows("poisson", 60_000, 1000)
    assert plan.with_rounding_bound().rounding_bound == sum_rounding.bound(rows, rows, 1, 1)
    assert plan.with_rounding_bound(4, parts=8).rounding_bound == sum_rounding.bound(rows, 4, 8, 1)
    units = make_plan(clipping=jaxdp.clip_batch(1.0), num_units=5)
    assert units.with_rounding_bound(2).rounding_bound == sum_rounding.bound(5, 2, 1, 2)


@pytest.mark.parametrize(
    ("sampling_", "adjacency", "clipping", "moved"),
    # By how many C one record moves the sum between the two that the accountant compares. Under
    # Poisson sampling it compares either neighbour with the sum without the record.
    [
        ("poisson", "add_remove", jaxdp.clip_individual(1.0), 1),
        ("poisson", "zero_out", jaxdp.clip_individual(1.0), 1),
        ("poisson", "replace_one", jaxdp.clip_individual(1.0), 1),
        ("poisson", "replace_one", jaxdp.clip_batch(1.0), 2),
        ("poisson", "add_remove", jaxdp.clip_batch(1.0), 2),
        ("full_batch", "replace_one", jaxdp.clip_individual(1.0), 2),
        ("shuffled", "replace_one", jaxdp.clip_individual(1.0), 2),
        ("fixed_size", "replace_one", jaxdp.clip_individual(1.0), 2),
    ],
)
def test_the_bound_is_relative_to_the_distance_that_is_accounted(
    sampling_, adjacency, clipping, moved
):
    size = 200 if sampling_ == "full_batch" else 20
    plan = make_plan(
        num_examples=200,
        expected_batch_size=size,
        sampling=sampling_,
        adjacency=adjacency,
        clipping=clipping,
    ).with_rounding_bound(4)
    rows = plan.num_units or sampling.most_rows(sampling_, 200, size)
    assert plan.rounding_bound >= 1e-5 + 2 * furthest(rows, 4) / moved


def bounded(grads, size):
    plan = make_plan(num_examples=100, expected_batch_size=8).with_rounding_bound(size)
    tx = jaxdp.privatize(plan)
    state = tx.init({"w": jnp.zeros(3)})
    return tx, state, lambda: tx.sums(grads, state)


def test_a_bound_is_not_for_more_rows_at_a_time_or_more_parts_than_were_said():
    grads = from_dense({"w": np.ones((8, 3), np.float32)})
    *_, sums = bounded(grads, 4)
    with pytest.raises(ValueError, match="8 rows are summed at a time, and the plan's rounding"):
        sums()
    tx, state, sums = bounded(grads, 8)
    assert np.isfinite(tx.release(sums(), state)[0]["w"]).all()
    half = lambda i: tx.sums(grads, state, part=(i, 2))
    with pytest.raises(ValueError, match="the sums have 2 parts, and the plan's rounding bound"):
        tx.release(half(0) + half(1), state)


@pytest.mark.parametrize("method", ["factored", "vmap"])
def test_a_bound_is_not_for_gradients_of_several_terms(method):
    grads = jaxdp.per_example_grads(lambda w, x: jnp.sum(jnp.sin(x @ w)), method=method)
    made = lambda rows: grads(jnp.ones((3, 1)), (jnp.ones((8, rows, 3)),), jaxdp.all_rows(8))
    plan = make_plan(num_examples=100, expected_batch_size=8)
    sums = lambda plan, grads: (tx := jaxdp.privatize(plan)).sums(grads, tx.init(jnp.ones((3, 1))))
    sums(plan.with_rounding_bound(8), made(1))
    sums(plan, made(2))
    if method == "vmap":
        sums(plan.with_rounding_bound(8), made(2))
        return
    with pytest.raises(ValueError, match="an example adds several terms to some numbers"):
        sums(plan.with_rounding_bound(8), made(2))


def test_a_sum_of_too_many_terms_has_no_bound():
    plan = make_plan(num_examples=2**26, expected_batch_size=2.0**25)
    assert plan.with_rounding_bound().rounding_bound is None


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="microbatch_size is 0: it is the number of rows"):
        make_plan().with_rounding_bound(0)
    with pytest.raises(ValueError, match="parts is 0: it is the number of sums"):
        make_plan().with_rounding_bound(1, parts=0)


@pytest.mark.parametrize(("records", "terms"), [(512, 1), (1024, 1)])
def test_the_estimate_holds_for_tensor_cores(records, terms):
    """One record more or less, among aligned ones, in sums that are cut after every block.

    What is cut makes long sums shorter, and a record's share of them, too.
    """
    rng = np.random.default_rng(records)
    direction = rng.normal(size=8)
    direction /= np.linalg.norm(direction)
    values = np.abs(rng.normal(size=(8, records, terms)))
    values *= direction[:, None, None] / values.sum(-1, keepdims=True)
    mantissas, exponents = np.frexp(values)
    values = np.ldexp(np.rint(mantissas * 2**16) / 2**16, exponents)  # products of two of 8 bits
    total = accumulated(values.reshape(8, -1))
    moved = 0.0
    for record in rng.integers(0, records, 8):
        zeroed = values.copy()
        zeroed[:, record] = 0
        for without in (zeroed, np.delete(values, record, 1)):
            less = accumulated(without.reshape(8, -1))
            own = np.linalg.norm(values[:, record].sum(-1))
            moved = max(moved, np.linalg.norm(total - less) - own)
    assert 0 < moved <= sum_rounding.estimate(records, narrow=True) - sum_rounding.CONTRIBUTION


def test_the_estimate_is_larger_on_accelerators(monkeypatch):
    plan = make_plan()
    before = plan.rounding_estimate
    monkeypatch.setattr(precision, "platform", lambda: "cuda")
    assert plan.rounding_estimate == pytest.approx(1e-5 + 2.5 * (before - 1e-5))
