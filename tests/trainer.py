"""The trainer in tests: configs as files, runs that crash, and what a resume would go on with."""

from contextlib import closing, contextmanager

import pytest

from jaxdp.trainer import metrics, parsing, setup
from jaxdp.trainer.metrics import write_metrics
from jaxdp.trainer.run import payment, resume


class Crash(BaseException):
    """Like a kill, but for open files."""


@contextmanager
def crash_at(step):
    """A run in here crashes when it writes that step's metrics: the checkpoint before is there."""
    write = write_metrics

    def crash(file, metrics):
        if metrics.step == step:
            raise Crash
        write(file, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "write_metrics", crash)
        patch.setattr(payment, "LARGEST_BLOCK", 1)  # so that the charges don't depend on the time
        with pytest.raises(Crash):
            yield


def write_config(config, folder):
    """The path of a config file that sets it."""
    path = folder / "config.py"
    path.write_text(f"from jaxdp.config import *\nconfig = {config!r}\n")
    return str(path)


def prepare_resume(folder, *args):
    """What a resume would go on with: (run, history, what was told)."""
    config = parsing.parse(["--resume", str(folder), *args], resume.saved_config)
    history, said = resume.open_history(folder, config.checkpoint.keep, print), []
    with closing(history):
        run = setup.prepare(config, said.append, history)
    return run, history, " ".join(said)
