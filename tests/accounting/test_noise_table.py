"""The noise table: z, noise and signal at every batch size, and its warnings."""

import dataclasses
import math
import subprocess
import sys
import time
import warnings

import jax.numpy as jnp
import pytest
from helpers.cases import slow
from helpers.dense import from_dense

import jaxdp
from jaxdp.accounting import NoiseTable, epsilon, plan_noise
from jaxdp.dpsgd.noise import noise_norm

FORUM = dict(num_examples=60_000, num_parameters=7840, epsilon=1.0, epochs=1)
# Without amplification all is closed forms, which take no time.
QUICK = dict(sampling="shuffled", adjacency="zero_out")


def ask(**changes) -> NoiseTable:
    numbers = dict(
        num_examples=1437, num_parameters=650, batch_sizes=[64, 719], epsilon=3.0, epochs=2
    )
    return plan_noise(**{**numbers, **changes})


@pytest.mark.parametrize(("batch_size", "z", "norm"), [(100, 0.6619, 0.586), (8, 0.6466, 7.156)])
def test_the_forums_numbers(batch_size, z, norm):
    table = plan_noise(
        **FORUM, batch_sizes=[batch_size], delta=batch_size / 60_000, accountant="rdp"
    )
    row = table.rows[0]
    assert row.steps == 60_000 // batch_size
    assert row.noise_multiplier == pytest.approx(z, abs=1e-4)
    assert row.noise_norm == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("accountant", ["pld", slow("rdp")])
def test_z_meets_the_target_and_hardly_more(accountant):
    table = ask(accountant=accountant)
    for row in table.rows:
        run = table.mechanism(row)
        assert run.noise_multiplier == row.noise_multiplier
        assert run.steps == row.steps
        assert row.epsilon_pld == epsilon(run, table.delta, "pld") <= 3
        assert row.epsilon_rdp == epsilon(run, table.delta, "rdp")
        assert (row.epsilon_pld if accountant == "pld" else row.epsilon_rdp) <= 3
        less = dataclasses.replace(run, noise_multiplier=row.noise_multiplier * 0.99)
        assert epsilon(less, table.delta, accountant) > 3


@pytest.mark.parametrize(
    ("changes", "clipping", "factor"),
    [
        ({}, jaxdp.clip_individual(0.5), 1 / 100),
        slow(dict(unit="batch"), jaxdp.clip_batch(0.5), 2),
        (dict(unit="batch", num_units=4), jaxdp.clip_batch(0.5), 2 / 4),
        slow(dict(adjacency="replace_one"), jaxdp.clip_individual(0.5), 2 / 100),
        (dict(adjacency="zero_out", sampling="shuffled"), jaxdp.clip_individual(0.5), 1 / 100),
        slow(
            dict(adjacency="replace_one", sampling="fixed_size"),
            jaxdp.clip_individual(0.5),
            2 / 100,
        ),
    ],
    ids=["individual", "unit", "units", "replace_one", "shuffled", "fixed_size"],
)
def test_the_noise_is_what_privatize_adds(changes, clipping, factor):
    table = ask(clipping_norm=0.5, batch_sizes=[100], epochs=None, steps=5, **changes)
    row = table.rows[0]
    assert row.noise_std == pytest.approx(row.noise_multiplier * 0.5 * factor)
    assert row.noise_norm == pytest.approx(row.noise_std * math.sqrt(650))
    assert row.signal_to_noise == pytest.approx(0.5 / row.noise_norm)
    plan = jaxdp.Plan(
        num_examples=1437,
        expected_batch_size=100,
        steps=5,
        epsilon=3.0,
        clipping=clipping,
        num_parameters=650,
        **{name: value for name, value in changes.items() if name != "unit"},
    )
    assert plan.noise_multiplier == row.noise_multiplier
    params = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    added = noise_norm(plan, clipping.groups(params), clipping.init(params)[0])
    assert row.noise_norm == pytest.approx(float(added), rel=1e-3)


def test_no_clipped_mean_is_longer_than_said():
    row = ask(clipping_norm=0.5, batch_sizes=[20], **QUICK).rows[0]
    aligned = from_dense(jnp.full((20, 650), 9.0))
    clipping = jaxdp.clip_individual(0.5)
    total, _ = clipping.update(aligned, clipping.init(jnp.zeros(650)))
    assert jnp.linalg.norm(total) / 20 == pytest.approx(row.largest_gradient, rel=1e-4)


@pytest.mark.slow
def test_accountants_without_a_sound_bound_say_nothing():
    replaced = ask(adjacency="replace_one", batch_sizes=[64]).rows[0]
    assert replaced.epsilon_pld <= 3
    assert replaced.epsilon_rdp is None
    fixed = ask(
        adjacency="replace_one", sampling="fixed_size", batch_sizes=[64], epochs=None, steps=2
    ).rows[0]
    assert fixed.epsilon_pld is None
    assert fixed.epsilon_rdp <= 3


def test_steps_of_broken_epochs_are_rounded_up():
    rows = ask(num_examples=45_000, batch_sizes=[64, 4500], epochs=50, **QUICK).rows
    assert [row.steps for row in rows] == [35157, 500]  # 35,156.25, and 500 exactly
    assert [row.steps for row in ask(epochs=None, steps=7, **QUICK).rows] == [7, 7]


def test_the_best_ratio_is_marked():
    table = ask(batch_sizes=[64, 719, 256], **QUICK)
    assert table.best == 719
    assert max(table.rows, key=lambda row: row.signal_to_noise).batch_size == 719
    assert (
        ask(unit="batch", accountant="rdp").best == 64
    )  # its noise is not divided by the batch size


def test_delta_is_n_to_the_minus_1_1_unless_given():
    assert ask(**QUICK).delta == 1437**-1.1
    assert ask(delta=1e-5, **QUICK).delta == 1e-5


def test_warnings():
    assert ask(**QUICK).warnings == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # they are data, once, and not raised as well
        (said,) = ask(delta=0.01, **QUICK).warnings
    assert "not below 1/N = 0.000696" in said
    (said,) = ask(num_parameters=10**5, **QUICK).warnings
    assert said.startswith("the noise dwarfs the gradient at batch size 64: it is more than 5 ")
    assert "larger batches" in said
    (said,) = ask(unit="batch", **QUICK).warnings
    assert "at batch size 64, 719" in said
    assert "more units" in said
    (said,) = ask(epsilon=25.0, **QUICK).warnings
    assert "that is no privacy" in said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(num_examples=0), "num_examples is 0"),
        (dict(num_parameters=1.5), "num_parameters is 1.5"),
        (dict(epochs=None), "neither is given: give either epochs or steps"),
        (dict(steps=5), "epochs is 2 and steps is 5: give either"),
        (dict(epochs=-1), "epochs is -1"),
        (dict(epochs=None, steps=0), "steps is 0"),
        (dict(epsilon=0), "epsilon is 0"),
        (dict(clipping_norm=math.inf), "clipping_norm is inf"),
        (dict(delta=1.0), "delta is 1.0"),
        (dict(batch_sizes=[]), "batch_sizes is empty"),
        (dict(batch_sizes=[64, 2000]), "batch size 2000"),
        (dict(num_units=2), "num_units is 2, but it is only for unit='batch'"),
        (dict(unit="batch", num_units=0), "num_units is 0"),
        (dict(unit="layer"), "unit is 'layer'"),
        (dict(sampling="shuffled"), "shifts every later batch"),
        (dict(adjacency="replace_one", accountant="rdp"), "accountant is 'rdp': it has no sound"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        ask(**changes)


@pytest.mark.slow
def test_eight_batch_sizes_take_less_than_15_seconds():
    start = time.process_time()
    plan_noise(**FORUM, batch_sizes=[8, 32, 100, 256, 1024, 4096, 16384, 60000])
    assert time.process_time() - start < 15


@pytest.mark.slow
def test_the_table_loads_the_library_only():
    code = (
        "import sys, jaxdp.accounting; "
        "print({'tyro', 'rich', 'flax', 'matplotlib', 'sklearn', 'jaxdp.trainer.config'} "
        "& {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
