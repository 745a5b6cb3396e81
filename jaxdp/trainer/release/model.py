"""The model of a release as a program: StableHLO, which needs none of the code that made it.

It takes the released arrays by name and the inputs of some records, and returns the task's
predictions for them. It holds no path, no name of a function and nothing of the machine (privacy
rule 20).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import numpy as np

from ...datasets.records import Records
from ...datasets.rows import ROWS_AT_A_TIME
from ...gradients.jax_internals import constants, without_locations
from ...tasks.task import Task, inputs_of, variables_of
from ...types import PyTree
from .names import named_leaves

PLATFORMS = ("cpu", "cuda", "tpu")

Arrays = Mapping[str, Any]


class NotExported(ValueError):
    """The task's predictions can't be a program of their own."""


def export_task(task: Task, params: PyTree, statistics: PyTree | None, private: Records) -> bytes:
    """Turns a task's `predict` into a program.

    Args:
      task: of the run.
      params: the released parameters, or their shapes.
      statistics: BatchNorm's statistics; None: there are none.
      private: the private records. Only their shapes get into the program.

    Raises:
      NotExported: in one line, if the task has no `predict`, if that holds an array of the private
        records, or if JAX can't export it.
    """
    predict_one = task.predict
    if predict_one is None:
        raise NotExported("the task has no predict")

    def predict(own: Arrays, own_statistics: Arrays, inputs: PyTree) -> PyTree:
        found = None if statistics is None else _in_form_of(statistics, own_statistics)
        variables = variables_of(_in_form_of(params, own), found)
        return jax.vmap(predict_one, (None, 0))(variables, inputs)

    shapes = lambda tree: {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in named_leaves(tree).items()
    }
    rows = lambda n: jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((n, *s.shape), s.dtype), inputs_of(private.shape_of_one())
    )
    # Any number of records; or one, for models that can't be written for any.
    sizes = (*jax.export.symbolic_shape("n"), 1)
    for size in sizes:
        try:
            arguments = shapes(params), shapes(statistics), rows(size)
            if any(map(private.hold, constants(jax.jit(predict).trace(*arguments).jaxpr))):
                raise NotExported("its predict holds an array of the private records")
            program = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(*arguments)
            return bytes(without_locations(program).serialize())
        except NotExported:
            raise
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
    raise NotExported(f"JAX can't export its predict: {reason}")


def _in_form_of(tree: PyTree, arrays: Arrays) -> PyTree:
    """The arrays in the structure of the tree whose leaves have their names."""
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays[n] for n in named_leaves(tree)])


class Model:
    """A program from `export_task`, with the arrays of its release.

    Args:
      program: from `export_task`.
      params: the released parameters, nested.
      statistics: likewise; None: there are none.

    Attributes:
      inputs: what it takes, as shapes.

    Raises:
      ValueError: if the program is damaged.
    """

    def __init__(self, program: bytes, params: PyTree, statistics: PyTree | None) -> None:
        try:
            self._program = jax.export.deserialize(bytearray(program))
        except Exception as error:
            raise ValueError(f"it is damaged ({error}): take an undamaged copy") from None
        self._arrays = [named_leaves(tree) for tree in (params, statistics)]
        args, _ = jax.tree.unflatten(self._program.in_tree, self._program.in_avals)
        self.inputs = args[2]

    def predict(self, inputs: PyTree) -> PyTree:
        """The predictions for some records, as NumPy arrays `[n, ...]`."""
        inputs = self._checked(inputs)
        count = len(jax.tree.leaves(inputs)[0])
        at_a_time = ROWS_AT_A_TIME
        if isinstance(jax.tree.leaves(self.inputs)[0].shape[0], int):
            at_a_time = 1
        parts = [
            jax.device_get(
                self._program.call(
                    *self._arrays, jax.tree.map(lambda x: x[i : i + at_a_time], inputs)
                )
            )
            for i in range(0, count, at_a_time)
        ]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def exported(self) -> jax.export.Exported:
        """A program of the inputs alone, `[n, ...]`, with the parameters in it."""
        call = jax.jit(lambda inputs: self._program.call(*self._arrays, inputs))
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), self.inputs)
        return without_locations(jax.export.export(call, platforms=PLATFORMS)(shapes))

    def _checked(self, inputs: PyTree) -> PyTree:
        """The inputs as arrays of the right types.

        Raises:
          ValueError: for inputs of another form.
        """
        wanted = jax.tree.map(lambda a: f"{a.dtype}[{', '.join(map(str, a.shape))}]", self.inputs)
        given: list[Any] = []
        try:
            jax.tree.map(lambda a, x: given.append(x), self.inputs, inputs)
        except ValueError:  # its own words take several lines
            raise ValueError(
                f"the inputs have the form {jax.tree.structure(inputs)}: give {wanted}"
            ) from None
        try:
            leaves = [
                np.asarray(x).astype(a.dtype, casting="same_kind")
                for a, x in zip(jax.tree.leaves(self.inputs), given, strict=True)
            ]
        except (TypeError, ValueError) as error:
            raise ValueError(f"the inputs do not fit ({error}): give {wanted}") from None
        for want, got in zip(jax.tree.leaves(self.inputs), leaves, strict=True):
            if got.shape[1:] != want.shape[1:] or got.ndim == 0 or len(got) == 0:
                raise ValueError(
                    f"the inputs have shape {got.shape}: give {wanted}, with n records"
                )
        if len({len(leaf) for leaf in leaves}) != 1:
            raise ValueError(f"the inputs have different numbers of records: give {wanted}")
        return jax.tree.unflatten(jax.tree.structure(self.inputs), leaves)
