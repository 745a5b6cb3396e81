"""Differentially private deep learning for JAX: exact, fast and hard to misuse.

`Plan` holds a run's privacy numbers, `per_example_grads` gives lazy per-example gradients, and
`privatize(plan)` turns them into a private mean gradient for any Optax chain. `fit` trains a task
on a data set, with a ledger, checkpoints and a release.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import _command as _command  # first: the imports below take seconds, and Ctrl-C may come
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
from .dpsgd.device_memory import estimate as estimate
from .dpsgd.devices import Layout as Layout
from .dpsgd.devices import fsdp_rule as fsdp_rule
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
    from . import audit as audit
    from . import tasks as tasks
    from .datasets.dataset import Dataset as Dataset
    from .datasets.scattering import scattering as scattering
    from .tasks.task import Task as Task
    from .trainer.fit import fit as fit
    from .trainer.plan_settings import PlanSettings as PlanSettings
    from .trainer.release.parameters import export as export
    from .trainer.release.parameters import load_release as load_release
    from .trainer.spending import compose as compose

# Parts of the trainer, which are loaded only when somebody uses them.
_LAZY = {
    "Dataset": "jaxdp.datasets.dataset",
    "PlanSettings": "jaxdp.trainer.plan_settings",
    "Task": "jaxdp.tasks.task",
    "compose": "jaxdp.trainer.spending",
    "export": "jaxdp.trainer.release.parameters",
    "fit": "jaxdp.trainer.fit",
    "load_release": "jaxdp.trainer.release.parameters",
    "scattering": "jaxdp.datasets.scattering",
    "audit": "jaxdp",
    "tasks": "jaxdp",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needed_by(f"jaxdp.{name}", "train"):
        if name in ("audit", "tasks"):
            return importlib.import_module(f"jaxdp.{name}")
        return getattr(importlib.import_module(_LAZY[name]), name)
