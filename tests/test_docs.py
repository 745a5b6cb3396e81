"""The pages and docstrings: complete, with links that lead somewhere and examples that run."""

import doctest
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp

ROOT = Path(jaxdp.__file__).parents[1]
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.glob("jaxdp/**/*.py"))
}
PACKAGES = [name for name, path in SOURCES.items() if path.name == "__init__.py"]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def page_name(path):
    return str(path.relative_to(ROOT))


def public_names(package):
    """What a package imports as a name of its own, `from .x import y as y`, or defines."""
    module, text = importlib.import_module(package), SOURCES[package].read_text()
    imported = re.findall(r"^ *from \.\S* import \w+ as ([A-Za-z]\w*)$", text, re.M)
    defined = re.findall(r"^([A-Za-z]\w*) = ", text, re.M)
    return {name: getattr(module, name) for name in imported + defined}


PREDEFINED = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "jaxdp": jaxdp}
PREDEFINED |= public_names("jaxdp")


def is_documented(name, value):
    if inspect.isclass(value):
        text = vars(value).get("__doc__") or ""
        return text != "" and not text.startswith(f"{value.__name__}(")  # a dataclass's own
    if inspect.isroutine(value) or inspect.ismodule(value) or isinstance(value, property):
        return bool(value.__doc__)
    comment = re.compile(rf"^#: .*\n(#:.*\n)*{name}\b", re.M)
    return any(comment.search(path.read_text()) for path in SOURCES.values())


def is_member(value):
    return inspect.isfunction(value) or isinstance(value, property)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_docstring(package):
    assert importlib.import_module(package).__doc__ != "Package."
    names = public_names(package)
    members = {
        f"{name}.{member}": value
        for name, cls in names.items()
        if inspect.isclass(cls) and cls.__module__.startswith("jaxdp")
        for member, value in vars(cls).items()
        if not member.startswith("_") and is_member(value)
    }
    undocumented = [n for n, value in (names | members).items() if not is_documented(n, value)]
    assert not undocumented


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package):
    text = "\n".join(path.read_text() for path in sorted(ROOT.glob("docs/api/*.md")))
    names = public_names(package)
    if package == "jaxdp":  # arranged by hand
        described = re.findall(r"^\.\. auto(?:class|function|data):: jaxdp\.(\w+)$", text, re.M)
        functions = [name for name, value in names.items() if not inspect.ismodule(value)]
        assert sorted(described) == sorted(functions)
        for name in names.keys() - set(functions):
            assert f".. automodule:: jaxdp.{name}\n" in text
        return
    assert f".. automodule:: {package}\n   :members:\n   :imported-members:\n" in text
    for name, value in names.items():
        if inspect.ismodule(value):
            assert f".. automodule:: {package}.{name}\n   :members:\n" in text


@pytest.mark.parametrize("module", [n for n, path in SOURCES.items() if ">>> " in path.read_text()])
def test_the_examples_of_docstrings_run(module):
    found = importlib.import_module(module)
    tests = doctest.DocTestFinder().find(found, globs=vars(found) | PREDEFINED)
    assert any(test.examples for test in tests)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_and_images_lead_to_files(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_named_files_and_commands_exist(path):
    text = path.read_text()
    files = re.findall(r"`((?:jaxdp|tests|docs|configs|benchmarks|examples|\.ci)/[\w./-]*)`", text)
    assert [file for file in files if not (ROOT / file).exists()] == []
    for command in re.findall(r"python -m ((?:jaxdp|benchmarks)[\w.]*\w)", text):
        spec = importlib.util.find_spec(command)
        assert spec is not None, command
        assert spec.submodule_search_locations is None or importlib.util.find_spec(
            f"{command}.__main__"
        ), command


def programs(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)


def test_the_programs_of_the_readme_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit, program = programs(ROOT / "README.md")
    space = {}
    exec(fit, space)
    assert 2.99 < space["result"].epsilon <= 3.0
    assert space["result"].scores["accuracy"] > 0.8
    assert re.search(r"^\[\d \d \d\]$", capsys.readouterr().out, re.M)
    space = {}
    exec(program, space)
    assert 2.99 < float(capsys.readouterr().out) <= 3.0
    logits = space["x"] @ space["params"]["w"] + space["params"]["b"]
    assert np.mean(logits.argmax(axis=1) == space["y"]) > 0.8
    assert programs(ROOT / "docs/quickstart.md") == [program]


@pytest.mark.slow
def test_the_programs_of_the_page_on_own_models_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, functions = programs(ROOT / "docs/guides/your-model.md")
    space = {}
    exec(first, space)
    assert space["result"].scores["accuracy"] > 0.8
    assert space["predicted"]["scores"].shape == (5, 10)
    assert jaxdp.load_release("runs/mine").statement.data.private == "rows[:80%]"
    exec(functions, space)
    plan = jaxdp.PlanSettings(
        expected_batch_size=256, steps=3, epsilon=3.0, clipping=jaxdp.clip_individual(1.0)
    )
    fitted = jaxdp.fit(space["task"], space["data"], plan, optimizer=optax.adam(0.1))
    assert set(fitted.scores) == {"accuracy"}
    assert fitted.release.predict(space["rows"][0][:2]).dtype == bool


@pytest.mark.slow
def test_the_programs_of_the_page_on_batchnorm_run():
    space = {}
    for program in programs(ROOT / "docs/guides/batchnorm.md"):
        exec(program, space)
        assert space["logits"].shape == (200, 2)
        assert np.all(np.isfinite(space["logits"]))


def test_there_is_one_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", citation, re.M) == [jaxdp.__version__]
    assert f"\n## {jaxdp.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_hooks_and_workflows_call_what_the_gate_calls():
    gate = (ROOT / ".ci/run").read_text()
    hooks = re.findall(r"^ +entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.M)
    steps = [
        step
        for name in ("tests", "docs")
        for step in re.findall(
            r"^ +- run: (.*)$", (ROOT / f".github/workflows/{name}.yml").read_text(), re.M
        )
        if not step.startswith("pip install")
    ]
    assert sorted(hooks) == sorted(steps)
    assert [hook for hook in hooks if hook.removesuffix(" build/docs") not in gate] == []
