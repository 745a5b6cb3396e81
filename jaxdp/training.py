"""Training: the pure step, and the loop that counts, logs and stops."""

import functools
import json
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
import optax

from .accounting import Unit
from .config import TrainingConfig
from .gradients import per_example_grads
from .privatize import NORM_BIN_EDGES, Diagnostics, Privatizer, Strength
from .units import mean_loss

PyTree = Any
State = tuple[PyTree, tuple[PyTree, PyTree]]  # parameters, (privatize's state, the optimizer's)


class StepFacts(NamedTuple):
    """What a step says of its batch, as arrays on the device: private."""

    diagnostics: Diagnostics
    strength: Strength


class Metrics(NamedTuple):
    """Facts about one step's batch, without noise: private."""

    step: int
    examples: int  # that took part; with batch units, the units that were not empty
    loss: float | None  # mean; None for an empty batch
    clipped: int
    clipped_fraction: float | None  # of those whose gradient was finite
    nonfinite: int
    norm_10: float | None  # upper bounds on quantiles of the gradients' norms
    norm_50: float | None
    norm_90: float | None
    clipped_mean_norm: float  # of the clipped sum over the divisor, before the noise
    noise_norm: float  # expected, of the noise on it
    signal_to_noise: float | None  # the former over the latter; None without noise


def make_optimizer(config: TrainingConfig, steps: int) -> optax.GradientTransformation:
    """Builds what uses the private gradients. It only post-processes: it costs no privacy."""
    rate: optax.ScalarOrSchedule = config.learning_rate
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(config.learning_rate, steps, alpha=0.1)
    if config.optimizer == "adam":
        return optax.adam(rate)
    return optax.sgd(rate, momentum=config.momentum)


def init_state(params: PyTree, privatizer: Privatizer, optimizer: Any) -> State:
    return params, (privatizer.init(params), optimizer.init(params))


def make_train_step(
    loss: Callable[..., jax.Array],
    privatizer: Privatizer,
    optimizer: optax.GradientTransformation,
    microbatch_size: int,
    unit: Unit = "example",
) -> jax.stages.Wrapped:
    """Returns the jitted `(state, batch, mask) -> (state, facts)`.

    `batch` is the tuple of the loss's arguments after the parameters, padded where `mask` says so.
    The state is donated: its memory is used again, and the old one can't be read any more.
    """
    if unit == "batch":  # one unit at a time, itself in microbatches
        unit_loss = mean_loss(loss, microbatch_size=microbatch_size)
        grads = per_example_grads(unit_loss, unit="batch", microbatch_size=1)
    else:
        grads = per_example_grads(loss, microbatch_size=microbatch_size)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: PyTree, mask: jax.Array) -> tuple[State, StepFacts]:
        params, (private_state, optimizer_state) = state
        sums = privatizer.sums(grads(params, batch, mask), private_state)
        facts = StepFacts(sums.diagnostics, privatizer.strength(sums, private_state))
        gradient, private_state = privatizer.release(sums, private_state, params)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        return (params, (private_state, optimizer_state)), facts

    return train_step


class StopRequest:
    """Whether somebody asked the run to stop after the step at work."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stop_on_interrupt(tell: Callable[[], None]) -> Iterator[StopRequest]:
    """Turns the first Ctrl-C into a request to stop; a second one interrupts as usual."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return

    def handle(signum: int, frame: object) -> None:
        request.requested = True
        signal.signal(signal.SIGINT, before)
        tell()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)


class SpentSteps:
    """How many steps have been paid for: a step counts before it is dispatched."""

    def __init__(self) -> None:
        self.count = 0


def train(
    train_step: jax.stages.Wrapped,
    state: State,
    batches: Iterable[tuple[PyTree, np.ndarray]],
    *,
    spent: SpentSteps,
    stop: StopRequest,
    watch: Callable[[Metrics], None],
) -> State:
    """Runs the steps until the batches end or a stop is requested.

    Args:
      train_step: from `make_train_step`.
      state: from `init_state`; donated.
      batches: batch and mask of every step.
      spent: counts the steps, so that it is known even if one of them fails.
      stop: looked at after every step.
      watch: called with the metrics of every step.
    """
    pending: tuple[int, StepFacts] | None = None
    for batch, mask in batches:
        spent.count += 1
        state, facts = train_step(state, batch, mask)
        # The metrics are read one step late, so that the device never waits for this program.
        # The first step compiles, so it is waited for.
        if pending is not None:
            watch(measure(*pending))
        pending = spent.count, facts
        if spent.count == 1:
            jax.block_until_ready(state)
        if stop.requested:
            break
    if pending is not None:
        watch(measure(*pending))
    return jax.block_until_ready(state)


def measure(step: int, facts: StepFacts) -> Metrics:
    """Turns what a step says of its batch into numbers for people."""
    d, strength = jax.device_get(facts)
    signal, noise = float(strength.clipped_mean_norm), float(strength.noise_norm)
    finite = d.count - d.nonfinite
    cumulated = np.cumsum(d.norm_histogram)

    def norm_quantile(share: float) -> float | None:
        if not finite:
            return None
        bin_ = int(np.searchsorted(cumulated, share * cumulated[-1]))
        return float(NORM_BIN_EDGES[min(bin_, len(NORM_BIN_EDGES) - 1)])

    return Metrics(
        step=step,
        examples=int(d.count),
        loss=float(d.loss_sum / finite) if finite else None,
        clipped=int(d.clipped),
        clipped_fraction=float(d.clipped / finite) if finite else None,
        nonfinite=int(d.nonfinite),
        norm_10=norm_quantile(0.1),
        norm_50=norm_quantile(0.5),
        norm_90=norm_quantile(0.9),
        clipped_mean_norm=signal,
        noise_norm=noise,
        signal_to_noise=signal / noise if noise else None,
    )


def write_metrics(file: TextIO, metrics: Metrics) -> None:
    """Appends one line of JSON."""
    file.write(json.dumps(metrics._asdict()) + "\n")
    file.flush()
