"""The folder of a release: what is written comes back bit for bit, and nothing is overwritten."""

import socket
import struct
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("safetensors")
from helpers.statements import statement_of

from jaxdp.datasets.config import DataConfig
from jaxdp.trainer import learner
from jaxdp.trainer.command import make_job
from jaxdp.trainer.config import Config
from jaxdp.trainer.release.parameters import (
    Release,
    load_release,
    save_params,
    save_statement,
    set_aside,
)
from jaxdp.trainer.release.statement import read_statement
from jaxdp.trainer.run.checkpoint import Checkpoints
from jaxdp.trainer.run.segment import load_segment

STATISTICS = {"BatchNorm_0": {"mean": np.ones(3, np.float32), "var": np.zeros(3, np.float32)}}


def params():
    return {
        "Conv_0": {"kernel": jnp.arange(9.0).reshape(3, 3) / 7, "bias": jnp.ones(2, jnp.bfloat16)},
        "Dense_0": {"kernel": jnp.full((2, 3), -0.1)},
        "scale": jnp.float32(3),
        "count": np.array(7, np.int64),
        "mask": np.array([True, False]),
        "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "none": np.zeros((0, 3), np.float16),
    }


def with_batch_norm():
    public = DataConfig(private="train[:80%]", public="train[80%:]")
    return statement_of(config=Config(data=public), has_statistics=True)


def finish(folder, steps=20):
    folder.mkdir(exist_ok=True)
    save_params(folder, params())
    save_statement(folder, statement_of(steps=steps))
    return folder


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, np.ndarray)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("inner", ["", "release"])
def test_a_release_comes_back_bit_for_bit(tmp_path, inner):
    release = load_release(str(finish(tmp_path / "run") / inner))
    assert release.statement == statement_of()
    assert release.batch_stats is None
    assert list(release.variables) == ["params"]
    assert_same(release.params, params())
    assert release.params["Conv_0"]["bias"].dtype == ml_dtypes.bfloat16
    release.params["Conv_0"]["kernel"][:] = 0  # may be written to


def test_statistics_of_batch_norm_come_back_too(tmp_path):
    save_params(tmp_path, params(), STATISTICS)
    save_statement(tmp_path, with_batch_norm())
    release = load_release(tmp_path)
    assert_same(release.batch_stats, STATISTICS)
    assert list(release.variables) == ["params", "batch_stats"]


def test_a_release_has_these_files_only(tmp_path):
    save_params(tmp_path, params(), STATISTICS)
    released = save_statement(tmp_path, with_batch_norm())
    assert released == tmp_path / "release"
    assert sorted(file.name for file in released.iterdir()) == [
        "PRIVACY.md",
        "batch_stats.safetensors",
        "params.safetensors",
        "privacy.json",
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["release"]


def test_other_libraries_can_open_the_parameters(tmp_path):
    from safetensors import safe_open

    with safe_open(
        finish(tmp_path / "run") / "release" / "params.safetensors", framework="np"
    ) as file:
        assert file.metadata() is None
        assert {"Conv_0/kernel", "Dense_0/kernel", "scale"} <= set(file.keys())
        np.testing.assert_array_equal(
            file.get_tensor("Dense_0/kernel"), params()["Dense_0"]["kernel"]
        )


def test_the_same_parameters_give_the_same_bytes(tmp_path):
    read = lambda name: {
        file.name: file.read_bytes() for file in (finish(tmp_path / name) / "release").iterdir()
    }
    assert read("one") == read("two")


def test_a_release_is_a_value_with_names(tmp_path):
    release = Release({}, statement_of())
    with pytest.raises(AttributeError):
        release.params = {"a": 1}
    with pytest.raises(TypeError):
        _, _ = release


def test_parameters_without_a_statement_are_no_release(tmp_path):
    save_params(tmp_path, params())
    assert not (tmp_path / "release").exists()
    with pytest.raises(ValueError, match="holds no release"):
        load_release(tmp_path)
    save_params(tmp_path, params())  # as a run does that goes on after a kill
    save_statement(tmp_path, statement_of())
    assert load_release(tmp_path).statement.steps == 20


def test_a_release_is_never_overwritten(tmp_path):
    folder = finish(tmp_path / "run")
    save_params(folder, params())
    with pytest.raises(OSError, match="not empty"):
        save_statement(folder, statement_of(steps=5))
    assert load_release(folder).statement.steps == 20


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_loading_what_is_no_release_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="holds no release"):
        load_release(tmp_path / name)


@pytest.mark.parametrize("name", ["params.safetensors", "privacy.json"])
def test_an_incomplete_release_is_refused(tmp_path, name):
    (finish(tmp_path / "run") / "release" / name).unlink()
    with pytest.raises(ValueError, match="holds no release"):
        load_release(tmp_path / "run")


def test_missing_statistics_are_refused(tmp_path):
    save_params(tmp_path, params())
    save_statement(tmp_path, with_batch_norm())
    with pytest.raises(ValueError, match=r"batch_stats\.safetensors is missing or damaged"):
        load_release(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:5], lambda b: b"", lambda b: b + b"x"]
)
def test_damaged_parameters_are_refused(tmp_path, damage):
    file = finish(tmp_path / "run") / "release" / "params.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"params\.safetensors is .*damaged.*undamaged copy"):
        load_release(tmp_path / "run")


def test_a_damaged_statement_is_refused(tmp_path):
    (finish(tmp_path / "run") / "release" / "privacy.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"privacy\.json can't be read.*undamaged copy"):
        load_release(tmp_path / "run")


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"a/b": np.zeros(2), "a": {"b": np.zeros(2)}}, "two parameters are named 'a/b'"),
        ({"a": [np.zeros(2)], "a/0": np.zeros(2)}, "two parameters are named 'a/0'"),
        ({"a": np.zeros(2), "a/b/c": np.zeros(2)}, "'a' and 'a/b/c' can't both be released"),
        ({"": np.zeros(2), "params": np.zeros(2)}, "two parameters are named '', or one has no"),
        ({"a": {"": np.zeros(2)}}, "named 'a/', or one has no name: rename them"),
        ({"a": np.zeros(2, np.complex128)}, "a is of type complex128"),
        ({"a": np.zeros(2, ml_dtypes.float8_e4m3fn)}, "a is of type float8_e4m3fn"),
    ],
)
def test_what_does_not_fit_into_a_file_is_refused(tmp_path, tree, says):
    with pytest.raises(ValueError, match=says) as error:
        save_params(tmp_path, tree)
    assert len(str(error.value).splitlines()) == 1


class Pair(NamedTuple):
    kernel: Any
    bias: Any


@pytest.mark.parametrize(
    "tree",
    [
        np.arange(3.0),
        (np.arange(3.0), [np.ones(2), {"w": np.zeros(2)}]),
        {"layers": [Pair(np.ones(2), np.zeros(1)), Pair(np.ones(3), None)], "b": np.float32(2)},
        {3: np.ones(2), 11: np.zeros(2)},
    ],
    ids=["array", "tuple", "namedtuples", "numbers"],
)
def test_any_tree_comes_back_in_its_form(tmp_path, tree):
    save_params(tmp_path, tree)
    save_statement(tmp_path, statement_of())
    release = load_release(tmp_path)
    assert_same(release.params_like(tree), jax.tree.map(np.asarray, tree))
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))
    assert_same(release.params_like(shapes), jax.tree.map(np.asarray, tree))
    with pytest.raises(ValueError, match=r"the parameters do not fit, in .*: give a tree of the"):
        release.params_like({"other": np.zeros(2)})
    larger = jax.tree.map(lambda leaf: np.zeros((4, *np.shape(leaf))), tree)
    with pytest.raises(ValueError, match="the parameters do not fit"):
        release.params_like(larger)


def test_loading_without_safetensors_names_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxdp-privacy\[train\]'"):
        load_release(tmp_path)


def test_a_run_without_a_step_left_sets_its_release_aside_again(tmp_path):
    names = []
    for _ in range(3):
        names.append(set_aside(finish(tmp_path, steps=8)).name)
    assert names == [f"release-after-8-steps{n}" for n in ("", "-2", "-3")]
    assert read_statement(tmp_path / names[0] / "privacy.json").steps == 8
    assert set_aside(tmp_path) is None


def test_no_byte_of_a_release_tells_of_the_machine(tmp_path, monkeypatch):
    """No path, host, user or time: neither in words nor, for the time, as a number."""
    pytest.importorskip("tyro")
    train = pytest.importorskip("jaxdp.train")
    home = tmp_path / "home-of-ada-2718"
    monkeypatch.setattr(socket, "gethostname", lambda: "host-of-ada-3141")
    for name, value in (("HOME", str(home)), ("USER", "ada-1618"), ("LOGNAME", "ada-1618")):
        monkeypatch.setenv(name, value)
    start = int(time.time())
    args = [
        *("--name", "run-of-ada-1732", "--output", str(home / "run"), "--model.name", "linear"),
        *("--plan.steps", "2", "--evaluations", "0"),
    ]
    assert train.main(args) == 0
    text = Config(name="text-of-ada-1414", data=DataConfig("text", file=str(home / "text.txt")))
    save_params(home / "text", params(), STATISTICS)
    save_statement(home / "text", statement_of(config=text))

    moments = range(start, int(time.time()) + 1)
    words = ["of-ada", "ada-1618", str(tmp_path), tmp_path.name]
    words += [str(moment) for moment in moments]
    for form in ("%Y-%m-%d", "%Y%m%d", "%Y/%m/%d", "%d.%m.%Y"):
        for moment in moments:
            words += [time.strftime(form, make(moment)) for make in (time.gmtime, time.localtime)]
    unwanted = [word.encode() for word in words]
    unwanted += [struct.pack(order + "Q", moment) for moment in moments for order in "<>"]
    files = [file for run in ("run", "text") for file in (home / run / "release").rglob("*")]
    assert len(files) == 4 + 4
    for file in files:
        content = file.read_bytes()
        found = [word for word in unwanted if word in content or word in file.name.encode()]
        assert not found, file


def test_the_average_is_released_with_the_frozen_parameters(finished):
    released = load_release(finished).params
    assert sorted(released) == ["Conv_0", "Dense_0", "GroupNorm_0"]
    saved = load_segment(finished / "private" / "segment-1.json")
    first = learner.draw(make_job(saved.config), saved.secrets.init)
    np.testing.assert_array_equal(released["Conv_0"]["kernel"], first.frozen["Conv_0"]["kernel"])
    assert first.params["Conv_0"] == {"kernel": None, "bias": None}
    checkpoints = Checkpoints(finished / "private" / "checkpoints", 2)
    arrays = checkpoints.newest(print).arrays
    checkpoints.close()
    average = [v for n, v in arrays.items() if n.endswith("average_params.Dense_0.kernel")]
    np.testing.assert_array_equal(released["Dense_0"]["kernel"], average[0])
    assert not np.array_equal(average[0], arrays["params.Dense_0.kernel"])
