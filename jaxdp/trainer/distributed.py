"""A run in several processes: joins them, lets the first decide, and ends all when one ends.

Process 0 has the run's folder, its ledger and the console. The others compute the same steps on
the rows of their own devices, and are told what process 0 decides (`first`).

A process that fails says so, and the others end. One that dies says nothing: it is missed after
`MISSED_SECONDS`. Ending at any moment is safe for privacy, since a step is on disk as paid for
before any process may take it.
"""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ..dpsgd import processes
from ..gradients.jax_internals import NotYet, coordinator, is_distributed, launched
from ..types import PyTree
from .config import Config, DistributedConfig
from .signals import StopRequest

T = TypeVar("T")

BEAT_SECONDS = 1.0  # between signs of life
MISSED_SECONDS = 20.0  # without one, a process is taken for dead
JOIN_SECONDS = 60.0  # that others may need until their first one
HEARTBEAT_SECONDS = 60  # of JAX itself, which ends processes that this thread could not
LEAVE_SECONDS = 3.0  # that process 0, which has the coordinator, gives the others to end

# What launchers that JAX does not know say of the number of processes.
LAUNCHERS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")

ALIVE, FAILED, STOP, GONE = (f"jaxdp/{word}/" for word in ("alive", "failed", "stop", "gone"))


def first(what: str, make: Callable[[], T]) -> T:
    """What process 0 makes, in all processes; see `processes.from_first`. It may take its time."""
    return processes.from_first(what, make, math.inf)


def join(config: DistributedConfig) -> None:
    """Makes this process one of several, if the options or its launcher say so.

    Raises:
      ValueError: if the others are not found, or a launcher that JAX does not know has started
        several processes, each of which would make a run of its own.
    """
    if not is_distributed():
        if config.coordinator is None and _launched() == 1:
            check_alone()
            return
        _join(config)
    _watch.start()


def _join(config: DistributedConfig) -> None:
    given = config.coordinator is not None
    if given:
        print(
            f"Process {config.process} of {config.processes} waits for the others at "
            f"{config.coordinator}, for up to 5 minutes.",
            file=sys.stderr,
            flush=True,
        )
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process,
            cluster_detection_method="deactivate" if given else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        where = config.coordinator if given else "the coordinator that the launcher names"
        raise ValueError(
            f"the processes of this run do not find each other at {where} ({reason}): start all of "
            "them with the same --distributed.coordinator HOST:PORT, a free port of process 0's "
            "machine that the others can reach"
        ) from None


def _launched() -> int:
    # In the shell of an interactive job, SLURM still tells the tasks of the whole job.
    return 1 if os.environ.get("SLURM_STEP_NUM_TASKS") == "1" else launched()


def check_alone() -> None:
    """Refuses to make one of several runs where one run in several processes was meant.

    Raises:
      ValueError: if a launcher has started several processes, and JAX does not know of it.
    """
    if is_distributed():
        return
    found = {name: os.environ.get(name, "") for name in LAUNCHERS}
    counts = {name: int(count) for name, count in found.items() if count.isdigit()}
    for name, count in {"as JAX sees": _launched(), **counts}.items():
        if count > 1:
            raise ValueError(
                f"a launcher has started {count} processes ({name}), and each would make a run of "
                "its own, with a budget of its own: give --distributed.coordinator HOST:PORT "
                "--distributed.processes N --distributed.process I, or call "
                "jax.distributed.initialize before jaxdp.fit; or start a single process"
            )


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


def check_same_options(config: Config) -> None:
    """Refuses to begin if processes were started with different options.

    Raises:
      ValueError: in all processes, if one has other options than process 0.
    """
    if not processes.several():
        return
    own = json.loads(json.dumps(asdict(config)))
    of_first = first("the options", lambda: own)
    problems = [
        f"{name} is {value} in process {jax.process_index()}, and {of_first[name]} in process 0: "
        f"{SAME_PROGRAM}"
        for name, value in own.items()
        if value != of_first[name]
    ]
    processes.check_all("the options", problems[0] if problems else None)


def on_loss(cure: str) -> None:
    """Sets what process 0 tells its user to do if another process is lost."""
    _watch.cure = cure


class SharedStop:
    """A request to stop that all processes follow at the same step. See `StopRequest`.

    A signal to any process asks process 0, which decides.
    """

    def __init__(self, own: StopRequest) -> None:
        self._own = own
        _watch.request = own

    @property
    def requested(self) -> bool:
        """Whether to stop here. All processes ask at the same steps."""
        return first("stop", lambda: self._own.requested)


def arrays_from_first(what: str, tree: PyTree) -> PyTree:
    """The arrays of process 0, on the host. All processes give a tree of the same shapes."""
    if not processes.several():
        return tree
    named = jax.tree_util.tree_leaves_with_path(tree)
    shapes = [f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}" for path, x in named]
    processes.check_same(f"the form of {what}", json.dumps(shapes), SAME_PROGRAM)

    def received(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf  # all have the same keys
        return jnp.asarray(multihost_utils.broadcast_one_to_all(np.asarray(leaf)))

    return jax.tree.map(received, tree)


SAME_PROGRAM = "start the same program with the same options and data in all processes"


class _Watch:
    """A thread that gives signs of life, looks for those of the others, and passes signals on."""

    def __init__(self) -> None:
        self.cure = ""
        self.request: StopRequest | None = None
        self.has_failed = False
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def start(self) -> bool:
        """Begins to look. Returns False if it does so already."""
        if self._thread is not None:
            return False
        self._over.clear()
        self._thread = threading.Thread(target=self._run, name="jaxdp-watch", daemon=True)
        self._thread.start()
        return True

    def stop(self) -> None:
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None
        self.cure, self.request = "", None

    def fail(self, status: int, reason: str) -> None:
        self.has_failed = True
        self._over.set()  # this process says itself why it ends
        _tell_the_end(f"process {jax.process_index()} has stopped ({reason})", status)

    def _run(self) -> None:
        client, me = coordinator(), jax.process_index()
        # Process 0 looks for all, and the others for it.
        others = range(1, jax.process_count()) if processes.is_first() else [0]
        beats = dict.fromkeys(others, ("", time.monotonic() + JOIN_SECONDS))
        number, asked = 0, False
        while not self._over.wait(BEAT_SECONDS):
            number += 1
            try:
                client.key_value_set(f"{ALIVE}{me}", str(number), allow_overwrite=True)
                told = _tried(client, FAILED)
                signs = {other: _tried(client, f"{ALIVE}{other}") for other in others}
                asked = asked or self._pass_signal_on(client)
            except NotYet:
                self._end("process 0 is gone", 1)
            if told is not None:
                self._end(*json.loads(told))
            now = time.monotonic()
            for other, sign in signs.items():
                before, last = beats[other]
                if sign is not None and sign != before:
                    beats[other] = sign, now
                elif now - last > MISSED_SECONDS:
                    self._end(f"process {other} is gone", 1)

    def _pass_signal_on(self, client: Any) -> bool:
        """Brings a signal to process 0. Returns whether that is done."""
        request = self.request
        if request is None:
            return False
        if processes.is_first():
            number = _tried(client, STOP)
            if number is not None and not request.requested:
                request.requested, request.signal = True, int(number)
            return number is not None
        if request.requested:
            client.key_value_set(STOP, str(request.signal), allow_overwrite=True)
        return request.requested

    def _end(self, reason: str, status: int) -> None:
        if self._over.is_set():
            return
        me = f"process {jax.process_index()} stops"
        os.write(2, f"error: {reason}: {self.cure or me}\n".encode())
        _tell_the_end(reason, status)
        os._exit(status)


def _tried(client: Any, name: str) -> str | None:
    try:
        return str(client.key_value_try_get(name))
    except NotYet as error:
        if not str(error).startswith("NOT_FOUND"):
            raise
        return None


def _tell_the_end(reason: str, status: int) -> None:
    """Tells the others that the run ends. Process 0, in which the coordinator is, goes last."""
    client = coordinator()
    try:
        if _tried(client, FAILED) is None:
            client.key_value_set(FAILED, json.dumps([reason, status]), allow_overwrite=True)
        if not processes.is_first():
            client.key_value_set(f"{GONE}{jax.process_index()}", "")
            return
        until = time.monotonic() + LEAVE_SECONDS
        others = jax.process_count() - 1
        while len(client.key_value_dir_get(GONE)) < others and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.3)  # they have said so, and are about to
    except NotYet:
        pass  # there is nobody to tell


_watch = _Watch()
