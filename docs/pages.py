"""Pages of the documentation site that are made from other files of the repository, as hooks of MkDocs (see
`mkdocs.yml`).

The README, the notes for contributors, the page of benchmarks and the notebooks become pages as they are; the API
reference follows from the faces of the packages. A link to any other file of the repository leads to a page that shows
it, so links work on the site as they do in the repository.
"""

import ast
import functools
import os
import pathlib
import re
from collections.abc import Iterator

import nbformat
from docstrings import escape_markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from nbconvert import MarkdownExporter

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "selssm_jax"
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks/index.md",
} | {f"notebooks/{path.name}": f"tutorials/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
TEST = re.compile(r"<code>(tests/[\w/]+\.py)::(\w+)</code>")
NAME = re.compile(r"<code>(\w+(?:\.\w+)*)</code>(?!</a>)")
LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".yml": "yaml"}

NOTEBOOK = """
{%- extends "markdown/index.md.j2" -%}
{%- block input -%}
{%- set long = cell.source.count("\\n") > 30 -%}
{% if long %}<details markdown="1"><summary>{{ cell.source.count("\\n") + 1 }} lines of code</summary>{% endif %}

```python
{{ cell.source }}
```

{% if long %}</details>{% endif %}
{%- endblock input -%}
{%- block stream -%}
``` { .text .output }
{{ output.text | trim }}
```
{% endblock stream -%}
{%- block data_text -%}
``` { .text .output }
{{ output.data["text/plain"] | trim }}
```
{% endblock data_text -%}
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages of the reference into the navigation."""
    for item in config.nav:
        if "Reference" in item:
            item["Reference"] = [item["Reference"], *_navigation()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made, with their pictures, and the files that any page links to."""
    for source, address in PAGES.items():
        if source.endswith(".ipynb"):
            for file in _notebook(source, address, config):
                files.append(file)
        else:
            files.append(File.generated(config, address, content=(ROOT / source).read_text()))
    for address, text in _reference():
        files.append(File.generated(config, address, content=text))
    for path in sorted(_linked(files)):
        files.append(_shown(path, config))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages."""
    source = _source(page.file.src_uri)
    if source is None:
        return markdown
    folder = os.path.dirname(page.file.src_uri) or "."

    def lead(link: re.Match) -> str:
        if files.get_file_from_path(os.path.normpath(os.path.join(folder, link[2]))):
            return link[0]
        return link[1] + os.path.relpath(_address(_resolve(source, link[2])), folder) + link[3]

    return LINK.sub(lead, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns names of tests into links to their lines, and names of the package into links to the reference, where it
    has them.
    """
    html = NAME.sub(_refer, html)
    # Lines are no anchors that MkDocs knows of: these links are made after its check.
    return TEST.sub(lambda test: f'<a href="{_test_url(test[1], test[2], page, files)}">{test[0]}</a>', html)


def _refer(name: re.Match) -> str:
    first, *rest = name[1].removeprefix("selssm_jax.").split(".")
    head = (_first_names() if rest else _lone_names()).get(first)
    return f'<autoref optional identifier="{".".join([head, *rest])}">{name[0]}</autoref>' if head else name[0]


@functools.cache
def _lone_names() -> dict[str, str]:
    """The paths of names that are clear alone: those of one class or function, which no word of a sentence could be."""
    return {
        name: path
        for name, path in _face_names().items()
        if not _is_module(_file(path)) and ("_" in name or name[0].isupper())
    }


@functools.cache
def _first_names() -> dict[str, str]:
    """The paths of names that may begin a dotted one: parts of the package, modules of one part, classes and functions
    of one part.
    """
    return _face_names() | {part: f"selssm_jax.{part}" for part in _public_names(PACKAGE)}


def _face_names() -> dict[str, str]:
    paths = [
        (name, f"selssm_jax.{part}.{name}")
        for part in _public_names(PACKAGE)
        if _is_package(PACKAGE / part)
        for name in _public_names(PACKAGE / part)
    ]
    names = [name for name, _ in paths]
    return {name: path for name, path in paths if names.count(name) == 1}


def _file(path: str) -> pathlib.Path:
    return ROOT.joinpath(*path.split("."))


def _test_url(path: str, name: str, page: Page, files: Files) -> str:
    if name not in _lines(path):
        raise PluginError(
            f"{page.file.src_uri} names the test {path}::{name}, and there is none of that name: write the one that is "
            "meant"
        )
    url = get_relative_url(files.get_file_from_path(_address(path)).url, page.url)
    return f"{url}#__codelineno-0-{_lines(path)[name]}"


def _source(address: str) -> str | None:
    """The file of the repository that a page was made from; None for pages that were made from none."""
    made = {page: source for source, page in PAGES.items()}
    if address in made:
        return made[address]
    return f"docs/{address}" if (ROOT / "docs" / address).exists() else None


def _address(path: str) -> str:
    """The page, or the picture, that shows a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith(".png") else f"source/{path}.md"


def _resolve(source: str, target: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(source), target))


def _linked(files: Files) -> set[str]:
    """Files outside docs/ that the pages link to and that are not pages themselves."""
    found = set()
    for source in filter(None, (_source(file.src_uri) for file in files if file.src_uri.endswith(".md"))):
        text = (ROOT / source).read_text()
        found |= {_resolve(source, link[2]) for link in LINK.finditer(text)} | set(
            re.findall(r"`(tests/[\w/]+\.py)::", text)
        )
    return {path for path in found if (ROOT / path).is_file() and path not in PAGES and not path.startswith("docs/")}


def _shown(path: str, config: MkDocsConfig) -> File:
    if path.endswith(".png"):
        return File.generated(config, path, abs_src_path=str(ROOT / path))
    fence = "`" * 6
    language = LANGUAGES.get(pathlib.Path(path).suffix, "text")
    head = "---\nsearch:\n  exclude: true\n---\n\n"
    text = (ROOT / path).read_text()
    return File.generated(
        config, _address(path), content=f'{head}# {path}\n\n{fence}{language} linenums="1"\n{text}\n{fence}\n'
    )


@functools.cache
def _lines(path: str) -> dict[str, int]:
    """The line on which each function of a file begins."""
    return {
        node.name: node.lineno
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef)
    }


def _notebook(source: str, address: str, config: MkDocsConfig) -> Iterator[File]:
    """A notebook as a page, with the outputs that it was stored with; nothing is run."""
    # pictures of all notebooks lie in one folder: the name of each begins with that of its notebook
    text, resources = MarkdownExporter(raw_template=NOTEBOOK).from_notebook_node(
        nbformat.read(ROOT / source, as_version=4), resources={"unique_key": pathlib.Path(source).stem}
    )
    yield File.generated(config, address, content=text)
    for name, picture in resources["outputs"].items():
        yield File.generated(config, f"{os.path.dirname(address)}/{name}", content=picture)


def _navigation() -> list[dict[str, str | list[str | dict[str, str]]]]:
    tree: list[dict[str, str | list[str | dict[str, str]]]] = []
    for part in _modules(PACKAGE):
        index, *modules = [
            address for address, _ in _reference() if address.startswith((f"reference/{part}/", f"reference/{part}.md"))
        ]
        tree.append(
            {
                part: [index, *({pathlib.Path(module).stem: module} for module in modules)]
                if _is_package(PACKAGE / part)
                else index
            }
        )
    return tree


@functools.cache
def _reference() -> tuple[tuple[str, str], ...]:
    """The pages of the API reference, each with its text: one for every public part of the package, one for every
    public module of a part.
    """
    parts = _modules(PACKAGE)
    rows = [
        f"| [`selssm_jax.{part}`]({part}{'/index' * _is_package(PACKAGE / part)}.md) | {_first_line(PACKAGE / part)} |"
        for part in parts
    ]
    head = (
        "# Reference\n\nAll public names, from their docstrings. Each part is imported when it is first used.\n\n| "
        "part | what it holds |\n| --- | --- |\n"
    )
    objects = [_members(f"selssm_jax.{name}", 2) for name in _public_names(PACKAGE) if name not in parts]
    pages = [("reference/index.md", "\n\n".join([head + "\n".join(rows), *objects]) + "\n")]
    for part in parts:
        pages += (
            _package_pages(part)
            if _is_package(PACKAGE / part)
            else [(f"reference/{part}.md", _members(f"selssm_jax.{part}", 1))]
        )
    return tuple(pages)


def _package_pages(part: str) -> list[tuple[str, str]]:
    folder = PACKAGE / part
    modules = _modules(folder)
    rows = [f"| [`{part}.{name}`]({name}.md) | {_first_line(folder / name)} |" for name in modules]
    table = ["| module | what it holds |\n| --- | --- |\n" + "\n".join(rows)] if rows else []
    objects = [_members(f"selssm_jax.{part}.{name}", 2) for name in _public_names(folder) if name not in modules]
    text = "\n\n".join([f"# selssm_jax.{part}", escape_markdown(_docstring(folder)), *table, *objects])
    return [
        (f"reference/{part}/index.md", text),
        *((f"reference/{part}/{name}.md", _members(f"selssm_jax.{part}.{name}", 1)) for name in modules),
    ]


def _members(path: str, level: int) -> str:
    return (
        f"::: {path}\n    options:\n      heading_level: {level}\n      show_root_full_path: "
        f"{'true' if level == 1 else 'false'}\n"
    )


def _public_names(package: pathlib.Path) -> list[str]:
    """The names that a package shows: those in its `__all__`, else those that its stub imports."""
    stub = package / "__init__.pyi"
    tree = ast.parse((stub if stub.exists() else package / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return [
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]


def _modules(package: pathlib.Path) -> list[str]:
    """The public names of a package that are modules: the others are classes and functions."""
    return [name for name in _public_names(package) if _is_module(package / name)]


def _is_package(path: pathlib.Path) -> bool:
    return (path / "__init__.py").exists()


def _is_module(path: pathlib.Path) -> bool:
    return _is_package(path) or path.with_suffix(".py").exists()


def _docstring(path: pathlib.Path) -> str:
    file = path / "__init__.py" if _is_package(path) else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(file.read_text())) or ""


def _first_line(path: pathlib.Path) -> str:
    return escape_markdown(_docstring(path).split("\n\n")[0]).replace("\n", " ").replace("|", "\\|")
