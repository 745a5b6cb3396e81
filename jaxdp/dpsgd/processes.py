"""Several processes of one program: what the first decides, all do.

JAX runs one process on each host, and all of them run the same program. What only one of them may
decide (a secret key, whether a step is paid for) is decided in process 0, and the others are told.
The messages go through the coordinator of `jax.distributed`, which is in process 0. They are
numbered: the n-th call of one process belongs to the n-th call of every other.
"""

import itertools
import json
import math
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from ..gradients.jax_internals import coordinator

T = TypeVar("T")

LIMIT_SECONDS = 300.0  # after which a process that does not come is missed
SLICE_SECONDS = 1.0  # between looks at Ctrl-C
SETTLED_EVERY = 200  # messages, after which those before them are removed

ORDER = (
    "start the same program with the same options in all processes, and make the same calls of "
    "jaxdp in all, in the same order"
)

_numbers = itertools.count()
_sent: list[str] = []
_thread: list[int] = []


def several() -> bool:
    """Whether this program runs in several processes."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, or the only one."""
    return jax.process_index() == 0


def from_first(what: str, make: Callable[[], T], limit: float = LIMIT_SECONDS) -> T:
    """What process 0 makes, in all processes. Call it in all of them, in the same order.

    Args:
      what: a name, which must be the same in all.
      make: called in process 0 only. It makes numbers, texts, lists and dicts of them, which reach
        the others as JSON.
      limit: seconds to wait for process 0.

    Raises:
      ValueError: if process 0 makes another call or does not come, or JAX does not know the other
        processes.
    """
    if not several():
        return make()
    number = _next_number()
    if is_first():
        made = make()
        _send(number, what, made)
    else:
        made = _received(number, what, limit)
    if number % SETTLED_EVERY == SETTLED_EVERY - 1:
        _from_all("number of a message", str(number), limit)
    return made


def check_same(what: str, value: str, cure: str) -> None:
    """Refuses to go on where the processes differ. Call it in all of them, in the same order.

    Args:
      what: is compared, as "the noise key".
      value: of this process. All others see it: a checksum, where it is a secret.
      cure: what to do about it.

    Raises:
      ValueError: in all processes, if one has another value, or does not come to this call.
    """
    if not several():
        return
    values = _from_all(what, value, LIMIT_SECONDS)
    other = next((i for i, one in enumerate(values) if one != values[0]), None)
    if other is not None:
        raise ValueError(f"process {other} and process 0 differ in {what}: {cure}")


def check_all(what: str, problem: str | None) -> None:
    """Refuses to go on in all processes if one of them has a problem, however long they take.

    Raises:
      ValueError: with the problem of the first process that has one.
    """
    if several():
        for one in _from_all(what, problem or "", math.inf):
            if one:
                raise ValueError(one)


def _from_all(what: str, value: str, limit: float) -> list[str]:
    """The values of all processes, in all of them. Process 0 collects them."""
    client, number = coordinator(), _next_number()
    everyone = f"jaxdp/{number}/all"
    mine = [f"jaxdp/{number}/{i}" for i in range(jax.process_count())]
    if not is_first():
        _received(number, what, limit)
        client.key_value_set(mine[jax.process_index()], value)
        values: list[str] = json.loads(_awaited(client, everyone, 0, limit))
        return values
    _send(number, what, None)
    values = [value, *(_awaited(client, mine[i], i, limit) for i in range(1, len(mine)))]
    # All have come here, so all have read what was sent before: secrets, and much in a long run.
    for old in [*_sent, *mine[1:]]:
        client.key_value_delete(old)
    _sent[:] = [everyone]
    client.key_value_set(everyone, json.dumps(values))
    return values


def speaks() -> bool:
    """Whether this thread is the one that sends messages: the first that did."""
    return not _thread or _thread[0] == threading.get_ident()


def _next_number() -> int:
    if not speaks():
        raise ValueError(
            "jaxdp is called in a second thread, and of several processes: whose call comes first "
            "may differ between them. Draw keys and make batches in one thread"
        )
    if not _thread:
        _thread.append(threading.get_ident())
    return next(_numbers)


def _send(number: int, what: str, made: Any) -> None:
    name = f"jaxdp/{number}"
    _sent.append(name)
    coordinator().key_value_set(name, json.dumps([what, made]))


def _received(number: int, what: str, limit: float) -> Any:
    sent, made = json.loads(_awaited(coordinator(), f"jaxdp/{number}", 0, limit))
    if sent != what:
        raise ValueError(
            f"process {jax.process_index()} asks for {what}, and process 0 tells {sent}: {ORDER}"
        )
    return made


def _awaited(client: Any, name: str, process: int, limit: float) -> str:
    until = time.monotonic() + limit
    while True:
        left = min(SLICE_SECONDS, until - time.monotonic())
        try:
            return str(client.blocking_key_value_get(name, max(1, math.ceil(1000 * left))))
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("DEADLINE_EXCEEDED"):
                reason = str(error).partition("\n")[0]
                raise ValueError(f"process 0, which coordinates, is gone ({reason})") from None
            if left < SLICE_SECONDS:
                raise ValueError(
                    f"process {process} has not come to the same point within {limit:g} seconds: "
                    f"{ORDER}"
                ) from None
