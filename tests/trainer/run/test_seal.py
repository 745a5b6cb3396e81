"""A sealed run: no byte of its secrets is left, and no charged step is repeated without them."""

import itertools
import json
import os
import shutil
from contextlib import closing

import jax
import numpy as np
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.trainer import SHORT, go_on, ledger_of, prepare_resume, stopped_run  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import train  # noqa: E402
from jaxdp.trainer.run import resume  # noqa: E402
from jaxdp.trainer.run import seal as sealing  # noqa: E402
from jaxdp.trainer.run.checkpoint import Checkpoints  # noqa: E402
from jaxdp.trainer.run.files import locked  # noqa: E402
from jaxdp.trainer.run.ledger import Ledger  # noqa: E402
from jaxdp.trainer.run.seal import seal  # noqa: E402
from jaxdp.trainer.run.segment import load_segment  # noqa: E402


class Crash(BaseException):
    """Like a kill."""


@pytest.fixture(scope="session")
def ended_original(tmp_path_factory):
    """A run of 8 steps without a seed that has ended."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    assert train.main([*SHORT, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def ended(ended_original, tmp_path):
    return shutil.copytree(ended_original, tmp_path / "run")


def segment_file(folder, number=1):
    return folder / "private" / f"segment-{number}.json"


def words_of(folder, number=1):
    """The 16 words of a segment's four keys."""
    secrets = json.loads(segment_file(folder, number).read_text())["secrets"]
    words = [word for key in secrets.values() for word in key]
    assert len(words) == 16
    return words


def where_found(folder, words):
    """The files that hold one of the words, written out or as bytes; checkpoints are unpacked."""
    spelled = [str(word).encode() for word in words if word > 10**7]
    spelled += [np.uint32(word).tobytes() for word in words]
    found = {
        path.name
        for path in folder.rglob("*")
        if path.is_file() and any(one in path.read_bytes() for one in spelled)
    }
    checkpoints = Checkpoints(folder / "private" / "checkpoints", 3)
    newest = checkpoints.newest(print)
    checkpoints.close()
    held = b"".join(array.tobytes() for array in newest.arrays.values())
    return found | ({"a checkpoint"} if any(one in held for one in spelled) else set())


def content(folder):
    lock = folder / "private" / "lock"
    files = [path for path in folder.rglob("*") if path.is_file() and path != lock]
    return {path: path.read_bytes() for path in files}


def test_no_key_is_left_in_any_file(ended):
    path, words = segment_file(ended), words_of(ended)
    before = load_segment(path)
    assert where_found(ended, words) == {"segment-1.json"}
    changed = seal(ended)
    ledger, release = ended / "private" / "ledger.txt", ended / "release"
    assert changed == [ledger, path, release]
    assert where_found(ended, words) == set()
    after = load_segment(path)
    assert (after.config, after.fingerprint) == (before.config, before.fingerprint)
    assert after.secrets is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert ledger_of(ended).is_sealed
    assert not list(ended.rglob("*.partial"))


def test_the_statement_says_so_and_changes_nothing_else(ended):
    before = jaxdp.load_release(ended).statement
    pages = ended / "release" / "PRIVACY.md"
    assert before.secrets == "kept"
    assert "kept in private/ of the run: with them, the noise can be" in pages.read_text()
    seal(ended)
    after = jaxdp.load_release(ended).statement
    assert after.secrets == "destroyed"
    assert {**vars(after), "secrets": "kept"} == vars(before)
    assert "destroyed in private/ of the run; copies must be destroyed" in pages.read_text()


def test_a_second_seal_has_nothing_to_do(ended):
    assert seal(ended)
    before = content(ended)
    assert seal(ended) == []
    assert content(ended) == before


def test_keys_are_overwritten_in_place_before_the_file_is_replaced(ended, monkeypatch):
    path, words = segment_file(ended), words_of(ended)
    before, inode = load_segment(path), path.stat().st_ino
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), fsync(fd)))

    def crash(*args):
        raise Crash

    monkeypatch.setattr(sealing, "write_private", crash)
    with pytest.raises(Crash):
        seal(ended)
    assert synced[-1] == path.stat().st_ino == inode
    assert where_found(ended, words) == set()
    half = load_segment(path)
    assert (half.config, half.fingerprint) == (before.config, before.fingerprint)


def test_a_torn_overwrite_is_still_a_segment(secret):
    """A power failure may keep any part of the new bytes."""
    path = segment_file(secret)
    (file,) = sealing._secret_files(path.parent)
    old = path.read_bytes()
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealing, "_overwrite", lambda path, content: written.append(content))
        patch.setattr(sealing, "write_private", lambda *args: None)
        sealing._destroy(file)
    (new,) = written
    assert len(new) == len(old)
    random = np.random.default_rng(0)
    settings = load_segment(path)
    for _ in range(20):
        keep = random.random(len(old)) < 0.5
        mixed = np.where(keep, np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8))
        path.write_bytes(mixed.tobytes())
        assert load_segment(path).config == settings.config


def crash_at_sync(number):
    """A patch under which the so-many-th sync crashes instead."""
    patch, fsync, count = pytest.MonkeyPatch(), os.fsync, itertools.count(1)

    def crash(descriptor):
        if next(count) == number:
            raise Crash
        fsync(descriptor)

    patch.setattr(os, "fsync", crash)
    return patch


def test_a_crash_at_any_write_leaves_a_run_that_can_be_sealed_and_is_never_half_open(
    ended_original, tmp_path
):
    words, crashes = words_of(ended_original), 0
    for number in itertools.count(1):
        folder = shutil.copytree(ended_original, tmp_path / f"run-{number}")
        patch = crash_at_sync(number)
        try:
            seal(folder)
            break  # it makes fewer syncs
        except Crash:
            crashes += 1
        finally:
            patch.undo()
        left = where_found(folder, words)
        history = resume.open_history(folder, 3, print)
        history.close()
        # Whole secrets, or a ledger that says that there are none.
        assert history.ledger.is_sealed == (history.last.secrets is None)
        if not history.ledger.is_sealed:
            assert words_of(folder) == words
        # No statement says that it is done before it is.
        if jaxdp.load_release(folder).statement.secrets == "destroyed":
            assert left == set()
        seal(folder)
        assert where_found(folder, words) == set()
        assert not list((folder / "private").glob("*.partial"))
        assert jaxdp.load_release(folder).statement.secrets == "destroyed"
        assert seal(folder) == []
    assert crashes >= 8


def test_a_resume_begins_a_new_segment_and_pays_again(secret, capsys):
    charged, words = ledger_of(secret).steps, words_of(secret)
    seal(secret)
    run, history, said = prepare_resume(secret)
    assert not run.repeats
    assert "with new secrets: the run was sealed, which destroyed the old ones" in said
    assert (history.step, run.first_step) == (4, 4)

    assert go_on(secret) == 0
    ledger = ledger_of(secret)
    first, second = ledger.mechanisms()
    assert (first.steps, ledger.segments[1].start) == (charged, 4)
    assert second.steps > 0
    assert ledger.epsilon() <= 3.0
    assert (ledger.sealed, ledger.is_sealed) == (1, False)
    fresh = words_of(secret, 2)
    assert not set(fresh) & set(words)
    assert jaxdp.load_release(secret).statement.secrets == "kept"

    changed = seal(secret)
    assert segment_file(secret, 2) in changed
    assert segment_file(secret) not in changed
    assert where_found(secret, [*words, *fresh]) == set()
    assert ledger_of(secret).sealed == 2
    assert jaxdp.load_release(secret).statement.secrets == "destroyed"


def test_without_checkpoints_a_sealed_run_begins_again_and_pays(secret):
    seal(secret)
    shutil.rmtree(secret / "private" / "checkpoints")
    run, history, _ = prepare_resume(secret)
    assert (history.step, run.first_step, run.repeats) == (0, 0, False)
    assert resume.steps_left(history, run.plan, run.repeats) < run.plan.steps


def test_a_sealed_run_that_has_ended_takes_no_step(ended, capsys):
    seal(ended)
    before = content(ended)
    assert go_on(ended) == 0
    assert "All steps were taken: the release is in" in " ".join(capsys.readouterr().out.split())
    assert content(ended) == before


def test_secrets_that_are_put_back_are_not_used(secret):
    path = segment_file(secret)
    copy = path.read_bytes()
    seal(secret)
    path.write_bytes(copy)
    run, history, _ = prepare_resume(secret)
    assert not run.repeats
    assert history.last.secrets is None
    noise = jax.random.key_data(run.saved.secrets.noise).tolist()
    assert noise != json.loads(copy)["secrets"]["noise"]
    assert seal(secret) == [path]
    assert load_segment(path).secrets is None


def test_a_release_that_was_set_aside_says_so_too(ended):
    aside = shutil.copytree(ended / "release", ended / "release-after-3-steps")
    seal(ended)
    assert jaxdp.load_release(aside).statement.secrets == "destroyed"


def test_a_run_without_a_release_is_sealed(secret):
    assert not (secret / "release").exists()
    assert seal(secret) == [secret / "private" / "ledger.txt", segment_file(secret)]
    assert not (secret / "release").exists()


def test_secrets_that_never_reached_the_ledger_are_destroyed_too(secret):
    """A crash may keep a segment out of the ledger, or leave its file half written."""
    private = secret / "private"
    text = segment_file(secret).read_text()
    unused, partial = segment_file(secret, 2), private / "segment-2.json.partial"
    unused.write_text(text)
    partial.write_text(text[:-40])
    overwritten = []
    with pytest.MonkeyPatch.context() as patch:
        overwrite = sealing._overwrite

        def note(path, content):
            overwrite(path, content)
            overwritten.append((path, path.read_bytes()))

        patch.setattr(sealing, "_overwrite", note)
        seal(secret)
    assert not partial.exists()
    assert dict(overwritten)[partial].strip() == b""
    assert {unused, segment_file(secret)} < dict(overwritten).keys()
    assert load_segment(unused).secrets is None


def test_a_missing_segment_does_not_keep_the_others(secret):
    segment_file(secret).rename(segment_file(secret, 2))
    said = []
    assert segment_file(secret, 2) in seal(secret, said.append)
    assert said == ["segment-1.json is missing: there is nothing to destroy in it."]


def test_a_folder_in_use_is_not_sealed(secret):
    before = content(secret)
    with (
        locked(secret),
        pytest.raises(ValueError, match=f"is being trained in by process {os.getpid()}"),
    ):
        seal(secret)
    assert content(secret) == before


def test_what_was_made_from_a_seed_cannot_be_destroyed(seeded):
    before = content(seeded)
    with pytest.raises(
        ValueError, match=r"made from seed 1, and can be made again.*without --seed"
    ):
        seal(seeded)
    assert content(seeded) == before


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"facts": {"seed": null}, "secrets" :{}}'])
def test_a_damaged_segment_is_refused_before_anything_is_written(secret, damage):
    segment_file(secret).write_text(damage)
    before = content(secret)
    with pytest.raises(ValueError, match=r"segment-1\.json can't be read .*undamaged copy"):
        seal(secret)
    assert content(secret) == before


def test_a_damaged_statement_is_refused_before_anything_is_written(ended):
    (ended / "release" / "privacy.json").write_text("{")
    before = content(ended)
    with pytest.raises(ValueError, match=r"privacy\.json can't be read"):
        seal(ended)
    assert content(ended) == before


def test_what_is_no_run_is_refused(tmp_path, secret):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run"):
        seal(tmp_path)
    path = secret / "private" / "ledger.txt"
    with closing(Ledger.read(path)) as old:
        path.unlink()
        Ledger.create(path, old.budget).close()
    with pytest.raises(ValueError, match=r"stopped before its first step.*delete it"):
        seal(secret)


@pytest.mark.slow
def test_a_stopped_run_is_sealed_with_its_clipping_norms_and_frozen_parameters(tmp_path):
    """What a resume takes from the checkpoint, it still finds there."""
    folder = stopped_run(tmp_path / "run", "--training.frozen", "Dense_0/bias")
    before = prepare_resume(folder)[0]
    seal(folder)
    after = prepare_resume(folder)[0]
    assert (before.repeats, after.repeats) == (True, False)
    for part in ("frozen", "state"):
        trees = [getattr(run, part) for run in (before, after)]
        if part == "state":
            trees = [(tree.params, tree.optimizer) for tree in trees]
        jax.tree.map(np.testing.assert_array_equal, *trees)
