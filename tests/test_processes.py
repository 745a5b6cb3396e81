"""Runs in two processes: `tests/processes`, and the command."""

import itertools
import json
import os
import signal
import time

import jax
import numpy as np
import pytest
from helpers import processes

import jaxdp
from jaxdp import train
from jaxdp.dpsgd import processes as shared
from jaxdp.trainer import distributed, parsing
from jaxdp.trainer.run import fingerprint, ledger
from jaxdp.trainer.run.ledger import Ledger, Payment

STEPS = 24
SHORT = ("--plan.steps", str(STEPS), "--plan.expected-batch-size", "200", "--evaluations", "2")

SCHEMA = """
origin = "common sense"
[columns.x]
kind = "number"
low = 0
high = 6
[columns.ill]
kind = "category"
values = ["0", "1"]
"""

# The command, in which one process is killed between the charge of a step and the step.
KILLED = """
import os, signal, sys
import jax
from jaxdp import train
from jaxdp.trainer.run.ledger import Payment

who, when = int(sys.argv.pop(1)), int(sys.argv.pop(1))
pay = Payment.pay

def pay_and_die(self, step):
    pay(self, step)
    if step == when and jax.process_index() == who:
        os.kill(os.getpid(), signal.SIGKILL)

Payment.pay = pay_and_die
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_two_processes(marked):
    port = processes.free_port()
    options = f"addopts=--import-mode=importlib --strict-markers -m '{marked}'"
    command = ["-m", "pytest", "-q", "-x", "-o", options]
    started = [
        process
        for i in range(2)
        for process in processes.begin(
            [[*command, "tests/processes"]],
            JAXDP_TEST_PROCESS=str(i),
            JAXDP_TEST_COORDINATOR=f"127.0.0.1:{port}",
        )
    ]
    for ended in processes.ends(started):
        assert ended.status == 0, ended.out[-5000:] + ended.err[-3000:]
        assert "skipped" not in ended.out


def params_of(folder):
    params = jaxdp.load_release(folder).params
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def trained(*args):
    """A run in two processes that ends well. Returns what process 0 has printed."""
    first, second = processes.ends(processes.train(*args))
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert "error" not in first.err + second.err
    assert "step" not in second.out  # the console is that of process 0
    return first.out


def alone(folder, *args):
    """The parameters of the same run in one process, with one device."""
    (ended,) = processes.ends(
        processes.begin(
            [["-m", "jaxdp.train", *args, "--output", folder, "--mesh.fsdp", "1"]], devices=1
        )
    )
    assert ended.status == 0, ended.err
    return params_of(folder)


OTHERS = [
    ("--mesh.fsdp", "4", "--model.name", "mlp", "--model.widths", "1024", "128"),
    ("--clipping.kind", "batch", "--clipping.units", "4"),
    ("--clipping.kind", "quantile"),
    ("--model.centred",),
    ("--plan.sampling", "shuffled", "--plan.adjacency", "replace_one"),
    ("--data.placement", "device", "--model.name", "linear"),
    ("--audit.canaries", "20"),
    (
        *("--data.private", "train[:80%]", "--data.public", "train[80%:]"),
        *("--clipping.kind", "layerwise", "--clipping.norms-from", "public"),
    ),
    ("--training.frozen", "Dense_0*", "--training.microbatch-size", "auto"),
]


@pytest.mark.slow
@pytest.mark.parametrize("args", [(), *OTHERS])
def test_a_run_in_two_processes_is_that_of_one(args, tmp_path):
    args = (*SHORT, "--seed", "5", *args)
    folder = tmp_path / "two"
    out = trained(*args, "--output", str(folder))
    assert "8 devices of 2 processes share the records of each step" in " ".join(out.split())
    np.testing.assert_allclose(
        params_of(folder), alone(str(tmp_path / "one"), *args), rtol=1e-3, atol=1e-4
    )
    ledger = Ledger.read(folder / "private" / "ledger.txt")
    assert ledger.steps == STEPS
    assert jaxdp.load_release(folder).statement.steps == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_process_that_dies_ends_the_other_and_the_run_goes_on(who, tmp_path):
    folder, step = tmp_path / "run", 14
    start = processes.train(
        *(*SHORT, "--output", str(folder), "--checkpoint.every-seconds", "0.2"),
        program=("-c", KILLED, str(who), str(step)),
    )
    ended = processes.ends(start)
    assert ended[who].status == -signal.SIGKILL
    assert ended[1 - who].status != 0
    assert abs(ended[0].when - ended[1].when) < 30
    if who == 1:  # process 0 has the console
        (line,) = [line for line in ended[0].err.splitlines() if line.startswith("error")]
        assert "process 1 is gone: stopped, what was spent stays charged. To go on" in line
        assert f"python -m jaxdp.train --resume {folder}" in line
    ledger = Ledger.read(folder / "private" / "ledger.txt")
    assert ledger.steps > step  # it was not taken, and stays charged
    assert not (folder / "release").exists()
    spent = ledger.steps

    (ended,) = processes.ends(processes.begin([["-m", "jaxdp.train", "--resume", str(folder)]]))
    assert ended.status == 0, ended.err
    assert "4 devices share" in ended.out
    assert "a new segment begins, with new secrets" in " ".join(ended.out.split())
    after = Ledger.read(folder / "private" / "ledger.txt")
    taken = [after.stop(1), after.stop(2) - after.segments[1].start]
    assert taken[0] == spent
    assert after.epsilon() <= after.budget.epsilon
    assert jaxdp.load_release(folder).statement.steps == sum(taken)


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_two_processes(tmp_path):
    folder = tmp_path / "run"
    start = processes.train(*SHORT, "--output", str(folder), "--plan.steps", "4000")
    until = time.monotonic() + 100
    metrics = folder / "private" / "metrics.jsonl"
    while time.monotonic() < until and not (metrics.exists() and metrics.stat().st_size > 2000):
        time.sleep(0.1)
    start[1].send_signal(signal.SIGTERM)  # to the one that does not decide
    ended = processes.ends(start)
    assert [one.status for one in ended] == [128 + signal.SIGTERM] * 2
    assert f"To go on: python -m jaxdp.train --resume {folder}" in ended[0].out
    spent = Ledger.read(folder / "private" / "ledger.txt").steps
    statement = jaxdp.load_release(folder).statement
    assert statement.steps == spent  # a stop wastes no step
    out = trained("--resume", str(folder), "--plan.steps", str(spent + 5))
    assert f"Resuming after step {spent}, in segment 2: {spent} steps are charged" in out
    assert jaxdp.load_release(folder).statement.steps <= spent + 5
    assert "the release is in" in trained("--resume", str(folder), "--plan.steps", str(spent + 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--training.ema", "0.5"), "process 1 and process 0 differ in the options (ema)"),
        (("--training.learning-rate", "0.5"), "differ in the computation (config.training.learn"),
        (("--resume", "nothing"), "asks for the settings, and process 0 tells"),
    ],
)
def test_processes_with_other_options_are_refused_before_anything_is_written(
    options, says, tmp_path
):
    folder = tmp_path / "run"
    for ended in processes.ends(
        processes.train(*SHORT, "--output", str(folder), of_second=options)
    ):
        assert ended.status == 2
        (line,) = [line for line in ended.err.splitlines() if line.startswith("error")]
        assert says in line
        assert "start the same program with the same options" in line
        assert "Traceback" not in ended.err
    assert not folder.exists()


def test_processes_with_other_data_are_refused_before_anything_is_written(tmp_path):
    folders = []
    for i in range(2):
        folders.append(tmp_path / f"host{i}")
        folders[i].mkdir()
        rows = [f"{j % 7},{j % 2}\n" for j in range(200)]
        rows[50] = f"{3 + i},1\n"
        (folders[i] / "visits.csv").write_text("x,ill\n" + "".join(rows))
        (folders[i] / "schema.toml").write_text(SCHEMA)
    started = processes.train(
        *("--data.file", "visits.csv", "--data.schema", "schema.toml", "--data.label", "ill"),
        *("--data.private", "train[:80%]", "--data.test", "train[80%:]", "--model.name", "linear"),
        *("--plan.steps", "5", "--plan.expected-batch-size", "50"),
        *("--output", str(tmp_path / "run")),
        folders=folders,
    )
    first, second = processes.ends(started)
    assert (first.status, second.status) == (2, 2), first.err + second.err
    for ended in (first, second):
        assert "error: process 1 and process 0 differ in the computation (data" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_error_of_one_process_ends_both_before_anything_is_written(tmp_path):
    program = (
        "import sys, pathlib, jax\nfrom jaxdp import train\n"
        "from jaxdp.trainer import distributed\n"
        "join = distributed.join\n"
        "def join_and_lose(config):\n"
        "    join(config)\n"
        "    if jax.process_index() == 1:\n"
        "        from jaxdp.trainer import command\n"
        "        def fails(*args):\n"
        "            raise ValueError('there is no file of this host')\n"
        "        command.load_parts = fails\n"
        "distributed.join = join_and_lose\n"
        "from jaxdp import _command\n"
        "_command.run(train.main)\n"
    )
    folder = tmp_path / "run"
    ended = processes.ends(
        processes.train(*SHORT, "--output", str(folder), program=("-c", program))
    )
    assert [one.status for one in ended] == [2, 2]
    assert "error: there is no file of this host" in ended[1].err
    assert "error: process 1 has stopped (there is no file of this host)" in ended[0].err
    assert not folder.exists()


FIT = """
import sys
import flax.linen as nn, jax, numpy as np, optax
import jaxdp

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), cluster_detection_method="deactivate")
x = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
y = (x[:, 0] > 0).astype(np.int32)
seen = []
plan = jaxdp.PlanSettings(
    epsilon=5.0, steps=20, expected_batch_size=40, clipping=jaxdp.clip_individual(1.0)
)
run = lambda **options: jaxdp.fit(
    jaxdp.tasks.classifier(nn.Dense(2)),
    jaxdp.Dataset(private=(x[:300], y[:300]), test=(x[300:], y[300:])),
    plan,
    optimizer=optax.sgd(0.5),
    callbacks=[lambda progress: seen.append(progress.step)],
    **options,
)
fitted = run(output=sys.argv[3])
total = float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(fitted.params)))
print("RESULT", repr(total), fitted.epsilon, fitted.folder, len(fitted.scores), len(seen))
again = run(resume=sys.argv[3])
jax.tree.map(np.testing.assert_array_equal, fitted.params, again.params)
print("AGAIN")
if jax.process_index() == 1:
    run(frozen=["nothing"])
else:
    run(dry_run=True)
"""


@pytest.mark.slow
def test_fit_makes_one_run_in_all_processes(tmp_path):
    folder, port = tmp_path / "run", processes.free_port()
    ended = processes.ends(
        processes.begin([["-c", FIT, f"127.0.0.1:{port}", str(i), str(folder)] for i in range(2)])
    )
    told = [
        next(line.split() for line in one.out.splitlines() if line.startswith("RESULT"))
        for one in ended
    ]
    assert told[0][1:3] == told[1][1:3]  # the same parameters and ε
    assert told[0][3:] == [str(folder), "2", "20"]
    assert told[1][3:] == ["None", "0", "0"]
    assert all("AGAIN" in one.out for one in ended)
    # An error of one of them ends both.
    assert all(one.status != 0 for one in ended)
    says = "process 1 and process 0 differ in the options (dry_run, frozen)"
    assert all(says in one.err for one in ended)


class Recorder:
    """A coordinator that knows when something was told."""

    def __init__(self, events):
        self.events = events

    def key_value_set(self, name, value):
        self.events.append(("told", json.loads(value)[1]))


def test_all_are_told_of_a_step_when_the_disk_has_it(monkeypatch, tmp_path):
    events = []
    book = Ledger.create(tmp_path / "ledger.txt", ledger.Budget(3.0, 1e-4, "add_remove", "example"))
    book.open_segment(ledger.Segment(0, 1.5, 0.1, 1000, 650, "ab", "cd", "12"))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(shared, "coordinator", lambda: Recorder(events))
    monkeypatch.setattr(shared, "_sent", [])
    monkeypatch.setattr(shared, "_thread", [])
    monkeypatch.setattr(shared, "_numbers", itertools.count())
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), events.append(("on disk", None))))
    payment = Payment(book, 0, 20)
    for step in range(20):
        before = len(events)
        payment.pay(step)
        new = events[before:]
        assert new in ([], [("on disk", None), ("told", book.stop(1))])
    assert events[0] == ("on disk", None)
    assert book.stop(1) == 20


def test_no_process_takes_a_step_before_it_is_told(monkeypatch):
    asked, told = [], iter([1, 3, 8])
    monkeypatch.setattr(ledger, "first", lambda what, make: (asked.append(what), next(told))[1])
    payment = Payment(None, 0, 10)
    for step, so_far in enumerate([1, 2, 2, 3, 3, 3, 3, 3]):
        payment.pay(step)
        assert len(asked) == so_far
    assert [payment.may_stop(step) for step in (7, 8)] == [False, True]
    with pytest.raises(StopIteration):  # it asks, and there is no answer
        payment.pay(8)


def test_steps_of_several_processes_are_not_free(monkeypatch):
    assert fingerprint.steps_repeat_exactly()  # of a CPU
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert not fingerprint.steps_repeat_exactly()


@pytest.mark.parametrize("name", distributed.LAUNCHERS)
def test_processes_of_an_unknown_launcher_are_refused(name, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(name, "4")
    folder = tmp_path / "run"
    assert train.main([*SHORT, "--output", str(folder)]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"a launcher has started at least 4 processes ({name}), and 1 joined: each" in error
    assert not folder.exists()
    monkeypatch.setenv(name, "1")
    distributed.check_alone()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--distributed.process", "0"), "distributed.coordinator is missing: give all three"),
        (("--distributed.coordinator", "node1:1234"), "distributed.processes is missing"),
        (processes.options(2, 1), "distributed.process is 2: give a number from 0 to 1"),
        (
            ("--distributed.coordinator", "node1", *processes.options(0, 1)[2:]),
            "distributed.coordinator is node1: give HOST:PORT",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(args, says, capsys):
    assert train.main([*SHORT, *args]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_config_file_names_no_process(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxdp.trainer.config import Config, DistributedConfig\n"
        "config = Config(distributed=DistributedConfig('node1:1234', 2, 0))\n"
    )
    with pytest.raises(ValueError, match="sets distributed, which is another one for every"):
        parsing.parse([str(file)])


def test_fewer_processes_than_the_launcher_has_started_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "number_of_process", lambda: (0, 1))
    distributed.check_alone()
    monkeypatch.setenv("PMIX_RANK", "1")
    with pytest.raises(ValueError, match=r"at least 2 processes \(PMIX_RANK\), and 1 joined"):
        distributed.check_alone()
    monkeypatch.setattr(distributed, "number_of_process", lambda: (0, 2))
    with pytest.raises(ValueError, match="has joined 2 processes, and JAX computes in 1"):
        distributed.check_alone()


def test_the_shell_of_a_slurm_job_is_one_process(monkeypatch):
    told = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "node1",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert distributed._launched() == 4
    with pytest.raises(ValueError, match="a launcher has started at least 4 processes"):
        distributed.check_alone()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert distributed._launched() == 1
