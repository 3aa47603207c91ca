"""Tables and numbers for people: one value, written as Markdown or as HTML."""

import dataclasses
import html
import math
import re
from collections.abc import Mapping
from typing import Any

Cell = str | int | float | None
LONG = 24  # characters, from which a cell has a column that stays wide enough to read them


@dataclasses.dataclass(frozen=True)
class Table:
    """A caption, column names and rows of cells. Raises ValueError where a row has not one cell a column.

    Numbers are aligned right and written by `number`; None is a dash. With `markup` cells are Markdown already, as a
    page that is only that may have them.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    markup: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.caption!r}: the row {row!r} has {len(row)} cells, expected {len(self.columns)}"
                )

    def markdown(self) -> str:
        """Returns the table in GitHub's Markdown, under its caption in bold."""
        rule = ["---:" if self._numeric(column) else ":---" for column in range(len(self.columns))]
        lines = [self.columns, rule, *([number(cell) for cell in row] for row in self.rows)]
        return f"**{escape_markdown(self.caption)}**\n\n" + "\n".join(
            f"| {' | '.join(map(self._escape, line))} |" for line in lines
        )

    def html(self) -> str:
        """Returns the table as an HTML element that scrolls by itself where the page is too narrow for it."""
        head = "".join(self._cell("th", name, column) for column, name in enumerate(self.columns))
        body = "".join(
            f"<tr>{''.join(self._cell('td', cell, column) for column, cell in enumerate(row))}</tr>\n"
            for row in self.rows
        )
        caption = f"<caption>{escape_html(self.caption)}</caption>"
        table = f"<table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"
        return f'<div class="scroll" tabindex="0">{table}</div>'

    def _escape(self, cell: str) -> str:
        if self.markup:
            return _one_line(cell).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
        return escape_markdown(cell).replace("\\<", "&lt;")

    def _cell(self, tag: str, cell: Cell, column: int) -> str:
        text = number(cell)
        kind = (
            ' class="number"' if self._numeric(column) else ' class="long"' if tag == "td" and len(text) > LONG else ""
        )
        return f"<{tag}{kind}>{escape_html(text)}</{tag}>"

    def _numeric(self, column: int) -> bool:
        cells = [row[column] for row in self.rows]
        return bool(cells) and not any(isinstance(cell, str) for cell in cells)


def number(value: Cell) -> str:
    """Returns a cell as text: integers with thousands separated, other numbers to four significant digits."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if 1e-4 <= abs(value) < 1e9 else f"{value:.3e}"


def tabulate(
    caption: str, rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str], *, first: str = "block"
) -> Table:
    """Returns a table with a row for each name of `rows` and, behind it, a column for each of `columns`: {name: key of
    what a row holds}.
    """
    cells = tuple((block_title(name), *(row[key] for key in columns.values())) for name, row in rows.items())
    return Table(caption, (first, *columns), cells)


def block_title(name: str) -> str:
    """Returns the name of a block, or of anything else that results name, as people read it."""
    return name.replace("_", " ")


def size(count: int | None) -> str | None:
    """Returns a number of bytes in the largest binary unit that keeps it at least 1: 1536 is "1.50 KiB"."""
    if count is None:
        return None
    power = min(max(count.bit_length() - 1, 0) // 10, 4)
    return f"{count} B" if power == 0 else f"{count / 1024**power:.2f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def escape_markdown(text: str) -> str:
    """Returns text as Markdown that shows it as it is, in one line: no emphasis, link, table, tag or formula is made of
    it.
    """
    return re.sub(r"([\\`*_\[\]<|$~])", r"\\\1", _one_line(text))


def escape_html(text: str) -> str:
    """Returns text as HTML that shows it as it is; what no page may hold (controls, halves of surrogate pairs) becomes
    a replacement character.
    """
    return html.escape(clean(text))


def clean(text: str) -> str:
    """Returns text that any encoding of Unicode can write: controls other than tab and line end, and halves of
    surrogate pairs, become U+FFFD.
    """
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def _one_line(text: str) -> str:
    return re.sub(r"[\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+", " ", clean(text))
