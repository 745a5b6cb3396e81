"""The matrix work of lowered programs is counted right; every config can be lowered elsewhere."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow
from helpers.stand_ins import stand_in
from jax.lax import Precision

from benchmarks.lowered import __main__ as program
from benchmarks.lowered.counting import Kind, weighted, work
from benchmarks.lowered.platforms import passes
from jaxdp import Dataset
from jaxdp.datasets import loading
from jaxdp.gradients import precision
from jaxdp.trainer.command import make_job
from jaxdp.trainer.learner import shape_of_batch
from jaxdp.trainer.parsing import load_config
from jaxdp.trainer.setup import start_run

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
QUICK = ("digits_linear", "digits_batchnorm", "imdb")

PRODUCT = Kind("product", ("f32", "f32"), "DEFAULT")
EXACT = PRODUCT._replace(precision="HIGHEST")
A, B = jnp.ones((3, 4)), jnp.ones((4, 5))  # 2·3·4·5 = 120 operations
SQUARE = jnp.ones((4, 4))


def found(function, *arguments, platform="tpu", open_trips=1):
    module = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))
    cost = partial(passes, platform)
    return work(module.compiler_ir("stablehlo"), cost, open_trips)


def test_products_are_counted_by_type_and_precision():
    def three(a, b):
        exact = jnp.matmul(a, b, precision=Precision.HIGHEST)
        narrow = a.astype(jnp.bfloat16) @ b.astype(jnp.bfloat16)
        return a @ b, exact, narrow

    calls, flops = found(three, A, B)
    narrow = Kind("product", ("bf16", "bf16"), "DEFAULT")
    assert calls == Counter({PRODUCT: 1, EXACT: 1, narrow: 1})
    assert flops == Counter({PRODUCT: 120, EXACT: 120, narrow: 120})
    assert weighted(flops, partial(passes, "tpu")) == 120 * (1 + 6 + 1)
    assert weighted(flops, partial(passes, "cuda")) == 120 * (2 + 16 + 1)
    assert weighted(flops, partial(passes, "cpu")) == 120 * 3


def test_batched_products_and_the_more_precise_operand_count():
    mixed = lambda a, b: jax.lax.dot_general(
        a, b, (((2,), (1,)), ((0,), (0,))), precision=(Precision.DEFAULT, Precision.HIGHEST)
    )
    assert found(mixed, jnp.ones((7, 3, 4)), jnp.ones((7, 4, 5))).flops == {EXACT: 7 * 120}


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_take_the_kernel_for_every_result(groups):
    convolve = partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    flops = found(convolve, jnp.ones((2, 6, 7, 4)), jnp.ones((3, 3, 4 // groups, 8))).flops
    assert flops == {
        Kind("convolution", ("f32", "f32"), "DEFAULT"): 2 * 2 * 6 * 7 * 8 * 36 // groups
    }


def test_every_row_of_a_ragged_product_is_multiplied_once():
    ragged = lambda a, experts: jax.lax.ragged_dot(a, experts, jnp.array([1, 2]))
    arguments = jnp.ones((3, 4)), jnp.ones((2, 4, 5))
    assert found(ragged, *arguments).flops.total() == 120
    gradient = jax.grad(lambda e: jnp.sum(ragged(arguments[0], e)))
    assert found(gradient, arguments[1]).flops.total() == 120


def test_loops_count_their_trips_and_functions_their_calls():
    def loop(x):
        inner = lambda x: jax.lax.scan(lambda x, _: (x @ SQUARE, None), x, length=3)[0]
        return jax.lax.fori_loop(2, 7, lambda _, x: inner(x), x)

    twice = lambda x: jax.jit(loop)(jax.jit(loop)(x))
    assert found(loop, SQUARE).flops == {PRODUCT: 5 * 3 * 2 * 64}
    assert found(twice, SQUARE).flops == {PRODUCT: 2 * 5 * 3 * 2 * 64}


def test_loops_over_data_have_the_trips_that_are_given():
    loop = lambda n, x: jax.lax.fori_loop(0, n, lambda _, x: x @ SQUARE, x)
    assert found(loop, 3, SQUARE, open_trips=11).flops == {PRODUCT: 11 * 2 * 64}


def test_the_branch_that_costs_most_counts():
    exact = lambda x: jnp.matmul(x, SQUARE, precision=Precision.HIGHEST)
    plain = lambda x: x @ SQUARE @ SQUARE
    choose = lambda p, x: jax.lax.cond(p, exact, plain, x)
    assert found(choose, True, SQUARE).flops == {EXACT: 128}
    assert found(choose, True, SQUARE, platform="cpu").flops == {PRODUCT: 256}


def test_the_program_prints_a_row_and_kinds(capsys):
    program.main(["--only", "mlp_small", "--platforms", "tpu", "--kinds"])
    _, head, row, *rest = capsys.readouterr().out.splitlines()
    assert head.split()[-1] == "tpu"
    problem = program.PROBLEMS["mlp_small"]()
    counted = [dict(program.lowered_work(problem, method, ["tpu"])) for method in ("plain", "auto")]
    assert float(row.split()[-1]) == pytest.approx(program.ratios(*counted)[0], abs=0.005)
    kinds = [("bf16", "DEFAULT"), ("f32", "DEFAULT"), ("f32", "HIGHEST")]
    assert [tuple(line.split()[2:4]) for line in rest] == kinds
    assert max(map(len, (head, row, *rest))) <= 80


def test_accelerators_get_the_program_that_is_traced_for_them():
    problem = program.PROBLEMS["mlp_small"](small=True)
    counted = dict(program.lowered_work(problem, "auto", ["cpu", "cuda"]))
    types = {name: {kind.types for kind in own.calls} for name, own in counted.items()}
    assert types["cpu"] == {("f32", "f32")}
    assert types["cuda"] == {("f32", "f32"), ("bf16", "bf16")}
    (highest,) = dict(program.lowered_work(problem, "auto", ["cuda"], "highest")).values()
    assert {kind.types for kind in highest.calls} == {("f32", "f32")}


@pytest.mark.parametrize(
    "path",
    [path if path.stem in QUICK else slow(path) for path in CONFIGS],
    ids=lambda path: path.stem,
)
def test_the_step_of_every_config_can_be_lowered(path, monkeypatch):
    config = load_config(str(path))
    records, data_format = stand_in(config)
    many = lambda row: jax.tree.map(lambda leaf: np.stack([leaf[row]] * 64), records)
    data = Dataset(private=many(0), public=many(1))
    monkeypatch.setattr(loading, "load", lambda *_: (data, data_format))
    small = replace(config.plan, expected_batch_size=8.0, epsilon=None, noise_multiplier=0.5)
    clipping = replace(config.clipping, norms_from="given")
    job = make_job(replace(config, plan=small, clipping=clipping))
    for platforms in (("cpu",), ("cuda", "tpu")):  # the programs of the latter two are the same
        monkeypatch.setattr(precision, "platform", lambda name=platforms[0]: name)
        run = start_run(job)
        batch, mask = shape_of_batch(data.private, run.plan)
        traced = run.train_step.trace(run.state, batch, mask, run.learner.frozen)
        for platform in platforms:
            module = traced.lower(lowering_platforms=(platform,)).compiler_ir("stablehlo")
            assert work(module, partial(passes, platform), 1).flops.total() > 0
