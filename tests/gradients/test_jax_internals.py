"""One module alone touches what JAX does not export."""

import ast
from pathlib import Path

import pytest

import jaxdp

PACKAGE = Path(jaxdp.__file__).parent
INTERNALS = PACKAGE / "gradients" / "jax_internals.py"
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(source):
    """The modules that a source imports, and `module.name` for each `from module import name`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"  # jax._src.core without an import of its own


def internals(source):
    names = ("jax._src", "jax.extend")
    return [
        found
        for found in imports(source)
        if any(found == name or found.startswith(name + ".") for name in names)
    ]


@pytest.mark.parametrize(
    "source",
    [
        "import jax._src.core as core",
        "from jax._src.lax import lax",
        "from jax import _src",
        "from jax.extend.core import primitives",
        "from jax import extend",
        "jax._src.core.Literal",
    ],
)
def test_every_way_to_the_internals_is_seen(source):
    assert internals(source)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_touches_the_internals(path):
    found = internals(path.read_text())
    assert bool(found) == (path == INTERNALS), found
