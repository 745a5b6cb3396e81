"""Keeps a row that is not finite to itself where XLA does not.

`vmap` turns convolutions with a kernel for each row into one grouped convolution. XLA for CPUs may
compute that as a dense one with zeros between the groups, and zero times NaN is NaN: one row that
is not finite makes all others so. Then no row would contribute, and one record would move the sum
by more than its own contribution.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .jax_internals import jaxprs_in_params, open_jaxpr
from .jax_internals import primitives as p

_ROWS = 7  # a number that is rarely one of channel groups


def has_convolution(jaxpr: Any, which: Callable[[Any], bool] = lambda eqn: True) -> bool:
    """Whether a jaxpr, or one inside, has a convolution (such that `which` is true of it)."""
    return any(
        (eqn.primitive is p.conv_general_dilated_p and which(eqn))
        or any(has_convolution(part, which) for part in jaxprs_in_params(eqn.params))
        for eqn in open_jaxpr(jaxpr)[0].eqns
    )


def mixes_rows(of_rows: Callable[[Any], Any], rows: Any) -> bool:
    """Whether a function of any number of rows has convolutions in which rows are groups."""
    several = jax.tree.map(lambda x: jax.typeof(x).update(shape=(_ROWS, *x.shape[1:])), rows)
    return has_convolution(jax.make_jaxpr(of_rows)(several), _is_grouped)


def _is_grouped(eqn: Any) -> bool:
    groups = (eqn.params["feature_group_count"], eqn.params["batch_group_count"])
    return any(count % _ROWS == 0 for count in groups)


def each_on_its_own(of_row: Callable[[Any], Any], rows: Any, constant_time: bool) -> Any:
    """`vmap(of_row)(rows)`, where rows would mix: one after the other, if any is not finite.

    With `constant_time`, one after the other in any case.
    """
    apart = lambda: jax.lax.map(of_row, rows)
    if constant_time:
        return apart()
    together = jax.vmap(of_row)(rows)
    inexact = [x for x in jax.tree.leaves(together) if jnp.issubdtype(x.dtype, jnp.inexact)]
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in inexact]))
    return jax.lax.cond(finite, lambda: together, apart)
