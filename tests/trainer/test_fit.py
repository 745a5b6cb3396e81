"""`jaxdp.fit`: any task on any records, with all that the command promises."""

import functools
import inspect
import json
import re
import shutil
import signal
import sys
import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers import fits  # noqa: E402
from helpers.cases import slow  # noqa: E402
from helpers.fits import DATA, PLAN, STEPS, TASK, fitted, rows  # noqa: E402
from helpers.trainer import crash_at, ledger_of, steps_on_disk, write_config  # noqa: E402
from helpers.trees import assert_same  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import report, train  # noqa: E402
from jaxdp.datasets import loading  # noqa: E402
from jaxdp.datasets.config import DataConfig  # noqa: E402
from jaxdp.models.config import ModelConfig  # noqa: E402
from jaxdp.tasks.builtin import make_task  # noqa: E402
from jaxdp.trainer import metrics  # noqa: E402
from jaxdp.trainer.config import (  # noqa: E402
    CheckpointConfig,
    ClippingConfig,
    Config,
    PlanConfig,
    TrainingConfig,
)
from jaxdp.trainer.fit import Fitted, fit  # noqa: E402
from jaxdp.trainer.optimizer import make_optimizer  # noqa: E402
from jaxdp.trainer.plan_settings import PlanSettings  # noqa: E402
from jaxdp.trainer.run.record import load_record  # noqa: E402


@pytest.fixture(scope="module")
def reference_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fit") / "run"


@pytest.fixture(scope="module")
def reference(reference_folder):
    """A seeded run that was never stopped; nobody changes it."""
    return fitted(reference_folder, seed=1)


@pytest.fixture(scope="module")
def crashed_original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crashed") / "run"
    with crash_at(5):
        fitted(folder, seed=1)
    return folder


@pytest.fixture
def crashed(crashed_original, tmp_path):
    """A seeded run that crashed after step 4 of 8."""
    return shutil.copytree(crashed_original, tmp_path / "run")


def test_a_task_of_plain_functions_is_trained_and_released(reference, reference_folder):
    assert isinstance(reference, Fitted)
    assert (reference.folder, reference.finished) == (reference_folder, True)
    first = TASK.init(jax.random.key(0), DATA.private.zero())
    assert jax.tree.structure(reference.params) == jax.tree.structure(first)
    assert set(reference.scores) == {"right"}
    test = DATA.test.fields
    right = np.argmax(fits.logits(reference.params, test["x"]), axis=1) == test["y"]
    assert reference.scores["right"] == pytest.approx(np.mean(right))
    # What is on disk is what was returned.
    loaded = jaxdp.load_release(reference_folder)
    assert loaded.statement == reference.statement
    assert_same(loaded.params_like(first), reference.params)
    np.testing.assert_allclose(
        reference.release.predict(test), fits.logits(reference.params, test["x"]), rtol=1e-5
    )
    results = json.loads((reference_folder / "private" / "results.json").read_text())
    assert (results["scores"], results["steps"]) == (reference.scores, STEPS)


def test_the_statement_says_what_was_learnt_from_what(reference):
    s = reference.statement
    assert (s.task.name, s.task.model, s.preprocessing) == ("two classes", None, None)
    assert (s.data.name, s.data.private) == ("visits", "200 rows that were given")
    assert (s.data.public, s.data.test) == (None, "60 rows that were given")
    assert (s.num_examples, s.steps, s.steps_planned, s.target_epsilon) == (200, 8, 8, 8.0)
    assert not s.test_is_public
    assert not s.private  # it has a seed
    (mechanism,) = s.mechanisms
    assert mechanism.clipping.call == repr(PLAN.clipping)
    assert reference.epsilon == s.claimed_epsilon <= 8.0
    assert reference.plan.noise_multiplier == mechanism.noise_multiplier
    page = (reference.folder / "release" / "PRIVACY.md").read_text()
    assert "visits; protected: 200 rows that were given" in page


@pytest.mark.slow
def test_private_files_say_what_the_command_s_do(reference, capsys):
    found = load_record(reference.folder)
    assert found.config is None
    assert [one["step"] for one in found.metrics] == list(range(1, STEPS + 1))
    assert found.scores[-1]["right"] == reference.scores["right"]
    assert not (reference.folder / "private" / "config.json").exists()
    assert (reference.folder / "private").stat().st_mode & 0o077 == 0
    assert report.main([str(reference.folder)]) == 0
    said = capsys.readouterr().out
    assert "two classes" in said
    assert "test right" in said


def test_a_failure_leaves_no_thread_that_reads(tmp_path, monkeypatch):
    names = lambda: [t.name for t in threading.enumerate() if t.name.startswith("jaxdp-")]
    during = []

    def crash(file, facts):
        during.extend(names())
        raise ArithmeticError("the disk is full")

    monkeypatch.setattr(metrics, "write_metrics", crash)
    with pytest.raises(ArithmeticError, match="the disk is full") as held:
        fitted(tmp_path / "run", placement="host")
    assert during
    assert names() == []
    del held  # which had the loop's variables until here


def test_a_run_is_resumed_bit_for_bit_after_a_crash(reference, crashed):
    assert steps_on_disk(crashed)[-1] == 4
    result = fitted(resume=crashed, seed=1)
    assert (result.finished, result.folder) == (True, crashed)
    assert_same(result.params, reference.params)
    assert result.statement == reference.statement
    assert (ledger_of(crashed).steps, len(ledger_of(crashed).segments)) == (STEPS, 1)
    lines = [f / "private" / "metrics.jsonl" for f in (crashed, reference.folder)]
    assert len({path.read_text() for path in lines}) == 1


def test_a_finished_run_is_left_alone(reference, capsys):
    before = ledger_of(reference.folder).position
    again = fitted(resume=reference.folder, seed=1)
    assert "All steps were taken" in " ".join(capsys.readouterr().out.split())
    assert (again.finished, again.scores, again.statement) == (True, {}, reference.statement)
    assert_same(again.params, reference.params)
    assert ledger_of(reference.folder).position == before


OTHER = """
def loss(params, record, key):
    {comment}
    x = record["x"] * jax.random.bernoulli(key, 0.9, record["x"].shape)
    return {factor} * optax.softmax_cross_entropy_with_integer_labels(
        logits(params, x), record["y"]
    )
"""


def written(comment, factor=""):
    """The same loss, written in another place."""
    space = vars(fits).copy()
    source = OTHER.format(comment=comment, factor=factor).replace("return  *", "return")
    exec(source, space)
    return replace(TASK, loss=space["loss"])


def test_a_changed_comment_is_the_same_computation(reference, crashed, capsys):
    result = fitted(resume=crashed, task=written("# Another comment."), seed=1)
    assert "a new segment" not in capsys.readouterr().out
    assert len(ledger_of(crashed).segments) == 1
    assert_same(result.params, reference.params)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(task=written("", "2.0")), "program"),
        slow(dict(optimizer=optax.sgd(0.25, momentum=0.9)), "program"),
        slow(dict(microbatch_size=16), "microbatch_size"),
    ],
    ids=["loss", "optimizer", "microbatch"],
)
def test_another_computation_is_a_new_segment_that_is_paid_for(crashed, capsys, changes, named):
    charged = ledger_of(crashed).steps
    result = fitted(resume=crashed, seed=1, **changes)
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"a new segment begins, with new secrets: not the .*{named}", said)
    first, second = ledger_of(crashed).mechanisms()
    assert first.steps == charged
    assert result.statement.steps == first.steps + second.steps > STEPS - 1
    assert ledger_of(crashed).epsilon() <= result.epsilon <= 8.0
    assert len(result.statement.mechanisms) == 2


@pytest.mark.parametrize(
    "data",
    [
        jaxdp.Dataset(private=rows(200, seed=7), test=rows(60, seed=1)),
        jaxdp.Dataset(private=rows(199), test=rows(60, seed=1)),
        jaxdp.Dataset.split(rows(200), private="rows"),
    ],
    ids=["values", "fewer", "rules"],
)
def test_other_private_rows_are_refused(crashed, data):
    before = ledger_of(crashed).position
    with pytest.raises(ValueError, match="private rows are not those that the run began with"):
        fitted(resume=crashed, data=data, seed=1)
    assert ledger_of(crashed).position == before


@pytest.mark.slow
def test_the_rule_of_the_private_rows_is_kept(tmp_path):
    split = functools.partial(jaxdp.Dataset.split, rows(200))
    with crash_at(5):
        fitted(tmp_path / "run", data=split(private="rows[:90%]", test="rows[90%:]"))
    with pytest.raises(
        ValueError, match=r"private rows are 'rows\[:95%\]', and the run began with 'rows\[:90%\]'"
    ):
        fitted(resume=tmp_path / "run", data=split(private="rows[:95%]"))
    result = fitted(resume=tmp_path / "run", data=split(private="rows[:90%]", test="rows[95%:]"))
    assert result.finished
    assert len(ledger_of(tmp_path / "run").segments) == 1  # other test rows are free


def test_other_test_rows_may_be_given_and_are_told(crashed, capsys):
    other = jaxdp.Dataset(private=rows(200), test=rows(30, seed=5), name="visits")
    result = fitted(resume=crashed, data=other, seed=1)
    assert "not the computation that was stopped: splits.test" in " ".join(
        capsys.readouterr().out.split()
    )
    assert result.statement.data.test == "30 rows that were given"
    assert [use.test for use in result.statement.earlier_data] == ["60 rows that were given"]


@pytest.mark.slow
def test_the_command_and_fit_leave_each_other_s_runs_alone(crashed, tmp_path, capsys):
    assert train.main(["--resume", str(crashed)]) == 2
    assert "is a run of jaxdp.fit" in capsys.readouterr().err
    folder = tmp_path / "command"
    args = ["--model.name=linear", "--plan.steps=2", "--evaluations=0", f"--output={folder}"]
    assert train.main(args) == 0
    with pytest.raises(ValueError, match="is a run of the command: go on with `python -m jaxdp"):
        fitted(resume=folder)


@pytest.mark.slow
def test_a_folder_that_exists_gets_a_number(reference, tmp_path, monkeypatch):
    short = replace(PLAN, steps=1)
    names = [fitted(tmp_path / "mine", plan=short).folder.name for _ in range(3)]
    assert names == ["mine", "mine-2", "mine-3"]
    monkeypatch.chdir(tmp_path)
    folder = fitted(plan=short, name="visits").folder
    assert re.fullmatch(r"runs/visits-\d{8}-\d{6}", folder.as_posix())


@pytest.mark.parametrize(
    "changes", [dict(noise_multiplier=lambda step: 2.0 + step)], ids=["schedule"]
)
def test_a_plan_that_the_ledger_cannot_keep_is_refused(tmp_path, changes):
    numbers = dict(num_examples=200, expected_batch_size=32, steps=3, num_parameters=10)
    plan = jaxdp.Plan(**{"clipping": PLAN.clipping, "noise_multiplier": 2.0, **numbers, **changes})
    with pytest.raises(ValueError, match="noise multiplier is a schedule"):
        fitted(tmp_path / "run", plan=plan)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_plan_may_leave_the_number_of_parameters_open(tmp_path):
    plan = jaxdp.Plan(
        num_examples=200, expected_batch_size=32, steps=3, epsilon=3.0, clipping=PLAN.clipping
    )
    result = fitted(tmp_path / "run", plan=plan)
    assert result.finished
    assert 2.9 < result.epsilon <= 3.0


KEY = jax.random.key(7)


def held_by_the_loss(x):
    mixed = lambda record: 0.5 * record["x"] + 0.5 * jnp.asarray(x)[3]
    return dict(task=replace(TASK, loss=lambda p, r, key: fits.loss(p, {**r, "x": mixed(r)}, key)))


def held_by_the_optimizer(x):
    add = lambda updates, params: jax.tree.map(lambda u: u + jnp.sum(jnp.asarray(x)), updates)
    return dict(optimizer=optax.chain(optax.stateless(add), optax.sgd(0.1)))


@pytest.mark.parametrize("held", [held_by_the_loss, held_by_the_optimizer])
def test_private_rows_that_a_step_holds_are_refused(tmp_path, held):
    """As when a record is mixed with another one: all records would see it at every step."""
    with pytest.raises(ValueError, match="loss or the optimizer holds an array of the private row"):
        fitted(tmp_path / "run", **held(DATA.private.fields["x"]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_optimizer_may_hold_a_key(tmp_path):
    noisy = lambda updates, params: jax.tree.map(
        lambda u: u + jax.random.normal(KEY, u.shape), updates
    )
    optimizer = optax.chain(optax.stateless(noisy), optax.sgd(0.1))
    assert fitted(tmp_path / "run", optimizer=optimizer).finished


def test_a_loss_that_is_nan_is_told_once(tmp_path, capsys):
    nan = lambda params, record, key: TASK.loss(params, record, key) + np.float32(np.nan)
    fitted(tmp_path / "run", task=replace(TASK, loss=nan), seed=1)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("The loss of a record is NaN at step 1: look for a label") == 1
    assert "loss nan, clipped" in said
    assert "measures, no update" not in said


def test_callbacks_get_public_facts_only_and_may_fail(reference, tmp_path, capsys):
    seen = []

    def note(progress):
        assert {name for name in vars(progress) if not name.startswith("_")} == {"step", "steps"}
        seen.append((progress.step, progress.steps, progress.epsilon))

    def fails(progress):
        if progress.step == 3:
            raise RuntimeError("the network is down")
        seen.append(progress.step)

    result = fitted(tmp_path / "run", callbacks=[fails, note], seed=1)
    assert [one for one in seen if isinstance(one, int)] == [1, 2]  # it is not called again
    notes = [one for one in seen if isinstance(one, tuple)]
    assert [(step, steps) for step, steps, _ in notes] == [(n, STEPS) for n in range(1, STEPS + 1)]
    spent = [epsilon for *_, epsilon in notes]
    assert spent == sorted(spent)
    assert spent[0] > 0
    assert spent[-1] == pytest.approx(result.epsilon, rel=1e-3)
    said = " ".join(capsys.readouterr().out.split())
    told = "A callback failed and is not called any more: RuntimeError('the network is down')"
    assert said.count(told) == 1
    assert_same(result.params, reference.params)  # they change nothing


def test_metrics_for_tensorboard_are_private_events(reference, tmp_path):
    pytest.importorskip("tensorboardX")
    result = fitted(tmp_path / "run", metrics="tensorboard", seed=1)
    folder = result.folder / "private" / "tensorboard"
    assert folder.stat().st_mode & 0o077 == 0
    (events,) = folder.iterdir()
    content = events.read_bytes()
    for name in (b"loss", b"clipped_fraction", b"norm_50", b"noise_norm"):
        assert content.count(name) == STEPS, name
    assert sorted(p.name for p in (result.folder / "release").iterdir()) == sorted(
        p.name for p in (reference.folder / "release").iterdir()
    )
    assert_same(result.params, reference.params)


def test_a_missing_tensorboard_is_told_before_anything_is_spent(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"tensorboardX.*pip install 'jaxdp-privacy\[tensorboard"):
        fitted(tmp_path / "run", metrics="tensorboard")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_stops_after_a_step_and_the_run_goes_on(reference, tmp_path, capsys):
    def interrupt(progress):
        if progress.step == 3:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stopped = fitted(tmp_path / "run", callbacks=[interrupt], seed=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not stopped.finished
    assert 3 <= stopped.statement.steps < STEPS
    result = fitted(resume=stopped.folder, seed=1)
    assert result.finished
    assert_same(result.params, reference.params)
    (aside,) = stopped.folder.glob("release-after-*")
    assert jaxdp.load_release(aside).statement == stopped.statement


def test_it_runs_in_a_thread(reference, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(fitted(tmp_path / "run", seed=1)))
    thread.start()
    thread.join()
    assert_same(results[0].params, reference.params)


def test_what_diverges_is_not_released(tmp_path):
    wild = lambda params, record, key: 1e30 * jnp.sum(params[0]["w"] ** 2) * record["x"][0]
    with pytest.raises(ArithmeticError, match="the parameters are not finite after step"):
        fitted(
            tmp_path / "run",
            task=replace(TASK, loss=wild),
            optimizer=optax.sgd(1e38),
            plan=replace(PLAN, clipping=jaxdp.clip_individual(1e9)),
        )
    assert not (tmp_path / "run" / "release").exists()
    assert ledger_of(tmp_path / "run").steps > 0


@pytest.mark.slow
def test_digits_give_the_same_bits_by_fit_as_by_the_command(tmp_path):
    config = Config(
        model=ModelConfig("linear"),
        plan=PlanConfig(expected_batch_size=64, steps=6),
        clipping=ClippingConfig(norm=0.3),
        training=TrainingConfig(ema=0.9),
        data=DataConfig(augment="none"),
        checkpoint=CheckpointConfig(every_seconds=0, keep=3),
        seed=5,
    )
    command = tmp_path / "command"
    assert train.main([write_config(config, tmp_path), "--output", str(command)]) == 0
    data, made = loading.load(config.data)
    training = config.training
    result = fit(
        make_task(config.model, made),
        data,
        PlanSettings(
            expected_batch_size=64, steps=6, epsilon=3.0, clipping=jaxdp.clip_individual(0.3)
        ),
        optimizer=make_optimizer(training, 6),
        output=tmp_path / "fit",
        ema=training.ema,
        microbatch_size=training.microbatch_size,
        seed=5,
    )
    expected = jaxdp.load_release(command)
    assert_same(result.release.params, expected.params)
    assert result.statement.epsilon == expected.statement.epsilon
    lines = [f / "private" / "metrics.jsonl" for f in (command, tmp_path / "fit")]
    assert len({path.read_text() for path in lines}) == 1


def test_every_argument_is_documented():
    said = inspect.getdoc(fit)
    for name in inspect.signature(fit).parameters:
        assert re.search(rf"^  {name}: ", said, re.MULTILINE), name
