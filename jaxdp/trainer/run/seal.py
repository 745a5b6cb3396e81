"""Seals a run: destroys its secrets, so that its files can't take the noise off a release.

The order makes a crash harmless. The ledger says first that the run is sealed: from then on no step
is repeated with its secrets, whatever is left of them. Then every key is overwritten in place; the
file can be read at every moment. Then the file is replaced by one without keys. The statements come
last, because they say that it is done. Sealing again finishes what a crash cut short.

Checkpoints hold no key (`checkpoint.to_arrays`).
"""

import json
import os
import re
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from ...types import Tell
from ..disk import BINARY, sync
from ..release.parameters import releases, say_destroyed, says_destroyed
from .files import PARTIAL, locked, write_private
from .resume import open_ledger

LIMITS = (
    "The keys were overwritten in place, and the disk was told to keep that. What else may hold "
    "them is out of reach: copies of the folder and backups; snapshots, and file systems that "
    "write to a new place (Btrfs, ZFS, APFS, data journals); the spare blocks of an SSD or flash "
    "card; network and cloud disks; swap space. Delete copies and snapshots yourself. A disk that "
    "is encrypted is safe once its key is gone."
)


class SecretFile(NamedTuple):
    """A file with keys, and what it says."""

    path: Path
    text: str
    fact: dict[str, Any]


def seal(folder: Path, tell: Tell = print) -> list[Path]:
    """Destroys the secrets of all segments of a run, and says so in its ledger and its releases.

    A later `--resume` begins a new segment: it repeats no step for free.

    Args:
      folder: of the run.
      tell: gets a line about a segment whose file is missing.

    Returns:
      The files that were changed; none if the run was sealed already.

    Raises:
      ValueError: if the folder holds no run, or it is being trained in, or a file is damaged; or
        if the keys were made from a seed. Then nothing was changed.
      OSError: if a file can't be written. Sealing again goes on from there.
    """
    path = folder / "private" / "ledger.txt"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no run (private/ledger.txt): name a folder that "
            "`python -m jaxdp.train` made"
        )
    with locked(folder), closing(open_ledger(path)) as ledger:
        if not ledger.segments:
            raise ValueError(
                f"{folder} stopped before its first step, so its secrets were never used: delete it"
            )
        for number in range(1, len(ledger.segments) + 1):
            if not path.with_name(f"segment-{number}.json").exists():
                tell(f"segment-{number}.json is missing: there is nothing to destroy in it.")
        # All is read before anything is written.
        secret_files = _secret_files(folder / "private")
        half_written = sorted(path.parent.glob(f"segment-*.json{PARTIAL}"))
        statements = [release for release in releases(folder) if not says_destroyed(release)]
        changed = [] if ledger.is_sealed else [path]
        ledger.seal()
        for partial in half_written:  # first: `write_private` would only delete them
            _overwrite(partial, b" " * partial.stat().st_size)
            partial.unlink()
            sync(partial.parent)
        for file in secret_files:
            _destroy(file)
        for release in statements:
            say_destroyed(release)
    return [*changed, *(file.path for file in secret_files), *half_written, *statements]


def _secret_files(private: Path) -> list[SecretFile]:
    """The segments that hold keys, also one that a crash kept out of the ledger."""
    found = []
    for path in sorted(private.glob("segment-*.json")):
        try:
            text = path.read_bytes().decode()
            fact = json.loads(text)
            seed = fact["facts"]["seed"]
            if "secrets" in fact:
                found.append(SecretFile(path, text, fact))
                _place_of_keys(found[-1])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} can't be read ({error}): put back an undamaged copy, or overwrite and "
                "delete it yourself, after which the run can't go on"
            ) from None
        if seed is not None:
            raise ValueError(
                f"the keys in {path} were made from seed {seed}, and can be made again: a run "
                "with a seed has no secrets to destroy. Train without --seed for a private release"
            )
    return found


def _destroy(file: SecretFile) -> None:
    start, end = _place_of_keys(file)
    # Whatever part of this a power failure keeps, the file is valid JSON with the same settings.
    blank = file.text[:start] + re.sub(r"\d", "1", file.text[start:end]) + file.text[end:]
    _overwrite(file.path, blank.encode())
    rest = {name: value for name, value in file.fact.items() if name != "secrets"}
    write_private(file.path, json.dumps(rest, indent=1) + "\n")


def _place_of_keys(file: SecretFile) -> tuple[int, int]:
    """Where the value of "secrets" begins and ends in the text."""
    for match in re.finditer(r'"secrets":\s*', file.text):
        value, end = json.JSONDecoder().raw_decode(file.text, match.end())
        if value == file.fact["secrets"]:
            return match.end(), end
    raise ValueError("its secrets are not where they belong")


def _overwrite(path: Path, content: bytes) -> None:
    """Writes over the bytes of a file, where they are on disk if the file system allows that."""
    descriptor = os.open(path, os.O_WRONLY | BINARY)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
