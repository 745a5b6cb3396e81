"""A job: parts that fit together, or one line that says which do not."""

import numpy as np
import optax
import pytest

import jaxdp
from jaxdp.datasets.dataset import Dataset
from jaxdp.tasks.task import Task
from jaxdp.trainer.config import ClippingConfig
from jaxdp.trainer.job import Job, RunOptions
from jaxdp.trainer.plan_settings import PlanSettings

TASK = Task(init=lambda key, record: {}, loss=lambda *_: 0.0)
DATA = Dataset(np.zeros((100, 2), np.float32))
NUMBERS = dict(expected_batch_size=30, steps=5, noise_multiplier=1.0)


def job(plan):
    return Job(TASK, DATA, plan, optax.sgd(0.1))


@pytest.mark.parametrize(
    ("clipping", "unit", "by_options"),
    [
        (jaxdp.clip_individual(1.0), "example", False),
        (jaxdp.clip_batch(1.0), "batch", False),
        (ClippingConfig(), "example", True),
        (ClippingConfig(kind="batch"), "batch", True),
        (ClippingConfig(kind="layerwise", unit="batch"), "batch", True),
    ],
)
def test_it_says_what_is_clipped(clipping, unit, by_options):
    made = job(PlanSettings(**NUMBERS, clipping=clipping))
    assert made.unit == unit
    assert made.clipping_options is (clipping if by_options else None)
    assert made.steps_per_epoch == 4  # of 30 records, with N = 100


def test_a_solved_plan_is_for_these_records():
    plan = lambda n: jaxdp.Plan(num_examples=n, **NUMBERS, clipping=jaxdp.clip_individual(1.0))
    made = job(plan(100))
    assert (made.unit, made.clipping_options, made.steps_per_epoch) == ("example", None, 4)
    with pytest.raises(ValueError, match=r"plan is for 99 records, .* have 100 private ones: make"):
        job(plan(99))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(name=""), "name is '': give a name that can be part of a folder's name"),
        (dict(name="a/b"), "name is 'a/b': give"),
        (dict(microbatch_size=0), "microbatch_size is 0: give a whole number of at least 1"),
        (dict(microbatch_size=2.5), r"microbatch_size is 2\.5: give"),
        (dict(ema=1.0), r"ema is 1\.0: give a number in \[0, 1\)"),
        (dict(ema=-0.1), r"ema is -0\.1: give"),
        (dict(evaluations=-1), "evaluations is -1: give 0 or more"),
        (dict(seed=-1), "seed is -1: give 0 to 4294967295"),
        (dict(seed=2**32), "seed is 4294967296: give"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(options, says):
    with pytest.raises(ValueError, match=f"^{says}") as error:
        RunOptions(**options)
    assert len(str(error.value).splitlines()) == 1
