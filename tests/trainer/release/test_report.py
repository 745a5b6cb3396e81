"""`python -m jaxdp.report`: the table of runs, and the figures it names."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

for module in ("tyro", "sklearn", "matplotlib", "rich"):
    pytest.importorskip(module)
from helpers.cases import slow  # noqa: E402
from helpers.reports import few_points  # noqa: E402
from rich.console import Console  # noqa: E402

from jaxdp import report  # noqa: E402
from jaxdp.trainer.config import ClippingConfig, Config  # noqa: E402
from jaxdp.trainer.release import figures  # noqa: E402
from jaxdp.trainer.release import report as run_report  # noqa: E402
from jaxdp.trainer.run.record import load_record  # noqa: E402


def test_report_draws_a_run(finished, capsys, monkeypatch):
    few_points(monkeypatch)
    assert report.main([str(finished)]) == 0
    said = capsys.readouterr().out
    for name in ("training", "norms", "epsilon", "tradeoff"):
        assert f"{name}.png" in said
        picture = (finished / "private" / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
    assert "adamw 0.1" in said


def test_a_clipping_norm_is_told_where_it_means_something():
    record = lambda **changes: SimpleNamespace(config=Config(clipping=ClippingConfig(**changes)))
    told = lambda **changes: run_report._clipping(record(**changes))
    assert told() == "individual 0.3"
    public = "layerwise, norms from public records"
    assert told(kind="layerwise", norms_from="public") == f"{public}, the largest 0.3"
    assert told(kind="layerwise", norms_from="public_norms") == public


def test_report_draws_what_there_is_of_a_run_that_was_killed(
    finished, tmp_path, capsys, monkeypatch
):
    few_points(monkeypatch)
    for n, names in enumerate((("results.json", "scores.jsonl"), ("metrics.jsonl",))):
        folder = shutil.copytree(finished, tmp_path / str(n))
        for name in names:
            (folder / "private" / name).unlink()
        assert report.main([str(folder)]) == 0
        assert ("not known yet" in capsys.readouterr().out) == (n == 0)


def test_a_report_that_cannot_be_written_is_one_line(finished, capsys, monkeypatch):
    def refuse(figure, path, **kwargs):
        raise OSError(30, "Read-only file system", str(path))

    few_points(monkeypatch)
    monkeypatch.setattr(figures.Figure, "savefig", refuse)
    assert report.main([str(finished)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_report_compares_runs_in_the_current_folder_or_another(
    finished, tmp_path, capsys, monkeypatch
):
    few_points(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures").mkdir()
    for args, folder in (([], ""), (["--output", "figures"], "figures/")):
        assert report.main([str(finished), str(finished), *args]) == 0
        assert capsys.readouterr().out.endswith(f"\n{folder}compared.png\n")
        assert (tmp_path / folder / "compared.png").read_bytes().startswith(b"\x89PNG")
    assert not (finished / "private" / "compared.png").exists()


def test_the_table_cuts_no_name_and_no_number(finished):
    found = load_record(finished)
    names = [f"digits_cnn-20261125-02055{n}" for n in range(5)]
    tables = run_report.compare([replace(found, name=name) for name in names], width=80)
    console = Console(width=80, record=True)
    for table in tables:
        console.print(table)
    said = console.export_text()
    assert "…" not in said
    assert all(said.count(name) == 1 for name in names)
    assert max(map(len, said.splitlines())) <= 80
    assert len(tables) == 3


def test_runs_of_one_name_are_told_by_their_folders(finished):
    found = load_record(finished)
    assert run_report._distinct_names([found, found]) == [str(finished)] * 2


def test_report_refuses_what_is_no_run(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_report_says_how_it_is_used(capsys):
    assert report.main(["--help"]) == 0
    assert "usage: python -m jaxdp.report RUN" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["rich", slow("matplotlib")])
def test_a_missing_extra_ends_the_command_in_one_line(missing, run_without):
    status, said = run_without(missing, "jaxdp.report")
    assert status == 1
    (line,) = said.splitlines()
    assert line.startswith(f"python -m jaxdp.report needs {missing}")
    assert "pip install 'jaxdp-privacy[train]'" in line
