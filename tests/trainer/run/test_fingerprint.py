"""The fingerprint of a computation: all that may change a bit of a step changes it."""

import importlib.resources
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.cases import slow  # noqa: E402
from helpers.trainer import SHORT, prepare_resume, start  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp.trainer import command, parsing  # noqa: E402
from jaxdp.trainer.run import fingerprint  # noqa: E402
from jaxdp.trainer.run.fingerprint import (  # noqa: E402
    changes,
    steps_repeat_exactly,
)

# The noise is given: a solved one would change with other options.
GIVEN = [*SHORT, "--plan.epsilon", "None", "--plan.noise-multiplier", "1", "--plan.delta", "1e-5"]


def fingerprint_of(args):
    return start(parsing.parse([*GIVEN, *args])).saved.fingerprint


def change_option(patch):
    return ["--training.learning-rate", "1.5"]


def change_jax(patch):
    version = fingerprint._version
    patch.setattr(fingerprint, "_version", lambda name: "0.99" if name == "jax" else version(name))
    return []


def change_device(patch):
    patch.setattr(fingerprint, "describe_device", lambda: "1 x tpu v9")
    return []


def change_processor(patch):
    patch.setattr(fingerprint, "describe_processor", lambda: "others")
    return []


def change_code(patch):
    patch.setattr(fingerprint, "_code_digest", lambda: "other")
    return []


def change_data(patch):
    return ["--data.private", "train[:1436]"]


def change_noise(patch):
    return ["--plan.noise-multiplier", "1.1"]


def change_loss(patch):
    make_task = command.make_task
    other = lambda task: replace(task, loss=lambda *args: 2 * task.loss(*args))
    patch.setattr(command, "make_task", lambda *args: other(make_task(*args)))
    return []


def change_batch(patch):
    return ["--plan.expected-batch-size", "80"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        slow(change_option, "config.training.learning_rate, program"),
        slow(change_jax, "versions.jax"),
        (change_device, "device"),
        (change_processor, "processor"),
        slow(change_code, "code"),
        slow(change_noise, "config.plan.noise_multiplier, noise multiplier, program"),
        (change_data, "config.data.private, data, sampler"),
        (change_batch, "config.plan.expected_batch_size, program, sampler"),
        (change_loss, "program"),
    ],
)
def test_the_fingerprint_tells_computations_apart(monkeypatch, change, named):
    before = fingerprint_of([])
    assert changes(before, fingerprint_of([])) == ""
    assert changes(before, fingerprint_of(change(monkeypatch))) == named


@pytest.mark.parametrize(
    ("platform", "count", "flags", "exactly"),
    [
        ("cpu", 1, "", True),
        ("cpu", 8, "", True),
        ("gpu", 1, "", False),
        ("gpu", 1, "--xla_gpu_autotune_level=0", False),
        ("gpu", 1, "--xla_a=1 --xla_gpu_deterministic_ops=true", True),
        ("gpu", 2, "--xla_gpu_deterministic_ops=true", False),
        ("gpu", 1, "--xla_gpu_deterministic_ops=false", False),
        ("gpu", 1, "--xla_gpu_deterministic_ops=true --xla_gpu_deterministic_ops=false", False),
        ("gpu", 1, "--xla_gpu_deterministic_ops=false --xla_gpu_deterministic_ops=true", True),
        ("tpu", 1, "", False),
    ],
)
def test_only_some_devices_give_the_same_bits_again(monkeypatch, platform, count, flags, exactly):
    monkeypatch.setattr(jax, "devices", lambda: count * [SimpleNamespace(platform=platform)])
    monkeypatch.setattr(jax, "device_count", lambda: count)
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert steps_repeat_exactly() == exactly


@pytest.fixture
def package(tmp_path):
    """A copy of the package, which a test may change."""
    here = Path(jaxdp.__file__).parent
    return shutil.copytree(
        here, tmp_path / "copy" / "jaxdp", ignore=shutil.ignore_patterns("__pycache__")
    )


def change_one_byte(path):
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))


def test_a_changed_engine_file_is_another_computation(secret, package, monkeypatch):
    files = importlib.resources.files
    monkeypatch.setattr(
        importlib.resources, "files", lambda name: package if name == "jaxdp" else files(name)
    )
    assert prepare_resume(secret)[0].repeats  # the same code in another folder is the same code
    change_one_byte(package / "gradients" / "engine.py")
    run, _, said = prepare_resume(secret)
    assert not run.repeats
    assert "a new segment begins, with new secrets: not the computation that was stopped: code" in (
        said
    )


DIGESTS = """
from pathlib import Path

import jaxdp
from jaxdp.trainer.run.fingerprint import _code_digest

print(_code_digest())
engine = Path(jaxdp.__file__).parent / "gradients" / "engine.py"
source = engine.read_bytes()
for changed in (source.replace(b"a", b"b", 1), source):
    engine.write_bytes(changed)
    print(_code_digest())
"""


@pytest.mark.slow
def test_the_digest_is_of_the_package_that_was_imported(package):
    """In a process of its own, so wherever the function lies in the package."""
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        cwd=package.parent,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    before, changed, after = done.stdout.split()
    assert before == after == fingerprint._code_digest()
    assert changed != before


def after_a_change(monkeypatch, name, value):
    """What differs once an environment variable has another value."""
    before = fingerprint_of([])
    monkeypatch.setenv(name, value)
    return changes(before, fingerprint_of([]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        slow("JAX_DISABLE_JIT"),
        "XLA_FLAGS",
        "LIBTPU_INIT_ARGS",
        slow("TF_XLA_FLAGS"),
        "JAX_NEW",
        slow("ONEDNN_MAX_CPU_ISA"),
        slow("PJRT_NPROC"),
    ],
)
def test_every_variable_that_xla_may_read_is_another_computation(monkeypatch, name):
    assert after_a_change(monkeypatch, name, "--other") == f"environment.{name}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Following NumPy automatic rank promotion")
def test_what_is_only_logged_or_cached_is_the_same_computation(monkeypatch):
    assert after_a_change(monkeypatch, "JAX_LOG_COMPILES", "1") == ""
    before = fingerprint_of([])
    with jax.log_compiles(False), jax.numpy_rank_promotion("warn"):
        assert changes(before, fingerprint_of([])) == "jax settings.jax_numpy_rank_promotion"


@pytest.mark.slow
def test_the_contents_of_a_file_of_flags_count(monkeypatch, tmp_path):
    path = tmp_path / "flags"
    path.write_text("--xla_a=1")
    monkeypatch.setenv("XLA_FLAGS", str(path))
    before = fingerprint_of([])
    path.write_text("--xla_a=2")
    assert changes(before, fingerprint_of([])) == "environment.file of XLA_FLAGS"


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        slow("JAX_DISABLE_MOST_OPTIMIZATIONS", "1", "jax settings.jax_disable_most_optimizations"),
        ("JAX_DISABLE_JIT", "1", "jax settings.jax_disable_jit"),
    ],
)
@pytest.mark.slow
def test_settings_of_jax_are_read_from_the_environment(variable, value, named):
    program = (
        "from jaxdp.gradients.jax_internals import settings; import json;"
        "print(json.dumps({k: str(v) for k, v in settings().items()}))"
    )
    read = lambda **more: json.loads(
        subprocess.run(
            [sys.executable, "-c", program],
            env=dict(os.environ, **more),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    before, after = read(), read(**{variable: value})
    assert [f"jax settings.{k}" for k in after if after[k] != before[k]] == [named]
