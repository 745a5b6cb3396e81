"""A release predicts by a program of its own: the same numbers, no names, clear refusals."""

import getpass
import socket
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

for module in ("sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers import small_releases  # noqa: E402
from helpers.small_releases import CASES, make_case, make_release, random  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp.tasks.task import Task  # noqa: E402
from jaxdp.trainer.release import model  # noqa: E402
from jaxdp.trainer.release.model import Model, NotExported, export_task  # noqa: E402


def same(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )
    types = lambda tree: jax.tree.map(lambda a: np.asarray(a).dtype, tree)
    assert types(found) == types(expected)


def first(tree, count):
    return jax.tree.map(lambda a: a[:count], tree)


@pytest.mark.parametrize("name", CASES)
def test_a_release_predicts_what_its_task_predicts(tmp_path, name):
    case = CASES[name]()
    release = make_release(tmp_path / "run", case)
    same(release.predict(case.inputs), case.expected)
    same(release.predict(first(case.inputs, 2)), first(case.expected, 2))


def test_many_records_are_predicted_some_at_a_time(tmp_path, monkeypatch):
    case = CASES["dict_inputs"]()
    release = make_release(tmp_path / "run", case)
    monkeypatch.setattr(model, "ROWS_AT_A_TIME", 2)
    same(release.predict(case.inputs), case.expected)


def test_a_program_for_one_record_is_run_for_each(tmp_path):
    release = make_release(tmp_path / "run", CASES["no_symbolic_batch"]())
    assert release.model.inputs.shape == (1, 4)
    assert make_release(tmp_path / "other", CASES["swapped"]()).model.inputs.shape[0] != 1


@pytest.mark.parametrize("name", CASES)
def test_the_program_tells_no_path_and_no_name(tmp_path, name):
    case = CASES[name]()
    release = make_release(tmp_path / "run", case)
    told = [release.program, jaxdp.export(release).serialize()]
    told.append((tmp_path / "run" / "release" / "model.stablehlo").read_bytes())
    path = Path(small_releases.__file__)
    words = [
        *("secretly_named_classifier", "_for_so_many", "make_case", "small_releases", "helpers"),
        *(str(path), path.name, str(path.parent), str(Path.home()), str(Path.cwd()), ".py"),
        *("export_task", "site-packages", socket.gethostname()),
    ]
    if len(getpass.getuser()) > 3:
        words.append(getpass.getuser())
    for program in told:
        assert [word for word in words if word.encode() in program] == []


def test_a_name_would_be_found(tmp_path):
    """The test above can fail: JAX writes names and paths that have to be taken out."""
    case = CASES["custom_pytree"]()
    plain = jax.export.export(jax.jit(case.task.predict))(case.params, case.inputs[0])
    assert b"secretly_named_classifier" in plain.mlir_module_serialized
    assert b".py" in plain.mlir_module_serialized


def test_a_task_without_predict_or_one_that_jax_cannot_export_is_told_in_one_line():
    case = CASES["swapped"]()
    with pytest.raises(NotExported, match="the task has no predict"):
        export_task(Task(init=print, loss=print), case.params, None, case.private)

    def predict(params, x):
        return jax.pure_callback(lambda x: x, x, x)

    with pytest.raises(NotExported, match="JAX can't export its predict: ") as error:
        export_task(Task(init=print, loss=print, predict=predict), case.params, None, case.private)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "damage", [lambda p: b"", lambda p: b"nonsense", lambda p: p[: len(p) // 2]]
)
def test_a_damaged_program_is_told_in_one_line(tmp_path, damage):
    case = CASES["swapped"]()
    make_release(tmp_path / "run", case)
    file = tmp_path / "run" / "release" / "model.stablehlo"
    file.write_bytes(damage(file.read_bytes()))
    release = jaxdp.load_release(tmp_path / "run")  # the rest can be used
    for use in (lambda: release.predict(case.inputs), lambda: jaxdp.export(tmp_path / "run")):
        with pytest.raises(
            ValueError, match=r"model.stablehlo can't be used: it is damaged"
        ) as error:
            use()
        assert len(str(error.value).splitlines()) == 1


def test_a_release_without_a_program_says_how_to_predict(tmp_path):
    make_release(tmp_path / "run", CASES["swapped"]())
    (tmp_path / "run" / "release" / "model.stablehlo").unlink()
    release = jaxdp.load_release(tmp_path / "run")
    with pytest.raises(ValueError, match=r"Apply your model to `release.params_like"):
        release.predict(np.zeros((1, 4), np.float32))


WRONG = {
    "one record without its axis": lambda x: {"scan": x["scan"][0], "dose": x["dose"][0]},
    "another shape": lambda x: {**x, "scan": x["scan"][:, :1]},
    "other numbers of records": lambda x: {**x, "dose": x["dose"][:2]},
    "no record": lambda x: {name: array[:0] for name, array in x.items()},
    "words": lambda x: {**x, "dose": np.array(["a"] * 5)},
    "fractions for whole numbers": lambda x: {**x, "scan": x["scan"] + 0.5},
    "a missing input": lambda x: {"scan": x["scan"]},
    "a bare array": lambda x: x["scan"],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_inputs_of_another_form_are_told_in_one_line(tmp_path, wrong):
    case = CASES["dict_inputs"]()
    release = make_release(tmp_path / "run", case)
    with pytest.raises(ValueError, match=r"the inputs .*give .*uint8") as error:
        release.predict(WRONG[wrong](case.inputs))
    assert len(str(error.value).splitlines()) == 1


def test_rows_in_a_list_are_taken(tmp_path):
    case = CASES["swapped"]()
    release = make_release(tmp_path / "run", case)
    same(release.predict(case.inputs.tolist()), case.expected)


def test_numbers_of_a_wider_type_are_taken(tmp_path):
    case = CASES["swapped"]()
    release = make_release(tmp_path / "run", case)
    same(release.predict(case.inputs.astype(np.float64)), case.expected)


@pytest.mark.parametrize("name", CASES)
def test_export_is_a_program_of_the_inputs_alone(tmp_path, name):
    case = CASES[name]()
    release = make_release(tmp_path / "run", case)
    for given in (release, tmp_path / "run", str(tmp_path / "run" / "release")):
        exported = jaxdp.export(given)
        assert exported.platforms == ("cpu", "cuda", "tpu")
        again = jax.export.deserialize(exported.serialize())
        count = 1 if name == "no_symbolic_batch" else 5
        same(jax.device_get(again.call(first(case.inputs, count))), first(case.expected, count))


def test_export_of_what_is_no_release_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no release"):
        jaxdp.export(tmp_path)


def test_a_predict_that_holds_private_records_is_not_released():
    """Such as one that looks for the nearest of them."""
    case = make_case(lambda params, x: x @ params["w"], {"w": random(4)}, random(5, 4))
    rows, _ = case.private.fields
    nearest = lambda params, x: jnp.argmin(jnp.sum((jnp.asarray(rows) - x) ** 2, axis=1))
    task = Task(init=print, loss=print, predict=nearest)
    with pytest.raises(NotExported, match="its predict holds an array of the private records"):
        export_task(task, case.params, None, case.private)
    rows = rows + 1  # the function sees other numbers now
    export_task(task, case.params, None, case.private)


def test_statistics_are_arguments_too():
    task = Task(
        init=print,
        loss=print,
        predict=lambda variables, x: x * variables.params["w"] + variables.statistics["mean"],
    )
    params, statistics = {"w": random(4)}, {"mean": random(4) + 3}
    case = make_case(lambda p, x: x * p["w"] + statistics["mean"], params, random(5, 4))
    program = export_task(task, params, statistics, case.private)
    same(Model(program, params, statistics).predict(case.inputs), case.expected)
