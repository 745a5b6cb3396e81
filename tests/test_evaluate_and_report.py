"""What is done with a finished run: `python -m jaxdp.evaluate` and `python -m jaxdp.report`."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest

import jaxdp

pytest.importorskip("tyro")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
train = pytest.importorskip("jaxdp.train")
from jaxdp import evaluate, report  # noqa: E402
from jaxdp.datasets import loading  # noqa: E402
from jaxdp.trainer import config as configs  # noqa: E402
from jaxdp.trainer import parsing, setup  # noqa: E402
from jaxdp.trainer.release import figures  # noqa: E402
from jaxdp.trainer.release import report as run_report  # noqa: E402
from jaxdp.trainer.run.record import load_record  # noqa: E402
from jaxdp.trainer.run.segment import load_segment  # noqa: E402


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run with an average, another optimizer and schedule, and a frozen layer."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    args = [
        *("--plan.steps", "6", "--plan.expected-batch-size", "64", "--model.widths", "2"),
        *("--training.optimizer", "adamw", "--training.optimizer-options", "b1", "0.8"),
        *("--training.schedule", "linear", "--training.learning-rate", "0.1"),
        *("--training.schedule-options", "init_value", "1", "end_value", "0"),
        *("transition_steps", "6", "--training.ema", "0.9", "--training.frozen", "Conv_0"),
    ]
    assert train.main([*args, "--output", str(folder)]) == 0
    return folder


def test_evaluate_scores_the_release(finished, capsys):
    results = json.loads((finished / "private" / "results.json").read_text())
    assert evaluate.main([str(finished)]) == 0
    said = capsys.readouterr().out
    assert f"accuracy {results['test_accuracy']:.4f}" in said
    assert f"loss {results['test_loss']:.4f}" in said
    assert "360 records, declared public" in said
    assert "ε = " in said


def test_evaluate_needs_the_release_only(finished, tmp_path, capsys):
    shutil.copytree(finished / "release", tmp_path / "release")
    assert evaluate.main([str(tmp_path / "release"), "--test", "test[:100]"]) == 0
    said = capsys.readouterr().out
    assert "digits, test[:100]: 100 records, not the run's test records" in said


def test_evaluate_refuses_what_is_no_release(tmp_path, capsys):
    assert evaluate.main([str(tmp_path)]) == 2
    assert "holds no release" in capsys.readouterr().err


def test_the_average_is_released_with_the_frozen_parameters(finished):
    params, _ = jaxdp.load_release(finished)
    assert sorted(params) == ["Conv_0", "Dense_0", "GroupNorm_0"]
    saved = load_segment(finished / "private" / "segment-1.json")
    dataset = loading.load(saved.config.data)
    first = setup.make_learner(saved.config, dataset, saved.secrets.init)
    np.testing.assert_array_equal(params["Conv_0"]["kernel"], first.frozen["Conv_0"]["kernel"])
    assert "Conv_0" not in first.params
    checkpoints = train.checkpoints.Checkpoints(finished / "private" / "checkpoints", 2)
    arrays = checkpoints.newest(print).arrays
    checkpoints.close()
    average = [v for n, v in arrays.items() if n.endswith("average_params.Dense_0.kernel")]
    np.testing.assert_array_equal(params["Dense_0"]["kernel"], average[0])
    assert not np.array_equal(average[0], arrays["params.Dense_0.kernel"])


def test_report_draws_a_run(finished, capsys):
    assert report.main([str(finished)]) == 0
    said = capsys.readouterr().out
    for name in ("training", "norms", "epsilon", "tradeoff"):
        assert f"{name}.png" in said
        picture = (finished / "private" / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
    assert "adamw 0.1" in said


def test_the_report_s_scores_end_with_the_result(finished):
    found = load_record(finished)
    assert [score["step"] for score in found.scores] == [1, 2, 3, 4, 5, 6]
    assert found.scores[-1]["accuracy"] == found.results["test_accuracy"]


def test_a_clipping_norm_is_told_where_it_means_something():
    told = lambda **changes: run_report._clipping(configs.ClippingConfig(**changes))
    assert told() == "individual 0.3"
    public = "layerwise, norms from public records"
    assert told(kind="layerwise", bounds="public") == f"{public}, the largest 0.3"
    assert told(kind="layerwise", bounds="public_norms") == public


def few_points(monkeypatch):
    monkeypatch.setattr(figures, "DELTAS", np.array([1e-6, 1e-4]))
    monkeypatch.setattr(figures, "EPSILON_POINTS", 2)


def test_report_draws_what_there_is_of_a_run_that_was_killed(
    finished, tmp_path, capsys, monkeypatch
):
    few_points(monkeypatch)
    for n, names in enumerate((("results.json", "scores.jsonl"), ("metrics.jsonl",))):
        folder = shutil.copytree(finished, tmp_path / str(n))
        for name in names:
            (folder / "private" / name).unlink()
        assert report.main([str(folder)]) == 0
        assert ("not known yet" in capsys.readouterr().out) == (n == 0)


def test_a_report_that_cannot_be_written_is_one_line(finished, capsys, monkeypatch):
    def refuse(figure, path, **kwargs):
        raise OSError(30, "Read-only file system", str(path))

    few_points(monkeypatch)
    monkeypatch.setattr(figures.Figure, "savefig", refuse)
    assert report.main([str(finished)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_epsilon_against_steps_counts_what_was_charged_in_vain(finished):
    found = load_record(finished)
    (only,) = found.spent
    again = replace(found, spent=[only, replace(only, steps=2)], starts=[0, 4])
    steps, spent = figures._epsilon_curve(again)
    assert steps == [0, 1, 2, 3, 4, 4, 5, 6]
    assert spent == sorted(spent)
    assert spent[4] < spent[5]  # two steps after the checkpoint
    assert spent[-1] == pytest.approx(figures.epsilon(again))


def test_report_compares_runs(finished, capsys):
    assert report.main([str(finished), str(finished)]) == 0
    assert "compared.png" in capsys.readouterr().out
    assert (finished / "private" / "compared.png").exists()


def test_report_refuses_what_is_no_run(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--training.optimizer adamm", "which Optax does not have: did you mean adam?"),
        ("--training.optimizer chain", "which takes no learning rate"),
        ("--training.optimizer adam --training.optimizer-options bb 1", "adam takes learning_rate"),
        ("--training.schedule lineal", "which Optax does not have: did you mean linear?"),
        ("--training.schedule linear", "missing a required argument"),
        ("--training.frozen Conv_7", "which no parameter matches"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(capsys, args, says):
    assert train.main(args.split()) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1


def test_settings_survive_json():
    saved = configs.Config(
        training=configs.TrainingConfig(frozen=("Conv_0",), optimizer_options={"b1": 0.8})
    )
    text = json.dumps(asdict(saved))
    assert parsing.from_json(configs.Config, json.loads(text)) == saved
    with pytest.raises(ValueError, match="a field speed that this version lacks"):
        parsing.from_json(configs.Config, {"speed": 1})
