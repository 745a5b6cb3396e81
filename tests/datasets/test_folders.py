"""Folders of images: every pixel as Pillow has it, and rows in an order that is told."""

import io
import os
import shutil

import numpy as np
import pytest
from helpers.pictures import (
    ANIMALS,
    SIZE,
    Image,
    animals,
    in_order,
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


def test_rows_are_the_images_and_classes_the_sub_folders(data):
    told = []
    (animals(data) / "ape").mkdir()
    write(data, {".DS_Store": b"", "cat/.hidden.png": b"", ".cache/1.png": b""})
    found = opened(data, told.append)
    assert dict(found.sizes) == {"train": 4}
    assert (found.format.inputs, found.format.target, found.format.outputs) == ("image", "class", 3)
    assert (found.format.center, found.format.scale) == (127.5, 127.5)
    images, labels = found.read("train").fields
    assert (images.shape, images.dtype, labels.dtype) == ((4, 6, 5, 3), np.uint8, np.int32)
    rows = in_order(ANIMALS)
    assert labels.tolist() == [["ape", "cat", "dog"].index(name[:3]) for name in rows]
    for row, name in enumerate(rows):
        np.testing.assert_array_equal(images[row], resized(Image.open(data / name)))
    found.read("train")
    assert told == [f"Decoding the 4 images of {data} (once)"]


def test_rows_are_in_the_order_of_a_hash_of_their_names(data):
    names = ["a/1.png", "a-b/1.png", "a/B.png", "a/a.png", "a/é.png"]
    write(data, {name: saved(picture(i)) for i, name in enumerate(names)})
    images, labels = read(data).fields
    rows = in_order(names)
    assert rows not in (names, sorted(names, key=os.fsencode))
    assert labels.tolist() == [int(name == "a-b/1.png") for name in rows]
    for row, name in enumerate(rows):
        np.testing.assert_array_equal(images[row], resized(picture(names.index(name))))


def of_one_colour(names):
    """Images that are told apart by the value of their pixels: 0, 1, 2 ..."""
    return {name: saved(Image.new("L", (3, 3), value)) for value, name in enumerate(names)}


def values_and_labels(folder):
    images, labels = read(folder, channels=1).fields
    return images[:, 0, 0, 0].tolist(), labels


def test_slices_hold_all_classes_in_about_their_shares(data):
    names = [f"{name}/{i:02}.png" for name in ("dark", "light") for i in range(60)]
    values, labels = values_and_labels(write(data, of_one_colour(names)))
    assert sorted(values) == [*range(120)]
    assert labels.tolist() == [value // 60 for value in values]
    for begin in range(0, 120, 30):
        assert 0.3 <= labels[begin : begin + 30].mean() <= 0.7, begin


def test_the_order_of_two_files_does_not_depend_on_others(data):
    names = [f"{name}/{i:02}.png" for name in ("dark", "light") for i in range(60)]
    write(data, of_one_colour(names))
    before, _ = values_and_labels(data)
    for name in names[::3]:
        (data / name).unlink()
    # A class before the others, and more files in one of them.
    more = [f"{name}/{i}.png" for name in ("a", "dark") for i in range(100, 140)]
    write(data, {name: saved(Image.new("L", (3, 3), 255)) for name in more})
    after, _ = values_and_labels(data)
    left = [value for value in after if value != 255]
    assert (len(after), len(left)) == (160, 80)
    assert left == [value for value in before if value % 3]


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
    row = in_order(["a/1.png", "b/1.png"]).index("a/1.png")
    np.testing.assert_array_equal(images[row], resized(turned))
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
    names = [f"{'ab'[i % 2]}/{i}.png" for i in range(8)]
    write(data, {name: saved(picture(i)) for i, name in enumerate(names)})
    write(data, {"a/4.png": b"", "b/7.png": b""})
    found = read(data, skip_bad=True)
    rows = in_order(names)
    assert list(found.bad) == sorted(rows.index(name) for name in ("a/4.png", "b/7.png"))
    expected = [
        np.zeros((*SIZE, 3)) if i in (4, 7) else resized(picture(i))
        for i in (names.index(name) for name in rows)
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

    # The files stay in the same order, and one of them is of another class.
    rows = in_order(ANIMALS)
    place = rows.index("cat/2.jpeg")
    others = [name for name in rows if name != "cat/2.jpeg"]
    new = next(
        name
        for name in (f"dog/{i}.jpeg" for i in range(10, 1000))
        if in_order([*others, name])[place] == name
    )
    (one / "cat" / "2.jpeg").rename(one / new)
    relabelled = read(one)
    np.testing.assert_array_equal(relabelled.fields[0], before.fields[0])
    changed = relabelled.fields[1] - before.fields[1]
    assert changed.tolist() == [int(row == place) for row in range(4)]
    last = next(
        name
        for name in (f"dog/{i}.png" for i in range(10, 1000))
        if in_order([*others, new, name])[-1] == name
    )
    write(one, {last: saved(picture(9))})
    appended = read(one)
    np.testing.assert_array_equal(appended.fields[0][:4], before.fields[0])
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
    old, new = in_order(ANIMALS), in_order({*ANIMALS, "dog/1.png"} - {"cat/2.jpeg"})
    for name in {*old} & {*new}:
        np.testing.assert_array_equal(after[new.index(name)], before[old.index(name)])
    np.testing.assert_array_equal(after[new.index("dog/1.png")], resized(picture(8)))
