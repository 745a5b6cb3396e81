"""A segment of a run: its secrets, and the fingerprint of the computation that may use them again.

Steps that are repeated with the same secrets are free only if they give the same results. So the
fingerprint has everything that may change a bit of them; too much of it costs budget, no privacy.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import config as configs
from . import keys, parsing
from .data import Dataset, Records, arrays_digest
from .plan import Plan

Fingerprint = dict[str, Any]
COMPUTING_PACKAGES = ("jax", "jaxlib", "numpy", "optax", "flax", "scipy")
JAX_SETTINGS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
)
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
NOT_COMPUTED = (
    "name",
    "output",
    "dry_run",
    "resume",
    "checkpoint",
    "evaluations",
)  # of the configuration


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


def make_fingerprint(config: configs.Config, dataset: Dataset, plan: Plan) -> Fingerprint:
    """Everything that decides the results of a step, given the secrets and the state before it."""
    records, public = dataset.private, dataset.public
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_COMPUTED}
    return json.loads(
        json.dumps(
            {
                "config": settings,
                "code": _code_digest(),
                "versions": {name: _version(name) for name in COMPUTING_PACKAGES},
                "jax settings": {name: str(getattr(jax.config, name)) for name in JAX_SETTINGS},
                "XLA flags": os.environ.get("XLA_FLAGS", ""),
                "device": describe_device(),
                "shapes": [plan.capacity, *records.inputs.shape],
                "noise multiplier": plan.noise_multiplier,
                "delta": plan.delta,
                "data": _data_digest(records),
                "public data": None if public is None else _data_digest(public),
                "splits": dict(dataset.digests),
                "sampler": [plan.sampling, plan.expected_batch_size, plan.num_examples],
            }
        )
    )


def steps_repeat_exactly() -> bool:
    """Whether the same step gives the same bits each time that it is run here.

    A GPU adds up in the order in which its threads finish, and another compilation may choose other
    kernels, unless XLA is told not to. Of a CPU the fingerprint has the model and cores.
    """
    platforms = {device.platform for device in jax.devices()}
    flags = os.environ.get("XLA_FLAGS", "").split()
    return platforms == {"cpu"} or (platforms == {"gpu"} and DETERMINISTIC in flags)


def fingerprint_digest(fingerprint: Fingerprint) -> str:
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def changes(before: Fingerprint, now: Fingerprint) -> str:
    """What is not the same any more, in words."""
    parts = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            parts += [f"{name}.{key}" for key in _differing(old, new)]
        elif old != new:
            parts.append(name)
    return ", ".join(parts)


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


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, whole or not at all, synced when it returns."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    partial.rename(path)


def describe_device() -> str:
    """Kind and number of the devices; for a CPU also its model, which decides the order of sums."""
    device = jax.devices()[0]
    text = f"{jax.device_count()} x {device.platform} {device.device_kind}"
    if device.platform != "cpu":
        return text
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        model = next((ln.partition(":")[2] for ln in lines if ln.startswith("model name")), model)
    return f"{text}, {platform.machine()} {model.strip()}, {cores} cores"


def _code_digest() -> str:
    total = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        total.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return total.hexdigest()


def _data_digest(records: Records) -> str:
    return arrays_digest((records.inputs, records.labels, records.numbers()))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _differing(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            names += _differing(before, now, f"{prefix}{key}.")
        elif before != now:
            names.append(f"{prefix}{key}")
    return names
