"""The configuration: defaults in one place, help for every field, clear answers to mistakes."""

import ast
import dataclasses
import inspect
from dataclasses import replace

import pytest

from jaxdp.datasets.config import DataConfig
from jaxdp.models.config import ModelConfig
from jaxdp.trainer.config import ClippingConfig, Config, PlanConfig

SECTIONS = [
    Config,
    *(
        f.default_factory
        for f in dataclasses.fields(Config)
        if f.default_factory is not dataclasses.MISSING
    ),
]
ADAPTIVE = ClippingConfig(kind="layerwise", norms_from="public", decay=0.9, norm=0.3)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.__name__)
def test_every_field_has_help(section):
    body = ast.parse(inspect.getsource(section)).body[0].body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            assert isinstance(following, ast.Expr), ast.unparse(statement)
            assert len(following.value.value) > 10
            # tyro keeps the ends of lines: each is the end of a sentence, too.
            *lines, _ = following.value.value.split("\n")
            assert all(line.endswith((".", ":")) for line in lines), following.value.value


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlanConfig(noise_multiplier=1.0), "exactly one of it and plan.epsilon"),
        (lambda: PlanConfig(epsilon=None), "exactly one"),
        (
            lambda: ClippingConfig(norms_from="public"),
            r'clipping\.norms-from is public.*"layerwise"',
        ),
        (lambda: ClippingConfig(kind="batch", units=0), r"clipping\.units is 0"),
        (lambda: ClippingConfig(kind="layerwise", groups=2), r"clipping\.groups is 2"),
        (lambda: replace(ADAPTIVE, refresh=False), r"clipping\.decay is 0\.9: give 1"),
        (lambda: ClippingConfig(kind="quantile", decay=0.9), r"clipping\.decay"),
        (
            lambda: ClippingConfig(kind="multiplied", allocation="dimension"),
            "no layer can do with less",
        ),
    ],
)
def test_settings_that_make_no_sense_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_unit_is_no_individual():
    with pytest.raises(ValueError, match=r'clipping\.unit is batch: give kind "batch"'):
        ClippingConfig(unit="batch")


def test_kind_batch_clips_batch_units():
    assert ClippingConfig(kind="batch").clipped_unit == "batch"
    assert ClippingConfig(kind="layerwise", unit="batch").clipped_unit == "batch"
    assert ClippingConfig().clipped_unit == "example"


def test_the_sections_that_a_config_file_needs_are_public():
    from jaxdp import trainer

    for section in SECTIONS:
        assert getattr(trainer, section.__name__) is section
    assert {DataConfig, ModelConfig} < set(SECTIONS)
