"""Privacy rule 23: what is released is a whole number on a grid, and a function of it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.dpsgd.noise import noise_adder, noise_grid
from jaxdp.dpsgd.rounded_gaussian import rounded_gaussian

KEY = jnp.arange(4, dtype=jnp.uint32)
STEP = jnp.int32(3)


def released(points, scale=22):
    """What is released for a sum in points of the grid, in points of the grid."""
    std = jnp.float32(2.0**scale)
    (out,) = jax.jit(noise_adder(scale))(KEY, STEP, [std], [jnp.asarray(points, jnp.float32)])
    return np.asarray(out)


def drawn(size, scale=22):
    return np.asarray(rounded_gaussian(KEY, STEP, 0, (size,), scale)).astype(np.int64)


@pytest.mark.parametrize("scale", [22, 24])
def test_what_is_released_is_the_rounded_sum_plus_the_noise_on_the_grid(scale):
    rng = np.random.default_rng(0)
    points = np.concatenate(
        [
            np.arange(-40, 40) / 16 + 1e-3,  # next to halves on both sides of 0
            [-0.51, -0.5, -0.49, 0.49, 0.5, 0.51, -1e-9, 1e-9, 0.0],
            rng.uniform(-1, 1, 200) * 2.0 ** rng.integers(-3, 50, 200),
            [2.0**20, -(2.0**20), 2.0**20 - 1, 1 - 2.0**20, 2.0**31, -(2.0**31)],
        ]
    ).astype(np.float32)
    whole = np.rint(points).astype(np.int64) + drawn(points.size, scale)
    out = released(points, scale)
    single = np.abs(whole) < 2**43  # float32 rounds longer numbers twice
    assert single.sum() > 200
    assert np.array_equal(out[single], whole[single].astype(np.float32))
    np.testing.assert_allclose(out, whole.astype(np.float64), rtol=2.0**-23)


def test_rounding_moves_no_number_by_more_than_a_half():
    """Else two neighbours come apart by more than √D. Sums are split into two words after it."""
    points = np.linspace(-3, 3, 100_001).astype(np.float32)
    noise = drawn(points.size)
    rounded = released(points).astype(np.int64) - noise
    told = np.abs(noise) < 2**23  # float32 holds the whole number
    assert told.mean() > 0.9
    assert np.abs(rounded - points)[told].max() <= 0.5


def test_rounding_is_paid_for_with_z_as_the_accountant_is_given_it():
    def grid(numbers, z, **changes):
        plan = jaxdp.Plan(
            num_examples=1000,
            expected_batch_size=100,
            steps=1,
            noise_multiplier=z,
            clipping=jaxdp.clip_individual(1.0),
            **changes,
        )
        params = jax.ShapeDtypeStruct((numbers,), jnp.float32)
        return noise_grid(plan, plan.clipping.groups(params))

    assert grid(10**6, 1.0).inflation == pytest.approx(1 / (1 - 1e3 / 2**22))
    # Replacing one clipped example: the accountant compares with the sum without it.
    twice = grid(10**6, 1.0, adjacency="replace_one")
    assert twice.inflation == pytest.approx(1 / (1 - 2e3 / 2**22))
    with pytest.raises(ValueError, match="rounding them to a grid would need more noise"):
        grid(10**10, 200.0)


def test_a_plan_that_declares_its_numbers_has_one_grid_for_all_of_its_steps():
    """A first step that measures may have more numbers than the others: the statement tells one."""

    def grid(numbers):
        plan = jaxdp.Plan(
            num_examples=1000,
            expected_batch_size=100,
            steps=2,
            noise_multiplier=200.0,
            clipping=jaxdp.clip_individual(1.0),
            num_parameters=50_000,
        )
        return noise_grid(plan, plan.clipping.groups(jax.ShapeDtypeStruct((numbers,), jnp.float32)))

    assert grid(3) == grid(50_000)
    assert grid(3).scale == 24
