"""What a release says follows from public facts alone; only its parameters follow from records."""

import json
import struct

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors")
from helpers.fits import fitted, rows

from jaxdp.datasets.dataset import Dataset
from jaxdp.trainer.run import checkpoint


def test_a_release_differs_in_its_parameters_only_whatever_records_and_keys(tmp_path):
    """So no key, no norm and no number of sampled records is in it (privacy rules 17 and 20)."""
    files, heads = [], []
    for seed in (0, 5):
        data = Dataset(private=rows(200, seed), test=rows(60, 1), name="visits")
        folder = fitted(tmp_path / f"run-{seed}", data=data, evaluations=0).folder
        release = {path.name: path.read_bytes() for path in (folder / "release").iterdir()}
        arrays = release.pop("params.safetensors")
        (size,) = struct.unpack("<Q", arrays[:8])
        heads.append(json.loads(arrays[8 : 8 + size]))
        files.append(release)
    assert sorted(files[0]) == ["PRIVACY.md", "model.stablehlo", "privacy.json"]
    assert files[0] == files[1]
    assert heads[0] == heads[1]


def test_the_parameters_are_those_after_the_last_step(tmp_path):
    result = fitted(tmp_path / "run")
    keeper = checkpoint.Checkpoints(result.folder / "private" / "checkpoints", 3)
    arrays = keeper.newest(print).arrays
    keeper.close()
    last = {name: x for name, x in arrays.items() if name.startswith("params.")}
    released = jax.tree.leaves(result.release.params)
    assert len(last) == len(released)
    for one, other in zip(last.values(), released, strict=True):
        np.testing.assert_array_equal(one, other)
