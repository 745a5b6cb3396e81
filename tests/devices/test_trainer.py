"""The command on eight devices: one run, however its steps are shared out.

`tests/test_devices.py` runs this file where JAX has eight devices.
"""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from helpers.trainer import SHORT, STEPS, go_on, ledger_of, prepare_resume, start, stopped_run

import jaxdp
from jaxdp import train
from jaxdp.trainer import MeshConfig, parsing

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="for eight devices")

WIDE = ["--model.name", "mlp", "--model.widths", "1024", "128"]
SEED = ["--seed", "3"]


def trained(folder, *args):
    assert train.main([*SHORT, *SEED, "--output", str(folder), *args]) == 0
    return jaxdp.load_release(folder).params


def same(one, other, tolerance=1e-4):
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * np.abs(y).max())


def trained_alone(folder, *args):
    """What the same command trains where JAX has one device."""
    command = [sys.executable, "-m", "jaxdp.train", *SHORT, *SEED, "--output", str(folder), *args]
    subprocess.run(command, check=True, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True)
    return jaxdp.load_release(folder).params


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--data.placement", "host"),
        ("--training.microbatch-size", "2"),
        ("--training.method", "two_pass"),
    ],
)
def test_all_devices_make_the_run_of_one(args, tmp_path, capsys):
    params = trained(tmp_path / "run", *args)
    assert "8 devices share the records of each step." in capsys.readouterr().out
    same(params, trained_alone(tmp_path / "alone", *args))


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ("--clipping.kind", "batch", "--clipping.units", "4"),
        ("--clipping.kind", "quantile"),
        ("--model.centred",),
        ("--plan.sampling", "shuffled", "--plan.adjacency", "replace_one"),
    ],
)
def test_other_runs_are_shared_out_too(args, tmp_path):
    each = [trained(tmp_path / f"{n}", *WIDE, *args, "--mesh.fsdp", str(n)) for n in (1, 8)]
    same(*each)


@pytest.mark.slow
@pytest.mark.parametrize("args", [(), ("--clipping.kind", "layerwise"), ("--model.centred",)])
def test_products_are_shared_out(args, tmp_path):
    alone = trained(tmp_path / "1", *WIDE, *args)
    split = trained(tmp_path / "8", *WIDE, *args, "--mesh.fsdp", "2", "--mesh.model", "2")
    same(alone, split)


def test_a_kernel_is_split_along_both_axes():
    run = start(parsing.parse([*SHORT, *WIDE, "--mesh.fsdp", "2", "--mesh.model", "2"]))
    kernel = run.state.params["Dense_1"]["kernel"]
    assert kernel.shape == (1024, 128)
    assert kernel.addressable_shards[0].data.shape == (512, 64)
    batch, _ = next(iter(run.batches()))
    rows = jax.tree.leaves(batch.records)[0]
    assert rows.addressable_shards[0].data.shape[0] * 4 == rows.shape[0]


def test_parameters_are_shared_where_they_are_large():
    run = start(parsing.parse([*SHORT, *WIDE, "--mesh.fsdp", "4"]))
    batches = run.batches()
    state, facts = run.take_step(run.state, *next(batches))
    batches.close()
    assert np.isfinite(facts.diagnostics.loss_sum)
    kernel = state.params["Dense_1"]["kernel"]
    assert kernel.shape == (1024, 128)
    assert kernel.addressable_shards[0].data.shape == (256, 128)
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.shape == kernel.shape]
    assert moments
    assert all(x.sharding == kernel.sharding for x in moments)


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_devices(tmp_path):
    folder = stopped_run(tmp_path / "run", *WIDE, "--mesh.fsdp", "4")
    run, _, _ = prepare_resume(folder)
    assert run.repeats
    kernel = run.state.params["Dense_1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (256, 128)


@pytest.mark.slow
def test_another_layout_is_a_new_segment(tmp_path, capsys):
    folder = stopped_run(tmp_path / "run", *WIDE)
    assert go_on(folder, "--mesh.fsdp", "8") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "a new segment begins, with new secrets: not the computation that was stopped" in said
    assert "config.mesh.fsdp" in said
    assert ledger_of(folder).steps >= STEPS
    assert jaxdp.load_release(folder).statement.steps == STEPS


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_devices(tmp_path):
    folder = stopped_run(tmp_path / "run", *WIDE, "--mesh.fsdp", "8")
    for count, status in ((4, 130), (1, 0)):
        program = (
            "from helpers.trainer import *\nimport sys\n"
            f"folder = {str(folder)!r}\n"
            + ("with crash_at(7):\n    " if status else "")
            + "go_on(folder, '--mesh.fsdp', '1')\n"
        )
        flags = f"--xla_force_host_platform_device_count={count}"
        paths = os.pathsep.join(sys.path)
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert f"{count} devices share" in done.stdout or count == 1
    assert jaxdp.load_release(folder).statement.steps == STEPS


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ("--mesh.fsdp", "3"),
            "mesh.fsdp is 3 and mesh.model is 1, and JAX has 8 devices: give numbers whose product",
        ),
        (("--mesh.data", "4"), "mesh.data is 4, mesh.fsdp is 1 and mesh.model is 1, and JAX has 8"),
        (("--mesh.model", "0"), "mesh.model is 0"),
        (("--mesh.data", "0"), "mesh.data is 0"),
    ],
)
def test_a_mesh_of_other_devices_is_refused_in_one_line(args, says, capsys, tmp_path):
    assert train.main([*SHORT, "--output", str(tmp_path / "run"), *args]) != 0
    error = capsys.readouterr().err
    assert says in " ".join(error.split())
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_processes_without_a_coordinator_are_refused_before_anything_is_written(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert train.main([*SHORT, "--output", str(tmp_path / "run")]) != 0
    error = " ".join(capsys.readouterr().err.split())
    assert "JAX runs in 2 processes, which do not know each other: call jax.distributed" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_fit_uses_all_devices(capsys):
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    data = jaxdp.Dataset(private=(x, (x[:, 0] > 0).astype(np.int32)))
    model = nn.Dense(2)
    settings = jaxdp.PlanSettings(
        epsilon=5.0, steps=3, expected_batch_size=20, clipping=jaxdp.clip_individual(1.0)
    )
    task = jaxdp.tasks.classifier(model)
    jaxdp.fit(task, data, settings, optimizer=optax.sgd(0.1), mesh=MeshConfig(fsdp=2), dry_run=True)
    assert "8 devices share the records of each step. No parameter is large enough to be split" in (
        " ".join(capsys.readouterr().out.split())
    )
