"""A report as values: a title and a list of blocks, each of which can be written as Markdown and as HTML."""

import base64
import dataclasses
import html
import pathlib
import re

from selssm_jax.reporting.tables import Table

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 62rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.75rem; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; border-bottom: 1px solid #d5d5d5; padding-bottom: .25rem; }
p, figcaption, caption { max-width: 46rem; }
figure { margin: 1.2rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption, caption { color: #4a4a4a; font-size: .9rem; text-align: left; }
caption { font-weight: 600; padding-bottom: .35rem; }
table { border-collapse: collapse; margin: 1.2rem 0; font-size: .93rem; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #e4e4e4; text-align: left; }
th { border-bottom: 2px solid #1a1a1a; }
.number { text-align: right; padding-left: .9rem; font-variant-numeric: tabular-nums; }
pre { background: #f6f6f4; padding: .9rem 1rem; font-size: .86rem; line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


@dataclasses.dataclass(frozen=True)
class Heading:
    """The title of a section, or of a part of one at level 3."""

    text: str
    level: int = 2

    def markdown(self) -> str:
        """Returns a heading of its level."""
        return f"{'#' * self.level} {self.text}"

    def html(self) -> str:
        """Returns a heading of its level."""
        return f"<h{self.level}>{html.escape(self.text)}</h{self.level}>"


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Plain words."""

    text: str

    def markdown(self) -> str:
        """Returns the words, with what Markdown would read as markup escaped."""
        return re.sub(r"([\\`*_<])", r"\\\1", self.text)

    def html(self) -> str:
        """Returns the words as a paragraph."""
        return f"<p>{html.escape(self.text)}</p>"


@dataclasses.dataclass(frozen=True)
class Verbatim:
    """Text to be shown as it is: a sample, a configuration."""

    text: str

    def markdown(self) -> str:
        """Returns a fenced block, its fence longer than any in the text."""
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", self.text)), default=0))
        return f"{fence}text\n{self.text}\n{fence}"

    def html(self) -> str:
        """Returns a preformatted element."""
        return f"<pre>{html.escape(self.text)}</pre>"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file beside the document, or in the folder `below` beside it, with a caption that says what is to be seen."""

    path: pathlib.Path
    caption: str
    below: str = ""

    def markdown(self) -> str:
        """Returns an image that refers to the file from the document's folder."""
        words = re.sub(r"([\\\[\]])", r"\\\1", self.caption)
        return f"![{words}]({pathlib.PurePosixPath(self.below, self.path.name)})\n\n*{words}*"

    def html(self) -> str:
        """Returns a figure with the image inside, so that the page is one file."""
        data, caption = base64.b64encode(self.path.read_bytes()).decode(), html.escape(self.caption)
        return f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'


Block = Heading | Paragraph | Verbatim | Picture | Table


def to_markdown(title: str, blocks: list[Block]) -> str:
    """Returns the whole document as Markdown."""
    return "\n\n".join([f"# {title}", *(block.markdown() for block in blocks)]) + "\n"


def to_html(title: str, blocks: list[Block]) -> str:
    """Returns the whole document as one HTML page that needs no other file and no network."""
    title = html.escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>{STYLE}</style>'
    body = "\n".join(block.html() for block in blocks)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body></html>\n'
