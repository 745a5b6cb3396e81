"""Folders of runs with a ledger and a release, which were never trained."""

import json

import numpy as np
import optax

from jaxdp import Plan, clip_individual
from jaxdp.datasets.dataset import Dataset
from jaxdp.tasks.task import Task
from jaxdp.trainer.job import Job, RunOptions
from jaxdp.trainer.microbatches import Asked, Microbatches
from jaxdp.trainer.release.claims import SpentSegment, make_facts, make_statement
from jaxdp.trainer.release.parameters import save_params, save_statement
from jaxdp.trainer.run.ledger import Ledger, Segment
from jaxdp.trainer.run.resume import make_budget
from jaxdp.trainer.run.segment import SavedSegment, draw_secrets, save_segment, secrets_digest

PARAMETERS = 650
MICROBATCHES = Microbatches(Asked(256, None, "auto"), "auto", 256)


def make_plan(**changes):
    numbers = dict(
        num_examples=1000,
        expected_batch_size=100,
        steps=20,
        clipping=clip_individual(0.5),
        noise_multiplier=1.5,
        num_parameters=PARAMETERS,
    )
    return Plan(**{**numbers, **changes})


def make_run(
    folder,
    name="visits",
    *,
    taken=20,
    seed=None,
    released=True,
    scores=None,
    window=None,
    test_is_public=True,
    **numbers,
):
    """The folder of a run that took some steps of a plan with other numbers."""
    plan = make_plan(**numbers)
    (folder / "private").mkdir(parents=True)
    facts = facts_of(plan, name, seed, window, test_is_public)
    ledger = Ledger.create(folder / "private" / "ledger.txt", make_budget(plan))
    add_segment(folder, ledger, plan, facts, 0, taken, seed)
    if released:
        release(folder, ledger, plan, facts)
    if scores is not None:
        results = json.dumps({"scores": scores, "steps": taken})
        (folder / "private" / "results.json").write_text(results)
    ledger.close()
    return folder


def facts_of(plan, name, seed, window, test_is_public):
    rows = np.zeros(plan.num_examples, np.uint8)
    data = Dataset(rows, name=name, test_is_public=test_is_public)
    data.rules, data.window = {"private": f"{plan.num_examples} rows"}, window
    task = Task(init=lambda key, record: {}, loss=lambda *_: 0.0)
    job = Job(task, data, plan, optax.identity(), RunOptions(seed=seed))
    return make_facts(job, plan, {"w": np.zeros(PARAMETERS)})


def add_segment(folder, ledger, plan, facts, start, stop, seed=None):
    """Begins a segment and charges its steps up to `stop`."""
    number = len(ledger.segments) + 1
    secrets = draw_secrets(seed, number)
    saved = SavedSegment(facts, None, {"splits": {}}, MICROBATCHES, secrets)
    save_segment(folder / "private" / f"segment-{number}.json", saved)
    ledger.open_segment(
        Segment(
            start=start,
            noise_multiplier=plan.noise_multiplier,
            sampling_probability=plan.sampling_probability,
            num_examples=plan.num_examples,
            num_parameters=PARAMETERS,
            state="ab",
            fingerprint="cd",
            secrets=secrets_digest(secrets),
        )
    )
    if stop > start:
        ledger.charge(start, stop - 1)


def release(folder, ledger, plan, facts):
    """Writes a release of what is charged, with parameters that no other run has."""
    noised = np.random.default_rng().normal(size=PARAMETERS).astype(np.float32)
    save_params(folder, {"w": noised})
    save_statement(folder, make_statement(plan, [SpentSegment(facts, *ledger.mechanisms())]))
