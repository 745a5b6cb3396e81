"""The folder of a run: `release/` may be shared, `private/` may not, and neither is overwritten."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple


class _Pair(NamedTuple):
    params: Any  # pytree of NumPy arrays
    statement: dict[str, Any]  # the contents of privacy.json


class Release(_Pair):
    """What a run releases: the pair `(params, statement)`, and BatchNorm's statistics if any.

    Attributes:
      params: pytree of NumPy arrays.
      statement: the contents of privacy.json.
      batch_stats: the statistics of every BatchNorm at these parameters, from public records; None
        for a model without.
      variables: what `model.apply` takes: {"params": ..., "batch_stats": ...}.
    """

    batch_stats: Any

    def __new__(cls, params: Any, statement: dict[str, Any], batch_stats: Any = None) -> "Release":
        self = super().__new__(cls, params, statement)
        self.batch_stats = batch_stats
        return self

    @property
    def variables(self) -> dict[str, Any]:
        if self.batch_stats is None:
            return {"params": self.params}
        return {"params": self.params, "batch_stats": self.batch_stats}


def save_params(folder: Path, params: Any, batch_stats: Any = None) -> None:
    """Writes the parameters, and BatchNorm's statistics on public records if there are any.

    Until the statement is there too, the folder is not a release.
    """
    import orbax.checkpoint as ocp

    partial = folder / "release.partial"
    if partial.exists():  # of a run that was killed while it wrote
        shutil.rmtree(partial)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((partial / "params").absolute(), params)
        if batch_stats is not None:
            checkpointer.save((partial / "batch_stats").absolute(), batch_stats)


def save_statement(folder: Path, statement: dict[str, Any], markdown: str) -> Path:
    """Writes privacy.json and PRIVACY.md beside the parameters, which completes the release."""
    partial = folder / "release.partial"
    (partial / "privacy.json").write_text(json.dumps(statement, indent=2) + "\n")
    (partial / "PRIVACY.md").write_text(markdown, encoding="utf-8")
    return partial.rename(folder / "release")


def set_aside(folder: Path) -> Path | None:
    """Renames the release of a run that goes on; it stays valid, and ε of the next counts both."""
    old = folder / "release"
    if not old.is_dir():
        return None
    steps = json.loads((old / "privacy.json").read_text())["steps"]
    stem = aside = folder / f"release-after-{steps}-steps"
    attempt = 1
    while aside.exists():  # from a resume for which the budget had no step left
        attempt += 1
        aside = stem.with_name(f"{stem.name}-{attempt}")
    return old.rename(aside)


def load_release(path: str | Path) -> Release:
    """Loads the parameters and the privacy statement of a finished run.

    Args:
      path: the folder of the run, or the `release/` folder in it.

    Returns:
      `(params, statement)`: NumPy arrays in the model's structure, and the contents of
      privacy.json. Its attribute `variables` is what `model.apply` takes, BatchNorm's statistics
      included.

    Example:
      >>> params, statement = jaxdp.load_release("runs/digits_cnn-...")  # doctest: +SKIP
      >>> statement["epsilon"]["pld"]  # doctest: +SKIP
      3.0
    """
    try:
        import orbax.checkpoint as ocp
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "load_release needs Orbax: pip install 'jaxdp[train]' (in a checkout: "
            "pip install -e '.[train]')"
        ) from None
    folder = Path(path)
    if (folder / "release").is_dir():
        folder = folder / "release"
    if not (folder / "privacy.json").is_file() or not (folder / "params").is_dir():
        raise ValueError(
            f"{path} holds no release (privacy.json and params/): pass the folder that "
            "`python -m jaxdp.train` named at its end"
        )
    statement = json.loads((folder / "privacy.json").read_text())
    # As NumPy arrays, so that a release made on one kind of device loads on any other.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        params = _restore(checkpointer, folder / "params")
        batch_stats = folder / "batch_stats"
        found = _restore(checkpointer, batch_stats) if batch_stats.is_dir() else None
    return Release(params, statement, found)


def _restore(checkpointer: Any, folder: Path) -> Any:
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    saved = folder.absolute()
    structure = checkpointer.metadata(saved).item_metadata.tree
    restore_args = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        structure,
        is_leaf=lambda leaf: hasattr(leaf, "shape"),
    )
    return checkpointer.restore(saved, args=ocp.args.PyTreeRestore(restore_args=restore_args))
