"""Folders of small images, and how they are opened."""

import hashlib
import io
import os

import numpy as np
import pytest

from jaxdp.datasets.config import DataConfig
from jaxdp.datasets.folders import open_folder

Image = pytest.importorskip("PIL.Image", reason="needs the extra [images]")

CANARY = "xylocanary"  # what a private file holds
SIZE = (6, 5)  # height and width
ANIMALS = ("dog/3.png", "cat/2.jpeg", "dog/0.JPG", "cat/1.png")


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
    """Two classes with two images each: the pictures 0 to 3 as the files ANIMALS."""
    kinds = {name: "PNG" if name.endswith("png") else "JPEG" for name in ANIMALS}
    write(folder, {name: saved(picture(i), kinds[name]) for i, name in enumerate(ANIMALS)})
    return folder


def in_order(names):
    """The files of a folder with a sub-folder per class, in the order of their rows."""
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())


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


def assert_tells_nothing(error):
    assert len(str(error).splitlines()) == 1
    assert CANARY not in str(error)
