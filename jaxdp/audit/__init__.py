"""Audits."""

from .canaries import NAMES as CANARIES
from .step import CanaryAudit as CanaryAudit
from .step import StepAudit as StepAudit
from .step import audit_step as audit_step

__all__ = ["CANARIES", "CanaryAudit", "StepAudit", "audit_step"]
