"""Documents: the same blocks as Markdown and as one HTML page that needs nothing else."""

import base64
import html.parser
import itertools

import pytest

from selssm_jax.report.document import (
    STYLE,
    Heading,
    Paragraph,
    Picture,
    Shaded,
    Token,
    Verbatim,
    _colour,
    to_html,
    to_markdown,
)

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


@pytest.fixture
def blocks(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    return [
        Heading("Gates & <states>"),
        Paragraph("5 * 3 < 16 and a_b"),
        Verbatim("a ``` b\n<pre>"),
        Picture(path, "What is [seen]"),
    ]


def test_markdown_keeps_the_words(blocks):
    text = to_markdown("A run", blocks)
    assert text.startswith("# A run\n\n## Gates & \\<states>\n\n5 \\* 3 \\< 16 and a\\_b\n\n")
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


def test_captions_and_titles_are_no_markup(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    text = to_markdown("*A* $run$", [Heading("`b`"), Picture(tmp_path / "a.png", "*c* _d_ $e$ <f>")])
    assert text.splitlines()[0] == r"# \*A\* \$run\$" and text.splitlines()[2] == r"## \`b\`"
    assert r"*\*c\* \_d\_ \$e\$ \<f>*" in text


def test_sections_have_a_table_of_contents_after_the_lead():
    page = Collected()
    html = to_html(
        "run",
        [
            Paragraph("23 % worse", lead=True),
            Paragraph("words"),
            Heading("One"),
            Heading("part", 3),
            Heading("Two & <three>"),
        ],
    )
    page.feed(html)
    assert page.open == [] and page.links == ["#section-1", "#section-2"]
    assert (
        html.index("class=lead")
        < html.index("<nav")
        < html.index("words")
        < html.index('id="section-1"')
        < html.index('id="section-2"')
    )
    assert "<nav" not in to_html("run", [Heading("One")])


def test_a_configuration_is_folded():
    folded = Verbatim("{}", folded="Configuration")
    assert folded.html() == '<details><summary>Configuration</summary><pre dir="auto">{}</pre></details>'
    assert folded.markdown().startswith("<details><summary>Configuration</summary>\n\n```text\n{}\n```")


def test_pages_fit_a_phone(tmp_path):
    """What is wider than a page scrolls by itself: tables and pictures; words break anywhere."""
    (tmp_path / "a.png").write_bytes(PNG)
    assert 'class="scroll"' in Picture(tmp_path / "a.png", "a").html()
    assert (
        ".scroll { overflow-x: auto" in STYLE
        and "overflow-wrap: anywhere" in STYLE
        and "@media (max-width: 40rem)" in STYLE
    )
    assert 'content="width=device-width' in to_html("a", [])


def test_any_script_is_text():
    text = "温度 درجة हिन्दी <b> ⏎"
    shaded = Shaded(
        tuple(Token(letter, index / len(text)) for index, letter in enumerate(text)), (0.0, 1.5), "surprise"
    )
    page = Collected()
    page.feed(to_html("a", [shaded]))
    assert page.open == [] and text in page.text and "1.500" in page.text and 'dir="auto"' in shaded.html()
    assert text in shaded.markdown()


def test_answers_stand_under_their_tokens_and_wrong_ones_over_the_right_one():
    shaded = Shaded((Token("a", 0.0), Token("?", 1.0, "b", "b"), Token("?", 1.0, "c", "d")), (0.0, 1.0), "answers")
    html = shaded.html()
    assert '<b class="right">b</b></span>' in html and '<b class="wrong">c</b><i>d</i>' in html
    assert "answers: b c\nright:   b d" in shaded.markdown()


def test_shades_darken_from_white_all_the_way():
    levels = [
        sum(
            weight * int(_colour(k / 49)[place : place + 2], 16)
            for weight, place in ((0.2126, 1), (0.7152, 3), (0.0722, 5))
        )
        for k in range(50)
    ]
    assert levels[0] == pytest.approx(255) and all(one > other for one, other in itertools.pairwise(levels))
    assert _colour(float("nan")) == _colour(-1.0) == "#ffffff" and _colour(7.0) == _colour(1.0)
