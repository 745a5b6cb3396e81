"""Checkpoints of a run. They are written in the background, and only the newest few are kept.

A checkpoint is written as a whole or not at all. It holds no secret key: the keys are in the file
of its segment.
"""

import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from ..distributed import first
from ..step import TrainState
from .ledger import Ledger
from .lines import Position

Arrays = dict[str, np.ndarray]
FROZEN = "frozen"


class Checkpoint(NamedTuple):
    """All that a run needs to go on, except its secrets."""

    step: int  # number of steps taken
    segment: int  # the segment that took the last of them
    position: Position  # the end of the ledger at that time; it had paid for all of them
    arrays: Arrays


class Checkpoints:
    """The folder with the checkpoints of a run. `close` completes the last one."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=False,
                # Of several processes, only the one that has the folder writes into it.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=jax.process_index(), active_processes={jax.process_index()}
                ),
            ),
        )

    def save(self, checkpoint: Checkpoint) -> None:
        """Begins to write a checkpoint. Raises OSError if this or the one before failed."""
        about = {
            "segment": checkpoint.segment,
            "position": list(checkpoint.position),
            "digest": _digest_of(checkpoint),
        }
        try:
            self._manager.save(
                checkpoint.step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(checkpoint.arrays), about=ocp.args.JsonSave(about)
                ),
            )
        except Exception as error:
            raise self._failure(error) from error
        self._hide()

    def wait(self) -> None:
        """Waits until all checkpoints are on disk. Raises OSError if one failed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failure(error) from error
        self._hide()

    def newest(self, tell: Callable[[str], None]) -> Checkpoint | None:
        """Loads the newest undamaged checkpoint, and tells of newer ones that are damaged."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._load(step)
            except Exception as error:  # Orbax raises errors of many kinds
                reason = str(error).strip().partition("\n")[0]
                tell(
                    f"The checkpoint of step {step} is damaged, so the one before is used: {reason}"
                )
        return None

    def drop_after(self, step: int) -> None:
        """Removes all checkpoints after a step, including damaged ones."""
        for newer in self._manager.all_steps():
            if newer > step:
                self._manager.delete(newer)

    def close(self) -> None:
        """Finishes the checkpoint that is being written. Errors are raised by `wait`, not here."""
        with contextlib.suppress(Exception):
            self._manager.close()
        self._hide()

    def _hide(self) -> None:
        """Leaves the files to their owner alone. Orbax gives them what the umask allows."""
        for folder, folders, files in os.walk(self.folder):
            for names, mode in ((folders, 0o700), (files, 0o600)):
                for name in names:
                    # Orbax may just have removed it, or the file system knows no permissions.
                    with contextlib.suppress(OSError):
                        os.chmod(os.path.join(folder, name), mode)

    def _load(self, step: int) -> Checkpoint:
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(), about=ocp.args.JsonRestore()),
        )
        about, arrays = restored.about, restored.state
        found = Checkpoint(step, about["segment"], Position(*about["position"]), arrays)
        if _digest_of(found) != about["digest"]:
            raise ValueError("its checksum is wrong")
        return found

    def _failure(self, error: Exception) -> OSError:
        reason = str(error).strip().partition("\n")[0]
        return OSError(f"a checkpoint could not be written to {self.folder}: {reason}")


@contextlib.contextmanager
def without_tracebacks() -> Iterator[None]:
    """Hides the tracebacks that Orbax leaves on the terminal when a write fails.

    Orbax logs the first failure, and `Checkpoints` raises it. Other writes that are still running
    then find the event loop closed. Python would print each as an error that nobody caught.
    """
    before, logger = sys.unraisablehook, logging.getLogger("absl")
    level = logger.level

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        sys.unraisablehook = before
        logger.setLevel(level)


class Clock:
    """Says that a checkpoint is due every so many seconds, by a clock that never goes backwards.

    In several processes the clock of process 0 counts.
    """

    def __init__(self, every_seconds: float, may_ask: Callable[[int], bool]) -> None:
        """`may_ask` says whether the clock is looked at after so many steps."""
        self._every = every_seconds
        self._may_ask = may_ask
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        late = lambda: time.monotonic() - self._last >= self._every
        return self._may_ask(step) and first("whether to save", late)

    def restart(self) -> None:
        """Begins to measure anew: a checkpoint is written."""
        self._last = time.monotonic()


class Saver:
    """Saves the state of a run."""

    def __init__(self, checkpoints: Checkpoints, ledger: Ledger, frozen: Any) -> None:
        self._frozen = to_arrays({FROZEN: frozen})
        self._checkpoints = checkpoints
        self._ledger = ledger

    def visit(self, step: int, state: TrainState) -> None:
        """Saves the state after so many steps."""
        segment, position = len(self._ledger.segments), self._ledger.position
        arrays = to_arrays(state) | self._frozen
        self._checkpoints.save(Checkpoint(step, segment, position, arrays))


def split_frozen(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Splits the arrays of a checkpoint: `(all others, the frozen parameters)`.

    A checkpoint keeps the frozen parameters, because another version of JAX may draw different
    ones from the same key.
    """
    frozen = {name: x for name, x in arrays.items() if name.partition(".")[0] == FROZEN}
    return {name: x for name, x in arrays.items() if name not in frozen}, frozen


def to_arrays(state: Any) -> Arrays:
    """Copies a state to the host as named arrays, without its secret keys."""
    return {
        name: np.array(leaf)  # a copy: the next step uses the memory of the state again
        for name, leaf in _named(state)
        if not _is_key(leaf)
    }


def from_arrays(arrays: Arrays, like: Any) -> Any:
    """Makes a state like `like` from the arrays of `to_arrays`. Keys are those of `like`.

    Raises:
      ValueError: if the arrays do not fit.
    """
    wanted = {name: leaf for name, leaf in _named(like) if not _is_key(leaf)}
    facts = lambda named: {name: (x.shape, str(x.dtype)) for name, x in named.items()}
    if facts(arrays) != facts(wanted):
        wrong = sorted({n for n, _ in facts(arrays).items() ^ facts(wanted).items()})
        raise ValueError(
            f"the checkpoint does not fit the run, in {', '.join(wrong[:3])}: resume with the "
            "model and the parameters that it was made with"
        )
    leaves = [
        leaf if _is_key(leaf) else jax.numpy.array(arrays[name]) for name, leaf in _named(like)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def state_digest(state: TrainState) -> str:
    """A checksum of a state without its secret key."""
    return digest(to_arrays(state))


def _digest_of(checkpoint: Checkpoint) -> str:
    """A checksum of all of it: what paid for a state must not change under the state."""
    about = [checkpoint.step, checkpoint.segment, *checkpoint.position, digest(checkpoint.arrays)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def digest(arrays: Arrays) -> str:
    """A checksum of arrays and their names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype} {arrays[name].shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _named(state: Any) -> list[tuple[str, Any]]:
    paths = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in paths]


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
