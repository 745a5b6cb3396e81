"""Folders of images: every pixel as Pillow has it, and whatever is wrong in one line."""

import io
import os
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from jaxdp._distribution import DISTRIBUTION
from jaxdp.datasets.config import DataConfig
from jaxdp.datasets.folders import open_folder

Image = pytest.importorskip("PIL.Image", reason="needs the extra [images]")
ImageOps = pytest.importorskip("PIL.ImageOps", reason="needs the extra [images]")

CANARY = "xylocanary"  # what a private file holds
SIZE = (6, 5)  # height and width


@pytest.fixture
def data(tmp_path):
    """A folder without the cache beside it, which would be a class."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def picture(seed, mode="RGB", height=13, width=11):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(image, kind="PNG", **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def resized(image, mode="RGB"):
    image = image.convert(mode).resize(SIZE[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(*SIZE, -1)


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def animals(folder):
    """Two classes with two images each; the rows are cat/1, cat/2, dog/0, dog/3."""
    names = ["dog/3.png", "cat/2.jpeg", "dog/0.JPG", "cat/1.png"]
    kinds = {name: "PNG" if name.endswith("png") else "JPEG" for name in names}
    write(folder, {name: saved(picture(i), kinds[name]) for i, name in enumerate(names)})
    return folder


def opened(folder, tell=lambda line: None, **settings):
    return open_folder(DataConfig(folder=str(folder), size=SIZE, **settings), tell)


def read(folder, split="train", **settings):
    return opened(folder, **settings).read(split)


def labels_file(folder, text):
    (folder / "labels.csv").write_text(text)
    return str(folder / "labels.csv")


def listed(folder, text="file,label\nb.png,dog\na.png,cat\n", **settings):
    """Reads two images without sub-folders."""
    write(folder / "images", {f"{n}.png": saved(picture(i)) for i, n in enumerate("ab")})
    settings = {"classes": ("cat", "dog"), "labels": labels_file(folder, text)} | settings
    return read(folder / "images", **settings)


def test_rows_are_in_the_order_of_names_and_classes_of_sub_folders(data):
    told = []
    (animals(data) / "ape").mkdir()
    write(data, {".DS_Store": b"", "cat/.hidden.png": b"", ".cache/1.png": b""})
    found = opened(data, told.append)
    assert dict(found.sizes) == {"train": 4}
    assert (found.format.inputs, found.format.target, found.format.outputs) == ("image", "class", 3)
    assert (found.format.center, found.format.scale) == (127.5, 127.5)
    images, labels = found.read("train").fields
    assert (images.shape, images.dtype, labels.dtype) == ((4, 6, 5, 3), np.uint8, np.int32)
    assert labels.tolist() == [1, 1, 2, 2]
    for row, name in enumerate(["cat/1.png", "cat/2.jpeg", "dog/0.JPG", "dog/3.png"]):
        np.testing.assert_array_equal(images[row], resized(Image.open(data / name)))
    found.read("train")
    assert told == [f"Decoding the 4 images of {data} (once)"]


def test_names_are_ordered_by_their_bytes_and_not_folder_by_folder(data):
    names = ["a/1.png", "a-b/1.png", "a/B.png", "a/a.png", "a/é.png"]
    write(data, {name: saved(picture(i)) for i, name in enumerate(names)})
    images, labels = read(data).fields
    assert labels.tolist() == [1, 0, 0, 0, 0]  # the classes are a and a-b
    for row, name in enumerate(sorted(names, key=os.fsencode)):
        np.testing.assert_array_equal(images[row], resized(picture(names.index(name))))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_pixel_is_converted(mode, channels, data):
    if mode == "I;16":
        high = np.random.default_rng(0).integers(0, 65536, (13, 11)).astype(np.uint16)
        image, eight = Image.fromarray(high), Image.fromarray((high >> 8).astype(np.uint8))
    else:
        image = eight = picture(0, mode)
    if mode in ("LA", "RGBA"):
        alpha = np.random.default_rng(1).integers(0, 256, (13, 11), np.uint8)
        image.putalpha(Image.fromarray(alpha))
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        eight = Image.alpha_composite(black, image.convert("RGBA"))
        visible = np.asarray(picture(0).convert("L" if mode == "LA" else "RGB"))
        over = np.asarray(eight)[..., 0].astype(float)
        part = (visible if mode == "LA" else visible[..., 0]) * (alpha / 255)
        np.testing.assert_allclose(over, part, atol=1)
    content = saved(image, "JPEG" if mode == "CMYK" else "PNG")
    if mode == "CMYK":
        eight = Image.open(io.BytesIO(content))
    write(data, {"a/1.png": content, "b/1.png": content})
    images, _ = read(data, channels=channels).fields
    expected = resized(eight, "L" if channels == 1 else "RGB")
    assert expected.shape == (*SIZE, channels)
    np.testing.assert_array_equal(images[0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation, data):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(picture(0), "PNG", exif=exif)
    write(data, {"a/1.png": content, "b/1.png": saved(picture(0))})
    images, _ = read(data).fields
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(images[0], resized(turned))
    assert np.array_equal(images[0], images[1]) == (orientation == 1)


def test_the_test_records_come_from_a_second_folder(data):
    animals(data / "train")
    write(data / "test", {"dog/7.png": saved(picture(7))})
    (data / "test" / "cat").mkdir()
    found = opened(data / "train", test_from=str(data / "test"))
    assert dict(found.sizes) == {"train": 4, "test": 1}
    images, labels = found.read("test").fields
    np.testing.assert_array_equal(images[0], resized(picture(7)))
    assert labels.tolist() == [1]


def test_a_file_of_labels_says_which_rows_there_are(data):
    for i, text in enumerate(
        ("file,label\nb.png,dog\na.png,cat\n", "\ufefflabel,file\r\ndog,b.png\r\n")
    ):
        images, labels = listed(data, text).fields
        assert labels.tolist() == [1, 0][: 2 - i]
        np.testing.assert_array_equal(images[0], resized(picture(1)))
    _, labels = listed(data, classes=("dog", "rat", "cat")).fields
    assert labels.tolist() == [0, 2]


def test_more_images_than_are_decoded_at_a_time(data, monkeypatch):
    monkeypatch.setattr("jaxdp.datasets.images.CHUNK_BYTES", 3 * 90)
    write(data, {f"{'ab'[i % 2]}/{i}.png": saved(picture(i)) for i in range(8)})
    write(data, {"a/4.png": b"", "b/7.png": b""})
    found = read(data, skip_bad=True)
    assert list(found.bad) == [2, 7]
    expected = [
        np.zeros((*SIZE, 3)) if i in (4, 7) else resized(picture(i))
        for i in (*range(0, 8, 2), *range(1, 8, 2))
    ]
    np.testing.assert_array_equal(found.fields[0], expected)


def test_what_changes_the_records_and_what_does_not(data):
    one = animals(data / "one")
    before = read(one)
    shutil.copytree(one, data / "moved")
    os.utime(data / "moved" / "cat" / "1.png", (0, 0))
    moved = read(data / "moved")
    assert (moved.digest, moved.content) == (before.digest, before.content)
    smaller = open_folder(DataConfig(folder=str(one), size=(3, 3)), print).read("train")
    assert smaller.digest == before.digest  # the same records, decoded in another way
    assert smaller.content != before.content

    (one / "cat" / "2.jpeg").rename(one / "dog" / ".." / "dog" / "-.jpeg")
    relabelled = read(one)  # the files in the same order, one of them of another class
    assert relabelled.fields[1].tolist() == [0, 1, 1, 1]
    write(one, {"dog/9.png": saved(picture(9))})
    appended = read(one)
    assert len({split.digest for split in (before, relabelled, appended)}) == 3


def test_changed_labels_are_other_records(data):
    digests = {
        listed(data, f"file,label\n{rows}\n").digest
        for rows in ("a.png,cat\nb.png,dog", "b.png,dog\na.png,cat", "a.png,dog\nb.png,dog")
    }
    assert len(digests) == 3
    digests = {listed(data, classes=names).digest for names in (("cat", "dog"), ("dog", "cat"))}
    assert len(digests) == 2


def flipped(content, place):
    changed = bytearray(content)
    changed[place] ^= 255
    return bytes(changed)


def huge():
    """A PNG that says it has 20,000 x 20,000 pixels."""
    head = bytearray(saved(picture(0)))
    head[16:24] = struct.pack(">II", 20000, 20000)
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
    "huge": (huge(), "more than 89,478,485 pixels: save it smaller"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images_are_named(kind, data):
    content, message = BAD_IMAGES[kind]
    write(animals(data), {"dog/1.png": content})
    with pytest.raises(ValueError, match=rf"^{data}, row 3: dog/1\.png: .*{message}") as error:
        read(data)
    assert_tells_nothing(error.value)
    found = read(data, skip_bad=True)
    assert list(found.bad) == [3]
    assert (found.fields[0][3].max(), found.fields[1][3], len(found)) == (0, 0, 5)
    np.testing.assert_array_equal(found.fields[0][4], resized(picture(0)))


def test_bad_files_keep_their_row(data):
    write(animals(data), {"cat/0.png": b""})
    (data / "cat" / "1.png").unlink()
    (data / "cat" / "1.png").mkdir()
    (data / "dog" / "3.png").unlink()
    (data / "dog" / "3.png").symlink_to(data / "nowhere")
    with pytest.raises(ValueError, match=r"row 0: cat/0\.png: the file is empty"):
        read(data)
    found = read(data, skip_bad=True)
    assert len(found) == 5
    assert list(found.bad) == [0, 1, 4]
    assert found.bad[1].startswith("cat/1.png: it is a folder")
    assert found.bad[4].startswith("dog/3.png: there is no such file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_file_that_may_not_be_read_keeps_its_row(data):
    (animals(data) / "cat" / "1.png").chmod(0)
    assert "you may not read it" in read(data, skip_bad=True).bad[0]


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
    "missing": (remove_all, r"can't be read \(no such file or directory\): put it back"),
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
    with pytest.raises(ValueError, match=r"cat/1\.png can't be read \(permission denied\)"):
        found.read("train")


def test_a_missing_extra_is_one_line(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ValueError, match=rf"data.folder needs PIL.*{DISTRIBUTION}\[images\]"):
        opened(animals(data))


def assert_tells_nothing(error):
    assert len(str(error).splitlines()) == 1
    assert CANARY not in str(error)
