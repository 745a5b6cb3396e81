"""A segment of a run: its secrets, configuration and fingerprint."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np

from ...dpsgd import keys
from .. import config as configs
from .. import parsing
from .files import write_private
from .fingerprint import Fingerprint


@dataclass(frozen=True)
class Secrets:
    """The key of every stream. Whoever knows them can subtract the noise."""

    init: jax.Array
    noise: jax.Array
    sampling: jax.Array
    augmentation: jax.Array


@dataclass(frozen=True)
class SavedSegment:
    """What private/segment-N.json holds."""

    config: configs.Config
    fingerprint: Fingerprint
    secrets: Secrets


def draw_secrets(seed: int | None, segment: int = 1, init: jax.Array | None = None) -> Secrets:
    """Draws the keys of a segment.

    Args:
      seed: makes them reproducible, and so no secrets; None: from the operating system.
      segment: its number; every segment has keys of its own.
      init: of the first segment, for later ones: what is frozen stays as it was drawn.
    """
    if seed is None:
        noise, augmentation = keys.secret_key(), keys.secret_key()
        # Sampling runs on the host, with 128 bits of key: an rbg key has as many.
        words = np.frombuffer(os.urandom(16), np.uint32)
        sampling = jax.random.wrap_key_data(jax.numpy.asarray(words), impl="rbg")
        return Secrets(keys.secret_key() if init is None else init, noise, sampling, augmentation)
    key = jax.random.key(seed)
    if segment > 1:
        key = keys.stream(key, f"segment {segment}")
    init = keys.stream(key, "init") if init is None else init
    return Secrets(init, noise=key, sampling=key, augmentation=keys.stream(key, "augmentation"))


def save_segment(path: Path, saved: SavedSegment) -> None:
    """Writes the file of a segment, which only its owner may read; synced when it returns."""
    fact = {
        "config": asdict(saved.config),
        "fingerprint": saved.fingerprint,
        "secrets": {
            stream: {
                "impl": str(jax.random.key_impl(key)),
                "words": np.asarray(jax.random.key_data(key)).tolist(),
            }
            for stream, key in vars(saved.secrets).items()
        },
    }
    write_private(path, json.dumps(fact, indent=1) + "\n")


def load_segment(path: Path) -> SavedSegment:
    """Reads the file of a segment.

    Raises:
      ValueError: if it is missing or not what `save_segment` wrote.
    """
    try:
        fact = json.loads(path.read_text())
        secrets = {
            stream: jax.random.wrap_key_data(
                jax.numpy.asarray(key["words"], jax.numpy.uint32), impl=key["impl"]
            )
            for stream, key in fact["secrets"].items()
        }
        config = parsing.from_json(configs.Config, fact["config"])
        return SavedSegment(config, fact["fingerprint"], Secrets(**secrets))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} can't be read ({error}): without the secrets and settings in it the run "
            "can't go on. Put back an undamaged copy of the file"
        ) from None
