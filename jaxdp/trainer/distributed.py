"""A run in several processes: joins them, lets the first decide, and ends all when one ends.

Process 0 has the run's folder, its ledger and the console. The others compute the same steps on
the rows of their own devices, and are told what process 0 decides (`first`).

A process that fails says so, and the others end. One that dies says nothing: it is missed after
`MISSED_SECONDS`. Ending at any moment is safe for privacy, since a step is on disk as paid for
before any process may take it.
"""

import contextlib
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ..dpsgd import processes
from ..gradients.jax_internals import coordinator, is_distributed, launched, number_of_process
from ..types import PyTree
from .config import DistributedConfig
from .signals import StopRequest

T = TypeVar("T")

BEAT_SECONDS = 1.0  # between signs of life
MISSED_SECONDS = 20.0  # without one, a process is taken for dead
HEARTBEAT_SECONDS = 60  # of JAX itself, which ends processes that this thread could not
LEAVE_SECONDS = 3.0  # that process 0, which has the coordinator, gives the others to end

# What launchers say of the number of processes, and of the number of this one.
LAUNCHERS = (
    *("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "PALS_SIZE"),
    *("SLURM_STEP_NUM_TASKS", "FLUX_JOB_SIZE", "JSM_NAMESPACE_SIZE", "HOROVOD_SIZE"),
)
RANKS = ("SLURM_PROCID", "PMIX_RANK")


def first(what: str, make: Callable[[], T]) -> T:
    """What process 0 makes, in all processes; see `processes.from_first`. It may take its time."""
    return processes.from_first(what, make, math.inf)


def join(config: DistributedConfig) -> None:
    """Makes this process one of several, if the options or its launcher say so.

    If process 0 waits in vain for another, JAX itself ends it, with a text of its own.

    Raises:
      ValueError: if process 0 can't be reached.
    """
    if is_distributed():
        return
    given = config.coordinator is not None
    if not given and _launched() == 1:
        return
    who = f"Process {config.process} of {config.processes}" if given else "This process"
    where = config.coordinator if given else "the coordinator that the launcher names"
    print(
        f"{who} waits for the others at {where}, for up to {processes.LIMIT_SECONDS / 60:g} "
        "minutes.",
        file=sys.stderr,
        flush=True,
    )
    try:
        if config.coordinator is not None and config.process != 0:
            _reach(config.coordinator)
        _initialize(config)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"the processes of this run do not find each other at {where} ({reason}): start all of "
            "them with the same --distributed.coordinator HOST:PORT, a free port of process 0's "
            "machine that the others can reach"
        ) from None
    _watch.start()


def _reach(coordinator: str) -> None:
    """Returns when something listens there. JAX, which would wait too, hears no Ctrl-C."""
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + processes.LIMIT_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.5)


def _initialize(config: DistributedConfig) -> None:
    # JAX would catch SIGTERM, for which a run has its own way to stop.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX waits outside of Python, where only the system's way to end a process works.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process,
            cluster_detection_method="deactivate" if config.coordinator is not None else None,
            initialization_timeout=int(processes.LIMIT_SECONDS),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def _launched() -> int:
    # In the shell of an interactive job, SLURM still tells the tasks of the whole job.
    return 1 if os.environ.get("SLURM_STEP_NUM_TASKS") == "1" else launched()


def check_alone() -> None:
    """Refuses to make one of several runs where one run in several processes was meant.

    Raises:
      ValueError: if a launcher has started more processes than JAX has joined.
    """
    joined = number_of_process()[1] if is_distributed() else 1
    if joined != jax.process_count() and is_distributed():
        raise ValueError(
            f"jax.distributed.initialize has joined {joined} processes, and JAX computes in "
            f"{jax.process_count()}: each would make a run of its own. Use a platform of JAX that "
            "has several processes"
        )
    told = {name: _number(name) for name in LAUNCHERS}
    told |= {name: _number(name) + 1 for name in RANKS}
    for name, count in {"as JAX sees": _launched(), **told}.items():
        if count > joined:
            raise ValueError(
                f"a launcher has started at least {count} processes ({name}), and "
                f"{joined} joined: each would make a run of its own, with a budget of its own. "
                "Call jax.distributed.initialize before jaxdp.fit; the command takes "
                "--distributed.coordinator HOST:PORT --distributed.processes N "
                "--distributed.process I. Or start a single process"
            )


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else 0


@contextmanager
def together() -> Iterator[None]:
    """Looks after the other processes, and ends them, too, if this one fails."""
    started = is_distributed() and _watch.start()
    try:
        yield
    except BaseException as error:
        failed(1, error)
        raise
    if started:
        _watch.stop()


def failed(status: int, reason: object) -> int:
    """Tells the other processes why this one ends, with this exit status, and returns that."""
    if is_distributed():
        _watch.fail(status, str(reason) or type(reason).__name__)
    return status


def left(status: int) -> int:
    """Ends a program of several processes, with the exit status of process 0."""
    if is_distributed() and not _watch.has_failed:
        status = first("exit status", lambda: status)
        _watch.stop()
        jax.distributed.shutdown()
    return status


def on_loss(cure: str) -> None:
    """Sets what this process tells its user to do if another one is lost."""
    _watch.cure = cure


def pass_on(request: StopRequest) -> None:
    """Passes a signal to any process on to process 0, which decides when to stop."""
    _watch.request = request


def arrays_from_first(what: str, tree: PyTree) -> PyTree:
    """The arrays of process 0, on the host. All processes give a tree of the same shapes."""
    if not processes.several():
        return tree
    named = jax.tree_util.tree_leaves_with_path(tree)
    shapes = [f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}" for path, x in named]
    cure = "start the same program with the same options in all of them"
    processes.check_same(f"the form of {what}", json.dumps(shapes), cure)

    def received(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf  # all have the same keys
        return jnp.asarray(multihost_utils.broadcast_one_to_all(np.asarray(leaf)))

    return jax.tree.map(received, tree)


class _Watch:
    """A thread that gives signs of life, looks for those of the others, and passes signals on.

    What it says is numbered by the run: a program may make several.
    """

    def __init__(self) -> None:
        self._number = 0
        self._thread: threading.Thread | None = None
        self._forget()

    def _forget(self) -> None:
        self.cure = ""
        self.request: StopRequest | None = None
        self.has_failed = False
        self._over = threading.Event()

    def start(self) -> bool:
        """Begins to look. Returns False if it does so already."""
        if self._thread is not None:
            return False
        self._forget()
        self._number += 1
        self._thread = threading.Thread(target=self._run, name="jaxdp-watch", daemon=True)
        self._thread.start()
        return True

    def stop(self) -> None:
        """Ends the thread: the run is over."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    def fail(self, status: int, reason: str) -> None:
        """Tells the others that this process ends, which says itself why."""
        self.has_failed = True
        self.stop()
        self._tell_the_end(f"process {number_of_process()[0]} has stopped ({reason})", status)

    def _name(self, what: str) -> str:
        return f"jaxdp/watch {self._number}/{what}"

    def _run(self) -> None:
        client, (me, count) = coordinator(), number_of_process()
        # Process 0 looks for all, and the others for it. Each may take its time until it begins.
        others = range(1, count) if me == 0 else [0]
        beats = dict.fromkeys(others, ("", time.monotonic() + processes.LIMIT_SECONDS))
        number, asked = 0, False
        while not self._over.wait(BEAT_SECONDS):
            number += 1
            try:
                client.key_value_set(self._name(f"alive {me}"), str(number), allow_overwrite=True)
                told = _tried(client, self._name("end"))
                signs = {other: _tried(client, self._name(f"alive {other}")) for other in others}
                asked = asked or self._pass_signal_on(client, me)
            except jax.errors.JaxRuntimeError:
                self._end("process 0 is gone", 1)
                return
            if told is not None:
                reason, status = json.loads(told)
                self._end(reason, status)
            now = time.monotonic()
            for other, sign in signs.items():
                before, last = beats[other]
                if sign is not None and sign != before:
                    beats[other] = sign, now
                elif now - last > MISSED_SECONDS:
                    self._end(f"process {other} is gone", 1, missing=1)

    def _pass_signal_on(self, client: Any, me: int) -> bool:
        """Brings a signal to process 0. Returns whether that is done."""
        request = self.request
        if request is None:
            return False
        if me == 0:
            number = _tried(client, self._name("stop"))
            if number is not None and not request.requested:
                os.write(2, b"Another process got a signal: stopping after this step.\n")
                request.signal, request.requested = int(number), True
            return number is not None
        if request.requested:
            client.key_value_set(self._name("stop"), str(request.signal), allow_overwrite=True)
        return request.requested

    def _end(self, reason: str, status: int, missing: int = 0) -> None:
        """Ends this process, because another one has ended; so many are not there any more."""
        if self._over.is_set():
            return
        me = f"process {number_of_process()[0]} stops"
        os.write(2, f"error: {reason}: {self.cure or me}\n".encode())
        self._tell_the_end(reason, status, missing)
        os._exit(status)

    def _tell_the_end(self, reason: str, status: int, missing: int = 0) -> None:
        """Tells the others that the run ends. Process 0, which has the coordinator, goes last."""
        client, (me, count) = coordinator(), number_of_process()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first
            client.key_value_set(self._name("end"), json.dumps([reason, status]))
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody is there any more
            if me != 0:
                client.key_value_set(self._name(f"gone/{me}"), "")
                return
            until, others = time.monotonic() + LEAVE_SECONDS, count - 1 - missing
            while len(client.key_value_dir_get(self._name("gone/"))) < others:
                if time.monotonic() > until:
                    return
                time.sleep(0.1)
            time.sleep(0.3)  # they have said so, and are about to


def _tried(client: Any, name: str) -> str | None:
    try:
        return str(client.key_value_try_get(name))
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("NOT_FOUND"):
            raise
        return None


_watch = _Watch()
