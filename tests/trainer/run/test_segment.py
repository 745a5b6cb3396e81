"""Segments: their secrets are their own, in one file that only the owner reads."""

from dataclasses import replace

import jax
import pytest

from jaxdp.dpsgd import keys

for module in ("orbax.checkpoint", "tyro"):
    pytest.importorskip(module)
from helpers.small_runs import MICROBATCHES  # noqa: E402
from helpers.statements import facts_of  # noqa: E402

from jaxdp.trainer.config import Config  # noqa: E402
from jaxdp.trainer.run.checkpoint import Checkpoints  # noqa: E402
from jaxdp.trainer.run.segment import (  # noqa: E402
    SavedSegment,
    draw_secrets,
    load_segment,
    save_segment,
    secrets_digest,
)


def words_of(secrets):
    return {name: jax.random.key_data(key).tobytes() for name, key in vars(secrets).items()}


def test_secrets_are_in_one_file_that_only_the_owner_reads(secret):
    path = secret / "private" / "segment-1.json"
    assert path.stat().st_mode & 0o777 == 0o600
    secrets = load_segment(path).secrets
    words = words_of(secrets)
    assert len(set(words.values())) == 4
    assert all(len(own) == 16 for own in words.values())  # 128 bits
    checkpoints = Checkpoints(secret / "private" / "checkpoints", 3)
    names = checkpoints.newest(print).arrays.keys()
    checkpoints.close()
    assert "privatize.privatize_step" in names
    assert not any("key" in name for name in names)
    noise = jax.random.key_data(keys.derived(secrets.noise, "noise")).tobytes()
    for file in secret.rglob("*"):
        assert not file.is_file() or noise not in file.read_bytes()


def test_a_seed_repeats_the_secrets_of_a_segment_and_no_other():
    first, again = draw_secrets(3), draw_secrets(3)
    assert words_of(first) == words_of(again)
    second, third = (draw_secrets(3, segment, first.init) for segment in (2, 3))
    for one, other in ((first, second), (second, third), (first, draw_secrets(4))):
        for name in ("noise", "sampling", "loss"):
            assert words_of(one)[name] != words_of(other)[name], name
    assert words_of(second)["init"] == words_of(first)["init"]  # what is frozen stays


@pytest.mark.parametrize("by", ["the command", "fit"])
def test_a_segment_comes_back(tmp_path, by):
    config = Config(seed=3) if by == "the command" else None
    saved = SavedSegment(facts_of(), config, {"a": [1, {"b": None}]}, MICROBATCHES, draw_secrets(3))
    path = tmp_path / "segment-1.json"
    save_segment(path, saved)
    back = load_segment(path)
    assert replace(back, secrets=None) == replace(saved, secrets=None)
    assert words_of(back.keys) == words_of(saved.keys)
    assert secrets_digest(back.keys) == secrets_digest(saved.keys)
    assert back.clipping == saved.clipping
    with pytest.raises(ValueError, match="the secrets of the segment are destroyed: begin a new"):
        _ = replace(back, secrets=None).keys


@pytest.mark.parametrize(
    "damage", ["", "{}", '{"facts": {}, "config": null, "fingerprint": {}, "secrets": {}}']
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "segment-1.json"
    for says in ("No such file", ""):
        with pytest.raises(ValueError, match=rf"{path} can't be read \(.*{says}.*undamaged copy"):
            load_segment(path)
        path.write_text(damage)
