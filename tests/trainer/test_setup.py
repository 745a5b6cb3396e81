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
    assert all(len(one["noise"]) == 4 for one in streams)  # 128 bits


@pytest.mark.parametrize(
    ("args", "numbers"),
    [
        ((), 650),
        (("--clipping.kind", "quantile", "--clipping.layer", "tensor"), 652),  # and two counts
        (("--clipping.kind", "quantile", "--clipping.layer", "model"), 651),
        (("--training.frozen", "Dense_0/bias"), 640),
    ],
)
def test_the_plan_pays_for_all_numbers_that_get_noise(args, numbers):
    run = setup.start_run(parsing.parse(["--model.name", "linear", *args]))
    assert run.plan.num_parameters == numbers
    assert run.plan.mechanism().noise_draws_per_step == numbers
