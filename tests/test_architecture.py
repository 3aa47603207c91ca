"""The rules that keep the house in order, read from the source itself: imports, lengths, names, docstrings,
dependencies.
"""

import ast
import functools
import math
import pathlib
import re
import statistics
import sys
import tomllib
from collections.abc import Iterator

import pytest

import runs

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "selssm_jax").rglob("*.py"))
STUDIES = sorted((ROOT / "experiments").rglob("*.py"))
COMMANDS = sorted(ROOT.glob("*.py"))
EVERYTHING = (
    PACKAGE
    + [
        path
        for folder in ("configs", "benchmarks", "experiments", "tests", "docs")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    + COMMANDS
)
TEXTS = [
    *EVERYTHING,
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "notebooks").glob("*.ipynb"),
    *(ROOT / "benchmarks").rglob("*.json"),
    ROOT / "pyproject.toml",
    ROOT / "mkdocs.yml",
    ROOT / ".ci" / "run",
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Each may import from itself and from those before it only.
ORDER = [
    "errors",
    "allocator",
    "invocation",
    "lookout",
    "paths",
    "shapes",
    "config",
    "ops",
    "layers",
    "tasks",
    "model",
    "state_layout",
    "observe",
    "data",
    "generation",
    "information",
    "training",
    "streaming",
    "stability",
    "explain",
    "compression",
    "testing",
    "runs",
    "intervals",
    "predict",
    "prediction_files",
    "stream_files",
    "interop",
    "analysis",
    "report",
    "sweep",
    "doctor",
    "cli",
    "serving",
    "commands",
]
DATA_MAY_IMPORT = {"errors", "paths", "shapes", "config", "data"}
# Names of distributions that are not the name of their module.
MODULES = {"absl-py": "absl", "orbax-checkpoint": "orbax", "tensorflow-datasets": "tensorflow_datasets"}
# Dependencies that no line of the package imports, and why they are declared.
INDIRECT = {
    "flatbuffers": "jax.export writes with it, and JAX does not declare it",
    "importlib_resources": "imported by tensorflow_datasets, which does not declare it",
    "array_record": "the file format of the prepared records; grain and tensorflow_datasets need it and declare it "
    "for some platforms only",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def parse(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def functions(path: pathlib.Path) -> list[Function]:
    return [node for node in ast.walk(parse(path)) if isinstance(node, Function)]


def public(path: pathlib.Path) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public functions and classes of a module and public methods of its public classes, with their dotted names."""
    for node in parse(path).body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            for method in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(method, Function) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method


def imported(path: pathlib.Path) -> set[str]:
    """Dotted names of all that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno} is a relative import: write selssm_jax..."
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts_imported(path: pathlib.Path) -> set[str]:
    return {dotted.split(".")[1] for dotted in imported(path) if dotted.startswith("selssm_jax.")} - {"__version__"}


@pytest.mark.parametrize(
    "path", [path for path in PACKAGE if path.parent != ROOT / "selssm_jax" or path.stem != "__init__"], ids=name
)
def test_imports_point_upwards_only(path):
    part = path.relative_to(ROOT / "selssm_jax").parts[0].removesuffix(".py")
    assert part in ORDER, f"{part} has no place in the order {ORDER}"
    allowed = DATA_MAY_IMPORT if part == "data" else set(ORDER[: ORDER.index(part) + 1])
    assert parts_imported(path) <= allowed, f"{name(path)} imports {parts_imported(path) - allowed}"


def test_the_config_reads_the_rules_of_layers_and_they_know_no_jax():
    files = sorted((ROOT / "selssm_jax" / "config").glob("*.py"))
    assert files and all(parts_imported(path) <= {"errors", "paths", "config"} for path in files)
    assert third_parties(files) == {"lazy_loader", "ml_collections"}
    assert runs.list_loaded("from selssm_jax.config import Experiment", "jax", "flax", "numpy") == []


def test_what_a_kind_of_task_is_stands_in_its_object_alone():
    """Everything else asks the object: nothing compares kinds, or has a table of them, but for the keys that each
    reads.
    """
    kinds = {"language", "classification", "text_classification", "token_classification", "forecasting"}
    for path in PACKAGE:
        asked = [[*node.comparators, node.left] for node in ast.walk(parse(path)) if isinstance(node, ast.Compare)]
        tables = [node.keys for node in ast.walk(parse(path)) if isinstance(node, ast.Dict)]
        listed = [] if name(path) in ("selssm_jax/tasks/registry.py", "selssm_jax/config/data.py") else tables
        constants = [
            part
            for nodes in asked + listed
            for node in nodes
            if node
            for part in ast.walk(node)
            if isinstance(part, ast.Constant)
        ]
        assert not kinds & {part.value for part in constants if isinstance(part.value, str)}, name(path)


def test_recurrences_know_neither_flax_nor_the_config():
    for path in (ROOT / "selssm_jax" / "ops").rglob("*.py"):
        assert not {dotted.split(".")[0] for dotted in imported(path)} & {"flax", "ml_collections", "optax"}, name(path)
        assert "config" not in parts_imported(path), name(path)


def test_measures_of_information_know_no_models():
    """They are to be imported alone, into other projects."""
    for path in (ROOT / "selssm_jax" / "information").rglob("*.py"):
        assert not {dotted.split(".")[0] for dotted in imported(path)} & {
            "flax",
            "ml_collections",
            "orbax",
            "grain",
            "matplotlib",
        }, name(path)
        assert parts_imported(path) <= {"information", "ops", "shapes"}, name(path)


def test_reports_take_values_alone():
    """What a report shows was computed elsewhere: it knows neither models nor training nor compression, and no run."""
    for path in (ROOT / "selssm_jax" / "report").rglob("*.py"):
        assert parts_imported(path) <= {"analysis", "config", "errors", "invocation", "report", "stability", "tasks"}, (
            name(path)
        )
        modules = {".".join(dotted.split(".")[:3]) for dotted in imported(path)}
        assert {module for module in modules if module.startswith("selssm_jax.analysis")} <= {
            "selssm_jax.analysis.results"
        }, name(path)


def test_what_blocks_sow_is_read_in_one_place():
    texts = {name(path): path.read_text() for path in PACKAGE + STUDIES}
    assert [path for path, text in texts.items() if re.search(r'f"block_\{(?!\{)', text)] == ["selssm_jax/model.py"]
    sown = re.compile(r'\w(\["|\.get\(")(intermediates|laws|diagnostics)"')
    assert [path for path, text in texts.items() if sown.search(text)] == ["selssm_jax/observe.py"]


def test_functions_are_short(capsys):
    lengths = {
        f"{name(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in PACKAGE + COMMANDS
        for node in functions(path)
    }
    median = statistics.median(lengths.values())
    with capsys.disabled():
        print(
            f"\n{len(lengths)} functions, median {median:g} lines, longest {max(lengths, key=lengths.get)} with "
            f"{max(lengths.values())}"
        )
    assert {where: length for where, length in lengths.items() if length > 60} == {}
    assert median <= 12


def test_functions_outside_the_package_are_short_too():
    lengths = {
        f"{name(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in EVERYTHING
        for node in functions(path)
    }
    assert {where: length for where, length in lengths.items() if length > 60} == {}


def test_commands_are_two_and_short():
    assert {name(path): len(path.read_text().splitlines()) <= 10 for path in COMMANDS} == {
        "eval.py": True,
        "train.py": True,
    }
    inside = sorted((ROOT / "selssm_jax" / "commands").glob("[a-z]*.py"))
    assert {path.name: len(path.read_text().splitlines()) <= 80 for path in inside} == {
        "eval.py": True,
        "train.py": True,
    }


WORDS = (
    "shown said known kept made given found written drawn held told taken chosen begun left spoken done built sent "
    "lost hidden own grown"
)
IRREGULAR = frozenset(WORDS.split(" "))
ESTIMATORS = {"sliced", "mixed"}  # the field's names of two estimators


def test_no_function_is_named_by_a_bare_participle():
    """A function is a verb with an object; a property, which is a value, may be one."""
    bare = []
    for path in PACKAGE + STUDIES:
        for node in functions(path):
            word = node.name.strip("_")
            is_value = any(
                getattr(decorator, "id", getattr(decorator, "attr", "")) in ("property", "cached_property")
                for decorator in node.decorator_list
            )
            if (
                not is_value
                and word not in ESTIMATORS
                and (word in IRREGULAR or (re.fullmatch("[a-z]{2,}ed", word) and not word.endswith(("eed", "embed"))))
            ):
                bare.append(f"{name(path)}:{node.lineno} {node.name}")
    assert bare == []


VAGUE = {"found"}  # names of variables in place of a noun that says what the value is
# to shrink, never to grow
STILL_VAGUE = {"analysis", "config", "errors", "interop", "state_layout", "sweep", "testing"}


def test_variables_are_named_by_nouns():
    vague = []
    for path in PACKAGE:
        if path.relative_to(ROOT / "selssm_jax").parts[0].removesuffix(".py") in STILL_VAGUE:
            continue
        for node in ast.walk(parse(path)):
            word = (
                node.arg
                if isinstance(node, ast.arg)
                else node.id
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                else ""
            )
            vague += [f"{name(path)}:{node.lineno} {word}"] if word in VAGUE else []
    assert vague == []


def test_no_module_is_a_grab_bag():
    assert [name(path) for path in EVERYTHING if re.fullmatch(r"(utils?|helpers?|common|misc|tools)", path.stem)] == []


@pytest.mark.always
def test_every_module_has_a_docstring():
    assert [name(path) for path in EVERYTHING if not ast.get_docstring(parse(path))] == []


def test_everything_public_has_a_docstring():
    # Flax gives `setup` its meaning.
    nodes = [
        (name(path), dotted, node)
        for path in PACKAGE + STUDIES
        for dotted, node in public(path)
        if not dotted.endswith(".setup")
    ]
    assert [f"{path}:{dotted}" for path, dotted, node in nodes if not ast.get_docstring(node)] == []


def test_every_public_argument_has_a_type():
    bare = []
    for path in PACKAGE:
        for dotted, node in public(path):
            if isinstance(node, Function):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                bare += [
                    f"{name(path)}:{dotted}({a.arg})"
                    for a in arguments
                    if a.annotation is None and a.arg not in ("self", "cls")
                ]
                bare += [f"{name(path)}:{dotted} -> ?"] if node.returns is None else []
    assert bare == []


def test_no_switch_is_positional():
    found = []
    for path in PACKAGE:
        for dotted, node in public(path):
            if isinstance(node, Function):
                defaults = zip(
                    reversed(node.args.posonlyargs + node.args.args), reversed(node.args.defaults), strict=False
                )
                found += [
                    f"{name(path)}:{dotted}({a.arg})"
                    for a, value in defaults
                    if isinstance(value, ast.Constant) and isinstance(value.value, bool)
                ]
    assert found == []


def test_one_file_only_says_pmap():
    assert [name(path) for path in PACKAGE + COMMANDS if "pmap" in path.read_text()] == [
        "selssm_jax/training/parallel.py"
    ]


def test_nothing_is_left_for_later():
    words = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error")))
    assert [f"{name(path)}: {found[0]}" for path in EVERYTHING if (found := words.findall(path.read_text()))] == []


def test_no_file_names_a_machine_or_a_registry():
    strange = re.compile(r"(?<![\w.])/(work|root|home|Users|mnt)/|" + "|".join(("pypi" + r"\.", "python" + "hosted")))
    assert [f"{name(path)}: {found[0]}" for path in TEXTS if (found := strange.findall(path.read_text()))] == []


def distribution(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]


def third_parties(paths: list[pathlib.Path]) -> set[str]:
    own = {"selssm_jax", "train", "eval", "configs", "benchmarks", "experiments", "tests"} | {
        path.stem for path in (ROOT / "tests").iterdir()
    }
    return {dotted.split(".")[0] for path in paths for dotted in imported(path)} - set(sys.stdlib_module_names) - own


def test_dependencies_are_what_is_imported():
    declared = {distribution(text) for text in PROJECT["dependencies"]}
    modules = {MODULES.get(item, item) for item in declared}
    extras = {
        MODULES.get(distribution(text), distribution(text))
        for item in ("tf", "subword")
        for text in PROJECT["optional-dependencies"][item]
    }
    used = third_parties(PACKAGE + COMMANDS + sorted((ROOT / "configs").glob("*.py")))
    assert used - modules - extras == set(), "imported, but not declared in pyproject.toml"
    assert modules - used - set(INDIRECT) == set(), "declared in pyproject.toml, but never imported"
    assert set(INDIRECT) <= declared


def test_dependencies_of_tests_are_what_they_import():
    extras = {distribution(text) for text in PROJECT["optional-dependencies"]["test"]}
    declared = {MODULES.get(distribution(text), distribution(text)) for text in PROJECT["dependencies"]} | extras
    assert third_parties(sorted((ROOT / "tests").rglob("*.py"))) <= declared


def test_every_dependency_has_a_lower_bound():
    bare = [
        text
        for group in ("test", "docs", "bench", "tf", "subword")
        for text in PROJECT["optional-dependencies"][group]
        if ">=" not in text
    ]
    assert [text for text in PROJECT["dependencies"] if ">=" not in text] + bare == []


def test_first_screen_of_readme_has_exactly_two_commands():
    readme = (ROOT / "README.md").read_text()
    screen = "\n".join(readme.splitlines()[:30])
    commands = re.findall(r"^```sh\n(.*?)^```$", screen, re.MULTILINE | re.DOTALL)
    assert len(commands) == screen.count("```sh") == 2
    assert all(len(command.strip().replace("\\\n", "").splitlines()) == 1 for command in commands)
    run, test = commands
    assert "pip install" in run and "train.py --config configs/quickstart.py" in run
    assert "pip install" in test and test.rstrip().endswith("pytest")


def test_readme_names_every_recipe():
    readme = (ROOT / "README.md").read_text()
    table = re.findall(r"^\| (\w+) \|.*`python train\.py --config configs/(\w+)\.py", readme, re.MULTILINE)
    assert sorted(table) == [(path.stem, path.stem) for path in sorted((ROOT / "configs").glob("*.py"))]


def programs(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.always
def test_readme_shows_programs_that_run(capsys):
    layer, recurrence, foreign, memory, certificate, packing = programs("README.md")
    assert (
        max(len(program.splitlines()) for program in (layer, recurrence, memory, certificate, foreign, packing)) <= 10
    )
    exec(layer, {})
    assert 0 < float(capsys.readouterr().out) < 1
    names: dict = {}
    exec(recurrence, names)
    assert names["y"].shape == (2, 100, 8) and names["h"].shape == (2, 8, 16)

    exec(foreign, {})
    assert "A_log" in capsys.readouterr().out
    exec(packing, {})
    assert "(3, 3, 2, 0) 3 bytes for three states" in capsys.readouterr().out
    exec(memory, {})
    exact, found = capsys.readouterr().out.splitlines()[:2]
    assert 0 < float(exact) < 10 and "bits (" in found

    exec(certificate, {})
    words = capsys.readouterr().out
    assert "after 263 steps" in words and "refuted" in words


def test_the_page_on_information_shows_programs_that_run(capsys):
    estimate, transfer, bracket, fano = programs("docs/information.md")
    exec(estimate, {})
    value, spread = re.match(r"~ ([\d.]+) \+- ([\d.]+) bits", capsys.readouterr().out).groups()
    assert abs(float(value) - math.log2(5)) < 4 * float(spread)
    exec(transfer, {})
    value, significant, chance, *_, interval = [
        line for line in capsys.readouterr().out.splitlines() if "note: " not in line
    ]
    truth, spoken, spread = re.match(r"([\d.]+) ~ ([\d.]+) \+- ([\d.]+) bits", value).groups()
    assert abs(float(spoken) - float(truth)) < 3 * float(spread) and float(significant) == 0.005 < 0.05 < float(chance)
    low, high = re.match(r"([-\d.]+) to ([\d.]+) bits at 95%", interval).groups()
    assert float(low) < float(truth) < float(high)
    exec(bracket, {})
    assert "resolved=" in capsys.readouterr().out
    exec(fano, {})
    assert 0 < float(capsys.readouterr().out) < 0.9


def test_the_page_on_theorems_names_tests_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "theorems.md").read_text())
    assert len(named) > 20
    assert [(path, test) for path, test in named if test not in {node.name for node in functions(ROOT / path)}] == []


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_readme_speaks_in_short_sentences():
    """At most twenty words in the mean; programs, tables and headings are no sentences."""
    prose = re.sub(r"```.*?```|^[|#!].*?$", "", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    sentences = [
        sentence
        for paragraph in re.split(r"\n\s*\n", prose)
        for sentence in re.split(r"(?<=[.:!?])\s+", paragraph)
        if len(sentence.split()) > 1
    ]
    lengths = [len(sentence.split()) for sentence in sentences]
    assert statistics.mean(lengths) <= 20 and max(lengths) <= 60
