"""What a statement claims: complete, rounded to the safe side, honest about seeds and limits."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("sklearn")
from helpers.statements import facts_of, make_plan, segment_of, statement_of

import jaxdp
from jaxdp import clip_batch
from jaxdp.accounting import gdp, guarantee
from jaxdp.accounting.noise_charge import noise_charge
from jaxdp.accounting.rounding import round_up
from jaxdp.datasets.config import DataConfig
from jaxdp.trainer.config import ClippingConfig, Config, PlanConfig, TrainingConfig
from jaxdp.trainer.release import claims, typed_json
from jaxdp.trainer.release.statement import DataUse, RoundingFacts, TaskFacts


def earlier(config=None, **changes):
    return segment_of(make_plan(**changes), 5, config)


def test_records_that_earlier_segments_used_unprotected_are_named():
    before = Config(data=DataConfig(private="train[:80%]", public="train[80%:]"))
    s = statement_of(earlier=[earlier(before), earlier(before), earlier()])
    assert s.earlier_data == (
        DataUse(
            "digits", "train[:80%]", "train[80%:]", "test", None, "digits", (), "refused", False, 0
        ),
    )
    assert statement_of().earlier_data == ()


def test_the_window_is_told_of_a_text_only():
    text = Config(data=DataConfig(name="text", window=16))
    assert statement_of(config=text).data.window == 16
    assert statement_of().data.window is None


def test_the_statement_holds_the_mechanism():
    p = make_plan()
    s = statement_of(p)
    (mechanism,) = s.mechanisms
    assert s.privacy_unit.kind == "record"
    assert s.adjacency == "add_remove"
    assert mechanism.sampling.kind == "poisson"
    assert mechanism.sampling.probability == 100 / 1437
    assert mechanism.sampling.expected_batch_size == 100
    assert (s.num_examples, s.steps, s.steps_planned) == (1437, 20, 20)
    assert (mechanism.steps, mechanism.sampling.num_examples) == (20, 1437)
    assert mechanism.noise_multiplier == 1.5
    assert mechanism.clipping.sensitivity_at_first_step == 0.5
    assert mechanism.clipping.call == "clip_individual(0.5)"
    assert (mechanism.clipping.unit, mechanism.clipping.batch_units) == ("example", None)
    assert s.delta == p.delta
    assert p.epsilon() <= s.epsilon["pld"] <= p.epsilon() * (1 + 1e-4)
    assert s.claimed_epsilon == s.epsilon["pld"] < s.epsilon["rdp"]
    assert (s.library.name, s.library.version) == ("jaxdp-privacy", jaxdp.__version__)


def test_the_noise_is_named_with_what_it_costs():
    p = make_plan(num_parameters=650)
    noise = statement_of(p, steps=7).noise
    assert (noise.distribution, noise.points_per_std) == ("rounded normal", 2**22)
    assert (noise.generator, noise.key_bits) == ("threefry4x32-20", 128)
    assert noise.privacy == "computational"
    charge = noise_charge(650 * 7)
    epsilon, delta = charge.epsilon, charge.added_delta(p.epsilon(7))
    assert 0 < epsilon <= noise.extra_epsilon <= epsilon * (1 + 1e-4)
    assert 0 < delta <= noise.extra_delta <= delta * (1 + 1e-4)
    assert statement_of(p, steps=0).noise.extra_epsilon == 0
    seeded = statement_of(p, config=replace(Config(), seed=0)).noise
    assert replace(seeded, key_bits=128) == statement_of(p).noise
    assert seeded.key_bits == 32


def test_the_rounding_of_the_sum_is_told_with_a_bound_if_there_is_one():
    told = lambda plan: statement_of(plan).mechanisms[-1].rounding
    p = make_plan()
    assert told(p) == RoundingFacts(p.rounding_estimate, "estimate", None)
    tight, loose = p.with_rounding_bound(4), p.with_rounding_bound(256)
    assert told(tight) == RoundingFacts(tight.rounding_bound, "bound", tight.rounding_bound)
    assert loose.rounding_bound > p.rounding_estimate
    s = statement_of(loose, earlier=[segment_of(tight, 5)])
    assert s.mechanisms[0].rounding == told(tight)


def test_a_bound_that_is_too_large_is_told_and_not_used():
    p = make_plan(num_examples=60_000, expected_batch_size=1000)
    large = p.with_rounding_bound(256)
    told = statement_of(large).mechanisms[-1].rounding
    assert told == RoundingFacts(p.rounding_estimate, "estimate", large.rounding_bound)


def test_the_noise_of_all_segments_is_charged_together():
    p = make_plan(num_parameters=10**9)
    s = statement_of(p, earlier=[earlier(num_parameters=10**6)])
    charge = noise_charge(20 * 10**9 + 5 * 10**6)
    assert s.noise.extra_epsilon == round_up(charge.epsilon)
    # Many numbers need the finer grid; what is told is the coarsest.
    assert s.noise.points_per_std == 2**22
    assert statement_of(p).noise.points_per_std == 2**24


def test_epsilon_counts_the_steps_that_were_spent():
    assert statement_of(steps=5).epsilon["pld"] == pytest.approx(make_plan().epsilon(5), rel=1e-4)


def test_every_segment_with_steps_is_a_mechanism_of_its_own():
    settings = Config(
        clipping=ClippingConfig(kind="batch", units=3, allocation="isotropic"),
        plan=PlanConfig(expected_batch_size=50.0),
    )
    batch = dict(clipping=clip_batch(0.1), num_units=3, expected_batch_size=50)
    none = segment_of(make_plan(), 0)
    s = statement_of(earlier=[earlier(settings, **batch), none])
    first, last = s.mechanisms
    assert (first.steps, last.steps, s.steps) == (5, 20, 25)
    assert (first.sampling.expected_batch_size, first.sampling.probability) == (50, 50 / 1437)
    assert (first.clipping.kind, first.clipping.unit) == ("batch", "batch")
    assert (first.clipping.batch_units, first.clipping.noise_allocation) == (3, "isotropic")
    assert first.clipping.clipping_norms == "given beforehand"
    assert first.clipping.call == "clip_batch(0.1)"
    assert first.clipping.sensitivity_at_first_step == pytest.approx(0.2)
    assert first.noise_multiplier == 1.5
    assert s.claimed_epsilon > statement_of().claimed_epsilon


def test_where_the_norms_of_every_segment_come_from_is_told():
    clipping = ClippingConfig(kind="layerwise", norms_from="public")
    public = DataConfig(private="train[:80%]", public="train[80%:]")
    s = statement_of(earlier=[earlier(Config(data=public, clipping=clipping))])
    first, last = (mechanism.clipping.clipping_norms for mechanism in s.mechanisms)
    assert "C·e/max e, at least 0.01 of the largest, from 237 public records" in first
    assert "after every epoch of 15 steps" in first
    assert last == "given beforehand"


def test_the_facts_of_a_segment_survive_json():
    clipping = ClippingConfig(kind="layerwise", norms_from="public")
    public = DataConfig(name="text", private="train[:80%]", public="train[80%:]", window=16)
    more = Config(
        data=public, clipping=clipping, training=TrainingConfig(constant_time=True, ema=0.5), seed=3
    )
    for facts in (facts_of(), facts_of(make_plan().with_rounding_bound(4), more)):
        text = json.dumps(typed_json.to_json(facts))
        assert typed_json.from_json(claims.SegmentFacts, json.loads(text)) == facts
    assert (facts.seed, facts.ema, facts.constant_time) == (3, 0.5, True)
    assert facts.task == TaskFacts("classifier", more.model, False)
    assert facts_of().ema == Config().training.ema


def test_what_is_not_covered_names_every_limit():
    listed = " ".join(claims.NOT_COVERED).lower()
    for limit in (
        "hyperparameters",
        "other seeds",
        "early stopping",
        "checkpoints",
        "preprocessing constants",
        "vocabularies",
        "group privacy",
        "floating point",
        "float32 sum",
        "timing",
        "noise table",
        "best accuracy over epochs",
    ):
        assert limit in listed


def test_the_generators_are_named():
    listed = " ".join(claims.ASSUMPTIONS)
    for named in ("Threefry-4x32 with 20 rounds for the noise", "Philox", "Threefry-2x32"):
        assert named in listed
    assert "privacy is computational" in listed


def test_what_can_be_seen_while_it_runs_is_told():
    told = lambda config: " ".join(statement_of(config=config).assumptions)
    assert "the live output of the run, which shows losses, norms" in told(Config())
    assert "Nobody could time the steps of the run" in told(Config())
    constant = told(Config(training=TrainingConfig(constant_time=True)))
    assert "takes the same time whatever records are in it" in constant
    assert "Nobody could time the steps" not in constant


def test_a_seeded_run_is_not_private():
    secret, seeded = statement_of(), statement_of(config=replace(Config(), seed=0))
    assert (secret.private, seeded.private) == (True, False)
    assert seeded.reproducible
    assert not secret.reproducible


def test_only_sound_accountants_are_asked():
    assert list(statement_of(make_plan(adjacency="replace_one")).epsilon) == ["pld"]


@pytest.mark.parametrize("steps", [20, 7])
def test_epsilon_at_smaller_deltas_is_the_accountants(steps):
    p = make_plan()
    rows = statement_of(p, steps).epsilon_at_smaller_deltas
    assert len(rows) == 3
    for row, ratio in zip(rows, (10, 100, 1000), strict=True):
        assert row.delta == pytest.approx(p.delta / ratio, rel=0.5)
        assert float(f"{row.delta:g}") == row.delta  # what is printed is what was accounted
        for name in ("pld", "rdp"):
            exact = guarantee.epsilon(p.mechanism(steps), row.delta, name)
            assert exact <= row.epsilon[name] <= exact * (1 + 1e-4)


def test_the_gaussian_equivalent_has_the_same_epsilon_at_delta():
    p = make_plan()
    found = statement_of(p).gaussian_dp
    assert not found.at_every_delta
    same = gdp.epsilon_from_mu(found.mu, p.delta)
    assert p.epsilon(20) <= same <= p.epsilon(20) * (1 + 1e-3)


@pytest.mark.parametrize(
    ("changes", "mu"),
    [
        (dict(sampling="shuffled", adjacency="zero_out"), (2 / 1.5**2) ** 0.5),  # two epochs begun
        (dict(expected_batch_size=1437), (20 / 1.5**2) ** 0.5),
    ],
    ids=["shuffled", "everybody"],
)
def test_without_amplification_the_run_is_gaussian_dp_at_every_delta(changes, mu):
    found = statement_of(make_plan(**changes)).gaussian_dp
    assert found.at_every_delta
    assert mu <= found.mu <= mu * (1 + 1e-4)


@pytest.mark.parametrize("adjacency", ["add_remove", "zero_out", "replace_one"])
def test_the_adjacency_is_the_plan_s(adjacency):
    assert statement_of(make_plan(adjacency=adjacency)).adjacency == adjacency
