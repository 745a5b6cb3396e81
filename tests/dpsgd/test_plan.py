"""The plan: one place for the numbers, checked before anything runs (privacy rules 1, 7, 12-14)."""

import copy
import dataclasses
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdp
from jaxdp.accounting import tradeoffs


def make_plan(**changes):
    numbers = dict(
        num_examples=1437,
        expected_batch_size=256,
        steps=150,
        clipping=jaxdp.clip_individual(1.0),
        epsilon=3.0,
    )
    return jaxdp.Plan(**{**numbers, **changes})


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    n=st.integers(50, 100_000),
    share=st.floats(0.001, 1.0),
    steps=st.integers(1, 3000),
    epsilon=st.floats(0.2, 20),
)
def test_epsilon_spent_never_exceeds_the_target(n, share, steps, epsilon):
    plan = make_plan(
        num_examples=n, expected_batch_size=max(1, n * share), steps=steps, epsilon=epsilon
    )
    assert plan.epsilon() <= epsilon
    assert plan.epsilon(steps=steps - 1) <= plan.epsilon()
    less = make_plan(
        num_examples=n,
        expected_batch_size=max(1, n * share),
        steps=steps,
        epsilon=None,
        noise_multiplier=plan.noise_multiplier * 0.98,
    )
    assert less.epsilon() > epsilon * 0.99  # no more noise than the target needs


def test_the_plan_answers_what_it_was_asked_for():
    plan = make_plan()
    assert plan.delta == 1437**-1.1
    assert plan.sampling_probability == 256 / 1437
    assert 2.99 < plan.epsilon() <= 3.0
    assert plan.epsilon(accountant="rdp") > plan.epsilon()
    assert plan.epsilon(steps=0) == 0
    given_z = make_plan(epsilon=None, noise_multiplier=plan.noise_multiplier)
    assert given_z.epsilon() == plan.epsilon()
    assert given_z.target_epsilon is None
    assert make_plan(epsilon=None, noise_multiplier=0).epsilon() == math.inf


def test_a_plan_is_frozen():
    with pytest.raises(AttributeError):
        make_plan().steps = 10_000


def test_replace_one_doubles_the_noise_and_not_epsilon_alone():
    one = make_plan(adjacency="replace_one", epsilon=None, noise_multiplier=2.0)
    assert one.clipping.sensitivity("replace_one") == 2.0
    assert one.epsilon() > make_plan(epsilon=None, noise_multiplier=4.0).epsilon()


@pytest.mark.parametrize(
    ("sampling", "adjacency", "batch_size"),
    [
        ("shuffled", "replace_one", 256),
        ("shuffled", "zero_out", 256),
        ("fixed_size", "replace_one", 256),
        ("full_batch", "add_remove", 1437),
        ("poisson", "replace_one", 256),
    ],
)
def test_every_sampling_meets_its_target(sampling, adjacency, batch_size):
    plan = make_plan(sampling=sampling, adjacency=adjacency, expected_batch_size=batch_size)
    assert 2.9 < plan.epsilon() <= 3.0
    assert plan.accountant == ("rdp" if sampling == "fixed_size" else "pld")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": 0.01}, "delta is 0.01.*1/N"),
        ({"delta": 1 / 1437}, "below 1/N"),
        ({"delta": 0.0}, "above 0"),
        ({"epsilon": 0}, "epsilon is 0"),
        ({"epsilon": -1.0}, "epsilon is -1"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"epsilon": None}, "give exactly one"),
        ({"noise_multiplier": 1.0}, "give exactly one"),
        ({"epsilon": None, "noise_multiplier": -0.5}, "noise_multiplier is -0.5"),
        ({"expected_batch_size": 2000}, "expected_batch_size is 2000, with 1437"),
        ({"expected_batch_size": 0}, "expected_batch_size is 0"),
        ({"num_examples": 0}, "num_examples is 0"),
        ({"num_examples": 14.5}, "num_examples is 14.5"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": 0}, "steps is 0"),
        ({"clipping": jaxdp.clip_individual(math.inf)}, "bounds nothing"),
        ({"sampling": "shuffled"}, "shuffled"),
    ],
)
def test_bad_numbers_are_named_with_the_cure(changes, message):
    with pytest.raises(ValueError, match=message):
        make_plan(**changes)


def test_a_group_without_a_bound_has_no_plan():
    with pytest.raises(ValueError, match="bounds nothing"):
        make_plan(clipping=jaxdp.clip_layerwise({"a": 1.0, "b": math.inf}))


def test_clipping_must_be_a_jaxdp_clipping():
    with pytest.raises(TypeError, match="clip_individual"):
        make_plan(clipping=1.0)
    with pytest.raises(TypeError, match="clip_individual"):
        make_plan(clipping=optax.clip_by_global_norm(1.0))


def test_epsilon_spent_wants_the_state_of_one_privatize():
    plan = make_plan()
    with pytest.raises(ValueError, match="0 step counts"):
        plan.epsilon_spent(optax.adam(1e-3).init(jnp.ones(3)))
    twice = optax.chain(jaxdp.privatize(plan), jaxdp.privatize(plan)).init(jnp.ones(3))
    with pytest.raises(ValueError, match="2 step counts"):
        plan.epsilon_spent(twice)


@pytest.mark.slow
def test_composition_by_hand():
    """The README's 20 lines: two clusters are learned under ε = 3, in one compiled step."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=600)
    x = jnp.asarray(rng.standard_normal((600, 5)) + 2.0 * y[:, None], jnp.float32)

    def loss(params, x, y):
        return optax.sigmoid_binary_cross_entropy(x @ params["w"] + params["b"], y)

    plan = make_plan(num_examples=600, expected_batch_size=100, steps=60)
    tx = optax.chain(jaxdp.privatize(plan), optax.adam(5e-2))
    grads = jaxdp.per_example_grads(loss, microbatch_size=32)

    @jax.jit
    def step(params, state, batch, mask):
        updates, state = tx.update(grads(params, batch, mask), state, params)
        return optax.apply_updates(params, updates), state

    params = {"w": jnp.zeros(5), "b": jnp.zeros(())}
    state = tx.init(params)
    for batch, mask in plan.batches(x, y):
        params, state = step(params, state, batch, mask)

    assert step._cache_size() == 1
    assert plan.epsilon_spent(state) == plan.epsilon() <= 3.0
    assert np.mean((x @ params["w"] + params["b"] > 0) == y) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "adjacency"), [("poisson", "add_remove"), ("fixed_size", "replace_one")]
)
def test_the_tradeoff_curve_is_the_plans(sampling, adjacency):
    plan = make_plan(
        sampling=sampling, adjacency=adjacency, epsilon=None, noise_multiplier=1.2, steps=5
    )
    alphas, betas = plan.tradeoff()
    assert (alphas[0], alphas[-1]) == (0, 1)
    assert np.all(np.diff(betas) <= 0)
    assert np.all(betas <= 1 - alphas)
    assert np.all(betas >= 1 - plan.delta - math.exp(plan.epsilon()) * alphas - 0.01)
    expected = tradeoffs.tradeoff(plan.mechanism(2), [0.1, 0.4], plan.accountant)
    at, fewer = plan.tradeoff([0.1, 0.4], steps=2)
    np.testing.assert_array_equal(at, [0.1, 0.4])
    np.testing.assert_array_equal(fewer, expected)
    assert np.all(fewer > plan.tradeoff([0.1, 0.4])[1])


def test_a_group_of_records_is_protected_less():
    plan = make_plan(clipping=jaxdp.clip_batch(1.0), num_units=2)
    one, two, many = (plan.group_epsilon(size) for size in (1, 2, 50))
    assert one == pytest.approx(plan.epsilon(), rel=1e-3)
    assert one < two < many
    expected = tradeoffs.group_epsilon(plan.mechanism(), plan.delta, 50, units_per_batch=2)
    assert many == expected
    assert plan.group_epsilon(2, steps=3) < two


# For each field two sets of changes that differ in it alone.
BASE = dict(epsilon=None, noise_multiplier=1.5, delta=1e-4)
UNITS = dict(clipping=jaxdp.clip_batch(1.0))
DIFFER = {
    "num_examples": ({}, {"num_examples": 1438}),
    "expected_batch_size": ({}, {"expected_batch_size": 255.5}),
    "steps": ({}, {"steps": 151}),
    "clipping": ({}, {"clipping": jaxdp.clip_individual(2.0)}),
    "num_units": (UNITS, {**UNITS, "num_units": 2}),
    "target_epsilon": (
        {"epsilon": 3.0, "noise_multiplier": None},
        {"noise_multiplier": make_plan(delta=1e-4).noise_multiplier},
    ),
    "noise_multiplier": ({}, {"noise_multiplier": 1.6}),
    "delta": ({}, {"delta": 2e-4}),
    "sampling": (
        {"sampling": "fixed_size", "adjacency": "replace_one"},
        {"sampling": "poisson", "adjacency": "replace_one"},
    ),
    "adjacency": ({}, {"adjacency": "zero_out"}),
    "num_parameters": ({"num_parameters": 1000}, {"num_parameters": 1001}),
}


FIELDS = [f.name for f in dataclasses.fields(jaxdp.Plan)]


def test_plans_with_other_rounding_bounds_differ():
    plan = make_plan(**BASE)
    bounded = [plan.with_rounding_bound(4), plan.with_rounding_bound(8)]
    bounded.append(plan.with_rounding_bound(4, parts=2))
    assert len({plan, *bounded}) == len({repr(p) for p in (plan, *bounded)}) == 4
    assert [*DIFFER, "rounding_bound", "rounding_rows", "rounding_parts"] == FIELDS


@pytest.mark.parametrize("field", DIFFER)
def test_plans_that_differ_in_one_number_differ(field):
    one, other = (make_plan(**{**BASE, **changes}) for changes in DIFFER[field])
    assert [n for n in FIELDS if getattr(one, n) != getattr(other, n)] == [field]
    assert one != other
    assert repr(one) != repr(other)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        BASE,
        {"epsilon": None, "noise_multiplier": lambda step: 1.0 if step < 2 else 3.0},
        {"clipping": jaxdp.clip_layerwise({("a", "b*"): 1.0, "c": {"d": 2.0}}), **BASE},
        {"clipping": jaxdp.clip_quantile(unit="batch"), "num_units": 40, **BASE},
    ],
    ids=["epsilon", "noise_multiplier", "schedule", "layers", "units"],
)
def test_equal_plans_compare_hash_print_and_copy_as_one(changes):
    plan = make_plan(**changes)
    twins = (copy.copy(plan), copy.deepcopy(plan), pickle.loads(pickle.dumps(plan)))
    for twin in (make_plan(**changes), *twins):
        assert twin == plan
        assert hash(twin) == hash(plan)
        assert repr(twin) == repr(plan)
        assert twin.mechanism() == plan.mechanism()
    assert repr(plan).startswith("Plan(num_examples=1437, expected_batch_size=256, steps=150, ")
    assert f"clipping={plan.clipping!r}, " in repr(plan)
    assert f"noise_multiplier={plan.noise_multiplier}, " in repr(plan)


def test_a_schedule_without_noise_in_some_step_is_refused():
    with pytest.raises(ValueError, match="noise_multiplier is 0 in some step"):
        make_plan(epsilon=None, noise_multiplier=lambda step: float(step > 0))
