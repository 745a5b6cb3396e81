"""Runs a program in two processes that JAX joins, with four CPU devices each."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

WAIT_SECONDS = 150


class Ended(NamedTuple):
    """How one of the processes ended."""

    status: int
    out: str
    err: str
    when: float  # by time.monotonic


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def begin(commands, devices=4, folders=(None, None), **environment):
    """Starts one process for each command, in a folder of its own if there are some."""
    own = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **own, **environment},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, folder in zip(commands, folders, strict=False)
    ]


def ends(started):
    """Waits for all processes."""

    def wait(process):
        out, err = process.communicate(timeout=WAIT_SECONDS)
        return Ended(process.returncode, out, err, time.monotonic())

    try:
        with ThreadPoolExecutor(len(started)) as threads:
            return list(threads.map(wait, started))
    finally:
        for process in started:
            process.kill()


def options(process, port, count=2):
    """The options of the command for one of the processes."""
    return [
        *("--distributed.coordinator", f"127.0.0.1:{port}"),
        *("--distributed.processes", str(count), "--distributed.process", str(process)),
    ]


def train(*args, program=("-m", "jaxdp.train"), of_second=(), **options_of_begin):
    """`python -m jaxdp.train` in two processes; `of_second` are options of the second alone."""
    port = free_port()
    own = ((), of_second)
    commands = [[*program, *args, *own[i], *options(i, port)] for i in range(2)]
    return begin(commands, **options_of_begin)
