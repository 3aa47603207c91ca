"""A report as values: a title and a list of blocks, each of which can be written as Markdown and as HTML; and as a
folder of files.
"""

import base64
import contextlib
import dataclasses
import json
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from selssm_jax.errors import InputError
from selssm_jax.report.relevance_block import Relevances
from selssm_jax.report.tables import Table, clean, escape_html, escape_markdown, number
from selssm_jax.stability.verdict import plain

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; color: #1a1a1a;
  background: #fff;
  max-width: 62rem; margin: 2.5rem auto; padding: 0 1.25rem; overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; border-bottom: 1px solid #d5d5d5; padding-bottom: .25rem; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
p, figcaption, caption, summary { max-width: 46rem; }
.lead { font-size: 1.06rem; background: #f2f6f9; border-left: 4px solid #0072B2; padding: .8rem 1rem; }
nav ul { list-style: none; margin: 1rem 0; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem;
  font-size: .93rem; }
nav a { color: #005a8c; }
.scroll { overflow-x: auto; margin: 1.2rem 0; }
figure { margin: 1.2rem 0; }
figure .scroll { margin: 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption, caption { color: #4a4a4a; font-size: .9rem; text-align: left; }
caption { font-weight: 600; padding-bottom: .35rem; }
table { border-collapse: collapse; font-size: .93rem; overflow-wrap: normal; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #e4e4e4; text-align: left;
  vertical-align: baseline; max-width: 26rem; }
th { border-bottom: 2px solid #1a1a1a; }
td { overflow-wrap: break-word; min-width: 4.5rem; }
td.long { min-width: 12rem; }
.number { text-align: right; padding-left: .9rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { white-space: normal; }
pre { background: #f6f6f4; padding: .9rem 1rem; font-size: .86rem; line-height: 1.45; white-space: pre-wrap;
  overflow-wrap: anywhere; }
summary { cursor: pointer; padding: .3rem 0; }
.shaded { white-space: pre-wrap; line-height: 1.75; max-width: none; }
.shaded span { border-radius: 2px; padding: .1em 0; }
.answers { line-height: 1.3; max-width: none; }
.answers > span { display: inline-block; min-width: 1.5em; margin: 0 1px 6px; text-align: center; vertical-align: top; }
.answers span span { display: block; padding: .1em .3em; }
.answers b { display: block; font-weight: 400; }
.answers b.wrong { color: #B34700; border: 1.5px solid #B34700; font-weight: 600; }
.answers i { display: block; font-style: normal; color: #555; }
.ramp { display: inline-block; width: 8rem; height: .8em; margin: 0 .4rem; vertical-align: baseline;
  border: 1px solid #ccc; }
@media (max-width: 40rem) {
  body { margin: 1.2rem auto; padding: 0 .9rem; }
  figure img { max-width: none; width: 42rem; }
  th, td { max-width: 16rem; }
  td.long { min-width: 9rem; }
  caption { position: sticky; left: 0; width: calc(100vw - 2rem); }
}
"""
RAMP = ((255, 255, 255), (0, 114, 178), (0, 43, 69))  # of shaded text: white, blue, almost black
WHITE_FROM = 0.4  # of a shade, on which white letters are read better than black ones


@dataclasses.dataclass(frozen=True)
class Heading:
    """The title of a section, or of a part of one at level 3."""

    text: str
    level: int = 2

    def markdown(self) -> str:
        """Returns a heading of its level."""
        return f"{'#' * self.level} {escape_markdown(self.text)}"

    def html(self) -> str:
        """Returns a heading of its level."""
        return f"<h{self.level}>{escape_html(self.text)}</h{self.level}>"


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Plain words; `lead`: those that a document begins with."""

    text: str
    lead: bool = False

    def markdown(self) -> str:
        """Returns the words, with what Markdown would read as markup escaped."""
        words = escape_markdown(self.text)
        return f"> {words}" if self.lead else words

    def html(self) -> str:
        """Returns the words as a paragraph."""
        return f'<p{" class=lead" if self.lead else ""} dir="auto">{escape_html(self.text)}</p>'


@dataclasses.dataclass(frozen=True)
class Verbatim:
    """Text to be shown as it is: a sample, a configuration; under a title that opens it, if it is `folded`."""

    text: str
    folded: str = ""

    def markdown(self) -> str:
        """Returns a fenced block, its fence longer than any in the text."""
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", self.text)), default=0))
        shown = f"{fence}text\n{clean(self.text)}\n{fence}"
        return (
            f"<details><summary>{escape_html(self.folded)}</summary>\n\n{shown}\n\n</details>" if self.folded else shown
        )

    def html(self) -> str:
        """Returns a preformatted element."""
        shown = f'<pre dir="auto">{escape_html(self.text)}</pre>'
        return f"<details><summary>{escape_html(self.folded)}</summary>{shown}</details>" if self.folded else shown


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file beside the document, or in the folder `below` beside it, with a caption that says what is to be
    seen.
    """

    path: pathlib.Path
    caption: str
    below: str = ""

    def markdown(self) -> str:
        """Returns an image that refers to the file from the document's folder."""
        words = escape_markdown(self.caption)
        return f"![{words}]({pathlib.PurePosixPath(self.below, self.path.name)})\n\n*{words}*"

    def html(self) -> str:
        """Returns a figure with the image inside, so that the page is one file; it scrolls where the page is too narrow
        to read it.
        """
        data, caption = base64.b64encode(self.path.read_bytes()).decode(), escape_html(self.caption)
        image = f'<div class="scroll" tabindex="0"><img alt="{caption}" src="data:image/png;base64,{data}"></div>'
        return f'<figure>{image}<figcaption dir="auto">{caption}</figcaption></figure>'


class Token(NamedTuple):
    """A piece of text on a ground of some shade, from 0 (white) to 1 (dark); the answer that was given there, if any,
    and the right one.
    """

    text: str
    shade: float
    answer: str | None = None
    truth: str = ""


@dataclasses.dataclass(frozen=True)
class Shaded:
    """Text on a ground that darkens with a value, as text of any script; `ends` are the values of the lightest and the
    darkest ground.

    Where tokens have answers, each token stands apart, its answer under it, a wrong one boxed over the right one.
    """

    tokens: tuple[Token, ...]
    ends: tuple[float, float]
    caption: str

    def markdown(self) -> str:
        """Returns the text, and under it the answers beside the right ones: Markdown has no shades."""
        answered = [token for token in self.tokens if token.answer is not None]
        lines = [(" " if answered else "").join(token.text for token in self.tokens)]
        if answered:
            lines += [
                f"answers: {' '.join(token.answer or '' for token in answered)}",
                f"right:   {' '.join(token.truth for token in answered)}",
            ]
        return (
            f"{Verbatim(chr(10).join(lines)).markdown()}\n\n*{escape_markdown(self.caption)} The shades are in "
            "index.html.*"
        )

    def html(self) -> str:
        """Returns the text as marked pieces, with the scale of its shades."""
        apart = any(token.answer is not None for token in self.tokens)
        pieces = "".join((_render_answer if apart else _piece)(token) for token in self.tokens)
        colours = ", ".join(_colour(shade) for shade in (0, 0.25, 0.5, 0.75, 1))
        scale = (
            f'{number(self.ends[0])}<span class="ramp" style="background:linear-gradient(90deg, '
            f'{colours})"></span>{number(self.ends[1])}'
        )
        caption = f"<figcaption>{escape_html(self.caption)} {scale}</figcaption>"
        return f'<figure><p class="{"answers" if apart else "shaded"}" dir="auto">{pieces}</p>{caption}</figure>'


def _piece(token: Token) -> str:
    words = escape_html(token.text).replace("\n", "⏎\n")
    colour = "#fff" if token.shade > WHITE_FROM else "#000"
    return f'<span style="background:{_colour(token.shade)};color:{colour}">{words}</span>'


def _render_answer(token: Token) -> str:
    if token.answer is None:
        return f"<span>{_piece(token)}</span>"
    right = token.answer == token.truth
    below = f'<b class="{"right" if right else "wrong"}">{escape_html(token.answer)}</b>' + (
        "" if right else f"<i>{escape_html(token.truth)}</i>"
    )
    return f"<span>{_piece(token)}{below}</span>"


def _colour(shade: float) -> str:
    place = min(max(shade, 0.0), 1.0) * (len(RAMP) - 1) if shade == shade else 0.0
    start = min(int(place), len(RAMP) - 2)
    return "#" + "".join(
        f"{round(low + (high - low) * (place - start)):02x}"
        for low, high in zip(RAMP[start], RAMP[start + 1], strict=True)
    )


Block = Heading | Paragraph | Verbatim | Picture | Shaded | Table | Relevances


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Returns the whole document as Markdown."""
    return "\n\n".join([f"# {escape_markdown(title)}", *(block.markdown() for block in blocks)]) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Returns the whole document as one HTML page that needs no other file and no network, with a table of its sections
    if it has several.
    """
    title = escape_html(title)
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><title>{title}</title><style>{STYLE}</style>'
    )
    sections = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    places = (
        {id(heading): f"section-{index}" for index, heading in enumerate(sections, start=1)}
        if len(sections) > 1
        else {}
    )
    links = "".join(
        f'<li><a href="#{places[id(heading)]}">{escape_html(heading.text)}</a></li>' for heading in sections if places
    )
    parts, contents = [], f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if places else ""
    lead = next((block for block in blocks if isinstance(block, Paragraph) and block.lead), None)
    for block in blocks:
        before = f'<a id="{places[id(block)]}"></a>' if id(block) in places else ""
        parts.append(before + block.html() + (contents if block is lead else ""))
    if lead is None:
        parts.insert(0, contents)
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n<h1 '
        f'dir="auto">{title}</h1>\n{body}\n</body></html>\n'
    )


def check_writable(folder: pathlib.Path) -> None:
    """Raises InputError, before work starts, where the files of a report cannot be written to a folder; leaves nothing
    there.
    """
    is_new = not folder.exists()
    with _as_input_error(folder):
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if is_new:
            folder.rmdir()


@contextlib.contextmanager
def write_document(folder: pathlib.Path, title: str, name: str, values: dict[str, Any]) -> Iterator[list[Block]]:
    """Makes a folder, takes the blocks of a document, whose figures may be written there, and writes index.html,
    report.md and the values as JSON.

    Raises InputError where the folder cannot be written.
    """
    blocks: list[Block] = []
    with _as_input_error(folder):
        folder.mkdir(exist_ok=True)
        yield blocks
        (folder / "index.html").write_text(to_html(title, blocks), encoding="utf-8")
        (folder / "report.md").write_text(to_markdown(title, blocks), encoding="utf-8")
        (folder / name).write_text(json.dumps(plain(values), indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _as_input_error(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"the report cannot be written to {folder} ({error.strerror}): free that place or make it writable"
        ) from error
