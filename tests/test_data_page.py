"""The page on data: its programs and commands run, and print what it shows."""

import dataclasses
import importlib
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

for module in ("tyro", "rich", "safetensors"):
    pytest.importorskip(module)
import jaxdp  # noqa: E402
from jaxdp.datasets import DataConfig  # noqa: E402
from jaxdp.datasets.cache import DAYS, DEFAULTS, LIMIT  # noqa: E402
from jaxdp.datasets.rows import MEMORY_BYTES  # noqa: E402
from jaxdp.datasets.schema import KINDS, read_schema  # noqa: E402

PAGE = Path(jaxdp.__file__).parents[1].joinpath("docs/guides/data.md").read_text(encoding="utf-8")
TEN_MINUTES = PAGE.split("\n## ")[1]
WIDTH = 80

# A program, a part of the schema, or commands with what they print.
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$|((?:^ {4}[^\n]*\n|^\n(?= {4}))+)", re.M | re.S)
# What differs between runs and machines.
VARIES = re.compile(r"(?m)(?<=accuracy)[ │]+[\d.]+|(?<=loss)[ │]+[\d.]+|, on .*$|[\d.]+(?= MiB)")
# Where there is no terminal, these lines stand in for the bar.
PROGRESS = ("training ━", "Compiling the train step, then", "step ")


def run(command, capsys):
    """What a command prints."""
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        importlib.import_module(words[2]).main(words[3:])
    elif words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
    else:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
        print(done.stdout, end="")
    return "".join(capsys.readouterr())


def as_shown(printed):
    """As lines of a terminal, with long ones folded, but without progress and blank lines."""
    lines = []
    for line in printed.splitlines():
        fits = len(line) <= WIDTH
        lines += [line] if fits else textwrap.wrap(line, WIDTH, break_on_hyphens=False)
    return "".join(
        f"{line.rstrip()}\n" for line in lines if line.strip() and not line.startswith(PROGRESS)
    )


def check(command, shown, printed):
    """Compares; a line of dots stands for any lines."""
    assert [line for line in shown.splitlines() if len(line) > WIDTH] == []
    shown, printed = (VARIES.sub(" #", as_shown(text)) for text in (shown, printed))
    pattern = re.sub(r"(?m)^\\.\\.\\.\\?\n", r"(?:.*\\n)*?", re.escape(shown))
    assert re.fullmatch(pattern, printed), f"$ {command}\n{printed}is shown as\n{shown}"


def amend(schema, parts):
    """Writes parts into a schema, in the place of those that begin alike."""
    text = schema.read_text()
    for part in re.split(r"\n(?=\[)", parts.strip()):
        begins = re.match(r"origin|\[columns\.\w+\]", part)[0]
        old = re.compile(rf"^{re.escape(begins)}.*?(?=\nmissing_values|\n\n)", re.M | re.S)
        text, count = old.subn(lambda _, part=part: part, text)
        assert count == 1, begins
    schema.write_text(text)


def test_every_command_prints_what_is_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    count = 0
    for language, text, console in BLOCK.findall(TEN_MINUTES):
        if language == "toml":
            amend(tmp_path / "schema.toml", text)
        elif (name := re.match(r"# (\w+\.py)\n", text)) is not None:
            (tmp_path / name[1]).write_text(text)
        elif language == "python":
            exec(text, {})
            predicted, labels = re.findall(r"\[([\d ]+)\]", capsys.readouterr().out)
            pairs = list(zip(predicted.split(), labels.split(), strict=True))
            assert len(pairs) == 9
            assert sum(a == b for a, b in pairs) >= 5
            sys.modules.pop("visits_config")
        for step in re.split(r"(?m)^\$ ", textwrap.dedent(console))[1:]:
            command, _, shown = step.partition("\n")
            check(command, shown, run(command, capsys))
            count += 1
    assert count == len(re.findall(r"(?m)^    \$ ", TEN_MINUTES)) > 10
    assert jaxdp.load_release("runs/visits").statement.data.name == "visits-2026"


def test_the_named_options_and_numbers_are_true():
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(DataConfig)}
    named = set(re.findall(r"--data\.([\w-]+)", PAGE))
    assert named - fields == set()
    set_by_name = set(re.findall(r"\b(\w+)=", PAGE)) | set(re.findall(r'"(\w+)": "', PAGE))
    assert {name for name in fields - named if name.replace("-", "_") not in set_by_name} == set()
    assert f"for {DEFAULTS[DAYS]:g} days (`{DAYS}`)" in PAGE
    assert f"beyond {DEFAULTS[LIMIT]:g} GB (`{LIMIT}`)" in PAGE
    assert f"above {MEMORY_BYTES // 2**20} MB" in PAGE


def test_the_keys_of_the_table_are_those_of_a_schema(tmp_path):
    table = re.findall(r"(?m)^\|(.*)\|(.*)\|.*\|$", PAGE.split("\n## The schema\n")[1])
    text, column = 'origin = "x"\nmissing_values = ["?"]\ncomment = "|"\n', None
    for first, keys in table:
        if (kind := re.search(r'`(kind = "(\w+)")`', first)) is not None:
            column = kind[2]
            text += f"[columns.{column}]\n{kind[1]}\n"
        if column is not None and "[public]" not in first:
            keys = keys.replace("`low`, `high`", "`low = 1`, `high = 50`")
            text += "".join(f"{key}\n" for key in re.findall(r"`(\w+ = [^`]*)`", keys))
    (tmp_path / "schema.toml").write_text(text)
    read = read_schema(str(tmp_path / "schema.toml"))
    assert list(read.columns) == [*KINDS]
    for column in read.columns.values():  # no key is left out
        assert not {None, False, ""} & set(dataclasses.astuple(column))
    for field in dataclasses.fields(read):
        assert field.name == "file" or re.search(rf"`\[?{field.name}\b", PAGE), field.name
