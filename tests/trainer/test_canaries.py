"""Runs with canaries: they count in N, their coins are kept apart, a resume has the same ones."""

import json
import shutil
import stat
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.fits import PLAN, TASK, fitted, rows  # noqa: E402
from helpers.small_dataset import SMALL_FORMAT, small_dataset  # noqa: E402
from helpers.trainer import crash_at, ledger_of  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp.audit import audit_run  # noqa: E402
from jaxdp.datasets.dataset import Dataset  # noqa: E402
from jaxdp.dpsgd import noise  # noqa: E402
from jaxdp.trainer.release.markdown import as_markdown  # noqa: E402
from jaxdp.trainer.run.canaries import with_canaries  # noqa: E402
from jaxdp.trainer.run.seal import seal  # noqa: E402
from jaxdp.trainer.run.segment import draw_secrets  # noqa: E402

WITH_PUBLIC = Dataset(private=rows(200), public=rows(60, seed=1), name="visits")
M = 40


def canaries_of(folder):
    return json.loads((folder / "private" / "canaries.json").read_text())


def segment_of(folder, number=1):
    return json.loads((folder / "private" / f"segment-{number}.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("canaries") / "run", data=WITH_PUBLIC, audit_canaries=M)


def test_they_count_and_the_statement_tells_it(run):
    assert run.plan.num_examples == run.statement.num_examples == 240
    assert run.statement.mechanisms[0].sampling.num_examples == 240
    assert run.statement.data.canaries == M
    assert run.statement.delta == run.plan.delta == 240**-1.1
    told = " ".join(as_markdown(run.statement).split())
    assert "| canaries | 40 of the 240 records are made up, from public facts alone," in told
    assert "each took part by a secret fair coin |" in told


def test_coins_and_key_are_the_owners_alone(run):
    file = run.folder / "private" / "canaries.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    saved = canaries_of(run.folder)
    assert saved["canaries"] == len(saved["included"]) == M
    assert set(saved["included"]) == {"0", "1"}
    keys = segment_of(run.folder)["secrets"].values()
    assert saved["key"] not in keys
    public = "".join(path.read_text() for path in (run.folder / "release").glob("*.[jm][sd]*"))
    for secret in (saved["included"], saved["digest"], str(saved["key"][0])):
        assert secret not in public


def test_every_run_draws_its_own_and_a_seed_repeats_them():
    draw = lambda seed: with_canaries(WITH_PUBLIC, M, "m", seed, None, None).canaries
    assert draw(None).key != draw(None).key
    assert draw(1).digest == draw(1).digest != draw(2).digest
    seeded = draw_secrets(1)
    assert all(draw(1).key != tuple(jax.random.key_data(key)) for key in vars(seeded).values())


def test_coins_say_nothing_of_the_canaries():
    """Each has random numbers of its own; more is seen in one of 1e6 draws."""
    made = with_canaries(small_dataset(), 10_000, "m", None, None, SMALL_FORMAT).canaries
    pixels = made.fields[0].reshape(-1)[:10_000]
    assert abs(np.corrcoef(made.included, pixels)[0, 1]) < 0.05


def test_a_run_without_has_no_file(finished):
    assert not (finished / "private" / "canaries.json").exists()
    statement = jaxdp.load_release(finished).statement
    assert statement.data.canaries == 0
    assert "canaries" not in as_markdown(statement)
    with pytest.raises(ValueError, match="has no canaries"):
        audit_run(finished)


@pytest.mark.slow
def test_a_resume_goes_on_with_the_same_ones_for_free(tmp_path):
    options = dict(data=WITH_PUBLIC, audit_canaries=M)
    whole = fitted(tmp_path / "whole", seed=3, **options)
    with crash_at(5):
        fitted(tmp_path / "run", seed=3, **options)
    before = canaries_of(tmp_path / "run")
    result = fitted(resume=tmp_path / "run", seed=3, **options)
    assert canaries_of(tmp_path / "run") == before
    assert len(ledger_of(tmp_path / "run").segments) == 1
    assert ledger_of(tmp_path / "run").steps == PLAN.steps
    for one, other in zip(
        jax.tree.leaves(result.params), jax.tree.leaves(whole.params), strict=True
    ):
        assert np.array_equal(one, other)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with crash_at(5):
        fitted(folder, data=WITH_PUBLIC, audit_canaries=M)
    return folder


@pytest.fixture
def copied(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


@pytest.mark.slow
def test_a_new_segment_keeps_them(copied):
    """Secrets are new there, and the guarantee of the canaries composes over all segments."""
    before = canaries_of(copied)
    fitted(
        resume=copied, data=WITH_PUBLIC, audit_canaries=M, optimizer=optax.sgd(0.1, momentum=0.9)
    )
    assert len(ledger_of(copied).segments) == 2
    assert canaries_of(copied) == before
    one, other = (segment_of(copied, number)["fingerprint"] for number in (1, 2))
    assert one["data"] == other["data"]
    assert one["canaries"] == other["canaries"] == before["digest"]


@pytest.mark.parametrize("count", [0, M - 1])
def test_another_number_is_refused(copied, count):
    with pytest.raises(ValueError, match=f"audit_canaries is {count}, and the run began with 40"):
        fitted(resume=copied, data=WITH_PUBLIC, audit_canaries=count)


@pytest.mark.slow
def test_other_canaries_are_refused(copied):
    file = copied / "private" / "canaries.json"
    again = lambda: fitted(resume=copied, data=WITH_PUBLIC, audit_canaries=M)
    text = file.read_text()
    saved = json.loads(text)
    file.write_text(json.dumps({**saved, "key": [1, 2, 3, 4]}))
    with pytest.raises(ValueError, match="the canaries come out differently"):
        again()
    other = fitted(copied.with_name("other"), data=WITH_PUBLIC, audit_canaries=M).folder
    shutil.copy(other / "private" / "canaries.json", file)
    with pytest.raises(ValueError, match="holds other canaries than the run began with"):
        again()
    of_key = lambda key: json.dumps({**saved, "key": key})
    damaged = ["", text[:-30], "[]", text.replace('"key"', '"keys"'), of_key([2**32, 0, 0, 0])]
    damaged += [text.replace('"canaries": 40', f'"canaries": {n}') for n in ("0", "1e300", "10**9")]
    damaged += [text.replace('"canaries": 40', f'"canaries": {n}') for n in ("Infinity", "41")]
    for cut in damaged:
        file.write_text(cut)
        with pytest.raises(ValueError, match=r"canaries.json can't be read \(.*put back"):
            again()
    file.unlink()
    with pytest.raises(ValueError, match="has no canaries"):
        again()
    file.write_text(text)
    again()


def test_changed_public_records_are_noticed(copied):
    changed = Dataset(private=rows(200), public=rows(60, seed=2), name="visits")
    with pytest.raises(ValueError, match="the canaries come out differently"):
        fitted(resume=copied, data=changed, audit_canaries=M)


@pytest.mark.parametrize("count", [-1, 1, 19, 2.5, "100"])
def test_numbers_that_make_no_sense(count):
    with pytest.raises(ValueError, match=f"audit_canaries is {count!r}: give 20 or more"):
        fitted(data=WITH_PUBLIC, audit_canaries=count)


def test_a_loss_that_holds_the_private_rows_is_still_refused(tmp_path):
    """The rows that its owner knows are those without canaries."""
    x = jnp.asarray(rows(200)["x"])
    loss = lambda params, record, key: TASK.loss(params, record, key) + 0 * x.sum()
    with pytest.raises(ValueError, match="holds an array of the private rows"):
        fitted(tmp_path / "run", task=replace(TASK, loss=loss), data=WITH_PUBLIC, audit_canaries=M)


def test_a_predict_that_holds_the_private_rows_is_still_not_exported(tmp_path):
    x = jnp.asarray(rows(200)["x"])
    predict = lambda params, record: TASK.predict(params, record) + 0 * x.sum()
    task = replace(TASK, predict=predict)
    result = fitted(tmp_path / "run", task=task, data=WITH_PUBLIC, audit_canaries=M)
    held = np.asarray(x).tobytes()
    assert not any(held in file.read_bytes() for file in (result.folder / "release").iterdir())


def test_a_plan_counts_them(tmp_path):
    plan = jaxdp.Plan(
        num_examples=200,
        expected_batch_size=32,
        steps=4,
        noise_multiplier=1.0,
        clipping=jaxdp.clip_individual(1.0),
    )
    with pytest.raises(ValueError, match="the plan is for 200 records, and the data have 240"):
        fitted(tmp_path / "run", plan=plan, data=WITH_PUBLIC, audit_canaries=M)


def test_an_audit_of_fit_survives_the_seal(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    give = dict(task=TASK, data=WITH_PUBLIC)
    audit = audit_run(folder, **give)  # the task has no score "loss"
    assert audit.canaries == M
    assert audit.included == canaries_of(folder)["included"].count("1")
    assert audit.claimed == run.statement.claimed_epsilon
    assert not audit.exceeds
    seal(folder)
    assert np.array_equal(audit_run(folder, **give).scores, audit.scores)
    with pytest.raises(ValueError, match=r"is a run of jaxdp.fit.*task=..., data=..."):
        audit_run(folder)
    with pytest.raises(ValueError, match="give both task and data"):
        audit_run(folder, task=TASK)
    with pytest.raises(ValueError, match="the canaries come out differently"):
        audit_run(folder, task=TASK, data=Dataset(rows(200), public=rows(50), name="visits"))


POINT = jaxdp.Task(
    init=lambda key, record: jnp.zeros(record[0].shape),
    loss=lambda params, record, key: -params @ record[0],
    name="mean",
)


def audited_on_long_records(folder, features, **numbers):
    """The audit of a mean of long vectors, which tells who was in it, but for the noise."""
    vectors = lambda n: (np.random.default_rng(n).normal(size=(n, features)).astype(np.float32),)
    data = Dataset(private=vectors(50), public=vectors(1000))
    plan = jaxdp.PlanSettings(
        expected_batch_size=250,
        steps=1,
        sampling="full_batch",
        delta=1e-5,
        clipping=jaxdp.clip_individual(1.0),
        **numbers,
    )
    fitted(folder, task=POINT, data=data, plan=plan, optimizer=optax.sgd(1.0), audit_canaries=200)
    return audit_run(folder, task=POINT, data=data)


@pytest.mark.slow
def test_a_run_almost_without_noise_has_a_large_bound(tmp_path):
    audit = audited_on_long_records(tmp_path / "run", 4000, noise_multiplier=0.01)
    assert audit.bound.epsilon > 1.5
    assert not audit.exceeds  # it claims far more


@pytest.mark.slow
def test_a_private_run_has_a_bound_below_its_claim(tmp_path):
    """It is above in one of 20 runs at most, if the mechanism were as bad as a claim allows."""
    audit = audited_on_long_records(tmp_path / "run", 4001, epsilon=1.0)
    assert audit.bound.epsilon < audit.claimed <= 1.0
    assert not audit.exceeds


def test_forgotten_noise_is_found(tmp_path, monkeypatch):
    """The plan, the ledger and the statement stay as they are: only the noise is missing."""
    real = noise.rounded_gaussian_at
    monkeypatch.setattr(noise, "rounded_gaussian_at", lambda *args: 0 * real(*args))
    audit = audited_on_long_records(tmp_path / "run", 4002, epsilon=1.0)
    assert audit.bound.epsilon > 1.5 > audit.claimed
    assert audit.exceeds
