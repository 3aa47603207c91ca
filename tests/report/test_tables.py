"""Tables and numbers: what a person reads is the value, aligned and escaped."""

import pytest

from selssm_jax.report.document import STYLE
from selssm_jax.report.tables import Table, clean, escape_markdown, number, size

TABLE = Table("Scores | of <it>", ("name", "nats", "steps"), (("a|b", 1.53125, 1200), ("<script>", None, 7)))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1200345, "1,200,345"),
        (1.53125, "1.531"),
        (0.000123456, "0.0001235"),
        (1234.5, "1,234"),
        (12345678.0, "12,345,678"),
        (1.5e-7, "1.500e-07"),
        (2.5e12, "2.500e+12"),
        (0.0, "0"),
        (-0.5, "-0.5000"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (None, "–"),
        ("x", "x"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1536, "1.50 KiB"), (5 * 1024**3, "5.00 GiB"), (None, None)],
)
def test_size(count, text):
    assert size(count) == text


def test_markdown_is_a_table_of_as_many_lines_as_rows():
    lines = TABLE.markdown().splitlines()
    assert lines[0] == r"**Scores \| of \<it>**"
    assert lines[2:] == [
        "| name | nats | steps |",
        "| :--- | ---: | ---: |",
        r"| a\|b | 1.531 | 1,200 |",
        "| &lt;script> | – | 7 |",
    ]


def test_html_escapes_and_aligns():
    html = TABLE.html()
    assert "<caption>Scores | of &lt;it&gt;</caption>" in html
    assert "<td>&lt;script&gt;</td>" in html and "<script>" not in html
    assert (
        '<td class="number">1.531</td>' in html and '<th class="number">nats</th>' in html and "<th>name</th>" in html
    )


def test_a_ragged_table_is_refused():
    with pytest.raises(ValueError, match=r"table 'Ragged': the row \(1,\) has 1 cells, expected 2"):
        Table("Ragged", ("a", "b"), ((1,),))


def test_a_caption_and_a_cell_are_no_markup():
    table = Table("*a* [b](c) $\\frac{$", ("_x_", "n"), (("`y` | ~z~\n# w", 1),))
    assert table.markdown().splitlines()[0] == r"**\*a\* \[b\](c) \$\\frac{\$**"
    assert (
        table.markdown().splitlines()[2] == r"| \_x\_ | n |"
        and table.markdown().splitlines()[4] == r"| \`y\` \| \~z\~ # w | 1 |"
    )
    assert Table("a", ("b",), (("**c** | d",),), markup=True).markdown().splitlines()[4] == r"| **c** \| d |"


def test_what_no_file_can_hold_is_replaced():
    assert clean("a\x00b\ud800c\td\n") == "a\ufffdb\ufffdc\td\n" and escape_markdown("a\r\nb") == "a b"
    Table("\ud800", ("\x00",), (("\udfff",),)).html().encode()


def test_a_table_scrolls_by_itself():
    assert TABLE.html().startswith('<div class="scroll"') and TABLE.html().endswith("</table></div>")


def test_a_cell_of_many_words_keeps_a_width_to_read_them_and_no_word_is_broken():
    html = Table("", ("method", "verdict"), (("half of the components by information", "inconclusive"),)).html()
    assert '<td class="long">half of' in html and "<td>inconclusive</td>" in html
    assert "td.long { min-width: 12rem; }" in STYLE and "td { overflow-wrap: break-word;" in STYLE
