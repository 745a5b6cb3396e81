"""Puts features in the place of images: computed once, and then kept in the cache."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from ..types import Tell
from .decoding import Chunk, Reading, Split, read
from .digests import arrays_digest
from .images import at_a_time
from .rows import in_chunks
from .scattering import VERSION, scattering
from .sources import SplitSet

Compute = Callable[[np.ndarray], jax.Array]  # features of some images

AT_A_TIME = 512  # images, or fewer where their features are many

TELL_SECONDS = 10.0  # between two lines about how far it is

SCALING = (
    "{call} (version {version}) makes features of images, by a fixed map of each record alone; "
    "{brightest:g} is the largest number that the file format has"
)


def with_scattering(images: SplitSet, mirrored: bool, tell: Tell) -> SplitSet:
    """Returns the set with the scattering features of its images, as float16.

    A record is the same record as before: its digest is that of its image, and its features are a
    fixed map of that. So they cost no ε.

    Args:
      images: a set of images uint8 `[height, width, colours]`.
      mirrored: as for `scattering`.
      tell: gets a line about everything that takes long.

    Raises:
      ValueError: in one line, for a set of something else than images, or of unsuitable sides.
    """
    form = images.format
    if form.inputs != "image":
        raise ValueError(
            "data.features is 'scattering', which is for images, but the data are not: leave it out"
        )
    pixels = f"images / {form.brightest:g}"
    call = f"jaxdp.scattering({pixels}, normalised=True, mirrored={mirrored})"
    scaling = SCALING.format(brightest=form.brightest, call=call, version=VERSION)
    of_one = lambda image: scattering(
        image.astype(np.float32) / form.brightest, normalised=True, mirrored=mirrored
    )
    # One image after the other: no rounding of its features depends on others, or on its place.
    compute = jax.jit(lambda images: jax.lax.map(of_one, images))
    return replace(
        images,
        read=lambda split: _featured(images.read(split), split, scaling, compute, tell),
        format=replace(
            form,
            center=0.0,
            scale=1.0,
            scaling=scaling,
            decoding=f"{form.decoding} {scaling}",
            made_by=call,
        ),
    )


def _featured(split: Split, name: str, about: str, compute: Compute, tell: Tell) -> Split:
    images, labels = split.fields
    try:
        one = jax.eval_shape(compute, images[:1])
    except ValueError as error:
        raise ValueError(
            f"data.features is 'scattering': {error} (of a folder: --data.size 28 28)"
        ) from None
    count = min(AT_A_TIME, at_a_time(one.size * one.dtype.itemsize))
    content = split.content or arrays_digest((images, labels))
    reading = Reading(
        title=f"the scattering features of the split {name}",
        files=(),
        about=f"{about} {content} JAX {jax.__version__}",
        form=(
            jax.ShapeDtypeStruct(one.shape[1:], np.float16),
            jax.ShapeDtypeStruct(labels.shape[1:], labels.dtype),
        ),
        chunks=partial(_chunks, images, labels, count, name, compute, tell),
        telling=f"Computing the scattering features of {len(images):,} images, split {name} (once)",
    )
    made = read(reading, skip_bad=True, tell=tell)
    cached = made.cached or split.cached  # the images may be kept where the features are not
    return replace(made, digest=split.digest, bad=split.bad, cached=cached)


def _chunks(
    images: np.ndarray, labels: np.ndarray, count: int, name: str, compute: Compute, tell: Tell
) -> Iterator[Chunk]:
    told = time.monotonic()
    for rows in in_chunks(len(images), count):
        part = images[rows.start : rows.stop]
        # The last ones are filled up, so that one program is compiled.
        filled = np.pad(part, [(0, count - len(part)), *[(0, 0)] * (part.ndim - 1)])
        features = np.asarray(compute(filled))[: len(part)].astype(np.float16)
        yield Chunk((features, np.asarray(labels[rows.start : rows.stop])))
        if time.monotonic() - told > TELL_SECONDS:
            tell(f"Split {name}: {rows.stop:,} of {len(images):,} images")
            told = time.monotonic()
