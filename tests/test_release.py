"""The folder of a run: what is written comes back bit for bit, and nothing is overwritten."""

import datetime
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.trainer.release.parameters import load_release, save_params, save_statement, set_aside
from jaxdp.trainer.run.files import make_run_folder

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)


def params():
    return {
        "Conv_0": {"kernel": jnp.arange(9.0).reshape(3, 3) / 7, "bias": jnp.ones(2, jnp.bfloat16)},
        "Dense_0": {"kernel": jnp.full((2, 3), -0.1)},
    }


def finished(folder):
    pytest.importorskip("orbax.checkpoint")
    save_params(folder, params())
    save_statement(folder, {"epsilon": {"pld": 3.0}, "data": "ε"}, "# Privacy\n")
    return folder


@pytest.mark.parametrize("inner", ["", "release"])
def test_a_release_comes_back_bit_for_bit(tmp_path, inner):
    loaded, statement = load_release(str(finished(tmp_path / "run") / inner))
    assert statement == {"epsilon": {"pld": 3.0}, "data": "ε"}
    assert jax.tree.structure(loaded) == jax.tree.structure(params())
    for got, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(params()), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


def test_parameters_without_a_statement_are_no_release(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    save_params(tmp_path, params())
    assert not (tmp_path / "release").exists()
    with pytest.raises(ValueError, match="holds no release"):
        load_release(tmp_path)


def test_a_release_is_never_overwritten(tmp_path):
    folder = finished(tmp_path / "run")
    save_params(folder, params())
    with pytest.raises(OSError, match="not empty"):
        save_statement(folder, {}, "")
    assert load_release(folder).statement["data"] == "ε"


def test_run_folders_are_named_by_time_and_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [make_run_folder("digits", None, NOW).as_posix() for _ in range(3)]
    stem = "runs/digits-20260102-030405"
    assert made == [stem, f"{stem}-2", f"{stem}-3"]


def test_an_existing_output_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} exists already.*name another one"):
        make_run_folder("digits", str(tmp_path), NOW)


def test_an_unwritable_output_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"can't be made .*--output FOLDER"):
        make_run_folder("digits", str(tmp_path / "file" / "run"), NOW)


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_loading_what_is_no_release_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="holds no release"):
        load_release(tmp_path / name)


def test_loading_without_orbax_names_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxdp\[train\]'"):
        load_release(tmp_path)


def test_importing_jaxdp_loads_nothing_of_the_application():
    code = (
        "import sys, jaxdp; jaxdp.load_release; "
        "print([m for m in ('flax', 'orbax', 'tyro', 'rich', 'sklearn', 'matplotlib', "
        "'jaxdp.train', 'jaxdp.config', 'jaxdp.models') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_without_a_step_left_sets_its_release_aside_again(tmp_path):
    names = []
    for _ in range(3):
        (tmp_path / "release").mkdir()
        (tmp_path / "release" / "privacy.json").write_text('{"steps": 8}')
        names.append(set_aside(tmp_path).name)
    assert names == [f"release-after-8-steps{n}" for n in ("", "-2", "-3")]
    assert set_aside(tmp_path) is None
