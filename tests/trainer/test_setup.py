"""What is decided before the first step."""

import jax
import numpy as np
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from jaxdp.trainer import parsing, setup  # noqa: E402


def test_without_a_seed_every_stream_is_secret():
    config = parsing.parse(["--model.name", "linear"])
    one, other = setup.start_run(config), setup.start_run(config)
    streams = [
        {k: jax.random.key_data(v) for k, v in vars(r.saved.secrets).items()} for r in (one, other)
    ]
    assert all(not np.array_equal(streams[0][name], streams[1][name]) for name in streams[0])
    noise_keys = [jax.random.key_data(r.state.privatize.privatize_key) for r in (one, other)]
    assert not np.array_equal(*noise_keys)
    kernels = [r.state.params["Dense_0"]["kernel"] for r in (one, other)]
    assert not np.array_equal(*kernels)
