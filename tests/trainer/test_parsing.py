"""Options: what overrules what, config files, and clear answers to mistakes."""

import dataclasses
import json
import shlex
from dataclasses import asdict

import pytest

from jaxdp.trainer import parsing
from jaxdp.trainer.config import Config, TrainingConfig

tyro = pytest.importorskip("tyro")


def parse(line: str) -> Config:
    return parsing.parse(shlex.split(line))


def options() -> list[str]:
    names = []
    for field in dataclasses.fields(Config):
        value = getattr(Config(), field.name)
        inner = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        names += [f"{field.name}.{f.name}" for f in inner] or [field.name]
    return [f"--{name.replace('_', '-')}" for name in names]


def test_defaults_are_the_dataclasses_own():
    assert parse("") == Config()


def test_options_overrule_the_defaults():
    config = parse(
        "--plan.epsilon 1 --training.learning-rate 2 --model.widths 8 16 --plan.delta 1e-4 --seed 7"
    )
    assert config.plan == dataclasses.replace(Config().plan, epsilon=1.0, delta=1e-4)
    assert config.training.learning_rate == 2.0
    assert config.model.widths == (8, 16)
    assert config.seed == 7


def test_options_overrule_the_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxdp.trainer import Config, PlanConfig\n"
        "config = Config(name='mine', plan=PlanConfig(epsilon=5.0, steps=7))\n"
    )
    config = parse(f"{file} --plan.steps 9")
    assert (config.name, config.plan.epsilon, config.plan.steps) == ("mine", 5.0, 9)


@pytest.mark.parametrize(
    "line",
    [
        "{} --plan.steps 9 --dry-run",
        "--plan.steps 9 {} --dry-run",
        "--dry-run {} --plan.steps=9",
        "--plan.steps=9 --dry-run --data.no-test-is-public {}",
        "--name other.py --dry-run --plan.steps 9 --model.widths 8 16 {}",
    ],
)
def test_the_file_may_come_among_the_options(tmp_path, line):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxdp.trainer import Config, PlanConfig\n"
        "config = Config(plan=PlanConfig(epsilon=5.0))"
    )
    config = parse(line.format(file))
    assert (config.plan.epsilon, config.plan.steps, config.dry_run) == (5.0, 9, True)


def test_what_an_option_is_given_is_no_config_file():
    assert parse("--data.name text --data.file setup.py").data.file == "setup.py"
    with pytest.raises(ValueError, match=r"there is no config file nowhere\.py"):
        parse("--dry-run nowhere.py")


def test_help_shows_every_option_within_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit_:
        parse("--help")
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert [name for name in options() if name not in text] == []


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("--plan.epsilonn 1", "--plan.epsilon"),
        ("--training.learning-rte 1", "--training.learning-rate"),
    ],
)
def test_a_wrong_option_is_answered_with_the_right_one(line, meant):
    with pytest.raises(ValueError, match=rf"did you mean {meant}\?"):
        parse(line)


@pytest.mark.parametrize(
    "line",
    [
        "--training.learning-rate -1",
        "--training.learning-rate nan",
        "--training.momentum 1",
        "--training.microbatch-size 0",
        "--model.widths 0",
        "--model.norm-group-size 3",
        "--seed -1",
        "--name a/b",
    ],
)
def test_a_bad_value_is_named_with_its_option(line):
    name, value = line.removeprefix("--").split()
    with pytest.raises(ValueError, match=f"{name} is .*{value}.*: give"):
        parse(line)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("--training.constant-time", True),
        ("--training.constant-time=true", True),
        ("--training.constant_time True", True),
        ("--training.constant-time --training.no-constant-time", False),
        ("--training.constant-time=false --dry-run", False),
    ],
)
def test_a_switch_may_be_given_with_its_value(line, value):
    assert parse(line).training.constant_time is value


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("", None),
        ("--data.test-is-public", True),
        ("--data.test-is-public --dry-run", True),
        ("--data.no-test-is-public", False),
        ("--data.test-is-public False", False),
        ("--data.test-is-public=true --data.test-is-public None", None),
    ],
)
def test_a_switch_may_be_left_to_decide_itself(line, value):
    assert parse(line).data.test_is_public is value


def test_the_reader_gives_every_type_of_field_as_tyro_does():
    line = (
        "--plan.epsilon None --plan.noise-multiplier=1e-1 --model.widths 8 16 --data.dir=a=b "
        "--training.frozen Conv_0 */bias --training.optimizer-options b1 0.5 --data.name mnist "
        "--data.test-is-public False --data.skip-bad --model.name cnn --seed 3 "
        "--clipping.kind batch --plan.delta=1e-6"
    )
    assert parse(line) == tyro.cli(Config, args=shlex.split(line))


FILES = {
    "unknown field": ("Config(plan=PlanConfig(epsilonn=1))", "line 3.*did you mean 'epsilon'"),
    "unknown section": ("Config(clip=1)", "its fields are data, model, clipping|did you mean"),
    "wrong type": ("Config(plan=PlanConfig(epsilon='3'))", "plan.epsilon is '3': .* float"),
    "wrong section": (
        "Config(plan=TrainingConfig())",
        "is a TrainingConfig: give a PlanConfig",
    ),
    "wrong choice": ("Config(model=ModelConfig(name='linaer'))", "'linaer': did you mean 'linear'"),
    "bad value": ("Config(training=TrainingConfig(momentum=2))", "line 3: training.momentum is 2"),
    "no config": ("None", "sets config to None: .* sets `config = Config"),
    "crash": ("1 / 0", "line 3: division by zero"),
}


@pytest.mark.parametrize(("code", "says"), FILES.values(), ids=FILES)
def test_a_bad_config_file_is_told_what_is_wrong(tmp_path, code, says):
    file = tmp_path / "bad.py"
    file.write_text(
        f"from jaxdp.trainer import *\nfrom jaxdp.trainer import Config\nconfig = {code}\n"
    )
    with pytest.raises(ValueError, match=says):
        parse(str(file))


def test_a_missing_config_file_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "mnist_cnn.py").write_text("")
    with pytest.raises(ValueError, match=r"no config file .*did you mean .*mnist_cnn\.py\?"):
        parse(str(tmp_path / "mnist_cn"))


def test_settings_survive_json():
    saved = Config(training=TrainingConfig(frozen=("Conv_0",), optimizer_options={"b1": 0.8}))
    text = json.dumps(asdict(saved))
    assert parsing.from_json(Config, json.loads(text)) == saved
    with pytest.raises(ValueError, match="a field speed that this version lacks"):
        parsing.from_json(Config, {"speed": 1})
