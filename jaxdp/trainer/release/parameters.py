"""The folder `release/` of a run, the one that may be shared: written whole, never overwritten.

params.safetensors       the parameters, as arrays named `Conv_0/kernel`
batch_stats.safetensors  BatchNorm's statistics from public records, where there is a BatchNorm
model.stablehlo          the task's predictions as a program (`model`), where JAX can export it
privacy.json             the privacy statement (`statement`)
PRIVACY.md               the same for people (`markdown`)

No byte of them tells a path, a host, a user or a time (privacy rule 20).
"""

import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ... import _distribution
from ...types import PyTree
from ..disk import sync
from .markdown import as_markdown
from .model import Model
from .names import named_leaves
from .statement import Statement, read_statement, to_text

PARTIAL = "release.partial"  # until it is complete
PARTIAL_STATEMENT = "statement.partial"

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class Release:
    """What a run releases.

    Attributes:
      params: nested dicts of NumPy arrays.
      statement: the privacy statement.
      batch_stats: the statistics of every BatchNorm at these parameters, from public records; None
        for a model without.
      program: the task's predictions as a program in StableHLO; None: there is none.
    """

    params: Any = field(repr=False)
    statement: Statement = field(repr=False)
    batch_stats: Any = field(default=None, repr=False)
    program: bytes | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        s = self.statement
        return f"Release({s.task.name}, ε = {s.claimed_epsilon:g} at δ = {s.delta:.3g})"

    @cached_property
    def model(self) -> Model:
        """The program with its parameters.

        Raises:
          ValueError: if there is none, or it is damaged.
        """
        if self.program is None:
            raise ValueError(
                "the release holds no model.stablehlo, which predicts: its task has no predict, or "
                "JAX could not export it. Apply your model to `release.params_like(params)`"
            )
        try:
            return Model(self.program, self.params, self.batch_stats)
        except ValueError as error:
            raise ValueError(f"model.stablehlo can't be used: {error}") from None

    def predict(self, inputs: PyTree) -> PyTree:
        """Predicts for some records. What the model does before its first layer is inside.

        Args:
          inputs: what a record holds beside its label, `[n, ...]`, as it was given for training.
            After a run on features (`--data.features`) these are the features of images, by the
            call `statement.preprocessing.made_by`.

        Returns:
          NumPy arrays `[n, ...]`, as the task's `predict` gives them: of a classifier
          `{"class": [n], "scores": [n, classes]}`.

        Raises:
          ValueError: for inputs of another form, or a release that can't predict.
        """
        model, prepared = self.model, self.statement.preprocessing
        try:
            return model.predict(inputs)
        except ValueError as error:
            if prepared is None or prepared.made_by is None:
                raise
            raise ValueError(f"{error}. Inputs are features: {prepared.made_by}") from None

    @property
    def variables(self) -> dict[str, Any]:
        """The argument of `model.apply`: {"params": ..., "batch_stats": ...}."""
        if self.batch_stats is None:
            return {"params": self.params}
        return {"params": self.params, "batch_stats": self.batch_stats}

    def params_like(self, like: PyTree) -> PyTree:
        """The parameters in the form of `like`, such as the tree that `task.init` draws.

        Raises:
          ValueError: if they do not fit.
        """
        own, wanted = named_leaves(self.params), named_leaves(like)
        shapes = lambda named: {name: np.shape(leaf) for name, leaf in named.items()}
        if shapes(own) != shapes(wanted):
            different = sorted(n for n, _ in set(shapes(own).items()) ^ set(shapes(wanted).items()))
            raise ValueError(
                f"the parameters do not fit, in {', '.join(different[:3])}: give a tree of the "
                "model that was trained"
            )
        return jax.tree.unflatten(jax.tree.structure(like), [own[name] for name in wanted])


def save_params(
    folder: Path, params: Any, batch_stats: Any = None, program: bytes | None = None
) -> None:
    """Writes the parameters, and what there is of BatchNorm's statistics and the program.

    Until the statement is there too, they are no release.

    Args:
      folder: of the run.
      params: pytree of arrays.
      batch_stats: likewise.
      program: from `export_task`.

    Raises:
      ValueError: for names that are not unique, or arrays of a type the format lacks.
    """
    partial = folder / PARTIAL
    if partial.exists():  # of a run that was killed while it wrote
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    _write(partial / "params.safetensors", _to_bytes(params))
    if batch_stats is not None:
        _write(partial / "batch_stats.safetensors", _to_bytes(batch_stats))
    if program is not None:
        _write(partial / "model.stablehlo", program)


def save_statement(folder: Path, statement: Statement) -> Path:
    """Writes privacy.json and PRIVACY.md beside the parameters, which completes the release.

    Args:
      folder: of the run, after `save_params`.
      statement: for these parameters.

    Returns:
      The folder of the release.

    Raises:
      OSError: if there is a release already: `set_aside` makes room.
    """
    partial = folder / PARTIAL
    _write(partial / "privacy.json", to_text(statement).encode())
    _write(partial / "PRIVACY.md", as_markdown(statement).encode())
    sync(partial)
    released = partial.rename(folder / "release")
    sync(folder)
    return released


def set_aside(folder: Path) -> Path | None:
    """Renames the release of a run that goes on; it stays valid, and ε of the next counts both."""
    steps = released_steps(folder)
    if steps is None:
        return None
    old = folder / "release"
    stem = aside = folder / f"release-after-{steps}-steps"
    attempt = 1
    while aside.exists():  # from a resume for which the budget had no step left
        attempt += 1
        aside = stem.with_name(f"{stem.name}-{attempt}")
    return old.rename(aside)


def releases(folder: Path) -> list[Path]:
    """The release of a run, if there is one, and those that were set aside."""
    found = [folder / "release", *sorted(folder.glob("release-after-*"))]
    return [release for release in found if release.is_dir()]


def says_destroyed(release: Path) -> bool:
    """Whether the statement of a release says that the secrets are destroyed.

    Raises:
      ValueError: if there is no statement, or it is damaged.
    """
    return _statement_of(release).secrets == "destroyed"


def say_destroyed(release: Path) -> None:
    """Writes into the statement of a release that the secrets are destroyed.

    PRIVACY.md comes first: after a crash in the middle, `says_destroyed` is still false.
    """
    statement = replace(_statement_of(release), secrets="destroyed")
    for name, text in (
        ("PRIVACY.md", as_markdown(statement)),
        ("privacy.json", to_text(statement)),
    ):
        partial = release.with_name(PARTIAL_STATEMENT)
        _write(partial, text.encode())
        partial.replace(release / name)
        sync(release)


def released_steps(folder: Path) -> int | None:
    """How many spent steps the release of a run speaks of; None if there is no release.

    Raises:
      ValueError: if its statement is damaged.
    """
    release = folder / "release"
    return _statement_of(release).steps if release.is_dir() else None


def _statement_of(release: Path) -> Statement:
    try:
        return read_statement(release / "privacy.json")
    except OSError as error:
        raise ValueError(
            f"{release} has no statement that can be read ({error.strerror}): put privacy.json "
            "back, or move the folder away"
        ) from None


def load_release(path: str | Path) -> Release:
    """Loads the parameters and the privacy statement of a finished run.

    Args:
      path: the folder of the run, or the `release/` folder in it.

    Returns:
      A `Release`: `predict` predicts, `params` are nested dicts of NumPy arrays, `statement` is the
      privacy statement, and `variables` is the argument of a Flax `model.apply`, BatchNorm's
      statistics included.

    Raises:
      ValueError: if there is no release, or it is incomplete, damaged or of another version.

    Example:
      >>> release = jaxdp.load_release("runs/digits_cnn-...")  # doctest: +SKIP
      >>> release.statement.epsilon["pld"]  # doctest: +SKIP
      3.0
    """
    with _distribution.needed_by("load_release", "train"):
        import safetensors  # noqa: F401
    folder = Path(path)
    if (folder / "release").is_dir():
        folder = folder / "release"
    needed = [folder / "privacy.json", folder / "params.safetensors"]
    if not all(file.is_file() for file in needed):
        raise ValueError(
            f"{path} holds no release (privacy.json and params.safetensors): pass the folder that "
            "`python -m jaxdp.train` named at its end"
        )
    statement = read_statement(folder / "privacy.json")
    params = _from_file(folder / "params.safetensors")
    program = folder / "model.stablehlo"
    return Release(
        params,
        statement,
        None if statement.batch_norm is None else _from_file(folder / "batch_stats.safetensors"),
        program.read_bytes() if program.is_file() else None,
    )


def export(release: Release | str | Path) -> jax.export.Exported:
    """Returns a release as one program of its inputs, with the parameters in it.

    It is StableHLO, which other frameworks read, for the CPU, CUDA and TPU. No path and no name of
    a function is in it.

    Args:
      release: from `load_release`, or its folder.

    Returns:
      A `jax.export.Exported`: `call(inputs)` runs it, `serialize()` gives its bytes.

    Raises:
      ValueError: for a release that is missing or can't predict.
    """
    found = release if isinstance(release, Release) else load_release(release)
    return found.model.exported()


def _to_bytes(tree: Any) -> bytes:
    from safetensors.numpy import save

    flat = {}
    for name, leaf in named_leaves(tree).items():
        array = np.asarray(leaf, order="C")
        if array.dtype not in [np.dtype(dtype) for dtype in DTYPES.values()]:
            raise ValueError(
                f"{name} is of type {array.dtype}, which a release can't hold: use one of "
                f"{', '.join(np.dtype(dtype).name for dtype in DTYPES.values())}"
            )
        flat[name] = array
    return bytes(save(flat))


def _from_file(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, deserialize

    tree: dict[str, Any] = {}
    try:
        # Not by safetensors.numpy: it does not read bfloat16.
        for name, fact in sorted(deserialize(file.read_bytes())):
            inner = tree
            *folders, last = name.split("/")
            for key in folders:
                inner = inner.setdefault(key, {})
            dtype = np.dtype(DTYPES[fact["dtype"]])
            inner[last] = np.ndarray(fact["shape"], dtype, buffer=fact["data"])
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is missing or damaged ({error}): take an undamaged copy of the release"
        ) from None
    return tree


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    sync(path)
