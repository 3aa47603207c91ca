"""The package as a stranger imports it: versions, names and types, and what an installation carries."""

import ast
import importlib
import pathlib
import re
import sys
import tomllib

import pytest
from absl import flags

import runs
import selssm_jax
from selssm_jax import config, invocation

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FACES = sorted((ROOT / "selssm_jax").rglob("__init__.pyi"))
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]


def dotted(folder: pathlib.Path) -> str:
    return ".".join(folder.relative_to(ROOT).parts)


def exports(face: pathlib.Path) -> list[str]:
    """Names that a stub gives its package."""
    return [
        alias.asname
        for node in ast.parse(face.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


def test_the_version_is_said_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+", selssm_jax.__version__)
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "selssm_jax.__version__"}


@pytest.mark.parametrize("face", FACES, ids=lambda face: dotted(face.parent))
def test_every_name_of_a_face_is_there(face):
    package = importlib.import_module(dotted(face.parent))
    assert exports(face) == [name for name in exports(face) if hasattr(package, name)]
    assert set(exports(face)) <= set(dir(package))


def test_importing_the_package_loads_no_jax():
    imports = "import selssm_jax, selssm_jax.layers, selssm_jax.stability"
    assert runs.list_loaded(imports, "jax", "flax", "scipy") == []


def test_training_starts_without_pytorch_where_it_is_installed():
    """tensorboardX imports it, for three seconds; a user's own import of it works afterwards."""
    imports = "from selssm_jax import cli; cli.import_tensorboard(); from selssm_jax.training import loop"
    assert runs.list_loaded(imports, "torch", "tensorboardX") == ["tensorboardX"]


@pytest.mark.parametrize(
    "face", [*FACES, ROOT / "selssm_jax" / "ops" / "__init__.py"], ids=lambda face: dotted(face.parent)
)
def test_no_function_of_a_face_has_the_name_of_a_module(face):
    package = importlib.import_module(dotted(face.parent))
    names = exports(face) if face.suffix == ".pyi" else package.__all__
    modules = {path.stem for path in face.parent.iterdir()}
    assert [name for name in names if name in modules and not isinstance(getattr(package, name), type(ast))] == []


def docstrings() -> str:
    nodes = [node for path in (ROOT / "selssm_jax").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    return "\n".join(
        ast.get_docstring(node) or "" for node in nodes if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
    )


@pytest.mark.parametrize(
    "text", [*(page.read_text() for page in PAGES), docstrings()], ids=[*(page.name for page in PAGES), "docstrings"]
)
def test_every_import_that_a_text_shows_works(text):
    for module, names in re.findall(r"from (selssm_jax[\w.]*) import ([\w, ]+)", text):
        assert not any(part.startswith("_") for part in module.split(".")), f"{module} is private"
        for name in names.split(","):
            package = importlib.import_module(module)
            assert hasattr(package, name.strip().split(" as ")[0]) or importlib.import_module(
                f"{module}.{name.strip()}"
            )


def test_an_installation_carries_every_package_its_stubs_and_all_recipes():
    setuptools = PYPROJECT["tool"]["setuptools"]
    folders = {dotted(path.parent) for path in (ROOT / "selssm_jax").rglob("*.py")}
    recipes = {
        "selssm_jax.recipes" + ".paper" * (path.parent.name == "paper") for path in (ROOT / "configs").rglob("*.py")
    }
    assert set(setuptools["packages"]) == folders | recipes
    assert setuptools["package-dir"] == {"selssm_jax.recipes": "configs"}
    assert setuptools["package-data"] == {"*": ["py.typed", "*.pyi"]}
    assert (ROOT / "selssm_jax" / "py.typed").exists()


@pytest.mark.parametrize("name", ["quickstart", "quickstart.py", "configs/quickstart.py", "paper/etth1_96"])
def test_a_recipe_is_known_by_its_name_in_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load(config.find_recipe(name)).name == pathlib.Path(name).stem


@pytest.mark.parametrize("name", ["../pyproject", "/quickstart", "paper/../quickstart", "quickstar", "", "."])
def test_nothing_else_is_a_recipe(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.find_recipe(name) == name


def test_a_file_of_ones_own_goes_before_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("")
    assert config.find_recipe("quickstart") == "quickstart"


@pytest.mark.parametrize(
    ("program", "line", "again"),
    [
        ("train.py", "python eval.py '--workdir=my run'", "python train.py '--config=a b.py'"),
        ("/opt/bin/selssm-train", "selssm-eval '--workdir=my run'", "selssm-train '--config=a b.py'"),
    ],
)
def test_messages_name_the_command_that_was_called(program, line, again, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "--config=a b.py"])
    assert invocation.command("eval", "--workdir=my run") == line
    assert invocation.again(sys.argv) == again


def test_commands_that_are_shown_register_what_this_one_did(monkeypatch):
    given = flags.FlagValues()
    flags.DEFINE_multi_string("extend", [], "as the commands have it", flag_values=given)
    given(["train.py", "--extend=own.py", "--extend=package.parts"])
    monkeypatch.setattr(invocation.flags, "FLAGS", given)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert (
        invocation.command("eval", "--workdir=r") == "python eval.py --workdir=r --extend=own.py --extend=package.parts"
    )
    assert invocation.command("eval") == "python eval.py"
