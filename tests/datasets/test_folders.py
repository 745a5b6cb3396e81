"""Folders of images: every pixel as Pillow has it, and rows in an order that is told."""

import io
import os
import shutil

import numpy as np
import pytest
from helpers.pictures import (
    SIZE,
    Image,
    animals,
    listed,
    opened,
    picture,
    read,
    resized,
    saved,
    write,
)

from jaxdp.datasets.config import DataConfig
from jaxdp.datasets.folders import open_folder

ImageOps = pytest.importorskip("PIL.ImageOps", reason="needs the extra [images]")


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


def test_a_row_has_nothing_to_do_with_the_others(data):
    before, _ = read(animals(data)).fields
    (data / "cat" / "2.jpeg").unlink()
    write(data, {"dog/1.png": saved(picture(8))})
    after, _ = read(data).fields
    np.testing.assert_array_equal(after[[0, 1, 3]], before[[0, 2, 3]])
