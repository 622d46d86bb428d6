"""Every example in a docstring and in the README runs and prints what it says."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import agentmem

README = Path(__file__).parents[1] / "README.md"
MODULES = ["agentmem"] + [
    found.name for found in pkgutil.walk_packages(agentmem.__path__, "agentmem.") if not found.name.endswith("__main__")
]


def documented(owner, name):
    """Docstrings of a module or class and of what is defined in it, by dotted name; compiled methods too."""
    if owner.__doc__:
        yield name, owner.__doc__
    inside = getattr(owner, "__module__", None) if inspect.isclass(owner) else owner.__name__
    for key, value in vars(owner).items():
        value = getattr(value, "__func__", value)  # of class and static methods
        value = getattr(value, "fget", value)  # of properties
        if inspect.isclass(value) and not inspect.isclass(owner):
            if value.__module__ == inside:
                yield from documented(value, f"{name}.{key}")
        elif not inspect.ismodule(value) and getattr(value, "__module__", inside) in (inside, None):
            text = getattr(value, "__doc__", None)
            if isinstance(text, str) and (callable(value) or inspect.isclass(owner)):
                yield f"{name}.{key}", text


def importable(module):
    """Whether it imports; those in `integrations` need not where their library is missing, and say so."""
    try:
        importlib.import_module(module)
    except ImportError as missing:
        assert module.startswith("agentmem.integrations.") and "pip install" in str(missing), module
        return False
    return True


EXAMPLES = {
    name: text
    for module in filter(importable, MODULES)
    for name, text in documented(importlib.import_module(module), module)
    if ">>>" in text
}


def run(text, name, namespace):
    """Run the examples of a text; raise an AssertionError with the report if one prints something else."""
    test = doctest.DocTestParser().get_doctest(text, namespace, name, None, 0)
    assert test.examples
    report = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = next(m for m in sorted(MODULES, key=len, reverse=True) if name == m or name.startswith(f"{m}."))
    run(EXAMPLES[name], name, dict(vars(importlib.import_module(module))))


def test_the_examples_are_found():
    assert "agentmem" in EXAMPLES
    assert "agentmem.belief.SparseBelief" in EXAMPLES
    assert "agentmem.belief.SparseBelief.top" in EXAMPLES


@pytest.mark.skipif(not README.exists(), reason="no README beside the tests")
def test_the_readme_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if ">>>" not in README.read_text():
        pytest.skip("no examples in the README")
    run(README.read_text().replace("\n```", "\n"), "README.md", {})


@pytest.mark.parametrize("name", agentmem.__all__)
def test_every_public_name_is_explained(name):
    assert inspect.getdoc(getattr(agentmem, name))


VERBS = (
    "update predict correct normalize prune entropy kl_divergence total_variation mode top expectation marginal sample "
    "copy from_indices uniform point prune_below nbytes storage"
)


@pytest.mark.parametrize("verb", VERBS.split())
def test_every_verb_of_a_belief_is_explained(verb):
    assert inspect.getdoc(getattr(agentmem.SparseBelief, verb))
