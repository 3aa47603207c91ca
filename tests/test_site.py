"""The documentation site reads docstrings as they are meant. That the site can be built, and that its links lead
somewhere, .ci/run checks.
"""

import importlib.util
import pathlib
import re
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def load_hook(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def docstrings():
    if not importlib.util.find_spec("griffe"):
        pytest.skip("needs the extra 'docs'")
    return load_hook("docstrings")


def test_each_argument_has_an_entry_of_its_own(docstrings):
    text = (
        "Adds.\n\nArgs:\n  x, y: numbers,\n    real. n: how many; m: see `f`. Note: no argument.\n\nReturns:\n  x: "
        "the sum. y: none.\n"
    )
    lines = docstrings.split_entries(text, {"x", "y", "n", "m"}).splitlines()
    assert lines == [
        *["Adds.", "", "Args:", "  x: numbers,", "    real.", "  y: numbers,", "    real."],
        *["  n: how many;", "  m: see `f`. Note: no argument.", "", "Returns:", "  x: the sum. y: none."],
    ]


def test_markdown_changes_no_formula(docstrings):
    text = (
        "h_t * <x_t> of `a_b`.\n\n    a_1 * b_1\n\nArgs:\n  a_b: of x_t.\n    More_.\n\nRaises:\n  ValueError: if "
        "x_t < 0.\n\nEnd_."
    )
    assert docstrings.escape_markdown(text) == (
        "h\\_t \\* &lt;x\\_t> of `a_b`.\n\n    a_1 * b_1\n\nArgs:\n  a_b: of x\\_t.\n    More\\_.\n\nRaises:\n  "
        "ValueError: if x\\_t &lt; 0.\n\nEnd\\_."
    )


def test_every_page_has_a_place_in_the_navigation():
    navigation = re.search(r"^nav:\n(.*?)^\w", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE | re.DOTALL)[1]
    listed = re.findall(r": ([\w/]+\.md)$", navigation, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert [page.name for page in PAGES if page.name not in listed] == []


def test_the_reference_has_a_page_for_each_module_and_names_what_is_none(monkeypatch):
    # `selssm_jax.load` is a function of the package itself, which once was taken for a file.
    if not (importlib.util.find_spec("mkdocs") and importlib.util.find_spec("nbconvert")):
        pytest.skip("needs the extra 'docs'")
    monkeypatch.syspath_prepend(ROOT / "docs")  # as MkDocs does for its hooks
    pages = load_hook("pages")
    config = pages.on_config(types.SimpleNamespace(nav=[{"Reference": "reference/index.md"}]))
    listed = [next(iter(item)) for item in config.nav[0]["Reference"][1:]]
    stub = (ROOT / "selssm_jax" / "__init__.pyi").read_text()
    names = re.findall(r" as (\w+)$", stub, re.MULTILINE)
    modules = [name for name in names if importlib.util.find_spec(f"selssm_jax.{name}")]
    assert listed == modules
    index = dict(pages._reference())["reference/index.md"]
    assert [name for name in names if name not in modules] == re.findall(
        r"^::: selssm_jax\.(\w+)$", index, re.MULTILINE
    )
