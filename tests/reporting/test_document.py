"""Documents: the same blocks as Markdown and as one HTML page that needs nothing else."""

import base64
import html.parser

import pytest

from selssm_jax.reporting.document import Heading, Paragraph, Picture, Verbatim, to_html, to_markdown

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


@pytest.fixture
def blocks(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    return [Heading("Gates & <states>"), Paragraph("5 * 3 < 16 and a_b"), Verbatim("a ``` b\n<pre>"), Picture(path, "What is [seen]")]


def test_markdown_keeps_the_words(blocks):
    text = to_markdown("A run", blocks)
    assert text.startswith("# A run\n\n## Gates & <states>\n\n5 \\* 3 \\< 16 and a\\_b\n\n")
    assert "````text\na ``` b\n<pre>\n````" in text, "the fence is longer than the text's own"
    assert r"![What is \[seen\]](a.png)" in text


class Collected(html.parser.HTMLParser):
    """Reads a page back: its open elements at the end, its text, its links."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.links = [], "", []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html_is_closed_escaped_and_needs_no_other_file(blocks):
    page = Collected()
    page.feed(to_html("A <run>", blocks))
    assert page.open == []
    assert "A <run>" in page.text and "5 * 3 < 16 and a_b" in page.text and "a ``` b\n<pre>" in page.text
    assert [link[:22] for link in page.links] == ["data:image/png;base64,"]
    assert base64.b64decode(page.links[0][22:]) == PNG
