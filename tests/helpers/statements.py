"""Privacy statements for tests, of a run of the command."""

import numpy as np
import optax

from jaxdp import Plan, clip_individual
from jaxdp.datasets.dataset import USES, Dataset
from jaxdp.datasets.sources import Format
from jaxdp.tasks.task import Task
from jaxdp.trainer.command import make_options
from jaxdp.trainer.config import Config
from jaxdp.trainer.job import Job
from jaxdp.trainer.plan_settings import PlanSettings
from jaxdp.trainer.release.claims import (
    SegmentFacts,
    SpentSegment,
    make_facts,
    make_statement,
    preprocessing_of,
)
from jaxdp.trainer.release.statement import Statement

PARAMS = {"Dense_0": {"kernel": np.zeros((64, 10)), "bias": np.zeros(10)}}
FORMAT = Format("image", "class", 10, 8.0, 8.0, "pixels are mapped to [-1, 1]")
PUBLIC = 237


def make_plan(**changes) -> Plan:
    numbers = dict(
        num_examples=1437,
        expected_batch_size=100,
        steps=20,
        clipping=clip_individual(0.5),
        noise_multiplier=1.5,
    )
    return Plan(**{**numbers, **changes})


def facts_of(plan: Plan | None = None, config: Config | None = None) -> SegmentFacts:
    """What is known of a segment of the command; its records are told as the options name them."""
    plan, config = plan or make_plan(), config or Config()
    rules = {use: getattr(config.data, use) for use in USES}
    sizes = {"private": plan.num_examples, "test": 360, "public": PUBLIC}
    data = Dataset(
        **{use: np.zeros(sizes[use], np.uint8) for use, rule in rules.items() if rule},
        name=config.data.name,
        test_is_public=(
            config.data.kind == "digits"
            if config.data.test_is_public is None
            else config.data.test_is_public
        ),
    )
    data.rules = {use: rule for use, rule in rules.items() if rule}
    data.source = config.data.kind
    data.window = config.data.window if config.data.kind == "text" else None
    job = Job(
        Task(init=lambda key, record: PARAMS, loss=lambda *_: 0.0, name="classifier"),
        data,
        PlanSettings(
            expected_batch_size=plan.expected_batch_size,
            steps=plan.steps,
            noise_multiplier=1.0,
            clipping=config.clipping,
        ),
        optax.identity(),
        make_options(config),
        preprocessing_of(FORMAT),
        config.model,
        config,
    )
    return make_facts(job, plan, PARAMS)


def segment_of(plan: Plan, steps: int, config: Config | None = None) -> SpentSegment:
    """A segment that spent some steps of a plan."""
    return SpentSegment(facts_of(plan, config), plan.mechanism(steps))


def statement_of(
    plan: Plan | None = None,
    steps: int = 20,
    config: Config | None = None,
    earlier: tuple[SpentSegment, ...] | list[SpentSegment] = (),
    has_statistics: bool = False,
) -> Statement:
    """The statement after some steps of a plan."""
    plan = plan or make_plan()
    return make_statement(plan, [*earlier, segment_of(plan, steps, config)], has_statistics)
