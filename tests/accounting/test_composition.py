"""Several mechanisms together: never cheaper than the truth, and never dearer than one run."""

import pytest

from jaxdp.accounting import Mechanism, affordable_steps, composed_epsilon, epsilon

DELTA = 1e-5
RUN = Mechanism(1.5, 60, 0.1)


def part(steps, z=1.5, q=0.1, **rest):
    return Mechanism(z, steps, q, **rest)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_parts_of_a_run_cost_what_the_run_costs(accountant):
    parts = [part(20), part(0), part(40)]
    whole = epsilon(RUN, DELTA, accountant)
    assert composed_epsilon(parts, DELTA, accountant) == whole


def test_nothing_costs_nothing():
    assert composed_epsilon([], DELTA) == composed_epsilon([part(0)], DELTA) == 0


def test_parts_with_other_noise_are_the_run_with_that_schedule():
    parts = [part(20), part(40, z=2.0)]
    schedule = Mechanism(((1.5, 20), (2.0, 40)), 60, 0.1)
    assert composed_epsilon(parts, DELTA) == epsilon(schedule, DELTA)


def test_every_part_begins_shuffled_epochs_of_its_own():
    """Epochs of 4 steps: two parts of one step are two epochs begun, as one of five steps is."""
    shuffled = dict(q=0.25, sampling="shuffled", adjacency="replace_one", num_examples=100)
    one, five = part(1, **shuffled), part(5, **shuffled)
    expected = epsilon(five, DELTA)
    assert composed_epsilon([one, one], DELTA) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_parts_with_other_sampling_lie_between_bounds(adjacency):
    """With q = 0.1 and 0.2: more than all at 0.1, less than all at 0.2, and near their mean."""
    mixed = [part(30, adjacency=adjacency), part(30, q=0.2, adjacency=adjacency)]
    low, high = (epsilon(part(60, q=q, adjacency=adjacency), DELTA) for q in (0.1, 0.2))
    assert low < composed_epsilon(mixed, DELTA) < high
    same = [part(30, adjacency=adjacency), part(30, q=0.1 + 1e-9, adjacency=adjacency)]
    assert composed_epsilon(same, DELTA) == pytest.approx(low, rel=5e-3)
    assert composed_epsilon(same, DELTA) > low * (1 - 1e-6)


def test_a_part_without_noise_costs_everything():
    assert composed_epsilon([part(3), part(1, z=0.0, q=0.2)], DELTA) == float("inf")


def test_guarantees_about_different_neighbours_are_not_composed():
    parts = [part(9, q=1.0, sampling="full_batch"), part(16)]
    with pytest.raises(ValueError, match="about different neighbours"):
        composed_epsilon(parts, DELTA)


def test_rdp_is_refused_where_it_is_unsound():
    with pytest.raises(ValueError, match="no sound bound"):
        composed_epsilon([part(9, adjacency="replace_one")], DELTA, "rdp")


@pytest.mark.slow
def test_the_affordable_steps_are_the_last_that_fit():
    spent, more = [part(20)], part(50, z=1.2, q=0.12)
    target = epsilon(RUN, DELTA)
    steps = affordable_steps(spent, more, target, DELTA)
    assert composed_epsilon([*spent, part(steps, z=1.2, q=0.12)], DELTA) <= target
    assert composed_epsilon([*spent, part(steps + 1, z=1.2, q=0.12)], DELTA) > target


def test_what_is_planned_is_affordable_and_no_step_more():
    target = epsilon(RUN, DELTA)
    assert affordable_steps([part(60)], part(5), target, DELTA) == 0
    assert affordable_steps([part(25)], part(35), target, DELTA) == 35
    assert affordable_steps([part(25)], part(60), target, DELTA) == 35
    assert affordable_steps([part(70)], part(5), target, DELTA) == 0
