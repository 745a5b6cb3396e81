"""Differentially private deep learning for JAX: exact, fast and hard to misuse.

`Plan` holds a run's privacy numbers, `per_example_grads` gives lazy per-example gradients, and
`privatize(plan)` turns them into a private mean gradient for any Optax chain.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._distribution import __version__ as __version__
from ._distribution import needed_by
from .accounting.noise_table import plan_noise as plan_noise
from .dpsgd.clipping import Clipping as Clipping
from .dpsgd.clippings import clip_batch as clip_batch
from .dpsgd.clippings import clip_individual as clip_individual
from .dpsgd.clippings import clip_layerwise as clip_layerwise
from .dpsgd.clippings import clip_multiplied as clip_multiplied
from .dpsgd.clippings import clip_normalised as clip_normalised
from .dpsgd.clippings import clip_quantile as clip_quantile
from .dpsgd.groups import group_alike as group_alike
from .dpsgd.keys import secret_key as secret_key
from .dpsgd.plan import Plan as Plan
from .dpsgd.privatizer import privatize as privatize
from .dpsgd.public_data import pretrained_copy as pretrained_copy
from .dpsgd.public_data import public_norms as public_norms
from .dpsgd.public_data import scale_norms as scale_norms
from .dpsgd.sums import NORM_BIN_EDGES as NORM_BIN_EDGES
from .gradients.explanation import explain as explain
from .gradients.lazy import PerExampleGrads as PerExampleGrads
from .gradients.per_example import all_rows as all_rows
from .gradients.per_example import from_dense as from_dense
from .gradients.per_example import per_example_grads as per_example_grads
from .gradients.unit_loss import mean_loss as mean_loss

if TYPE_CHECKING:
    from .tasks.task import Task as Task
    from .trainer.release.parameters import load_release as load_release


def __getattr__(name: str) -> Any:
    """Loads the tasks, and `load_release` of the trainer, only when somebody uses them."""
    if name in ("tasks", "Task"):
        tasks = importlib.import_module(".tasks", __name__)
        return tasks if name == "tasks" else tasks.Task
    if name != "load_release":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needed_by("jaxdp.load_release", "train"):
        from .trainer.release.parameters import load_release
    return load_release
