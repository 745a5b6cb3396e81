"""What is told of the steps: public facts to callbacks, everything else to private files."""

import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("orbax.checkpoint")
from jaxdp.accounting.rounding import round_up
from jaxdp.trainer.metrics import Metrics
from jaxdp.trainer.progress import Progress, check_metrics, make_watchers


def opened(private=None):
    """A run of 8 steps whose ledger says ε = 0.123456789."""
    ledger = SimpleNamespace(epsilon=lambda: 0.123456789)
    return SimpleNamespace(
        run=SimpleNamespace(plan=SimpleNamespace(steps=8)),
        history=SimpleNamespace(ledger=ledger),
        private=private,
    )


def metrics(step, **changes):
    """Facts that callbacks must not see."""
    facts = dict.fromkeys(Metrics._fields, 7.5) | {"step": step, "norm_counts": (0, [1])}
    return Metrics(**{**facts, **changes})


def watch(callbacks, steps, tell=print):
    watchers = make_watchers(opened(), callbacks, None, tell)
    for step in steps:
        for one in watchers.each:
            one(metrics(step))
    watchers.close()


def test_callbacks_get_the_step_and_the_privacy_spent():
    seen = []
    watch([seen.append], [1, 2])
    assert [(p.step, p.steps) for p in seen] == [(1, 8), (2, 8)]
    assert seen[0].epsilon == round_up(0.123456789) >= 0.123456789
    public = {name for name in dir(Progress) if not name.startswith("_")} | {"step", "steps"}
    assert public == {"step", "steps", "epsilon"}
    assert "7.5" not in repr(seen)


def test_a_callback_that_fails_is_told_of_once_and_left_out():
    seen, told = [], []

    def fails(progress):
        seen.append(progress.step)
        raise ValueError("full")

    good = []
    watch([fails, good.append], [1, 2, 3], told.append)
    assert (seen, [p.step for p in good]) == ([1], [1, 2, 3])
    assert told == ["A callback failed and is not called any more: ValueError('full')"]


def test_what_interrupts_a_callback_is_no_failure_of_it():
    def interrupted(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch([interrupted], [1])


def test_tensorboard_gets_the_numbers_of_every_step(tmp_path):
    pytest.importorskip("tensorboardX")
    watchers = make_watchers(opened(tmp_path), [], "tensorboard", print)
    for step in (1, 2):
        for one in watchers.each:
            one(metrics(step, loss=None if step == 2 else 0.5))
    watchers.close()
    folder = tmp_path / "tensorboard"
    assert folder.stat().st_mode & 0o077 == 0
    (file,) = folder.iterdir()
    content = file.read_bytes()
    assert content.count(b"clipped_mean_norm") == 2
    assert content.count(b"loss") == 1  # an empty batch has none
    assert b"norm_counts" not in content


@pytest.mark.parametrize("metrics", ["csv", "", True, ["tensorboard"]])
def test_other_metrics_are_refused(metrics):
    with pytest.raises(ValueError, match=r"metrics is .*: give 'tensorboard' or None"):
        check_metrics(metrics)
    check_metrics(None)


def test_a_missing_tensorboard_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"metrics='tensorboard' needs tensorboardX") as error:
        check_metrics("tensorboard")
    assert len(str(error.value).splitlines()) == 1
