"""What a resume of `fit` must not repeat for free, and whose records it must not take."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.cases import slow  # noqa: E402
from helpers.fits import DATA, TASK, fitted, rows  # noqa: E402
from helpers.trainer import crash_at, ledger_of, steps_on_disk, write_config  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import train  # noqa: E402
from jaxdp.datasets.config import DataConfig  # noqa: E402
from jaxdp.models.config import ModelConfig  # noqa: E402
from jaxdp.trainer.config import Config, PlanConfig  # noqa: E402


def pretrained(weight):
    """The task with first parameters that somebody else has trained."""
    init = lambda key, record: [{"w": jnp.full((4, 2), weight)}, (jnp.zeros(2),)]
    return replace(TASK, init=init)


@pytest.mark.slow
def test_other_frozen_parameters_are_another_computation(tmp_path, capsys):
    """Also before the first checkpoint, which would bring the old ones back."""
    options = dict(frozen=["0"], seed=1, checkpoint_seconds=1000.0)
    with crash_at(5):
        fitted(tmp_path / "run", task=pretrained(1.0), **options)
    assert steps_on_disk(tmp_path / "run") == []
    charged = ledger_of(tmp_path / "run").steps
    fitted(resume=tmp_path / "run", task=pretrained(2.0), **options)
    assert "not the computation that was stopped: frozen" in " ".join(
        capsys.readouterr().out.split()
    )
    assert next(m.steps for m in ledger_of(tmp_path / "run").mechanisms()) == charged
    assert len(ledger_of(tmp_path / "run").segments) == 2


@pytest.mark.slow
@pytest.mark.parametrize("call", [jax.pure_callback, slow(jax.experimental.io_callback)])
def test_an_optimizer_that_calls_the_host_repeats_nothing_for_free(tmp_path, capsys, call):
    """The text of the program does not have what the host computes."""

    def times(factor):
        host = lambda x: np.float32(factor) * x
        scale = optax.stateless(
            lambda updates, params: jax.tree.map(
                lambda x: call(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x), updates
            )
        )
        return optax.chain(scale, optax.sgd(0.5))

    with crash_at(5):
        fitted(tmp_path / "run", optimizer=times(1.0), seed=1)
    fitted(resume=tmp_path / "run", optimizer=times(3.0), seed=1)
    assert "not the computation that was stopped: foreign code" in " ".join(
        capsys.readouterr().out.split()
    )
    assert len(ledger_of(tmp_path / "run").segments) == 2


def test_rows_that_were_changed_in_place_are_refused(tmp_path):
    own = rows(200)
    data = jaxdp.Dataset(private=own)
    with crash_at(5):
        fitted(tmp_path / "run", data=data)
    own["x"] *= 2
    with pytest.raises(
        ValueError, match=r"private rows are not those .*: they were changed in place"
    ):
        fitted(resume=tmp_path / "run", data=data)


def test_other_public_rows_are_refused(tmp_path):
    data = lambda seed: jaxdp.Dataset(private=rows(200), public=rows(50, seed))
    with crash_at(5):
        fitted(tmp_path / "run", data=data(4))
    before = ledger_of(tmp_path / "run").position
    with pytest.raises(ValueError, match="public rows are not those that the run began with"):
        fitted(resume=tmp_path / "run", data=data(5))
    assert ledger_of(tmp_path / "run").position == before


def test_other_rows_behind_the_rules_are_refused(tmp_path):
    whole = lambda seed: {k: np.concatenate([rows(200)[k], rows(20, seed)[k]]) for k in ("x", "y")}
    split = lambda seed: jaxdp.Dataset.split(whole(seed), private="rows[:200]", public="rows[200:]")
    with crash_at(5):
        fitted(tmp_path / "run", data=split(4))
    with pytest.raises(ValueError, match="the rows rows are not those that the run began with"):
        fitted(resume=tmp_path / "run", data=split(5))


OWN = """
import numpy as np
import jaxdp
from jaxdp.trainer import *
from helpers.fits import TASK as task

x = np.ones((50, 4), np.float32)
data = jaxdp.Dataset(private=dict(x=x, y=np.zeros(50, np.int32)))
config = Config(plan=PlanConfig(expected_batch_size=32, steps=8), evaluations=0)
"""


@pytest.mark.slow
def test_a_run_on_a_split_named_test_keeps_its_records(tmp_path, capsys):
    """Its private records are of "test", which is also what `Dataset` calls rows to score."""
    folder, file = tmp_path / "run", tmp_path / "own.py"
    config = Config(
        data=DataConfig(name="digits", private="test[:90%]", test="test[90%:]"),
        model=ModelConfig(name="linear"),
        plan=PlanConfig(expected_batch_size=32, steps=8),
        output=str(folder),
        evaluations=0,
    )
    with crash_at(5):
        train.main([write_config(config, tmp_path)])
    file.write_text(OWN)
    capsys.readouterr()
    assert train.main([str(file), "--resume", str(folder)]) == 2
    assert "test rows are not those that the run began with" in capsys.readouterr().err
    assert len(ledger_of(folder).segments) == 1


@pytest.mark.slow
def test_the_file_of_an_earlier_segment_must_be_the_ledger_s(tmp_path):
    folder = tmp_path / "run"
    with crash_at(5):
        fitted(folder)
    with crash_at(7):
        fitted(resume=folder, optimizer=optax.sgd(0.1))
    path = folder / "private" / "segment-1.json"
    saved = json.loads(path.read_text())
    saved["fingerprint"]["splits"] = {}  # as if it had been about no records
    path.write_text(json.dumps(saved))
    with pytest.raises(
        ValueError, match=r"segment-1\.json is not the one that the ledger speaks of"
    ):
        fitted(resume=folder, data=DATA)
