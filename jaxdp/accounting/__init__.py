"""Privacy accounting: how much a DP-SGD run reveals, and how much noise a target needs. No JAX.

What goes in is a `Mechanism`: a run as plain data (noise multiplier, steps, sampling, neighbours).
What comes out are numbers: `epsilon` at a delta, `delta` at an epsilon, or the noise multiplier
that meets a target (`solve_noise_multiplier`, for many batch sizes `plan_noise`). Runs that follow
each other are added up by `composed_epsilon`. Combinations without sound accounting raise a
ValueError.

Example:
  >>> run = Mechanism(noise_multiplier=1.1, steps=14_063, sampling_probability=256 / 60_000)
  >>> f"{epsilon(run, delta=1e-5):.2f}"
  '2.38'
"""

from . import composition
from .calibration import solve_noise_multiplier as solve_noise_multiplier
from .composition import affordable_steps as affordable_steps
from .guarantee import delta as delta
from .guarantee import epsilon as epsilon
from .guarantee import gaussian_mu as gaussian_mu
from .mechanism import Mechanism as Mechanism
from .mechanism import accountants as accountants
from .mechanism import batches_per_epoch as batches_per_epoch
from .mechanism import dp_event as dp_event
from .mechanism import paper_noise_multiplier as paper_noise_multiplier
from .mechanism import sensitivity_factor as sensitivity_factor
from .noise_table import NoiseRow as NoiseRow
from .noise_table import NoiseTable as NoiseTable
from .noise_table import plan_noise as plan_noise
from .rounding import round_up as round_up
from .rounding import shown_delta as shown_delta
from .tradeoffs import group_epsilon as group_epsilon
from .tradeoffs import tradeoff as tradeoff

composed_epsilon = composition.epsilon
