"""Joins the two processes in which `tests/test_processes.py` runs this folder."""

import os

import jax
import pytest


def pytest_configure():
    if "JAXDP_TEST_PROCESS" in os.environ:
        jax.distributed.initialize(
            os.environ["JAXDP_TEST_COORDINATOR"],
            2,
            int(os.environ["JAXDP_TEST_PROCESS"]),
            cluster_detection_method="deactivate",
        )


@pytest.fixture(autouse=True)
def needs_two_processes():
    if jax.process_count() != 2:
        pytest.skip("for two processes")
