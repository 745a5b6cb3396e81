"""The table of docs/studies/clipping-paper.md on the paper's noise."""

from pathlib import Path

from benchmarks.paper import privacy

PAGE = Path(__file__).parents[2] / "docs" / "studies" / "clipping-paper.md"


def test_the_page_shows_what_the_command_prints(capsys):
    privacy.main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 + 2 * len(privacy.SETTINGS)
    page = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines()]
    assert [line for line in printed if line.strip() not in page] == []
