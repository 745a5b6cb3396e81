"""BatchNorm of Flax, in batch units (privacy rule 16)."""

from types import ModuleType
from typing import Any

from .._distribution import needed_by
from ..datasets.rows import ROWS_AT_A_TIME
from ..types import PyTree
from ._network import Flags, Function
from .task import WithStatistics


def _batchnorm() -> ModuleType:
    with needed_by("a model with BatchNorm", "train"):
        from ..models import batchnorm
    return batchnorm


def layer_names(statistics: PyTree) -> list[str]:
    """The names of the layers of a linen model that have statistics."""
    return _batchnorm().layer_names(statistics)


def unit_loss_of(model: Any, flags: Flags, losses: Function) -> Function:
    """The mean loss of a batch unit, `(params, inputs, targets, mask) -> scalar`."""
    return _batchnorm().unit_loss(model, losses, call=lambda net, x: net(x, **flags.training))


def statistics_of(model: Any, flags: Flags, prepare: Function) -> Function:
    """The statistics of public records, `(params, inputs) -> statistics`. It compiles once."""
    return _batchnorm().public_statistics(
        model,
        call=lambda net, x: net(prepare(x), **flags.evaluation),
        rows_at_a_time=ROWS_AT_A_TIME,
    )


def statistics_parts(variables: PyTree) -> WithStatistics:
    """Raises a TypeError unless the variables are parameters with statistics."""
    if not isinstance(variables, WithStatistics):
        raise TypeError(
            f"the variables are a {type(variables).__name__}: a model with BatchNorm is scored "
            "with jaxdp.tasks.WithStatistics(params, task.statistics(params, public records))"
        )
    return variables
