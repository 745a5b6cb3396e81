"""Differentially private deep learning for JAX: exact, fast and hard to misuse.

`Plan` holds a run's privacy numbers, `per_example_grads` gives lazy per-example gradients,
`privatize(plan)` turns them into a private mean gradient for any Optax chain.
"""

from .clipping import Clipping as Clipping
from .clipping import clip_batch as clip_batch
from .clipping import clip_individual as clip_individual
from .clipping import clip_layerwise as clip_layerwise
from .clipping import clip_multiplied as clip_multiplied
from .clipping import clip_normalised as clip_normalised
from .clipping import clip_quantile as clip_quantile
from .explain import explain as explain
from .gradients import PerExampleGrads as PerExampleGrads
from .gradients import from_dense as from_dense
from .gradients import per_example_grads as per_example_grads
from .groups import group_alike as group_alike
from .keys import secret_key as secret_key
from .plan import Plan as Plan
from .planner import plan_noise as plan_noise
from .privatize import NORM_BIN_EDGES as NORM_BIN_EDGES
from .privatize import privatize as privatize
from .public_bounds import pretrained_copy as pretrained_copy
from .public_bounds import public_norms as public_norms
from .public_bounds import scale_norms as scale_norms
from .release import load_release as load_release
from .units import mean_loss as mean_loss

__version__ = "0.1.0"
