"""The program that tells how far norms are raised."""

from benchmarks.inflation import __main__ as program


def test_a_row_for_each_problem(capsys):
    program.main(["--only", "mlp_small", "--rows", "4"])
    _, head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["problem", "CPU", "accelerator"]
    name, *figures = row.replace(",", "").split()
    assert name == "mlp_small"
    assert all(1 <= float(figure) < 1.02 for figure in figures)
    assert max(map(len, (head, row))) <= 80
