"""The runs of a row and the command line of each."""

import ast
import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from .rows import Options, Row

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """One run of a row.

    Attributes:
      row: the row.
      epsilon: ε; None: without privacy.
      seed: its seed.
    """

    row: Row
    epsilon: float | None
    seed: int

    @property
    def label(self) -> str:
        """Which of the row's runs it is, whatever the seed."""
        return "without privacy" if self.epsilon is None else f"epsilon {self.epsilon:g}"

    @property
    def module(self) -> str:
        """The program that trains it."""
        return "benchmarks.runs.without_privacy" if self.epsilon is None else "jaxdp.train"

    @property
    def args(self) -> list[str]:
        """The arguments of that program, as a user types them in the root of the project."""
        if self.epsilon is None:
            options = self.row.plain_options()
        else:
            options = {**self.row.private_options(self.epsilon), "plan.epsilon": self.epsilon}
        return [f"configs/{self.row.config}.py", *words({**options, "seed": self.seed})]

    @property
    def command(self) -> str:
        """What a user types to get the same."""
        return f"python -m {self.module} {shlex.join(self.args)}"

    @property
    def config_digest(self) -> str:
        """A digest of the row's config, whatever its header and comments say."""
        text = (ROOT / "configs" / f"{self.row.config}.py").read_text(encoding="utf-8")
        code = ast.unparse(ast.Module(ast.parse(text).body[1:], []))
        return hashlib.sha256(code.encode()).hexdigest()[:16]

    @property
    def args_anywhere(self) -> list[str]:
        """The same arguments for any working folder."""
        config, *options = self.args
        return [str(ROOT / config), *options]


def words(options: Options) -> list[str]:
    """Returns options as the words of a command line."""
    line = []
    for name, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        numbers = [
            f"{v:g}" if type(v) is float and float(f"{v:g}") == v else str(v) for v in values
        ]
        line += [f"--{name}", *numbers]
    return line
