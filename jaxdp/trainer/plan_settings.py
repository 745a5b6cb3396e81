"""The plan of a run before the number of its records is known."""

from dataclasses import dataclass

from ..dpsgd.clipping import Clipping
from ..dpsgd.plan import Plan
from ..types import Adjacency, Sampling
from .config import ClippingConfig


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Everything of a `Plan` but the number of records: `fit` solves it once it has the data.

    Attributes:
      clipping: a jaxdp clipping, such as `clip_individual(1.0)`; or a `ClippingConfig`, whose norms
        may come from public records, or decay.
      num_units: with a clipping that clips batch units; a `ClippingConfig` has its own number.
      expected_batch_size, steps, epsilon, noise_multiplier, delta, sampling, adjacency: as in
        `Plan`.

    Raises:
      TypeError: for a clipping that is neither.
      ValueError: for `num_units` beside a `ClippingConfig`. Numbers are checked by `solve`.

    Example:
      >>> import jaxdp
      >>> plan = jaxdp.PlanSettings(
      ...     expected_batch_size=256, steps=150, epsilon=3.0, clipping=jaxdp.clip_individual(1.0)
      ... )
    """

    expected_batch_size: float
    steps: int
    clipping: Clipping | ClippingConfig
    num_units: int | None = None
    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float | None = None
    sampling: Sampling = "poisson"
    adjacency: Adjacency = "add_remove"

    def __post_init__(self) -> None:
        if not isinstance(self.clipping, (Clipping, ClippingConfig)):
            raise TypeError(
                f"clipping is {self.clipping!r}: pass a jaxdp clipping, as "
                "jaxdp.clip_individual(1.0)"
            )
        if isinstance(self.clipping, ClippingConfig) and self.num_units is not None:
            raise ValueError(
                f"num_units is {self.num_units}, and the clipping is a ClippingConfig: give its "
                "units instead"
            )

    def solve(
        self, num_examples: int, clipping: Clipping, num_parameters: int, delta: float | None
    ) -> Plan:
        """Returns the plan for a data set.

        Args:
          num_examples: N.
          clipping: the clipping, or what a `ClippingConfig` describes.
          num_parameters: how many numbers get noise in a step.
          delta: taken where the settings have none.
        """
        num_units = self.num_units
        if isinstance(self.clipping, ClippingConfig) and clipping.unit == "batch":
            num_units = self.clipping.units
        return Plan(
            num_examples=num_examples,
            expected_batch_size=self.expected_batch_size,
            steps=self.steps,
            clipping=clipping,
            num_units=num_units,
            epsilon=self.epsilon,
            noise_multiplier=self.noise_multiplier,
            delta=delta if self.delta is None else self.delta,
            sampling=self.sampling,
            adjacency=self.adjacency,
            num_parameters=num_parameters,
        )
