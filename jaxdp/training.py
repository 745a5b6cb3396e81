"""Training: the pure step, and the loop that counts, logs and stops."""

import difflib
import functools
import inspect
import json
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .accounting import Unit
from .averaging import average_parameters
from .config import TrainingConfig
from .gradients import per_example_grads
from .privatize import NORM_BIN_EDGES, Diagnostics, Privatizer, Strength

PyTree = Any
State = tuple[PyTree, tuple[PyTree, PyTree]]  # parameters, (privatize's state, the optimizer's)


class StepFacts(NamedTuple):
    """What a step says of its batch, as arrays on the device: private."""

    diagnostics: Diagnostics
    strength: Strength
    bounds: jax.Array  # [groups] clipping norms


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
    norm_counts: tuple[int, list[int]]  # first bin, and how many norms it and the next ones hold
    clipping_norm: float  # of all groups together, the longest that a clipped gradient can be
    clipped_mean_norm: float  # of the clipped sum over the divisor, before the noise
    noise_norm: float  # expected, of the noise on it
    signal_to_noise: float | None  # the former over the latter; None without noise


def make_optimizer(config: TrainingConfig, steps: int) -> optax.GradientTransformation:
    """Builds what uses the private gradients. It only post-processes: it costs no privacy.

    Raises:
      ValueError: for an optimizer, a schedule or an option that Optax does not have.
    """
    rate = _scaled_schedule(config, steps)
    options = dict(config.optimizer_options)
    if config.optimizer == "sgd":
        options = {"momentum": config.momentum, **options}
    make = _from_optax("training.optimizer", config.optimizer, "")
    if "learning_rate" not in inspect.signature(make).parameters:
        raise ValueError(
            f"training.optimizer is {config.optimizer!r}, which takes no learning rate: choose one "
            "of Optax's optimizers, as adam"
        )
    optimizer = _call("training.optimizer-options", make, {"learning_rate": rate, **options})
    return optax.chain(optimizer, average_parameters(config.ema)) if config.ema else optimizer


def _scaled_schedule(config: TrainingConfig, steps: int) -> optax.ScalarOrSchedule:
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(config.learning_rate, steps, alpha=0.1)
    make = _from_optax("training.schedule", config.schedule, "_schedule")
    # Optax wants whole numbers of steps.
    options = {
        name: int(value) if name.endswith(("_steps", "_begin")) else value
        for name, value in config.schedule_options.items()
    }
    factor = _call("training.schedule-options", make, options)
    return lambda step: config.learning_rate * factor(step)


def _from_optax(option: str, name: str, ending: str) -> Callable[..., Any]:
    found = getattr(optax, name + ending, None)
    if not name.isidentifier() or not inspect.isfunction(found):
        known = [n.removesuffix(ending) for n in dir(optax) if n.endswith(ending)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "see Optax's documentation for their names"
        raise ValueError(f"{option} is {name!r}, which Optax does not have: {hint}")
    return found


def _call(option: str, make: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        names = ", ".join(inspect.signature(make).parameters)
        raise ValueError(f"{option}: {error}. {make.__name__} takes {names}") from None
    return make(**options)


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

    Args:
      loss: of one example; with unit="batch" of a batch unit, whose last argument is its mask.
      privatizer: makes the gradient private.
      optimizer: uses the private gradient.
      microbatch_size: examples, or units, that are differentiated at a time.
      unit: whose gradient is clipped.
    """
    grads = per_example_grads(loss, unit=unit, microbatch_size=microbatch_size)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: PyTree, mask: jax.Array) -> tuple[State, StepFacts]:
        params, (private_state, optimizer_state) = state
        sums = privatizer.sums(grads(params, batch, mask), private_state)
        facts = StepFacts(
            sums.diagnostics,
            privatizer.strength(sums, private_state),
            private_state.clipping.clipping_bounds,
        )
        gradient, private_state = privatizer.release(sums, private_state, params)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        return (params, (private_state, optimizer_state)), facts

    return train_step


class StopRequest:
    """Whether somebody asked the run to stop after the step at work, and by which signal."""

    def __init__(self) -> None:
        self.requested = False
        self.signal: int | None = None


@contextmanager
def stop_on_signals(tell: Callable[[], None]) -> Iterator[StopRequest]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; a second one acts as usual."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return

    def handle(signum: int, frame: object) -> None:
        request.requested, request.signal = True, signum
        restore()
        tell()

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        restore()


class Payment(Protocol):
    """Pays for steps: see `payment`."""

    count: int
    """Steps that were paid for and begun, those before a resume included."""

    def pay(self, step: int) -> None:
        """Returns when the step is paid for."""

    def may_stop(self, step: int) -> bool:
        """Whether nothing is paid for that would be wasted by stopping before this step."""


class Visitor(Protocol):
    """Looks at the state between steps, now and then: see `checkpoints` and `scoring`."""

    def due(self, step: int) -> bool:
        """Whether it wants to see the state after that many steps."""

    def visit(self, step: int, state: State) -> None:
        """Sees the state, which is donated to the next step afterwards."""


class NotFinite(ArithmeticError):
    """The parameters became NaN or infinite."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the parameters are not finite after step {step}")
        self.step = step


def train(
    train_step: jax.stages.Wrapped,
    state: State,
    batches: Iterable[tuple[PyTree, np.ndarray]],
    *,
    spent: Payment,
    stop: StopRequest,
    watch: Callable[[Metrics], None],
    start: int = 0,
    visitors: Sequence[Visitor] = (),
    refresh: Callable[[int, State], State] = lambda step, state: state,
) -> State:
    """Runs the steps until the batches end or a stop is requested.

    Args:
      train_step: from `make_train_step`.
      state: from `init_state`; donated.
      batches: batch and mask of every step.
      spent: every step is paid for before it is dispatched.
      stop: looked at after every step.
      watch: called with the metrics of every step.
      start: the first step.
      visitors: shown the state whenever they are due; never one whose parameters are not finite.
      refresh: called with every step and the state before it; what it returns is trained on. It
        may look at nothing but these and public data (see `refreshing`).

    Raises:
      NotFinite: if the parameters become NaN or infinite.
    """
    pending: tuple[int, StepFacts, jax.Array] | None = None

    def settle() -> None:
        if pending is not None:
            watch(measure(*pending[:2]))
            if not pending[2]:
                raise NotFinite(pending[0])

    for step, (batch, mask) in enumerate(batches, start):
        spent.pay(step)
        state = refresh(step, state)
        state, facts = train_step(state, batch, mask)
        finite = _all_finite(state[0])
        # The metrics are read one step late, so that the device never waits for this program.
        # The first step compiles, so it is waited for.
        settle()
        pending = step + 1, facts, finite
        if step == start:
            jax.block_until_ready(state)
        due = [visitor for visitor in visitors if visitor.due(step + 1)]
        if due:
            settle()
            pending = None
            for visitor in due:
                visitor.visit(step + 1, state)
        if stop.requested and spent.may_stop(step + 1):
            break
    settle()
    return jax.block_until_ready(state)


@jax.jit
def _all_finite(params: PyTree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def measure(step: int, facts: StepFacts) -> Metrics:
    """Turns what a step says of its batch into numbers for people."""
    d, strength, bounds = jax.device_get(facts)
    signal, noise = float(strength.clipped_mean_norm), float(strength.noise_norm)
    finite = d.count - d.nonfinite
    cumulated = np.cumsum(d.norm_histogram)
    used = np.flatnonzero(d.norm_histogram)
    counts = d.norm_histogram[used[0] : used[-1] + 1] if used.size else used

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
        norm_counts=(int(used[0]) if used.size else 0, counts.astype(int).tolist()),
        clipping_norm=float(np.linalg.norm(bounds)),
        clipped_mean_norm=signal,
        noise_norm=noise,
        signal_to_noise=signal / noise if noise else None,
    )


def write_metrics(file: TextIO, metrics: Metrics) -> None:
    """Appends one line of JSON."""
    file.write(json.dumps(metrics._asdict()) + "\n")
    file.flush()
