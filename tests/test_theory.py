"""The page of mathematics says which module implements which section, and the code cites sections that there are."""

import importlib.util
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "theory.md").read_text()
SECTIONS = dict(re.findall(r"^## (\d+)\. (.+)$", PAGE, re.MULTILINE))
ROWS = dict(re.findall(r"^\| (\d+ .+?) \| (.+) \|$", PAGE, re.MULTILINE))


def test_every_section_has_a_row_and_its_title():
    assert len(ROWS) == len(SECTIONS) >= 10
    for row, (number, title) in zip(ROWS, SECTIONS.items(), strict=True):
        assert f"{number} {title}".startswith(row)


def test_the_modules_of_every_row_exist():
    for row, cell in ROWS.items():
        modules = re.findall(r"`([\w.]+)`", cell)
        assert modules, row
        for module in modules:
            part, _, name = module.rpartition(".")
            there = importlib.util.find_spec(f"selssm_jax.{module}") or hasattr(
                importlib.import_module(f"selssm_jax.{part}"), name
            )
            assert there, f"section {row}: no module or function {module}"


def test_sections_that_the_code_cites_exist():
    cited = {
        number
        for path in (ROOT / "selssm_jax").rglob("*.py")
        for number in re.findall(r"theory, sections? (\d+)", path.read_text())
    }
    assert cited and cited <= set(SECTIONS)
