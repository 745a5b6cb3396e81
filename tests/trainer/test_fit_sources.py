"""`fit` on records that are read when they are sampled: the same bits, and no free repetition."""

from dataclasses import replace

import flax.linen as nn
import numpy as np
import pytest
from helpers.fits import STEPS, fitted, rows
from helpers.trainer import crash_at, ledger_of

import jaxdp
from jaxdp.datasets import feeding
from jaxdp.datasets import rows as rows_module
from jaxdp.datasets.rows import ReadFailed

X, Y = rows(200).values()


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Everything is too large for memory here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(rows_module, "MEMORY_BYTES", 10)
    monkeypatch.setattr(feeding, "READ_BYTES", 10)


class ByRow:
    """Rows by number, as other libraries have them."""

    def __init__(self, x=X, y=Y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        return {"x": self.x[row], "y": self.y[row]}


class Own(ByRow):
    """A source that promises to repeat."""

    def digest(self):
        return f"{self.x.sum()} {self.y.sum()}"


def mapped(folder):
    np.save(folder / "x.npy", X)
    return {"x": np.load(folder / "x.npy", mmap_mode="r"), "y": Y}


@pytest.mark.slow
def test_records_in_files_give_the_same_bits(tmp_path):
    made = {
        "memory": jaxdp.Dataset({"x": X, "y": Y}),
        "mapped": jaxdp.Dataset(mapped(tmp_path)),
        "source": jaxdp.Dataset(Own()),
        "by row": jaxdp.Dataset(ByRow()),
    }
    in_memory = {name: data.private.in_memory for name, data in made.items()}
    assert in_memory == {"memory": True, "mapped": False, "source": False, "by row": False}
    params = [fitted(tmp_path / name, data=d, seed=3).params for name, d in made.items()]
    for other in params[1:]:
        np.testing.assert_array_equal(other[0]["w"], params[0][0]["w"])


@pytest.mark.parametrize(("make", "segments"), [(Own, 1), (ByRow, 2)], ids=["digest", "none"])
def test_steps_repeat_for_free_only_where_rows_surely_do(tmp_path, make, segments):
    with crash_at(5):
        fitted(tmp_path / "run", data=jaxdp.Dataset(make()))
    fitted(resume=tmp_path / "run", data=jaxdp.Dataset(make()))
    ledger = ledger_of(tmp_path / "run")
    assert len(ledger.segments) == segments
    # A step that is taken again is paid for again, so that the budget ends a step earlier.
    assert (ledger.steps, ledger.stop(segments)) == (STEPS, STEPS if segments == 1 else STEPS - 1)


@pytest.mark.parametrize("make", [Own, ByRow])
def test_other_rows_are_refused_on_resume(tmp_path, make):
    with crash_at(5):
        fitted(tmp_path / "run", data=jaxdp.Dataset(make()))
    changed = X.copy()
    changed[7, 0] += 1
    for other in (make(changed), make(X[::-1], Y[::-1])) if make is ByRow else (make(changed),):
        with pytest.raises(ValueError, match="the private rows are not those that the run began"):
            fitted(resume=tmp_path / "run", data=jaxdp.Dataset(other))


def test_a_source_that_fails_stops_the_run_and_keeps_what_was_spent(tmp_path, capsys):
    source = Own()
    data = jaxdp.Dataset(source)

    def breaks(now):
        if now.step == 3:
            source.x = X[:, :2]

    with pytest.raises(ReadFailed, match=r"records can't be read \(a record is .*, though they"):
        fitted(tmp_path / "run", data=data, callbacks=[breaks])
    assert "steps were spent, nothing is released" in capsys.readouterr().out
    spent = ledger_of(tmp_path / "run").steps
    assert spent >= 3
    fitted(resume=tmp_path / "run", data=jaxdp.Dataset(Own()))
    assert ledger_of(tmp_path / "run").steps >= max(spent, STEPS)


def test_labels_of_a_source_are_checked_before_anything_is_spent(tmp_path):
    wrong = Y.copy()
    wrong[150] = 5
    task = jaxdp.tasks.classifier(nn.Dense(2))

    class Pairs(Own):
        def __getitem__(self, row):
            return self.x[row], self.y[row]

    with pytest.raises(ValueError, match="row 150 of the private records: its label is none"):
        fitted(tmp_path / "run", task=task, data=jaxdp.Dataset(Pairs(X, wrong)))


@pytest.mark.slow
def test_labels_in_files_are_checked_once(tmp_path, monkeypatch):
    task = jaxdp.tasks.classifier(nn.Dense(2))
    data = lambda labels=Y: jaxdp.Dataset((mapped(tmp_path)["x"], labels))
    calls = []
    check = task.check

    def counted(records, prediction):
        calls.append(len(records[1]))
        return check(records, prediction)

    counted.__module__ = check.__module__
    task = replace(task, check=counted)
    for _ in range(2):
        fitted(task=task, data=data(), dry_run=True)
        assert sum(calls) == 200
    wrong = Y.copy()
    wrong[3] = 2
    with pytest.raises(ValueError, match="row 3 of the private records: its label is none"):
        fitted(task=task, data=data(wrong), dry_run=True)
    # What a user's own check is may change without a notice.
    counted.__module__ = "my_task"
    fitted(task=task, data=data(), dry_run=True)
    fitted(task=task, data=data(), dry_run=True)
    assert sum(calls[-2:]) == 400
