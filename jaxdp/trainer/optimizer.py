"""The optimizer that uses the private gradients, from its options."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import optax

from .config import TrainingConfig


def make_optimizer(config: TrainingConfig, steps: int) -> optax.GradientTransformation:
    """Builds the optimizer, without the moving average of the parameters.

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
    made: optax.GradientTransformation = _call(
        "training.optimizer-options", make, {"learning_rate": rate, **options}
    )
    return made


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
        known += ["cosine"] if ending else []
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
