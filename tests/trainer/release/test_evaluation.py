"""`python -m jaxdp.evaluate`: a release is scored on its own."""

import dataclasses
import json
import shutil

import jax
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.cases import slow  # noqa: E402
from helpers.statements import statement_of  # noqa: E402

from jaxdp import evaluate  # noqa: E402
from jaxdp.datasets import loading  # noqa: E402
from jaxdp.datasets.config import DataConfig  # noqa: E402
from jaxdp.models.config import ModelConfig  # noqa: E402
from jaxdp.trainer.command import make_job  # noqa: E402
from jaxdp.trainer.config import Config  # noqa: E402
from jaxdp.trainer.release import evaluation  # noqa: E402
from jaxdp.trainer.release.parameters import load_release, save_params, save_statement  # noqa: E402
from jaxdp.trainer.release.statement import TaskFacts, to_text  # noqa: E402

TEXT = "It was the best of times, it was the worst of times.\n" * 40


def untrained(folder, config):
    """A release of first parameters."""
    job = make_job(config)
    params = job.task.init(jax.random.key(0), job.data.private.zero())
    folder.mkdir()
    save_params(folder, params)
    return save_statement(folder, statement_of(config=config))


@pytest.fixture
def digits(tmp_path):
    return untrained(tmp_path / "run", Config(model=ModelConfig("linear")))


@pytest.fixture
def text(tmp_path):
    """A release of a text model without its run, and the text elsewhere."""
    (tmp_path / "text.txt").write_text(TEXT)
    data = DataConfig("text", file=str(tmp_path / "text.txt"), window=8, test="test[:50%]")
    model = ModelConfig("transformer", width=8, layers=1, heads=2)
    released = untrained(tmp_path / "run", Config(data=data, model=model))
    return released.rename(tmp_path / "received"), tmp_path / "text.txt"


def test_evaluate_scores_the_release(finished, capsys):
    results = json.loads((finished / "private" / "results.json").read_text())["scores"]
    assert evaluate.main([str(finished)]) == 0
    said = capsys.readouterr().out
    assert f"accuracy {results['accuracy']:.4f}" in said
    assert f"loss {results['loss']:.4f}" in said
    assert "360 records, declared public" in said
    assert "ε = " in said


def test_evaluate_needs_the_release_only(finished, tmp_path, capsys):
    shutil.copytree(finished / "release", tmp_path / "release")
    assert evaluate.main([str(tmp_path / "release"), "--data.test", "test[:100]"]) == 0
    said = capsys.readouterr().out
    assert "digits, test[:100]: 100 records, not the run's test records" in said


def test_a_release_by_itself_is_scored(digits, capsys):
    assert evaluate.main([str(digits)]) == 0
    said = capsys.readouterr().out
    assert "digits, test: 360 records, declared public\naccuracy 0." in said
    assert "by PLD, the claim, at δ = 0.000337\n" in said


@pytest.mark.slow
def test_a_text_release_by_itself_is_scored(text, capsys):
    release, file = text
    assert evaluate.main([str(release), "--data.file", str(file)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("text, test[:50%]: 12 records, not the run's test records: if they")
    assert "a character" in said


def test_a_model_that_is_its_owner_s_is_not_scored_by_the_command(digits, capsys):
    file = digits / "privacy.json"
    owners = dataclasses.replace(
        load_release(digits).statement, preprocessing=None, task=TaskFacts("mine", None, False)
    )
    file.write_text(to_text(owners))
    assert evaluate.main([str(digits)]) == 2
    said = capsys.readouterr().err
    assert "the model is its owner's, not one of jaxdp: score it with jaxdp.load_release" in said
    assert len(said.splitlines()) == 1


def test_other_windows_are_refused(text, capsys):
    release, file = text
    assert evaluate.main([str(release), "--data.file", str(file), "--data.window", "4"]) == 2
    assert "data.window is 4, and the model is for windows of 8" in capsys.readouterr().err


@pytest.mark.parametrize("other", [["--data.name", "mnist"], ["--data.test", "test[:50]"]])
def test_other_data_are_never_called_public(digits, other, monkeypatch, capsys):
    dataset = loading.load(DataConfig())
    monkeypatch.setattr(loading, "load", lambda *_: dataset)
    assert evaluate.main([str(digits), *other]) == 0
    assert "not the run's test records" in capsys.readouterr().out


def test_a_text_release_asks_for_the_text(text, capsys):
    assert evaluate.main([str(text[0])]) == 2
    said = capsys.readouterr().err
    assert said.endswith("give --data.file TEXT.txt\n")
    assert len(said.splitlines()) == 1


def test_the_statement_says_what_a_release_alone_needs(text):
    statement = load_release(text[0]).statement
    found = evaluation.data_options(text[0], statement)
    assert found == DataConfig("text", window=8, test="test[:50%]", test_is_public=False)


def test_the_run_s_own_settings_say_where_its_data_are(text, tmp_path):
    release, file = text
    statement = load_release(release).statement
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "config.json").write_text(
        json.dumps({"data": {"name": "text", "file": str(file)}})
    )
    assert evaluation.data_options(release, statement).file == str(file)


def test_a_seed_and_private_test_records_are_told(tmp_path, capsys):
    data = DataConfig(test_is_public=False)
    config = Config(model=ModelConfig("linear"), data=data, seed=0)
    assert evaluate.main([str(untrained(tmp_path / "run", config))]) == 0
    said = capsys.readouterr().out
    assert "PRIVATE: so are these numbers" in said
    assert "but NOT PRIVATE: it was made with a seed" in said


def test_evaluate_refuses_what_is_no_release(tmp_path, capsys):
    assert evaluate.main([str(tmp_path)]) == 2
    assert "holds no release" in capsys.readouterr().err


def test_evaluate_says_how_it_is_used(capsys):
    assert evaluate.main([]) == 2
    assert capsys.readouterr().err.startswith("error: no run is given: give one folder, as python")
    assert evaluate.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m jaxdp.evaluate RUN")


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["rich", slow("flax"), slow("safetensors")])
def test_a_missing_extra_ends_the_command_in_one_line(missing, run_without):
    status, said = run_without(missing, "jaxdp.evaluate")
    assert status == 1
    (line,) = said.splitlines()
    assert line.startswith(f"python -m jaxdp.evaluate needs {missing}")
    assert "pip install 'jaxdp-privacy[train]'" in line
