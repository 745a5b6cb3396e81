"""Runs on files of one's own: bad rows count and are in no batch; the records stay the same."""

import json
import os
import re
import shutil

import jax
import numpy as np
import pytest

for module in ("tyro", "safetensors"):
    pytest.importorskip(module)
from helpers.trainer import crash_at, go_on, ledger_of, prepare_resume  # noqa: E402

from jaxdp import data, evaluate, load_release, predict, train  # noqa: E402
from jaxdp.datasets import loading  # noqa: E402
from jaxdp.datasets.config import DataConfig  # noqa: E402
from jaxdp.trainer.command import make_job  # noqa: E402
from jaxdp.trainer.config import Config  # noqa: E402
from jaxdp.trainer.parsing import parse  # noqa: E402

N = 300
SCHEMA = """
origin = "common sense"
[columns.height]
kind = "number"
low = 100
high = 220
[columns.smokes]
kind = "category"
values = ["yes", "no"]
[columns.days]
kind = "number"
low = 0
high = 30
[columns.ill]
kind = "category"
values = ["no", "yes"]
"""
HEAD = "height,smokes,days,ill\n"
STEPS = 6
BAD = 17


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def lines(count=N, seed=0):
    rng = np.random.default_rng(seed)
    heights, days = rng.normal(170, 12, count), rng.integers(0, 40, count)
    smokes = rng.choice(["yes", "no"], count)
    return [
        f"{height:.1f},{smoke},{day},{'yes' if height + day > 190 else 'no'}\n"
        for height, smoke, day in zip(heights, smokes, days, strict=True)
    ]


def write(folder, rows, name="visits.csv"):
    (folder / "schema.toml").write_text(SCHEMA)
    (folder / name).write_text(HEAD + "".join(rows))
    return folder / name


def options(file, *more):
    return [
        *("--data.file", str(file), "--data.schema", str(file.parent / "schema.toml")),
        *("--data.label", "ill", "--data.private", "train[:80%]", "--data.test", "train[80%:]"),
        *("--model.name", "linear", "--plan.expected-batch-size", "60"),
        *("--plan.steps", str(STEPS), "--checkpoint.every-seconds", "0", *more),
    ]


@pytest.mark.slow
def test_scores_are_of_the_rows_that_can_be_used(tmp_path, capsys):
    rows = lines()
    rows[299] = "SECRET,yes,3,no\n"
    file = write(tmp_path, rows)
    run = tmp_path / "run"
    assert train.main(options(file, "--output", str(run), "--data.skip-bad")) == 0
    assert "on 59 of 60 records" in " ".join(capsys.readouterr().out.replace("│", "").split())
    assert evaluate.main([str(run)]) == 0
    assert "59 of 60 records (the others can't be used)" in capsys.readouterr().out


def test_a_table_becomes_a_release(tmp_path, capsys):
    file = write(tmp_path, lines())
    run = tmp_path / "run"
    assert train.main(options(file, "--output", str(run))) == 0
    release = load_release(run)
    used = release.statement.data
    assert (used.name, used.source, used.bad_rows, used.cached) == (
        *("table", "table", "refused"),
        True,
    )
    assert used.fields == (
        "height: number of 100 to 220",
        "smokes: category of 2 values",
        "days: number of 0 to 30",
        "ill: category of 2 values, the label",
    )
    assert "common sense" in release.statement.preprocessing.description
    page = (run / "release" / "PRIVACY.md").read_text()
    assert "readable by its owner alone" in page
    for path in (run / "release").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert b"visits" not in path.read_bytes()
    inputs = loading.load(parse(options(file)).data)[0].test.fields[0]
    assert release.predict(inputs)["class"].shape == (60,)
    capsys.readouterr()
    assert evaluate.main([str(run)]) == 0
    assert (
        "table, train[80%:]: 60 records, PRIVATE: so are these numbers" in capsys.readouterr().out
    )
    shutil.copytree(run / "release", tmp_path / "alone")
    assert evaluate.main([str(tmp_path / "alone")]) == 2
    assert "the data are a table, and a release does not have it" in capsys.readouterr().err
    given = [
        *("--data.file", str(file), "--data.label", "ill"),
        *("--data.schema", str(file.parent / "schema.toml")),
    ]
    assert evaluate.main([str(tmp_path / "alone"), *given]) == 0
    assert "60 records, not the run's test records" in capsys.readouterr().out  # who knows?
    new = [*("--data.file", str(write(tmp_path, lines(40, seed=9), "new.csv"))), *given[2:]]
    for scored in (run, tmp_path / "alone"):  # all rows of another file
        assert evaluate.main([str(scored), *new, "--data.test", "train"]) == 0
        assert "train: 40 records, not the run's test records" in capsys.readouterr().out
        assert evaluate.main([str(scored), *new, "--data.test", "train", "--confusion"]) == 2
        assert "the test records are not declared public" in capsys.readouterr().err
    # The file's own private rows are no test records, whatever they are called.
    swapped = ["--data.private", "train[80%:]", "--data.test", "train[:80%]", "--data.name", "x"]
    public = ["--confusion", "--data.test-is-public"]
    assert evaluate.main([str(run), *swapped, *public]) == 2
    assert (
        "in an earlier segment of the run" in (said := capsys.readouterr().err) or "began" in said
    )
    # Values in another order would be other classes.
    other = tmp_path / "other.toml"
    other.write_text(SCHEMA.replace('["no", "yes"]', '["yes", "no"]'))
    for scored in (run, tmp_path / "alone"):
        assert evaluate.main([str(scored), *given, "--data.schema", str(other)]) == 2
        assert "decoded in another way than those that the model" in capsys.readouterr().err


def test_new_rows_are_predicted_without_their_label(tmp_path, capsys):
    file = write(tmp_path, lines())
    run = tmp_path / "run"
    assert train.main(options(file, "--output", str(run))) == 0
    expected = load_release(run).predict(loading.load(parse(options(file)).data)[0].test.fields[0])
    new = tmp_path / "new.csv"
    rows = [line.rpartition(",")[0] + "\n" for line in lines()[240:]]
    new.write_text("height,smokes,days\n" + "".join(rows))
    capsys.readouterr()
    for path in (run, file):  # with its label it is read, too
        assert predict.main([str(run), str(new if path == run else file)]) == 0
        head, *said = capsys.readouterr().out.splitlines()
        assert head == "class,scores_0,scores_1"
        found = np.array([line.split(",") for line in said], float)[-60:]
        np.testing.assert_array_equal(found[:, 0], expected["class"])
        np.testing.assert_allclose(found[:, 1:], expected["scores"], rtol=1e-5)
    shutil.copytree(run / "release", tmp_path / "alone")
    assert predict.main([str(tmp_path / "alone"), str(new)]) == 2
    assert "data.schema is not set" in capsys.readouterr().err
    schema = ["--data.schema", str(tmp_path / "schema.toml"), "--data.label", "ill"]
    assert predict.main([str(tmp_path / "alone"), str(new), *schema]) == 0
    capsys.readouterr()
    new.write_text(new.read_text() + "SECRET,yes,3\n")
    assert predict.main([str(run), str(new)]) == 2
    said = capsys.readouterr().err
    assert "new.csv, row 60: column 'height' is no finite number" in said
    assert "SECRET" not in said
    assert predict.main([str(run), str(new), "--data.window", "8"]) == 2
    assert "data.window is 8, but it says nothing about the inputs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_number_is_learnt_within_its_range(tmp_path, capsys):
    file = write(tmp_path, lines())
    run = tmp_path / "run"
    assert train.main(options(file, "--data.label", "days", "--output", str(run))) == 0
    said = capsys.readouterr().out
    assert "test absolute_error" in said
    release = load_release(run)
    assert release.statement.task.name == "regressor"
    data, made = loading.load(parse(options(file, "--data.label", "days")).data)
    assert (made.target_center, made.target_scale) == (15.0, 15.0)
    inputs, targets = data.test.fields
    assert targets.max() == 30.0  # clipped
    off = np.mean(np.abs(release.predict(inputs) - targets))
    scores = json.loads((run / "private" / "results.json").read_text())["scores"]
    assert scores["absolute_error"] == pytest.approx(off, rel=1e-5)  # in days


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_release(tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name, low, high in (("dark", 0, 120), ("light", 100, 255)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(60):
            pixels = rng.integers(low, high, (20, 24, 3)).astype(np.uint8)
            image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i:02}.png")
    (tmp_path / "photos" / "light" / "07.png").write_bytes(b"SECRET")
    given = [
        *("--data.folder", str(tmp_path / "photos"), "--data.size", "8", "8"),
        *("--data.private", "train[:50]+train[60:110]", "--data.test", "train[50:60]+train[110:]"),
        *("--model.name", "linear", "--plan.expected-batch-size", "50", "--plan.steps", "20"),
        *("--plan.epsilon", "8", "--output", str(tmp_path / "run")),
    ]
    assert train.main(given) == 2
    assert re.search(r"photos, row \d+: light/07\.png: ", capsys.readouterr().err)
    again = ["--data.test-from", str(tmp_path / "photos"), "--data.private", "train"]
    assert train.main([*given, *again, "--data.test", "test", "--data.skip-bad"]) == 2
    assert "the records of 'train' and 'test' are the same" in capsys.readouterr().err
    assert train.main([*given, "--data.skip-bad"]) == 0
    release = load_release(tmp_path / "run")
    assert release.statement.data.source == "folder"
    dark, light = release.predict(np.stack([np.full((8, 8, 3), c, np.uint8) for c in (60, 180)]))[
        "class"
    ]
    assert (dark, light) == (0, 1)
    for path in (tmp_path / "run" / "release").iterdir():
        assert b"photos" not in path.read_bytes()


@pytest.mark.slow
def test_documents_of_a_table_become_a_release(tmp_path):
    rng = np.random.default_rng(0)
    schema = """
    origin = "common sense"
    [columns.words]
    kind = "text"
    [columns.ill]
    kind = "category"
    values = ["no", "yes"]
    """
    (tmp_path / "schema.toml").write_text(schema)
    words = {"yes": ["cough", "fever", "pain"], "no": ["fine", "well", "fever"]}
    rows = [
        f'"{" ".join(rng.choice(words[ill], 5))}",{ill}\n' for ill in rng.choice(["yes", "no"], N)
    ]
    file = tmp_path / "notes.csv"
    file.write_text("words,ill\n" + "".join(rows))
    more = ["--model.name", "embedding", "--data.vocabulary", "64", "--data.length", "8"]
    more += ["--output", str(tmp_path / "run"), "--training.learning-rate", "20"]
    assert train.main(options(file, *more, "--plan.epsilon", "8", "--plan.steps", "40")) == 0
    scores = json.loads((tmp_path / "run" / "private" / "results.json").read_text())["scores"]
    assert scores["accuracy"] > 0.8
    page = (tmp_path / "run" / "release" / "PRIVACY.md").read_text()
    assert "hash" in page


def bad_lines():
    rows = lines()
    rows[BAD] = "SECRET,yes,3,no\n"
    return rows


def test_a_bad_row_is_told_before_anything_is_spent(tmp_path, capsys):
    file = write(tmp_path, bad_lines())
    assert train.main(options(file, "--output", str(tmp_path / "run"))) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert f"{file}, row {BAD}: column 'height'" in line
    assert "SECRET" not in line + said.out
    assert not (tmp_path / "run").exists()


def batches_of(file, *more):
    """The batches that a seeded run would take, with the seed's sampling."""
    from jaxdp.trainer import setup

    run = setup.start_run(make_job(parse(options(file, "--seed", "0", *more))), lambda line: None)
    return run, [jax.device_get((b.records, b.ids, m)) for b, m in run.batches()]


@pytest.mark.parametrize("placement", ["device", "host"])
def test_a_bad_row_keeps_its_number_and_is_in_no_batch(tmp_path, placement):
    place = ("--data.placement", placement)
    whole, taken = batches_of(write(tmp_path, lines()), *place)
    other = tmp_path / "other"
    other.mkdir()
    skipping, left = batches_of(write(other, bad_lines()), "--data.skip-bad", *place)
    # N, and with it the plan and the noise, are the same as if the row could be used.
    assert skipping.plan.num_examples == whole.plan.num_examples == 240
    assert skipping.plan.noise_multiplier == whole.plan.noise_multiplier
    assert any(BAD in ids[mask] for _, ids, mask in taken)
    for (records, ids, mask), (those, these, rest) in zip(taken, left, strict=True):
        kept = mask & (ids != BAD)
        np.testing.assert_array_equal(these[rest], ids[kept])
        jax.tree.map(
            lambda a, b, kept=kept, rest=rest: np.testing.assert_array_equal(a[kept], b[rest]),
            records,
            those,
        )
        assert rest.sum() == kept.sum()
        assert not rest[rest.sum() :].any()  # padding comes last


def test_bad_rows_are_listed_for_the_owner_alone(tmp_path, capsys):
    rows = bad_lines()
    rows[-1] = "170.0,perhaps,3,no\n"  # a test row
    file = write(tmp_path, rows)
    run = tmp_path / "run"
    assert train.main(options(file, "--output", str(run), "--data.skip-bad")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 rows can't be used, and are in no batch: see" in said
    listed = (run / "private" / "bad_rows.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in listed] == [f"train, row {BAD}", "train, row 299"]
    assert (run / "private" / "bad_rows.txt").stat().st_mode & 0o077 == 0
    statement = load_release(run).statement
    assert (statement.num_examples, statement.data.bad_rows) == (240, "left_out")
    assert "rows that can't be used | count in N" in (run / "release" / "PRIVACY.md").read_text()
    for path in (run / "release").iterdir():
        assert b"SECRET" not in path.read_bytes()
    assert train.main(options(file, "--data.skip-bad", "--dry-run")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 rows can't be used, and are in no batch: train, row 17: column 'height'" in said
    # The same words, however many rows are bad: that number is private.
    none = tmp_path / "none"
    none.mkdir()
    good = write(none, lines())
    assert train.main(options(good, "--output", str(none / "run"), "--data.skip-bad")) == 0
    assert load_release(none / "run").statement.data == statement.data
    assert not (none / "run" / "private" / "bad_rows.txt").exists()


@pytest.mark.slow
def test_a_long_stretch_of_bad_rows_is_skipped(tmp_path):
    """Records are checked some at a time: where none of these can be used, there is no label."""
    rows = lines(1500)
    rows[:600] = bad_lines()[BAD : BAD + 1] * 600
    run, batches = batches_of(write(tmp_path, rows), "--data.skip-bad")
    assert len(run.job.data.private) == 1200
    assert min(ids[mask].min() for _, ids, mask in batches) >= 600


def test_rows_that_are_all_bad_are_refused(tmp_path, capsys):
    file = write(tmp_path, ["SECRET,yes,3,no\n"] * 240 + lines(60))
    assert train.main(options(file, "--data.skip-bad", "--dry-run")) == 2
    assert "none of these 240 rows can be used" in capsys.readouterr().err


@pytest.fixture
def crashed(tmp_path):
    """The folder of a run that crashed, and its file."""
    file = write(tmp_path, lines())
    with crash_at(4):
        train.main(options(file, "--output", str(tmp_path / "run")))
    return tmp_path / "run", file


CHANGED = {
    "changed": (
        lambda rows: [*rows[:9], rows[9].replace(",yes,", ",no,", 1), *rows[10:]],
        "as many",
    ),
    "appended to": (lambda rows: [*rows, rows[0]], "there are 301 of them, and there were 300"),
    "cut": (lambda rows: rows[:-1], "there are 299 of them, and there were 300"),
    "re-sorted": (lambda rows: sorted(rows), "as many, but some have changed, or their order has"),
    "test row changed": (lambda rows: [*rows[:-1], "150.0,no,2,no\n"], "as many"),
}


@pytest.mark.parametrize(("change", "says"), CHANGED.values(), ids=CHANGED)
def test_a_file_that_changed_is_refused_with_the_reason(crashed, capsys, change, says):
    run, file = crashed
    before = (run / "private" / "ledger.txt").read_text()
    rows = lines()
    rows[9] = "170.0,yes,1,no\n" if change is CHANGED["changed"][0] else rows[9]
    write(file.parent, change(rows))
    assert go_on(run) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the records of 'train' are not those that the run began with" in line
    assert says in line
    assert (run / "private" / "ledger.txt").read_text() == before


def test_a_file_that_is_gone_is_asked_for_and_a_moved_one_is_free(crashed, capsys):
    run, file = crashed
    moved = file.parent / "elsewhere" / "renamed.csv"
    moved.parent.mkdir()
    os.replace(file, moved)
    assert go_on(run) == 2
    assert "put it there, or give its right path" in capsys.readouterr().err
    resumed, _, said = prepare_resume(run, "--data.file", str(moved))
    assert (resumed.repeats, said) == (True, "")
    charged = ledger_of(run).steps
    assert go_on(run, "--data.file", str(moved)) == 0
    assert ledger_of(run).steps == max(charged, STEPS)
    assert len(ledger_of(run).segments) == 1


@pytest.mark.slow
def test_another_schema_is_the_same_records_and_another_computation(crashed):
    run, file = crashed
    other = file.parent / "other.toml"
    other.write_text(SCHEMA.replace("high = 220", "high = 230"))
    resumed, _, said = prepare_resume(run, "--data.schema", str(other))
    assert not resumed.repeats
    assert "data" in said
    # The same schema in another file changes nothing.
    other.write_text(SCHEMA)
    assert prepare_resume(run, "--data.schema", str(other))[0].repeats


def test_rows_that_were_private_make_no_schema_later(crashed, capsys):
    run, file = crashed
    made = str(file.parent / "made.toml")
    public = ["--public", "train[:50]", "--label", "ill", "--output", made]
    assert data.main(["schema", str(file), *public]) == 0
    assert go_on(run, "--data.schema", made, "--data.private", "train[50:80%]") == 2
    assert "50 of these rows are public by the schema" in capsys.readouterr().err


@pytest.mark.parametrize("private", ["test[:80%]", "train[:80%]"])
def test_private_rows_are_not_to_be_had_by_another_name(crashed, capsys, private):
    """With another file in its place, the run's file could be the public split test."""
    run, file = crashed
    other = write(file.parent, lines(N, seed=5), "other.csv")
    as_test = ["--data.file", str(other), "--data.test-from", str(file)]
    assert go_on(run, *as_test, "--data.private", private, "--data.test", "test[80%:]") == 2
    said = capsys.readouterr().err
    assert "are those that the run began with as 'train'" in said or "not those that" in said


def test_options_that_decide_which_records_there_are_stay(crashed, capsys):
    run, _ = crashed
    assert (
        go_on(run, "--data.split-by", "smokes", "--data.private", "no", "--data.test", "yes") == 2
    )
    assert "data.split-by is 'smokes', and the run began with None" in capsys.readouterr().err
    assert go_on(run, "--data.private", "train[:90%]", "--data.test", "train[90%:]") == 2
    assert "in an earlier segment of the run" in capsys.readouterr().err


@pytest.mark.slow
def test_the_cache_may_be_emptied_while_a_run_is_stopped(crashed, capsys):
    run, _ = crashed
    assert data.main(["clear"]) == 0
    assert "3 entries deleted" in capsys.readouterr().out  # the records, and two that were checked
    assert prepare_resume(run)[0].repeats
    with crash_at(5):
        go_on(run)
    assert len(ledger_of(run).segments) == 1


def test_a_dry_run_says_where_every_constant_comes_from(tmp_path, capsys):
    file = write(tmp_path, lines())
    assert train.main(options(file, "--dry-run")) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "private train[:80%]: 240 records, protected; their number N = 240 is published",
        "public none",
        "test train[80%:]: 60 records, private: so are their scores",
        "ranges and values are declared by a schema, from: common sense",
        "height: number of 100 to 220",
        "clipping norms given beforehand",
    ):
        assert part in said, part


def test_the_name_is_what_the_owner_calls_it(tmp_path):
    assert DataConfig(file="a.csv").name == "table"
    assert DataConfig(folder="a").name == "folder"
    assert DataConfig(file="a.txt").name == "text"
    assert DataConfig(file="a.csv", name="visits").name == "visits"
    assert Config().data.name == "digits"
