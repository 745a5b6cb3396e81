"""Tests load programs that others have compiled: compiling takes most of the time of many."""

import functools
import shutil
import tempfile

import jax
import pytest


def pytest_configure(config: pytest.Config) -> None:
    folder = tempfile.mkdtemp(prefix="jaxdp-compiled-")  # of this process alone
    config.add_cleanup(functools.partial(shutil.rmtree, folder, ignore_errors=True))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
