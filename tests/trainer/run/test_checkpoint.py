"""Checkpoints: whole or not used, without secrets, and quiet where Orbax is not."""

import os
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.cases import slow  # noqa: E402
from helpers.trainer import go_on, prepare_resume  # noqa: E402

from jaxdp.trainer.run.checkpoint import (  # noqa: E402
    Checkpoints,
    digest,
    from_arrays,
    to_arrays,
    without_tracebacks,
)
from jaxdp.trainer.step import TrainState  # noqa: E402

# Orbax's threads may still call back when a file was missing or the disk full: that is its affair.
orbax_fails = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@orbax_fails
@pytest.mark.parametrize("damage", [slow("truncate"), "flip", "remove"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(secret, capsys, damage):
    newest = secret / "private" / "checkpoints" / "4"
    files = sorted((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if damage == "truncate":
        for file in files:
            os.truncate(file, file.stat().st_size // 2)
    elif damage == "flip":
        data = bytearray(files[-1].read_bytes())
        data[len(data) // 2] ^= 1
        files[-1].write_bytes(data)
    else:
        files[-1].unlink()
    run, history, _ = prepare_resume(secret)
    assert "checkpoint of step 4 is damaged, so the one before is used" in capsys.readouterr().out
    assert (history.step, run.repeats) == (3, True)
    assert run.state.privatize.privatize_step == 3


def test_nan_stops_the_run_and_keeps_the_last_good(secret, capsys):
    assert go_on(secret, "--training.learning-rate", "3e38", "--clipping.norm", "1e9") == 1
    assert "the parameters are not finite after step" in capsys.readouterr().err
    assert not (secret / "release").exists()
    checkpoints = Checkpoints(secret / "private" / "checkpoints", 3)
    arrays = checkpoints.newest(print).arrays
    checkpoints.close()
    params = [value for name, value in arrays.items() if name.startswith("params.")]
    assert params
    assert all(np.isfinite(value).all() for value in params)


def test_what_orbax_leaves_behind_is_not_printed(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    failed = lambda error: SimpleNamespace(exc_value=error)
    with without_tracebacks():
        sys.unraisablehook(failed(RuntimeError("Event loop is closed")))
        sys.unraisablehook(failed(RuntimeError("something else")))
    assert [str(one.exc_value) for one in printed] == ["something else"]


def test_arrays_come_back_by_name_and_keys_stay():
    state = TrainState({"w": jnp.arange(3.0)}, {"key": jax.random.key(1)}, (jnp.int32(4),))
    arrays = to_arrays(state)
    assert sorted(arrays) == ["optimizer.0", "params.w"]
    other = TrainState({"w": jnp.zeros(3)}, {"key": jax.random.key(2)}, (jnp.int32(0),))
    back = from_arrays(arrays, other)
    np.testing.assert_array_equal(back.params["w"], state.params["w"])
    assert back.optimizer == (4,)
    assert jax.random.key_data(back.privatize["key"])[1] == 2
    with pytest.raises(ValueError, match=r"the checkpoint does not fit the run, in params\.w"):
        from_arrays(arrays, other._replace(params={"w": jnp.zeros(4)}))


def test_a_digest_is_of_names_shapes_and_bits():
    arrays = {"a": np.zeros((2, 3)), "b": np.ones(2)}
    same = {"b": np.ones(2), "a": np.zeros((2, 3))}
    assert digest(arrays) == digest(same)
    for changed in ({"a": np.zeros((3, 2))}, {"b": np.ones(2, np.float32)}, {"c": np.ones(1)}):
        assert digest(arrays | changed) != digest(arrays)
    assert digest(arrays | {"b": np.nextafter(arrays["b"], 2)}) != digest(arrays)
