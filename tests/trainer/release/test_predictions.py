"""Inputs from files, and predictions as CSV."""

import io
import pickle
import zipfile

import numpy as np
import pytest

pytest.importorskip("safetensors")
from jaxdp.trainer.release.predictions import read_arrays, write_csv


class Taking:
    """Stands for a model that takes some inputs."""

    def __init__(self, inputs):
        self.inputs = inputs


ONE = Taking(np.zeros((1, 3)))
TWO = Taking({"dose": np.zeros(1), "scan": np.zeros((1, 2))})


def test_one_array_is_the_one_input(tmp_path):
    x = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "any.npz", whatever=x)
    for name in ("x.npy", "any.npz"):
        np.testing.assert_array_equal(read_arrays(str(tmp_path / name), ONE), x)
    found = read_arrays(str(tmp_path / "x.npy"), Taking({"image": np.zeros((1, 3))}))
    np.testing.assert_array_equal(found["image"], x)


def test_several_arrays_are_told_apart_by_their_names(tmp_path):
    dose, scan = np.arange(3.0), np.ones((3, 2))
    np.savez_compressed(tmp_path / "x.npz", scan=scan, dose=dose)
    found = read_arrays(str(tmp_path / "x.npz"), TWO)
    np.testing.assert_array_equal(found["dose"], dose)
    np.testing.assert_array_equal(found["scan"], scan)


def test_names_that_differ_are_told(tmp_path):
    np.savez(tmp_path / "x.npz", scan=np.ones(3), does=np.ones(3))
    with pytest.raises(ValueError, match=r"holds scan, does: the model takes dose, scan"):
        read_arrays(str(tmp_path / "x.npz"), TWO)
    np.savez(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"holds nothing: the model takes dose, scan"):
        read_arrays(str(tmp_path / "none.npz"), TWO)


def broken_zip(folder):
    np.savez_compressed(folder / "good.npz", x=np.arange(1000.0))
    content = bytearray((folder / "good.npz").read_bytes())
    content[200:260] = bytes(60)
    return bytes(content)


def with_object(folder):
    np.savez(folder / "object.npz", x=np.array([{}, []], dtype=object))
    return (folder / "object.npz").read_bytes()


def objects(folder):
    np.save(folder / "object.npy", np.array([{}, []], dtype=object))
    return (folder / "object.npy").read_bytes()


def too_large(folder):
    np.save(folder / "small.npy", np.zeros(3))
    content = (folder / "small.npy").read_bytes()
    return content.replace(b"(3,), }        ", b"(3000000000000,)}"[:15].ljust(15))


def encrypted(folder):
    with zipfile.ZipFile(folder / "e.npz", "w") as file:
        file.writestr("x.npy", b"123")
    content = bytearray((folder / "e.npz").read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


BROKEN = {
    "empty": lambda folder: b"",
    "text": lambda folder: b"1,2,3\n",
    "pickle": lambda folder: pickle.dumps({"a": 1}),
    "pickled objects": objects,
    "pickled objects in a zip": with_object,
    "a damaged zip": broken_zip,
    "half a zip": lambda folder: broken_zip(folder)[:300],
    "an encrypted zip": encrypted,
    "a wrong shape": too_large,
    "half an array": lambda folder: objects(folder)[:60],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_holds_no_numbers_is_told_in_our_words(tmp_path, kind):
    path = tmp_path / "wrong.npz"
    path.write_bytes(BROKEN[kind](tmp_path))
    with pytest.raises(ValueError, match=r"wrong.npz can't be read \(it is damaged, or") as error:
        read_arrays(str(path), ONE)
    said = str(error.value)
    assert "give a .npy or .npz file of numbers" in said
    assert len(said.splitlines()) == 1
    for word in ("pickle", "trust", "allow_pickle", "unsafe"):
        assert word not in said


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"can't be read \(no such file or directory\): give a"):
        read_arrays(str(tmp_path / "none.npy"), ONE)
    with pytest.raises(ValueError, match=r"can't be read \(is a directory\)"):
        read_arrays(str(tmp_path), ONE)


def csv(predictions):
    file = io.StringIO(newline="")
    write_csv(predictions, file)
    return file.getvalue().splitlines()


def test_a_column_for_every_number():
    scores = np.array([[0.25, 1e-12], [1 / 3, -2.0]], np.float32)
    assert csv({"class": np.array([3, 10], np.int32), "scores": scores}) == [
        "class,scores_0,scores_1",
        "3,0.25,9.99999996e-13",
        "10,0.333333343,-2",
    ]


def test_a_single_array_is_named_prediction():
    assert csv(np.array([1.5, 2.5])) == ["prediction", "1.5", "2.5"]
    assert csv(np.ones((1, 2, 2), np.int32))[0] == ",".join(f"prediction_{i}" for i in range(4))


def test_float32_numbers_are_read_again_as_they_were():
    numbers = np.random.default_rng(0).normal(size=500).astype(np.float32)
    assert [np.float32(line) for line in csv(numbers)[1:]] == list(numbers)
