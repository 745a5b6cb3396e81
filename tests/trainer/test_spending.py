"""ε of several runs together is never below what was spent, and nothing is counted by mistake."""

import math
import shutil
from dataclasses import replace

import pytest

for module in ("sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.small_runs import add_segment, facts_of, make_plan, make_run  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp.accounting import composition  # noqa: E402
from jaxdp.accounting.mechanism import Mechanism  # noqa: E402
from jaxdp.trainer.run.ledger import Ledger  # noqa: E402


def spent(folder):
    return Ledger.read(folder / "private" / "ledger.txt").mechanisms()


@pytest.fixture
def one(tmp_path):
    return make_run(tmp_path / "one")


@pytest.fixture
def two(tmp_path):
    return make_run(tmp_path / "two", noise_multiplier=2.0)


def test_all_mechanisms_are_composed(one, two):
    found = jaxdp.compose(one, str(two))
    assert found.mechanisms == (*spent(one), *spent(two))
    assert found.epsilon == composition.epsilon(found.mechanisms, found.delta)
    assert found.epsilon > max(jaxdp.compose(run).epsilon for run in (one, two))
    assert (found.runs, found.adjacency) == (2, "add_remove")


def test_one_run_has_its_own_epsilon(one):
    ledger = Ledger.read(one / "private" / "ledger.txt")
    assert jaxdp.compose(one).epsilon == ledger.epsilon()


def test_the_smallest_delta_is_told_so_that_no_run_has_a_larger_epsilon_alone(one, tmp_path):
    other = make_run(tmp_path / "other", delta=1e-9, noise_multiplier=8.0, taken=1)
    found = jaxdp.compose(one, other)
    assert found.delta == 1e-9
    assert found.epsilon > jaxdp.compose(one, delta=1e-9).epsilon > jaxdp.compose(one).epsilon
    assert jaxdp.compose(one, other, delta=1e-5).epsilon < found.epsilon


@pytest.mark.parametrize("delta", [0.0, 1.0, 1e-3, -1.0])
def test_a_delta_of_one_over_n_or_more_is_refused(one, delta):
    with pytest.raises(ValueError, match=r"delta is .*: give a number above 0 and below 1/N = 0"):
        jaxdp.compose(one, delta=delta)


def test_a_release_without_its_run_counts_at_least_what_was_spent(one, two, tmp_path):
    received = shutil.copytree(one / "release", tmp_path / "received")
    of_run, of_release = jaxdp.compose(one), jaxdp.compose(received)
    assert of_run.epsilon <= of_release.epsilon <= 1.001 * of_run.epsilon
    bare = [replace(m, noise_draws_per_step=0) for m in of_release.mechanisms]
    assert bare == [replace(m, noise_draws_per_step=0) for m in of_run.mechanisms]
    assert of_release.mechanisms[0].noise_draws_per_step >= 650  # all parameters may get noise
    assert jaxdp.compose(received, two).epsilon >= jaxdp.compose(one, two).epsilon


def test_the_ledger_counts_also_where_the_release_says_less(one):
    ledger = Ledger.open(one / "private" / "ledger.txt")
    ledger.charge(20, 39)  # as after a crash: the release is of 20 steps
    ledger.close()
    for path in (one, one / "release"):
        assert sum(m.steps for m in jaxdp.compose(path).mechanisms) == 40


def test_of_a_run_without_private_files_the_last_release_counts(one, tmp_path):
    longer = make_run(tmp_path / "longer", taken=15)
    shutil.rmtree(one / "private")
    shutil.copytree(longer / "release", one / "release-after-15-steps")
    assert sum(m.steps for m in jaxdp.compose(one).mechanisms) == 20


def test_every_segment_and_every_repeated_step_counts(one):
    ledger, plan = Ledger.open(one / "private" / "ledger.txt"), make_plan(noise_multiplier=3.0)
    add_segment(one, ledger, plan, facts_of(plan, "visits", None, None, True), 10, 20)
    ledger.close()
    found = jaxdp.compose(one)
    assert [m.steps for m in found.mechanisms] == [20, 10]
    assert found.runs == 1


def same_in_all_ways(one, tmp_path):
    moved = shutil.copytree(one, tmp_path / "moved")
    received = shutil.copytree(one / "release", tmp_path / "received")
    bare = shutil.copytree(one / "release", tmp_path / "bare" / "release").parent
    linked = tmp_path / "linked"
    linked.symlink_to(one)
    return [one, one / "release", moved, received, bare, linked]


def test_one_run_given_twice_is_refused_in_all_its_forms(one, two, tmp_path):
    others = same_in_all_ways(one, tmp_path)
    for i, first in enumerate(others):
        for second in others[i:]:
            with pytest.raises(ValueError, match=r"are the same run, or a release of it") as error:
                jaxdp.compose(first, two, second)
            assert len(str(error.value).splitlines()) == 1
    jaxdp.compose(one, two)


def test_an_older_copy_is_the_same_run(one, two, tmp_path):
    old = shutil.copytree(one, tmp_path / "old")
    ledger = Ledger.open(one / "private" / "ledger.txt")
    ledger.charge(20, 24)
    ledger.close()
    with pytest.raises(ValueError, match="are the same run"):
        jaxdp.compose(old, one)


def test_copies_of_a_run_that_both_went_on_have_no_epsilon(one, tmp_path):
    other = shutil.copytree(one, tmp_path / "other")
    for folder, last in ((one, 24), (other, 29)):
        ledger = Ledger.open(folder / "private" / "ledger.txt")
        ledger.charge(20, last)
        ledger.close()
    with pytest.raises(ValueError, match="the same noise may be in both, so no ε holds"):
        jaxdp.compose(one, other)


def test_a_release_with_other_parameters_counts_for_itself(one, tmp_path):
    """Nobody can tell whether it is an earlier one of the same run: that is counted twice."""
    other = make_run(tmp_path / "other")
    received = shutil.copytree(other / "release", tmp_path / "received")
    assert jaxdp.compose(one, received).runs == 2


def test_a_seeded_run_makes_the_sum_infinite(one, tmp_path):
    seeded = make_run(tmp_path / "seeded", seed=3)
    assert jaxdp.compose(seeded).epsilon == math.inf
    received = shutil.copytree(seeded / "release", tmp_path / "received")
    for path in (seeded, received):
        found = jaxdp.compose(one, path)
        assert found.epsilon == math.inf
        assert len(found.mechanisms) == 2  # it is not hidden


def test_runs_with_one_seed_are_not_one_run(tmp_path):
    runs = [make_run(tmp_path / name, seed=3, taken=20 + i) for i, name in enumerate("ab")]
    assert jaxdp.compose(*runs).runs == 2


def test_a_run_that_never_began_is_no_copy_of_another(one, tmp_path):
    begun = make_run(tmp_path / "begun", released=False)
    ledger = begun / "private" / "ledger.txt"
    ledger.write_text(ledger.read_text().splitlines(keepends=True)[0])  # the same budget
    found = jaxdp.compose(one, begun)
    assert (found.runs, found.epsilon) == (2, jaxdp.compose(one).epsilon)


def test_other_neighbours_do_not_add_up(one, tmp_path):
    other = make_run(tmp_path / "other", adjacency="replace_one")
    with pytest.raises(ValueError, match=r"different adjacencies \(add_remove, replace_one\): the"):
        jaxdp.compose(one, other)


def test_windows_of_another_length_are_other_records(tmp_path):
    runs = [make_run(tmp_path / str(n), name="text", window=n) for n in (32, 64)]
    with pytest.raises(ValueError, match=r"privacy units \(window of 32 characters, window of 64"):
        jaxdp.compose(*runs)


def test_other_samplings_are_added(one, tmp_path):
    """Basic composition: half of δ for each sampling."""
    full = make_run(
        tmp_path / "full", expected_batch_size=1000, sampling="full_batch", noise_multiplier=9.0
    )
    found = jaxdp.compose(one, full)
    halves = [composition.epsilon(spent(run), found.delta / 2) for run in (one, full)]
    assert found.epsilon == sum(halves)


def test_mechanisms_of_other_adjacencies_are_refused_by_the_accounting():
    mechanisms = [
        Mechanism(1.0, 1, 0.1, adjacency=adjacency) for adjacency in ("add_remove", "zero_out")
    ]
    with pytest.raises(ValueError, match="adjacencies add_remove, zero_out"):
        composition.epsilon_of_all(mechanisms, 1e-5)
    assert composition.epsilon_of_all([], 1e-5) == 0


@pytest.mark.parametrize("lost", ["segment-1.json", "ledger.txt"])
def test_a_run_that_lost_a_file_is_refused(one, lost):
    (one / "private" / lost).unlink()
    with pytest.raises(ValueError, match=f"{lost}"):
        jaxdp.compose(one)


def test_a_ledger_behind_its_release_is_refused(one):
    lines = (one / "private" / "ledger.txt").read_text().splitlines(keepends=True)
    (one / "private" / "ledger.txt").write_text("".join(lines[:2]))
    with pytest.raises(ValueError, match=r"are ahead of the ledger .*, which has 0 steps"):
        jaxdp.compose(one)


def test_a_ledger_behind_its_checkpoints_is_refused(one):
    (one / "private" / "checkpoints" / "21").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"are ahead of the ledger .*, which has 20 steps"):
        jaxdp.compose(one)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run .* and no release"):
        jaxdp.compose(tmp_path)
    with pytest.raises(ValueError, match="no run is given"):
        jaxdp.compose()
