"""Privacy statements for tests, of a run on the digits of scikit-learn."""

from jaxdp import Plan, clip_individual
from jaxdp.datasets import loading
from jaxdp.datasets.config import DataConfig
from jaxdp.trainer.config import Config
from jaxdp.trainer.release.claims import make_statement
from jaxdp.trainer.release.statement import Statement


def make_plan(**changes) -> Plan:
    numbers = dict(
        num_examples=1437,
        expected_batch_size=100,
        steps=20,
        clipping=clip_individual(0.5),
        noise_multiplier=1.5,
    )
    return Plan(**{**numbers, **changes})


def statement_of(
    plan: Plan | None = None, steps: int = 20, config: Config | None = None, **more
) -> Statement:
    """The statement after some steps of a plan."""
    dataset = loading.load(DataConfig())
    return make_statement(
        plan or make_plan(), config or Config(), dataset, steps, sensitivity=0.5, **more
    )
