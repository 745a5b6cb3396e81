"""Runs `tests/devices` where JAX has eight devices of a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "devices"


@pytest.mark.parametrize("marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_eight_devices(marked):
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    options = f"addopts=--import-mode=importlib --strict-markers -m '{marked}'"
    command = [sys.executable, "-m", "pytest", "-q", "-o", options, str(FOLDER)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    assert "skipped" not in done.stdout
