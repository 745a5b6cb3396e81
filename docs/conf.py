"""The settings of the site: `python -m sphinx -W --keep-going -b html docs build/docs`."""

import importlib
import inspect
import pkgutil
import re
import sys
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import jaxdp

project = "jaxdp"
author = "The jaxdp developers"
copyright = "The jaxdp developers"
release = version = jaxdp.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"jaxdp {release}"

default_role = "code"  # single backticks in docstrings mean code
smartquotes = False  # docstrings quote code
highlight_language = "none"  # most blocks show a terminal; Python blocks say so
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # a list, not an entry for each
napoleon_use_rtype = False

# Each has a page in docs/api. A name that several of them have is described on the first one's.
PACKAGES = {
    name: importlib.import_module(name)
    for name in ["jaxdp"]
    + [found.name for found in pkgutil.walk_packages(jaxdp.__path__, "jaxdp.") if found.ispkg]
}


def home(name: str, value: object) -> str | None:
    """Returns the package on whose page a public name is described."""
    has = (p for p, package in PACKAGES.items() if getattr(package, name, None) is value)
    return next(has, None)


def skip_member(
    app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any
) -> bool | None:
    """Leaves out what is described elsewhere, and the fields of tuples; keeps constants."""
    if type(value).__name__ == "_tuplegetter":
        return True  # Python's own text says nothing, and the class describes its fields
    if what != "module" or name.startswith("_") or inspect.ismodule(value):
        return None
    page = app.env.docname.removeprefix("api/")
    package = "jaxdp" if page == "jaxdp" else f"jaxdp.{page}"
    if package in PACKAGES and home(name, value) != package:
        return True
    return False if comment_of(name, value) else None


def complete_docstring(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Gives packages a list of what is described elsewhere, and constants their `#:` comment."""
    if what == "data":
        lines[:] = comment_of(name.rpartition(".")[2], value)
    elif name in PACKAGES:
        homes = {
            n: home(n, member)
            for n, member in vars(value).items()
            if not n.startswith("_") and not inspect.ismodule(member)
        }
        elsewhere = [f":py:obj:`{p}.{n}`" for n, p in homes.items() if p != name]
        if elsewhere:
            lines += ["", f"Described elsewhere: {', '.join(elsewhere)}.", ""]


def restore_text(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Gives attributes and properties their text back; Napoleon takes its first words for a type.

    Options of the trainer are shown as `--help` shows them: plain text, a statement on each line.
    """
    if what == "property":
        lines[:] = [*(inspect.getdoc(value) or "").splitlines(), ""]
    elif what == "attribute" and name.rsplit(".", 2)[0] in PACKAGES:
        package, owner, attribute = name.rsplit(".", 2)
        module = getattr(PACKAGES[package], owner).__module__
        text = ModuleAnalyzer.for_module(module).find_attr_docs().get((owner, attribute), [])
        if owner.endswith("Config"):
            text = ["| " + re.sub(r"([\\*|`])", r"\\\1", line) for line in text if line]
        lines[:] = [*text, ""]


def comment_of(name: str, value: object) -> list[str]:
    """Returns the `#:` comment of a constant, which Sphinx finds in its own module only."""
    modules = [n for n in sys.modules if n.startswith("jaxdp.") and n not in PACKAGES]
    for module in modules:
        if getattr(sys.modules[module], name, None) is value:
            found = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", name))
            if found:
                return list(found)
    return []


def setup(app: Sphinx) -> None:
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", complete_docstring)
    app.connect("autodoc-process-docstring", restore_text, priority=600)  # after Napoleon
