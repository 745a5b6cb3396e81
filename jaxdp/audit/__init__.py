"""Audits: lower bounds on the privacy loss of what really runs, beside what is claimed.

`audit_step` measures the releases of a training step, with and without a canary. `epsilon_bound`
and `mu_bound` take scores of the canaries of one run; `audit_run` makes these scores for a run of
the trainer.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .._distribution import needed_by
from .canaries import CANARIES as CANARIES
from .one_run import EpsilonBound as EpsilonBound
from .one_run import GaussianBound as GaussianBound
from .one_run import Guesses as Guesses
from .one_run import default_guesses as default_guesses
from .one_run import epsilon_bound as epsilon_bound
from .one_run import mu_bound as mu_bound
from .step import CanaryAudit as CanaryAudit
from .step import StepAudit as StepAudit
from .step import audit_step as audit_step

if TYPE_CHECKING:
    from .run import RunAudit as RunAudit
    from .run import audit_run as audit_run

_LAZY = ("RunAudit", "audit_run")  # they need the trainer


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needed_by(f"jaxdp.audit.{name}", "train"):
        return getattr(importlib.import_module("jaxdp.audit.run"), name)
