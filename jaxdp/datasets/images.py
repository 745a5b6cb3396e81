"""Decodes PNG and JPEG into pixels of one size."""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .._distribution import missing

FORMATS = ("PNG", "JPEG")
AT_A_TIME = 4096  # records that are decoded between two writes
CHUNK_BYTES = 2**26  # at most as many pixels, so that large images don't fill the memory
RANGE = "bytes are mapped to [-1, 1], by the range of the file format"
MIDDLE = 127.5  # the center and the scale that do so


class _Unusable(Exception):
    """An image that can't be used. The message is the reason with the cure."""


def import_pillow(what: str) -> Any:
    """Returns the module PIL.Image.

    Args:
      what: what needs it, for the message.

    Raises:
      ValueError: in one line, if it is not installed.
    """
    try:
        import PIL.Image
    except ModuleNotFoundError as error:
        raise ValueError(missing(what, str(error.name), "images")) from None
    return PIL.Image


def at_a_time(record_bytes: int) -> int:
    """Returns how many records of that size are decoded at a time."""
    return max(1, min(AT_A_TIME, CHUNK_BYTES // record_bytes))


def decode_images(
    contents: Sequence[Callable[[], bytes]], size: tuple[int, int], channels: int
) -> tuple[np.ndarray, dict[int, str]]:
    """Decodes images in threads.

    They are turned upright, brought to 8 bits, put on black where they are transparent, converted
    to colours or grey, and resized (bilinear, over the whole area that a pixel covers).

    Args:
      contents: functions that return a PNG or JPEG file each.
      size: height and width.
      channels: 3 for colours, 1 for grey.

    Returns:
      `(images uint8 [n, height, width, channels], bad)`: the places of images that can't be used,
      which are zeros, with the reason and the cure for each.
    """
    images, bad = np.zeros((len(contents), *size, channels), np.uint8), {}

    def work(place: int) -> str | None:
        try:
            images[place] = _decoded(contents[place](), size, channels)
        except _Unusable as error:
            return str(error)
        return None

    # The filters of warnings belong to all threads, so they are set here, and once.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", import_pillow("images").DecompressionBombWarning)
        for place, reason in enumerate(pool.map(work, range(len(contents)))):
            if reason is not None:
                bad[place] = reason
    return images, bad


def _decoded(content: bytes, size: tuple[int, int], channels: int) -> np.ndarray:
    """Returns an image `uint8 [height, width, channels]`."""
    import PIL.Image
    import PIL.ImageOps

    if not content:
        raise _Unusable("the file is empty: put the image in its place")
    mode = "L" if channels == 1 else "RGB"
    try:
        with PIL.Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.format == "PNG" and getattr(opened, "is_animated", False):
                raise _Unusable("it is animated: save one of its frames as the image")
            image = _of_one_byte(PIL.ImageOps.exif_transpose(opened))
            if image.has_transparency_data:
                black = PIL.Image.new("RGBA", image.size, (0, 0, 0, 255))
                image = PIL.Image.alpha_composite(black, image.convert("RGBA"))
            height, width = size
            resized = image.convert(mode).resize((width, height), PIL.Image.Resampling.BILINEAR)
            return np.asarray(resized).reshape(height, width, channels)
    except (_Unusable, MemoryError):
        raise
    except PIL.UnidentifiedImageError:
        raise _Unusable("it is no PNG or JPEG, or damaged: put a whole one there") from None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        limit = PIL.Image.MAX_IMAGE_PIXELS
        raise _Unusable(f"it has more than {limit:,} pixels: save it smaller") from None
    except Exception:  # damaged images raise errors of a dozen types
        raise _Unusable("the image is damaged or cut short: put a whole one in its place") from None


def _of_one_byte(image: Any) -> Any:
    """Brings grey of 16 bits to 8, as Pillow does with colours: by the higher byte."""
    import PIL.Image

    if image.mode.startswith("I"):
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image
