"""Reads the docstrings of this project for the API reference, as an extension of Griffe (see `mkdocs.yml`).

Docstrings here are plain text with `code` in it and indented formulas, so what Markdown would take for emphasis or for
a tag is escaped. They may list several arguments in one line, "x: samples. y: labels.", or share a line among them, "a,
b: factors.": Google's style has one entry for each, and so has the reference. Flax modules and named tuples have a
constructor that no line of source writes.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

SECTION = re.compile(r"^(Args|Attributes):\n((?:(?:[ ]{2,}.*)?(?:\n|\Z))+)", re.MULTILINE)
HEADING = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
MARKS = re.compile(r"(`[^`]*`)|[_*<]")
NAMES = r"\w+(?:, \w+)*"


def split_entries(text: str, known: set[str]) -> str:
    """Returns a docstring with one line for each argument and attribute; only names in `known` begin an entry inside a
    line.
    """
    return SECTION.sub(lambda section: f"{section[1]}:\n{_entries(section[2], known)}", text)


def _entries(body: str, known: set[str]) -> str:
    margin = re.match(r" +", body)[0]

    def start_line(begin: re.Match) -> str:
        return f"\n{margin}{begin[1]}:" if set(begin[1].split(", ")) <= known else begin[0]

    lines = re.sub(rf"(?<=[.;)]) ({NAMES}):(?= )", start_line, body).splitlines()
    return "".join(line + "\n" for line in _one_name_each(lines, margin))


def _one_name_each(lines: list[str], margin: str) -> Iterator[str]:
    block: list[str] = []
    for line in [*lines, margin + "end:"]:
        if line.startswith(margin) and line[len(margin)] != " ":
            names = re.match(rf"{margin}({NAMES}): ?", block[0]) if block else None
            for name in names[1].split(", ") if names else []:
                yield f"{margin}{name}: {block[0][names.end() :]}"
                yield from block[1:]
            yield from [] if names else block
            block = []
        block.append(line)


def escape_markdown(text: str) -> str:
    """Returns a docstring whose "_", "*" and "<" Markdown shows as they are: outside code, indented formulas, and the
    names that begin an entry.
    """
    section, lines = False, []
    for line in text.splitlines():
        section = bool(HEADING.fullmatch(line)) or (section and not line[:1].strip())
        entry = re.match(r"  \S[^:]*: ", line) if section else None
        head = entry[0] if entry else ""
        lines.append(line if line.startswith("    ") and not section else head + MARKS.sub(_escape, line[len(head) :]))
    return "\n".join(lines)


def _escape(mark: re.Match) -> str:
    return mark[0] if mark[1] else {"<": "&lt;"}.get(mark[0], "\\" + mark[0])


def is_built_from_fields(cls: griffe.Class) -> bool:
    """Whether the constructor of a class takes its fields, though `dataclasses.dataclass` does not decorate it: Flax
    modules, Flax structs, named tuples.
    """
    if any(str(base) in ("nn.Module", "NamedTuple") for base in cls.bases) or any(
        "struct.dataclass" in str(item.value) for item in cls.decorators
    ):
        return True
    return any(is_built_from_fields(base) for base in cls.resolved_bases if base.is_class)


class _Dataclass(griffe.ExprName):
    canonical_path = "dataclasses.dataclass"


class ProjectDocstrings(griffe.Extension):
    """Gives each argument an entry, and each class that is built from its fields the signature of its constructor."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrites the docstrings of a package that was read."""
        for item in _objects(pkg):
            if item.docstring:
                names = {parameter.name for parameter in getattr(item, "parameters", [])} | set(item.members)
                item.docstring.value = escape_markdown(split_entries(item.docstring.value, names))
            if item.is_class and is_built_from_fields(item):
                item.decorators.append(griffe.Decorator(_Dataclass("dataclass"), lineno=None, endlineno=None))


def _objects(item: griffe.Object) -> Iterator[griffe.Object]:
    yield item
    for member in item.members.values():
        if not member.is_alias:
            yield from _objects(member)
