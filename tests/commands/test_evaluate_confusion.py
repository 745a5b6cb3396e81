"""`python -m jaxdp.evaluate --confusion`: exact for public records, else noisy and paid for."""

import json
import re
import shutil
from fractions import Fraction

import pytest

for module in ("tyro", "rich", "sklearn", "safetensors"):
    pytest.importorskip(module)
from jaxdp import evaluate, train  # noqa: E402
from jaxdp.trainer.release import confusion, score_ledger  # noqa: E402
from jaxdp.trainer.release.score_ledger import ScoreLedger  # noqa: E402

TASK = """
import jax.numpy as jnp
import optax

import jaxdp
from jaxdp.trainer import *


def logits(params, x):
    return x.reshape(-1).astype(jnp.float32) / 8 @ params["w"]


def predict(params, x):
    scores = logits(params, x)
    return {"class": jnp.argmax(scores).astype(jnp.int32), "scores": scores}


task = jaxdp.Task(
    init=lambda key, record: {"w": jnp.zeros((64, 10))},
    loss=lambda p, record, key: optax.softmax_cross_entropy_with_integer_labels(
        logits(p, record[0]), record[1]
    ),
    predict=predict,
)
config = Config(plan=PlanConfig(steps=10, expected_batch_size=64), evaluations=0)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of a task of their owner, with public and with private test records."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "linear_task.py").write_text(TASK)
    for name, public in (("public", "true"), ("private", "false")):
        args = ["--data.test-is-public", public, "--output", str(folder / name)]
        assert train.main([str(folder / "linear_task.py"), *args]) == 0
    return folder


@pytest.fixture
def score(runs, capsys, monkeypatch):
    """Scores a run: (exit status, what it said, errors)."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(name, *args):
        status = evaluate.main([str(runs / name), "--confusion", *args])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "digits.txt"


def paying(ledger, epsilon="0.5", budget=None):
    begin = [] if budget is None else ["--budget", budget]
    return ["--ledger", str(ledger), "--epsilon", epsilon, *begin]


def matrix(said):
    lines = said.split("Columns are the predicted classes:\n")[1].splitlines()[1:11]
    return [[int(cell) for cell in line.split()[1:]] for line in lines]


def table(said):
    lines = said.split("precision\n")[1].splitlines()[:10]
    return [line.split() for line in lines]


def test_public_records_are_scored_exactly(score):
    status, said, _ = score("public")
    assert status == 0
    assert "digits, test: 360 records, declared public\n" in said
    counts, rows = matrix(said), table(said)
    assert sum(map(sum, counts)) == 360
    right = sum(counts[i][i] for i in range(10))
    assert f"accuracy {right / 360:.4f}\n" in said
    for i, (name, support, recall, precision) in enumerate(rows):
        assert (int(name), int(support)) == (i, sum(counts[i]))
        assert recall == f"{counts[i][i] / sum(counts[i]):.4f}"
        column = sum(row[i] for row in counts)
        assert precision == (f"{counts[i][i] / column:.4f}" if column else "none")
    assert said == score("public")[1]
    assert "by PLD, the claim, at δ = 0.000337" in said  # of the training


def test_private_records_have_noise_that_is_paid_for(score, ledger):
    status, said, _ = score("private", *paying(ledger, budget="2"))
    assert status == 0
    assert "digits, test: PRIVATE records, with noise" in said
    assert f"{ledger}: 0.5 of 2 spent, 1.5 left" in " ".join(said.split())
    assert "standard deviation 2.8 in each number of the matrix, 8.85 in the sum" in " ".join(
        said.split()
    )
    again = score("private", *paying(ledger))[1]
    assert matrix(again) != matrix(said)
    assert ScoreLedger.read(ledger).spent == 1


def test_all_that_is_printed_of_private_records_comes_from_the_noisy_matrix(
    score, ledger, monkeypatch
):
    noise = iter([-1000] * 99 + [7])
    monkeypatch.setattr(
        confusion.Confusion, "with_noise", _with(lambda epsilon: next(noise)), raising=True
    )
    exact = []
    count = confusion.count

    def counted(*args, **options):
        assert options == {"each_alone": True}  # so that no rounding depends on other records
        exact.append(count(*args, **options).counts[9, 9])
        return count(*args, **options)

    monkeypatch.setattr(confusion, "count", counted)
    _, said, _ = score("private", *paying(ledger, budget="2"))
    assert sum(map(sum, matrix(said))) == matrix(said)[9][9] == exact[0] + 7
    assert [row[1:] for row in table(said)] == [["0", "none", "none"]] * 10
    assert "accuracy none" in said
    assert not re.search(r"(?<![\w/-])360\b", said)  # a path may have any number


def _with(noise):
    original = confusion.Confusion.with_noise
    return lambda self, epsilon: original(self, epsilon, noise)


def test_the_ledger_has_paid_before_the_noise_is_drawn(score, ledger, monkeypatch):
    spent = []

    def noise(epsilon):
        spent.append(ScoreLedger.read(ledger).spent)
        return 0

    monkeypatch.setattr(confusion.Confusion, "with_noise", _with(noise))
    assert score("private", *paying(ledger, "0.25", budget="2"))[0] == 0
    assert set(spent) == {Fraction(1, 4)}
    assert len(spent) == 100


def test_all_releases_share_the_ledger_of_the_records(score, ledger, runs, tmp_path):
    assert score("private", *paying(ledger, budget="1.2"))[0] == 0
    shutil.copytree(runs / "private", tmp_path / "other")
    assert score(str(tmp_path / "other"), *paying(ledger))[0] == 0
    status, said, error = score("private", *paying(ledger))
    assert (status, said) == (2, "")
    assert f"epsilon is 0.5, and {ledger} has 0.2 left of 1.2: give at most that" in error
    half = ["--data.test", "test[:50%]"]  # the same records, so the same ledger
    assert score("private", *half, *paying(ledger, "0.2"))[0] == 0
    assert "its budget is used up for good" in score("private", *paying(ledger, "0.1"))[2]


def test_a_failure_to_charge_tells_nothing(score, ledger, monkeypatch):
    def refuse(self, fact):
        raise OSError(28, "No space left on device")

    assert score("private", *paying(ledger, budget="2"))[0] == 0
    monkeypatch.setattr(ScoreLedger, "_append", refuse)
    status, said, error = score("private", *paying(ledger))
    assert (status, said) == (2, "")
    assert "No space left on device" in error
    assert "nothing is told" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("private", [], "not declared public, and no ledger is given: give --ledger FILE"),
        ("private", ["--ledger", "L"], "not declared public, and no epsilon is given"),
        ("private", ["--epsilon", "1"], "not declared public, and no ledger is given"),
        ("private", ["--ledger", "L", "--epsilon", "1"], "there is no ledger L"),
        ("private", ["--ledger", "L", "--epsilon", "0"], "epsilon is 0: give a number above 0"),
        ("private", ["--ledger", "L", "--epsilon", "2", "--budget", "1"], "more than the budget 1"),
        ("private", ["--data.test-is-public"], "the run did not declare its test records public"),
        ("public", ["--ledger", "L"], "ledger is L, and the test records were declared public"),
        ("public", ["--epsilon", "1.0"], "epsilon is 1.0, and the test records were declared"),
        ("public", ["--data.test", "test[:50%]"], "not declared public, and no ledger is given"),
        (
            "public",
            ["--data.private", "train[:1]", "--data.test", "train[1:]", "--data.test-is-public"],
            "1436 records of 'train' are in both",
        ),
    ],
)
def test_refusals_are_one_line(score, name, args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said, error = score(name, *args)
    assert (status, said) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_others_than_the_runs_records_can_be_declared_public(score):
    status, said, _ = score("public", "--data.test", "test[:50%]", "--data.test-is-public")
    assert status == 0
    assert "digits, test[:50%]: 180 records, declared public" in said


def test_public_records_can_be_treated_as_private(score, ledger):
    args = ["--data.test-is-public=false", *paying(ledger, budget="1")]
    status, said, _ = score("public", *args)
    assert status == 0
    assert "PRIVATE records" in said


def test_another_ledger_is_refused(score, ledger):
    with score_ledger.opened(ledger, "visits", Fraction(1), Fraction(2)):
        pass
    assert (
        "is the ledger of 'visits', and the test records are of 'digits'"
        in score("private", *paying(ledger))[2]
    )


@pytest.mark.parametrize("option", ["ledger", "epsilon", "budget"])
def test_what_pays_is_for_confusion_only(runs, capsys, option):
    assert evaluate.main([str(runs / "public"), f"--{option}", "1"]) == 2
    assert "but it is for --confusion, which is not given: leave it out" in capsys.readouterr().err


def test_records_that_were_given_are_not_loaded(runs, tmp_path, capsys):
    folder = shutil.copytree(runs / "public" / "release", tmp_path / "received")
    fact = json.loads((folder / "privacy.json").read_text())
    fact["data"] |= {"name": "visits", "source": "given"}
    (folder / "privacy.json").write_text(json.dumps(fact))
    assert evaluate.main([str(folder), "--confusion"]) == 2
    said = capsys.readouterr().err
    assert "the records 'visits' are their owner's, and the command can't load them" in said
    assert "jaxdp.load_release(...).predict" in said
