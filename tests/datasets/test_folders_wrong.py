"""Whatever is wrong with a folder of images or its labels is one line, which tells no value."""

import os
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import (
    ANIMALS,
    CANARY,
    animals,
    assert_tells_nothing,
    in_order,
    listed,
    opened,
    picture,
    read,
    resized,
    saved,
    write,
)

from jaxdp._distribution import DISTRIBUTION


def flipped(content, place):
    changed = bytearray(content)
    changed[place] ^= 255
    return bytes(changed)


def huge(side):
    """A PNG that says it has side x side pixels."""
    head = bytearray(PNG)
    head[16:24] = struct.pack(">II", side, side)
    head[29:33] = struct.pack(">I", zlib.crc32(bytes(head[12:29])))
    return bytes(head)


PNG, JPEG = saved(picture(0)), saved(picture(0), "JPEG")
BAD_IMAGES = {
    "empty": (b"", "the file is empty: put the image in its place"),
    "text": (CANARY.encode() * 9, "no PNG or JPEG, or damaged"),
    "GIF": (saved(picture(0), "GIF"), "no PNG or JPEG"),
    "BMP": (saved(picture(0), "BMP"), "no PNG or JPEG"),
    "one byte": (PNG[:1], "no PNG or JPEG"),
    "damaged head": (flipped(PNG, 3), "no PNG or JPEG"),
    "damaged size": (flipped(PNG, 17), "no PNG or JPEG"),
    "cut PNG": (PNG[: len(PNG) // 2], "damaged or cut short"),
    "cut JPEG": (JPEG[: len(JPEG) // 2], "damaged or cut short"),
    "flipped": (flipped(PNG, 100), "damaged or cut short"),
    "other end": (flipped(PNG, len(PNG) - 18), "damaged or cut short"),
    "animated": (
        saved(picture(0), save_all=True, append_images=[picture(1)]),
        "it is animated: save one of its frames",
    ),
    "large": (huge(10_000), "more than 89,478,485 pixels: save it smaller"),
    "huge": (huge(20_000), "more than 89,478,485 pixels: save it smaller"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images_are_named(kind, data):
    content, message = BAD_IMAGES[kind]
    write(animals(data), {"dog/1.png": content})
    rows = in_order([*ANIMALS, "dog/1.png"])
    row = rows.index("dog/1.png")
    with pytest.raises(ValueError, match=rf"^{data}, row {row}: dog/1\.png: .*{message}") as error:
        read(data)
    assert_tells_nothing(error.value)
    found = read(data, skip_bad=True)
    assert list(found.bad) == [row]
    assert (found.fields[0][row].max(), found.fields[1][row], len(found)) == (0, 0, 5)
    np.testing.assert_array_equal(found.fields[0][rows.index("dog/3.png")], resized(picture(0)))


def test_bad_files_keep_their_row(data):
    write(animals(data), {"cat/0.png": b""})
    (data / "cat" / "1.png").unlink()
    (data / "cat" / "1.png").mkdir()
    (data / "dog" / "3.png").unlink()
    (data / "dog" / "3.png").symlink_to(data / "nowhere")
    faults = {
        "cat/0.png": "the file is empty",
        "cat/1.png": "it is a folder",
        "dog/3.png": "there is no such file",
    }
    rows = in_order([*ANIMALS, "cat/0.png"])
    first = in_order(faults)[0]
    with pytest.raises(ValueError, match=f"row {rows.index(first)}: {first}: {faults[first]}"):
        read(data)
    found = read(data, skip_bad=True)
    assert len(found) == 5
    assert list(found.bad) == [rows.index(name) for name in in_order(faults)]
    for name, fault in faults.items():
        assert found.bad[rows.index(name)].startswith(f"{name}: {fault}")


def test_a_file_that_may_not_be_read_keeps_its_row(data, monkeypatch):
    """For root there are no such files, so that the system's answer is changed."""
    monkeypatch.setattr(os, "access", lambda file, mode: file.name != "1.png")
    found = read(animals(data), skip_bad=True)
    row = in_order(ANIMALS).index("cat/1.png")
    assert found.bad == {row: "cat/1.png: you may not read it: change its permissions"}
    assert found.fields[0][row].max() == 0


BAD_LABELS = {
    "other label": (f"file,label\na.png,cat\nb.png,{CANARY}\n", r"row 1: b\.png: its label in"),
    "empty label": (
        "file,label\na.png,cat\nb.png,\n",
        r"row 1: b\.png: its label in .* is none of",
    ),
    "other case": ("file,label\na.png,Cat\n", r"row 0: a\.png: its label"),
    "no such file": ("file,label\na.png,cat\nc.png,cat\n", r"row 1: c\.png: there is no such file"),
    "long name": (f"file,label\n{'x' * 999}.png,cat\n", "row 0: x*.png: there is no such file"),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_bad_labels_are_named(kind, data):
    text, message = BAD_LABELS[kind]
    with pytest.raises(ValueError, match=message) as error:
        listed(data, text)
    assert_tells_nothing(error.value)
    row = text.count("\n") - 2
    found = listed(data, text, skip_bad=True)
    assert list(found.bad) == [row]
    assert (found.fields[0][row].max(), found.fields[1][row]) == (0, 0)


WRONG_LABELS = {
    "no names": (f"a.png,{CANARY}\n", "must have the columns file and label"),
    "more columns": (f"file,label,{CANARY}\na.png,cat,1\n", "must have the columns file and label"),
    "empty": ("", "must have the columns file and label"),
    "no row": ("file,label\n", "has no row: list the images"),
    "ragged": (f"file,label\na.png,cat,{CANARY}\n", "row 0: it has 3 columns and not 2"),
    "short": ("file,label\na.png,cat\nb.png\n", "row 1: it has 1 columns and not 2"),
    "open quote": (f'file,label\na.png,cat\nb.png,"{CANARY}\n', "row 1: it is no CSV"),
    "odd quote": ('file,label\n"a.png"x,cat\n', "row 0: it is no CSV"),
    "twice": ("file,label\na.png,cat\nb.png,cat\n./a.png,dog\n", "row 2: its file is in row 0"),
    "outside": ("file,label\n../a.png,cat\n", "row 0: the column file must name files inside"),
    "absolute": ("file,label\n/a.png,cat\n", "row 0: the column file must name files inside"),
    "two lines": ('file,label\n"a\n.png",cat\n', "row 0: the name in the column file is empty or"),
    "no name": ("file,label\n,cat\n", "row 0: the name in the column file is empty or"),
}


@pytest.mark.parametrize("kind", WRONG_LABELS)
def test_wrong_files_of_labels_are_one_line(kind, data):
    text, message = WRONG_LABELS[kind]
    for skip_bad in (False, True):
        with pytest.raises(ValueError, match=message) as error:
            listed(data, text, skip_bad=skip_bad)
        assert_tells_nothing(error.value)


WRONG_OPTIONS = {
    "no classes": ({"classes": ()}, r"data.classes is \[\]: give all classes that there are"),
    "one class": ({"classes": ("cat",)}, "give all classes that there are, each once"),
    "class twice": ({"classes": ("cat", "dog", "cat")}, "each once"),
    "no file": ({"labels": "none.csv"}, r"none.csv can't be read \(no such file"),
    "second folder": ({"test_from": "test"}, "data.test-from is test: give None with data.labels"),
    "without labels": ({"labels": None}, "data.classes is .*: give them with data.labels only"),
}


@pytest.mark.parametrize("kind", WRONG_OPTIONS)
def test_wrong_options_of_labels_are_one_line(kind, data):
    settings, message = WRONG_OPTIONS[kind]
    with pytest.raises(ValueError, match=message) as error:
        listed(data, **settings)
    assert_tells_nothing(error.value)


def test_labels_that_are_not_utf8_are_one_line(data):
    (data / "latin.csv").write_bytes(f"file,label\n{CANARY}é.png,cat\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.csv is not UTF-8: convert it") as error:
        listed(data, labels=str(data / "latin.csv"))
    assert_tells_nothing(error.value)


def remove_all(folder):
    shutil.rmtree(folder)


def leave_one_class(folder):
    shutil.rmtree(folder / "dog")


def empty_classes(folder):
    for file in folder.glob("*/*"):
        file.unlink()


WRONG_FOLDERS = {
    "missing": (remove_all, r"can't be read \(no such file or directory\): put it there"),
    "no classes": (lambda folder: [remove_all(folder), folder.mkdir()], "has 0 sub-folders"),
    "one class": (leave_one_class, "has 1 sub-folders: give a folder with one for every class"),
    "no images": (empty_classes, "has no image in any sub-folder"),
    "loose image": (
        lambda f: write(f, {"1.png": PNG}),
        r"holds the file 1\.png beside its sub-fol",
    ),
    "other file": (
        lambda f: write(f, {"cat/notes.txt": CANARY.encode()}),
        r"holds the file cat/notes\.txt, which is no \.png, \.jpg, \.jpeg: leave only",
    ),
    "deeper": (
        lambda f: write(f, {"cat/a/1.png": PNG}),
        "holds the folder cat/a, which is no .png",
    ),
    "two lines": (lambda f: write(f, {"cat/1\n.png": PNG}), r"the name '1\\n\.png' is empty or"),
    "not UTF-8": (
        lambda f: write(f, {os.fsdecode(b"cat/\xff.png"): PNG}),
        r"the name '\\udcff\.png' is empty or has signs that can't be printed: rename",
    ),
    "a file": (lambda f: [remove_all(f), f.write_bytes(PNG)], r"can't be read \(not a directory\)"),
}


@pytest.mark.parametrize("kind", WRONG_FOLDERS)
def test_wrong_folders_are_one_line(kind, data):
    change, message = WRONG_FOLDERS[kind]
    change(animals(data / "animals"))
    for skip_bad in (False, True):
        with pytest.raises(ValueError, match=message) as error:
            read(data / "animals", skip_bad=skip_bad)
        assert_tells_nothing(error.value)


@pytest.mark.parametrize("more", ["train", "test"])
def test_folders_of_other_classes_are_refused(more, data):
    for split in ("train", "test"):
        animals(data / split)
    (data / more / "rat").mkdir()
    with pytest.raises(ValueError, match=rf"has no sub-folder rat, which .*{more} has: make one"):
        opened(data / "train", test_from=str(data / "test"))


def test_an_empty_test_folder_is_one_line(data):
    for name in ("cat", "dog"):
        (data / "test" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="test has no image in any sub-folder"):
        opened(animals(data / "train"), test_from=str(data / "test"))


def test_an_image_that_goes_away_is_one_line(data, monkeypatch):
    found = opened(animals(data))
    (data / "cat" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"1\.png can't be read \(no such file"):
        found.read("train")
    found = opened(animals(data))

    whole = Path.read_bytes

    def gone(self):
        if self.suffix == ".png":
            raise PermissionError(13, "Permission denied")
        return whole(self)

    monkeypatch.setattr(Path, "read_bytes", gone)
    first = next(name for name in in_order(ANIMALS) if name.endswith(".png"))
    with pytest.raises(ValueError, match=rf"{first} can't be read \(permission denied\)"):
        found.read("train")


def test_a_missing_extra_is_one_line(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ValueError, match=rf"data.folder needs PIL.*{DISTRIBUTION}\[images\]"):
        opened(animals(data))
