"""The figure of docs/guides/clipping.md."""

import sys

import numpy as np

import jaxdp
from benchmarks.paper import figure


def test_norms_after_clipping():
    # Norms are upper bounds that include rounding, so what is clipped is a little shorter.
    individual = figure.norms_after(jaxdp.clip_individual(1.0))
    np.testing.assert_allclose(individual, np.minimum(figure.NORMS, 1), rtol=1e-4, atol=1e-6)
    layerwise = figure.norms_after(jaxdp.clip_layerwise(0.5**0.5))
    layers = [np.minimum(share * figure.NORMS, 0.5**0.5) for share in figure.SHARES.values()]
    np.testing.assert_allclose(layerwise, np.hypot(*layers), rtol=1e-4, atol=1e-6)


def test_the_command_draws(tmp_path, monkeypatch, capsys):
    path = tmp_path / "clipping.png"
    monkeypatch.setattr(sys, "argv", ["figure", "--figure", str(path)])
    figure.main()
    assert path.stat().st_size > 10_000
    assert str(path) in capsys.readouterr().out
