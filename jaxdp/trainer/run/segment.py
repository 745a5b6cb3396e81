"""A segment of a run: its secrets, what is known of it, and its fingerprint."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ...dpsgd import keys
from .. import config as configs
from .. import parsing
from ..microbatches import Microbatches
from ..release import typed_json
from ..release.claims import SegmentFacts
from .files import write_private
from .fingerprint import Fingerprint


@dataclass(frozen=True)
class Secrets:
    """The keys of a segment, of 128 bits. Whoever knows them can subtract the noise."""

    init: jax.Array
    noise: jax.Array
    sampling: jax.Array
    loss: jax.Array  # for augmentation, dropout and whatever else the loss draws


@dataclass(frozen=True)
class SavedSegment:
    """The content of private/segment-N.json.

    Attributes:
      facts: for the statement.
      config: the configuration of the command; None: the run was made by `fit`.
      fingerprint: everything that may change a bit of its results.
      microbatches: how gradients are computed.
      secrets: None: they are destroyed (`seal`).
    """

    facts: SegmentFacts
    config: configs.Config | None
    fingerprint: Fingerprint
    microbatches: Microbatches
    secrets: Secrets | None

    @property
    def clipping(self) -> str:
        """What decides the clipping norms, as text."""
        facts = self.facts.mechanism.clipping
        options = None if self.config is None else self.config.clipping
        return f"{facts.call} {facts.clipping_norms} {options}"

    @property
    def keys(self) -> Secrets:
        """The secrets. Raises ValueError if they are destroyed."""
        if self.secrets is None:
            raise ValueError("the secrets of the segment are destroyed: begin a new one")
        return self.secrets


def draw_secrets(seed: int | None, segment: int = 1, init: jax.Array | None = None) -> Secrets:
    """Draws the keys of a segment; in several processes, the same ones for all.

    Args:
      seed: makes the keys reproducible, so they are not secret. None: from the operating system.
      segment: number of the segment; every segment has its own keys.
      init: for later segments, the `init` key of the first: frozen parameters stay as they were
        drawn.
    """
    if seed is None:
        init = keys.secret_key() if init is None else init
        return Secrets(init, keys.secret_key(), keys.secret_key(), keys.secret_key())
    key = keys.derived(jax.random.key(seed), f"segment {segment}")
    # One key for all uses: each hashes it with its name.
    return Secrets(key if init is None else init, key, key, key)


def segment_file(folder: Path, number: int) -> Path:
    """The file of a segment in a run's folder."""
    return folder / "private" / f"segment-{number}.json"


def save_segment(path: Path, saved: SavedSegment) -> None:
    """Writes the file of a segment. Only its owner may read it; it is synced on return."""
    fact = {
        "facts": typed_json.to_json(saved.facts),
        "config": None if saved.config is None else asdict(saved.config),
        "fingerprint": saved.fingerprint,
        "microbatches": typed_json.to_json(saved.microbatches),
        "secrets": words_of_all(saved.keys),
    }
    write_private(path, json.dumps(fact, indent=1) + "\n")


def load_segment(path: Path) -> SavedSegment:
    """Reads the file of a segment. Without secrets in it, they are None.

    Raises:
      ValueError: if it is missing or damaged.
    """
    try:
        fact = json.loads(path.read_bytes())
        secrets = keys_of_all(fact["secrets"]) if "secrets" in fact else None
        config = fact["config"]
        return SavedSegment(
            typed_json.from_json(SegmentFacts, fact["facts"]),
            None if config is None else parsing.from_json(configs.Config, config),
            fact["fingerprint"],
            typed_json.from_json(Microbatches, fact["microbatches"]),
            secrets,
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} can't be read ({error}): without the secrets and settings in it the run "
            "can't go on. Put back an undamaged copy of the file"
        ) from None


def secrets_digest(secrets: Secrets) -> str:
    """A checksum of a segment's keys. Nobody can guess keys of 128 bits from it."""
    text = json.dumps(words_of_all(secrets), sort_keys=True)
    return hashlib.sha256(f"the secrets of a segment of jaxdp\n{text}".encode()).hexdigest()


def key_of(words: Any) -> jax.Array:
    """A key of four words of JSON. Its error names none: a message is no place for a secret."""
    if len(words) != 4 or not all(type(word) is int and 0 <= word < 2**32 for word in words):
        raise ValueError("a key is not four words of 32 bits")
    return jax.random.wrap_key_data(jax.numpy.asarray(words, jax.numpy.uint32), impl="rbg")


def words_of(key: jax.Array) -> list[int]:
    """The four words of a key, as `key_of` reads them."""
    words: list[int] = np.asarray(jax.random.key_data(key)).tolist()
    return words


def keys_of_all(words: dict[str, Any]) -> Secrets:
    """The secrets of their words, as JSON has them."""
    return Secrets(**{name: key_of(of_one) for name, of_one in words.items()})


def words_of_all(secrets: Secrets) -> dict[str, list[int]]:
    """The words of all keys, as `keys_of_all` reads them."""
    return {name: words_of(key) for name, key in vars(secrets).items()}
