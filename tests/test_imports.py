"""Imports go one way, and `import jaxdp` loads the library alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdp

PACKAGE = Path(jaxdp.__file__).parent
COMMANDS = {"train", "evaluate", "predict", "report", "runs", "seal", "plan", "data", "verify"}

# What each part may import, besides itself.
MAY_IMPORT = {
    "types": set(),
    "_distribution": set(),
    "_command": {"_distribution"},
    "gradients": {"types"},
    "accounting": {"types"},
    "dpsgd": {"types", "gradients", "accounting"},
    "datasets": {"types", "_distribution"},
    "models": {"types", "datasets", "gradients"},
    "tasks": {"types", "_distribution", "gradients", "datasets", "models"},
    "trainer": {
        *("types", "_distribution", "gradients", "accounting", "dpsgd", "datasets", "models"),
        "tasks",
    },
    "audit": {
        *("types", "_command", "_distribution", "gradients", "accounting", "dpsgd", "datasets"),
        *("tasks", "trainer"),
    },
    "__main__": {"_command"},
    **{command: {"_command", "_distribution", "datasets", "trainer"} for command in COMMANDS},
    "__init__": {
        *("_command", "_distribution", "gradients", "accounting", "dpsgd", "datasets", "tasks"),
        *("trainer", "audit"),
    },
}
GRADIENTS_MAY_IMPORT = {"jax", "numpy", *sys.stdlib_module_names}
POSIX_ONLY = {
    "crypt",
    "fcntl",
    "grp",
    "posix",
    "pty",
    "pwd",
    "resource",
    "syslog",
    "termios",
    "tty",
}
APPLICATION = {"flax", "orbax", "tyro", "rich", "matplotlib", "sklearn", "tensorflow_datasets"}
APPLICATION |= {"safetensors", "PIL", "tokenizers", "pyarrow", "jaxdp.trainer", "jaxdp.tasks"}
APPLICATION |= {"jaxdp.models", "jaxdp.datasets"}


def modules(folder):
    """Every module of a package, by its dotted name without the package's own."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts)] = ast.parse(path.read_text())
    return found


def imports(folder):
    """Module -> modules of the package that it imports, anywhere; and the other projects'."""
    trees = modules(folder)
    own, others = {}, {}
    for name, tree in trees.items():
        own[name], others[name] = set(), set()
        package = name.split(".")[:-1]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = (
                    [folder.name, *package[: len(package) - node.level + 1]] if node.level else []
                )
                base = ".".join([*base, *([node.module] if node.module else [])])
                targets = [(base, alias.name) for alias in node.names]
            else:
                continue
            for base, last in targets:
                top, _, inside = base.partition(".")
                if top != folder.name:
                    others[name].add(top)
                    continue
                choices = (f"{inside}.{last}", f"{inside}.{last}.__init__", inside)
                choices += (f"{inside}.__init__", last, f"{last}.__init__", "__init__")
                own[name].add(next(c for c in (c.strip(".") for c in choices) if c in trees))
    return own, others


def back_arrows(own):
    part = lambda name: name.partition(".")[0]
    return [
        f"{name} imports {target}"
        for name, targets in own.items()
        for target in targets
        if part(target) != part(name) and part(target) not in MAY_IMPORT[part(name)]
    ]


def circles(own):
    """Modules that import themselves by way of others."""
    left = {name: set(targets) for name, targets in own.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    # What is left imports a circle, or is in one.
    while ends := [n for n in left if not any(n in targets for targets in left.values())]:
        for name in ends:
            del left[name]
    return sorted(left)


def private_imports(own):
    """A module that begins with _ belongs to its package."""
    return [
        f"{name} imports {target}"
        for name, targets in own.items()
        for target in targets
        if target.rpartition(".")[2].startswith("_")
        and not target.endswith("__init__")
        and target.rpartition(".")[0] not in ("", name.rpartition(".")[0])
    ]


def test_imports_go_one_way():
    own, _ = imports(PACKAGE)
    assert back_arrows(own) == []
    assert circles(own) == []
    assert private_imports(own) == []


def posix_only(others):
    return [f"{name} imports {found}" for name in others for found in others[name] & POSIX_ONLY]


def test_no_module_needs_an_operating_system():
    _, others = imports(PACKAGE)
    assert posix_only(others) == []
    assert posix_only({"trainer.run.files": {"os", "fcntl"}}) == ["trainer.run.files imports fcntl"]


@pytest.mark.slow
def test_the_trainer_can_be_imported_where_there_is_no_fcntl():
    for module in ("tyro", "sklearn", "safetensors"):
        pytest.importorskip(module)
    hidden = "".join(f"sys.modules[{name!r}] = None\n" for name in ("fcntl", "resource"))
    code = f"import sys, warnings\n{hidden}warnings.simplefilter('ignore')\nimport jaxdp\n"
    code += "".join(f"import jaxdp.{command}\n" for command in sorted(COMMANDS - {"data"}))
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_accounting_imports_no_jax_and_the_gradients_little_else():
    _, others = imports(PACKAGE)
    jax_in_accounting = [n for n in others if n.startswith("accounting.") and "jax" in others[n]]
    assert jax_in_accounting == []
    foreign = {n: others[n] - GRADIENTS_MAY_IMPORT for n in others if n.startswith("gradients.")}
    foreign["gradients.jax_internals"].discard("jaxlib")  # JAX's own other half
    assert {name: found for name, found in foreign.items() if found} == {}


@pytest.mark.parametrize(
    ("module", "line", "check", "found"),
    [
        ("gradients.engine", "from ..dpsgd import plan", back_arrows, "gradients.engine imports"),
        ("accounting.pld", "def f():\n    from jaxdp.trainer.run import x", back_arrows, "imports"),
        ("dpsgd.plan", "from .privatizer import f", circles, "dpsgd.plan"),
        ("dpsgd.plan", "from ..gradients._checks import f", private_imports, "dpsgd.plan imports"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path, module, line, check, found):
    """The checks above can fail."""
    sources = {
        "__init__": "",
        "gradients.__init__": "from .engine import f as f",
        "gradients.engine": "import jax",
        "gradients._checks": "",
        "accounting.__init__": "",
        "accounting.pld": "import math",
        "dpsgd.__init__": "",
        "dpsgd.plan": "from ..accounting import pld",
        "dpsgd.privatizer": "from .plan import f",
        "trainer.__init__": "",
        "trainer.run.__init__": "from ...dpsgd.plan import x as x",
    }
    for extra in ("", line):
        for name, text in sources.items():
            path = tmp_path / "jaxdp" / f"{name.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n{extra if name == module else ''}\n")
        wrong = check(imports(tmp_path / "jaxdp")[0])
        assert any(found in each for each in wrong) if extra else wrong == []


ONE_BY_ONE = """
import importlib, sys, warnings

warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    for loaded in [n for n in sys.modules if n.partition(".")[0] == "jaxdp"]:
        del sys.modules[loaded]
    importlib.import_module(name)
"""


@pytest.mark.slow
def test_every_module_can_be_the_first_to_be_imported():
    """A package imports its modules, too, so that there may be circles that `circles` misses."""
    for module in ("tyro", "sklearn", "safetensors"):
        pytest.importorskip(module)
    parts = ("datasets", "models", "tasks", "trainer")
    names = [f"jaxdp.{n}" for n in modules(PACKAGE) if n.partition(".")[0] in parts]
    names = [name.removesuffix(".__init__") for name in names]
    subprocess.run([sys.executable, "-c", ONE_BY_ONE, *names], check=True)


def test_import_jaxdp_loads_nothing_of_the_application():
    code = "import jaxdp, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "jaxdp.dpsgd.plan" in loaded
    assert loaded & APPLICATION == set()


def test_import_jaxdp_audit_loads_nothing_of_the_application():
    code = "import jaxdp.audit, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "jaxdp.audit.one_run" in loaded
    assert loaded & APPLICATION == set()
