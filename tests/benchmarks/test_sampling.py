"""The cost of sampling is measured for every sampling, beside the way that asks every record."""

from benchmarks.runs import sampling


def test_every_sampling_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(sampling, "RECORDS", (5000, 20_000))
    monkeypatch.setattr(sampling, "RECORDS_ONE_BY_ONE", 5000)
    sampling.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 2 * 4
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]
    assert {row[0] for row in cells} == {*sampling.KINDS, "poisson, 64 units"}
    for row in cells:
        assert all(float(cell) >= 0 for cell in row[2:5])
        assert (row[5] == "") == (row[1] == "20,000")
