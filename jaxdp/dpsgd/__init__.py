"""DP-SGD: lazy per-example gradients and a plan go in, a private mean gradient comes out.

`Plan` holds the numbers of a run and samples its batches. A clipping bounds what one record can do.
`privatize(plan)` is the one owner of the release: it clips, sums, adds noise and divides.
"""

from .clipping import Clipping as Clipping
from .clipping import ClippingState as ClippingState
from .clippings import clip_batch as clip_batch
from .clippings import clip_individual as clip_individual
from .clippings import clip_layerwise as clip_layerwise
from .clippings import clip_multiplied as clip_multiplied
from .clippings import clip_normalised as clip_normalised
from .clippings import clip_quantile as clip_quantile
from .groups import Groups as Groups
from .groups import group_alike as group_alike
from .keys import jax_key as jax_key
from .keys import secret_key as secret_key
from .noise import NoiseGrid as NoiseGrid
from .noise import noise_grid as noise_grid
from .noise import noise_norm as noise_norm
from .noise import noise_stds as noise_stds
from .plan import Plan as Plan
from .privatizer import Privatizer as Privatizer
from .privatizer import PrivatizeState as PrivatizeState
from .privatizer import privatize as privatize
from .public_data import pretrained_copy as pretrained_copy
from .public_data import public_norms as public_norms
from .public_data import scale_norms as scale_norms
from .rounded_gaussian import rounded_gaussian_at as rounded_gaussian_at
from .sums import NORM_BIN_EDGES as NORM_BIN_EDGES
from .sums import Diagnostics as Diagnostics
from .sums import Strength as Strength
from .sums import Sums as Sums
