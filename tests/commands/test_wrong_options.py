"""Wrong options, config files and folders: one line with the value and a cure, nothing written."""

import shlex

import pytest

for module in ("tyro", "rich", "sklearn", "matplotlib", "safetensors"):
    pytest.importorskip(module)
from jaxdp import data, evaluate, plan, report, seal, train  # noqa: E402
from jaxdp.__main__ import main as jaxdp_main  # noqa: E402

CONFIG = "from jaxdp.trainer import *\n{}\n"
FILES = {
    "conf.yaml": "model: linear",
    "README.md": "# Title",
    "none.py": "settings = 1",
    "number.py": CONFIG.format("config = 3"),
    "crash.py": CONFIG.format("config = 1 / 0"),
    "syntax.py": "config = (",
    "exits.py": "import sys\nsys.exit(1)",
    "field.py": CONFIG.format("config = Config(plan=PlanConfig(epsilonn=1))"),
    "type.py": CONFIG.format("config = Config(plan=PlanConfig(steps='3'))"),
    "choice.py": CONFIG.format("config = Config(model=ModelConfig(name='linaer'))"),
    "unused.py": CONFIG.format("config = Config(training=TrainingConfig(optimizer='adam', "
                               "momentum=0.5))"),
    "widths.py": CONFIG.format("config = Config(model=ModelConfig(widths=(8,)))"),
}  # fmt: skip

# The command line -> words of the answer: what is wrong with its value, and the cure.
TRAIN = {
    # options that do nothing
    "--training.optimizer adam --training.momentum 0.5": (
        "training.momentum is 0.5, but it is for sgd",
        "training.optimizer is adam: leave it out",
    ),
    "--model.name linear --model.heads 2": ("model.heads is 2", "leave it out"),
    "--model.name linear --model.widths 8": ("model.widths is 8", "model.name is linear: leave"),
    "--model.name linear --model.norm none": ("model.norm is none", "leave it out"),
    "--model.name linear --model.activation relu": ("model.activation is relu", "leave it out"),
    "--model.width 32": ("model.width is 32", "model.name is cnn: leave it out"),
    "--model.layers 3": ("model.layers is 3", "for the transformer and the wide_resnet", "out"),
    "--model.name wide_resnet --model.layers 18": ("model.layers is 18", "10, 16, 22"),
    "--model.norm none --model.norm-group-size 2": ("model.norm-group-size is 2", "leave it out"),
    "--data.file my.csv --data.window 8": ("data.window is 8", "leave it out"),
    "--data.window 32": ("data.window is 32", "data.name is digits: leave it out"),
    "--data.name mnist --data.test-from more": (
        "data.test-from is more, but it is for tables and folders",
        "data.name is mnist: leave it out",
    ),
    "--data.dir somewhere": ("data.dir is somewhere", "sets of TFDS", "leave it out"),
    "--data.views 2": ("data.views is 2", "--data.augment crop_flip"),
    "--data.augment crop_flip --data.views 0": ("data.views is 0", "a whole number of at least 1"),
    "--data.features scattering --data.augment crop_flip": (
        "data.augment is crop_flip",
        "leave out data.features = scattering",
    ),
    "--data.mirrored": ("data.mirrored is True", "leave it out"),
    "--data.name text --data.file a.txt --data.augment crop_flip": (
        "data.augment is crop_flip",
        "leave it out",
    ),
    "--clipping.quantile 0.3": ("clipping.quantile is 0.3", "kind quantile", "leave it out"),
    "--clipping.quantile-rate 0.3": ("clipping.quantile-rate is 0.3", "leave it out"),
    "--clipping.count-std 3": ("clipping.count-std is 3.0", "leave it out"),
    "--clipping.stability 0.1": ("clipping.stability is 0.1", "normalised", "leave it out"),
    "--clipping.units 4": ("clipping.units is 4", "clipping.kind batch", "leave it out"),
    "--clipping.layer module": ("clipping.layer is module", "layerwise", "leave it out"),
    "--clipping.kind multiplied --clipping.layer model": ("clipping.layer is model", "leave it"),
    "--clipping.allocation isotropic": ("clipping.allocation is isotropic", "leave it out"),
    "--clipping.kind layerwise --clipping.layer model --clipping.allocation isotropic": (
        "clipping.allocation is isotropic",
        "clipping.layer is model: leave it out",
    ),
    "--clipping.floor 0.1": ("clipping.floor is 0.1", "public data", "leave it out"),
    "--clipping.no-refresh": ("clipping.refresh is False", "public data", "leave it out"),
    "--clipping.pretraining-epochs 2": ("clipping.pretraining-epochs is 2", "leave it out"),
    "--clipping.pretraining-rate 0.1": ("clipping.pretraining-rate is 0.1", "leave it out"),
    "--clipping.kind layerwise --clipping.norms-from public --clipping.pretraining-epochs 0 "
    "--clipping.pretraining-rate 0.1": ("clipping.pretraining-rate is 0.1", "leave it out"),
    "--clipping.kind layerwise --clipping.norms-from public_norms --clipping.norm 1": (
        "clipping.norm is 1.0",
        "clipping.norms-from is public_norms: leave it out",
    ),
    "--training.schedule-options init_value 1": (
        "training.schedule-options is init_value 1",
        "training.schedule is cosine: leave it out",
    ),
    "unused.py": ("unused.py: training.momentum is 0.5", "leave it out"),
    "widths.py --model.name linear": (
        "model.widths is 8",
        "widths.py sets it, so give --model.widths 16 too",
    ),
    # options that do not exist, or have no such value
    "--plan.epsilonn 1": ("no option --plan.epsilonn", "did you mean --plan.epsilon?"),
    "--epsilon 1": ("no option --epsilon", "did you mean --plan.epsilon?"),
    "--learning_rate 1": ("no option --learning_rate", "did you mean --training.learning-rate?"),
    "--xyzzy": ("no option --xyzzy", "`python -m jaxdp.train --help` lists"),
    "-e 1": ("no option -e", "--help"),
    "--plan.steps x": ("plan.steps is 'x'", "give a whole number"),
    "--plan.steps 1.5": ("plan.steps is '1.5'", "give a whole number"),
    "--plan.steps": ("--plan.steps is given no value", "give a whole number"),
    "--plan.steps --dry-run": ("--plan.steps is given no value", "give a whole number"),
    "--plan.epsilon three": ("plan.epsilon is 'three'", "give a number"),
    "--model.name linaer": ("model.name is 'linaer'", "did you mean linear?"),
    "--model.name xyz": ("model.name is 'xyz'", "give one of cnn, linear"),
    "--model.widths a": ("model.widths is 'a'", "give whole numbers, as 16 32"),
    "--training.constant-time=yes": ("training.constant-time is 'yes'", "true or false"),
    "--training.optimizer-options b1": ("training.optimizer-options is 'b1'", "as b1 0.8"),
    "--plan.steps 3 4 5": ("4 5 belongs to no option", "as --plan.steps 100"),
    "--training.schedule cosin": ("training.schedule is 'cosin'", "did you mean cosine?"),
    "--training.optimizer adamm": ("training.optimizer is 'adamm'", "did you mean adam?"),
    "--training.learning-rate -1": ("training.learning-rate is -1.0", "a number above 0"),
    "--plan.noise-multiplier 1": ("plan.noise-multiplier is 1.0", "give exactly one"),
    "--plan.expected-batch-size 2000": ("expected_batch_size is 2000.0", "at most"),
    "--data.private trian": ("'trian'", "the data set has train (1437)"),
    "--data.private train[:0]": ("'train[:0]' is empty", "Let it stop after its start"),
    "--data.name text": ("data.name is 'text'", "give --data.file TEXT.txt"),
    "--data.name text --data.file a.txt": ("model.name is cnn", "--model.name transformer"),
    "--name a/b": ("name is 'a/b'", "give a name"),
    "--clipping.norms-from public --clipping.kind layerwise": ("norms-from is public", "--data"),
    # config files and folders
    "conf.yaml": ("conf.yaml is no config file", "config = Config(...)"),
    "README.md": ("README.md is no config file", "name it NAME.py"),
    "none.py": ("none.py sets no config", "`config = Config(...)`"),
    "number.py": ("number.py sets config to 3", "`config = Config(...)`"),
    "crash.py": ("crash.py, line 2: division by zero", "mend that line"),
    "syntax.py": ("syntax.py: '(' was never closed (syntax.py, line 1)", "mend that line"),
    "exits.py": ("exits.py, line 2: it exits", "set config"),
    "field.py": ("'epsilonn'", "did you mean 'epsilon'?"),
    "type.py": ("plan.steps is '3'", "give a whole number"),
    "choice.py": ("model.name is 'linaer'", "did you mean 'linear'?"),
    "nnone.py": ("no config file nnone.py", "did you mean none.py?"),
    "none.py number.py": ("none.py number.py belongs to no option", "one config file at most"),
    "folder": ("folder is a folder", "--resume folder"),
    "--resume nowhere": ("nowhere can't be resumed", "Name the folder"),
    "--resume folder": ("folder can't be resumed", "Name the folder"),
    "--output folder": ("folder exists already", "name another one"),
}
NUMBERS = "--num-examples 1437 --num-parameters 650 --batch-sizes 64 --steps 3 "
OTHERS = [
    (plan, "", "--num-examples and --num-parameters and --batch-sizes not given", "config file"),
    (plan, "--plan.epsilon 1", "no option --plan.epsilon", "did you mean --epsilon?"),
    (plan, f"{NUMBERS} --plot a.xyz", "plot is a.xyz", ".png, .pdf, .svg"),
    (plan, f"{NUMBERS} --plot no/a.png", "no/a.png can't be written", "a folder that exists"),
    (plan, f"{NUMBERS} --units 2", "num_units is 2", "leave it out"),
    (plan, f"{NUMBERS} --epochs 2", "epochs", "give"),
    (plan, f"{NUMBERS} --epsilon 0", "epsilon is 0.0", ""),
    (plan, f"{NUMBERS} --sampling poison", "sampling is 'poison'", "did you mean poisson?"),
    (plan, "none.py", "none.py sets no config", "`config = Config(...)`"),
    (plan, "a b", "a b belongs to no option", "one config file at most"),
    (evaluate, "", "no run is given", "give one folder"),
    (evaluate, "a b", "2 runs are given (a b)", "give one folder"),
    (evaluate, "folder", "folder holds no release", "name"),
    (evaluate, "folder --test test", "no option --test", "did you mean --data.test?"),
    (evaluate, "folder --data.augment crop_flip", "data.augment is crop_flip", "leave it out"),
    (evaluate, "folder --data.test", "--data.test is given no value", "give a text"),
    (report, "", "no run is given", "give folders"),
    (report, "folder", "folder holds no run", "name a folder"),
    (report, "folder --plot a.xyz", "no option --plot", "did you mean --output?|--help"),
    (report, "folder --output nowhere", "output is nowhere", "make it"),
    (seal, "", "no run is given", "give one folder"),
    (seal, "a b", "the arguments are 'a b'", "give one folder"),
    (seal, "--now", "the arguments are '--now'", "give one folder"),
    (seal, "folder", "folder holds no run", "name"),
    (data, "", "the following arguments are required: COMMAND", "--help"),
    (data, "prepar", "invalid choice: 'prepar'", "prepare"),
    (data, "clear --now", "unrecognized arguments: --now", "--help"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with config files. It is the current one."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "a.txt").write_text("It was the best of times, it was the worst of times.\n" * 40)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_answer(place, capsys, main, line, *says):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert main(shlex.split(line)) == 2
    answer = capsys.readouterr().err
    assert answer.startswith("error: ")
    assert answer.count("\n") == 1, answer
    assert answer.endswith("\n")
    for words in says:
        assert any(word in answer for word in words.split("|")), (words, answer)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


@pytest.mark.parametrize("line", TRAIN)
def test_train_answers_in_one_line(place, capsys, line):
    check_answer(place, capsys, train.main, line, *TRAIN[line])


@pytest.mark.parametrize(
    ("command", "line", "wrong", "cure"),
    OTHERS,
    ids=[f"{command.__name__.removeprefix('jaxdp.')} {line}" for command, line, *_ in OTHERS],
)
def test_the_other_commands_answer_in_one_line(place, capsys, command, line, wrong, cure):
    check_answer(place, capsys, command.main, line, wrong, cure)


@pytest.mark.parametrize(
    ("line", "wrong", "cure"),
    [
        ("", "no command is given", "there are train, plan"),
        ("trian", "no command 'trian'", "did you mean train?"),
        ("xyz", "no command 'xyz'", "there are train, plan"),
        ("train --xyzzy", "no option --xyzzy", "--help"),
    ],
)
def test_jaxdp_answers_in_one_line(place, capsys, line, wrong, cure):
    check_answer(place, capsys, jaxdp_main, line, wrong, cure)
