"""Markdown and HTML are cut at headings; code and tables stay whole; places are of the source."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrerank.passages import Passage, Structure, cut, words
from tests.test_passages import TOKENISE, essay, tokens_of_words

LINES = [f"Line {number} of the text has words." for number in range(60)]
TEXT = " ".join(LINES[:12])
TABLE = "| a | b |\n|---|---|\n" + "| some more | words |\n" * 8
CODE = "```sql\n# SELECT no heading\n" + "SELECT 1 FROM pools;\n\n" * 6 + "```\n"


def _cut(text: str, structure: Structure, size: int = 60, overlap: int = 0) -> list[Passage]:
    return cut(text, tokens_of_words, size=size, overlap=overlap, structure=structure)


def test_markdown_is_cut_at_headings_and_says_under_which_a_passage_stands() -> None:
    text = (
        f"# The *pool*\n\n## First `one`\n\n{TEXT}\n\n### Below\n\n{LINES[0]}\n\n### Beside\n\n"
        f"{LINES[1]}\n\nSecond\n------\n\n{LINES[2]}\n\n### Under the second\n\n{LINES[3]}\n"
    )
    found = _cut(text, "markdown")
    assert [one.text for one in found] == [text[one.start : one.end] for one in found]
    assert all(one.headings[0] == "The pool" for one in found)
    below = {one.headings[1:]: one.text for one in found}
    assert below.keys() == {
        *[("First one",), ("First one", "Below"), ("First one", "Beside"), ("Second",)]
    }
    assert found[0].text.startswith("# The *pool*\n\n## First `one`\n\nLine 0")
    assert below["First one", "Below"] == f"### Below\n\n{LINES[0]}"
    assert below["Second",] == (
        f"Second\n------\n\n{LINES[2]}\n\n### Under the second\n\n{LINES[3]}"
    )


def test_a_text_with_headings_that_fits_is_one_passage() -> None:
    for text, structure in [("# A\n\nb\n\n# C\n", "markdown"), ("<h1>A</h1>b<h1>C</h1>", "html")]:
        assert _cut(text, structure) == [Passage(0, len(text), words(text, structure))]


def test_code_and_tables_of_markdown_stay_whole_where_they_fit() -> None:
    text = "\n\n".join([TEXT, CODE, TEXT, TABLE, CODE, LINES[0], "> " + CODE.replace("\n", "\n> ")])
    passages = [one.text for one in _cut(text, "markdown")]
    assert sum(CODE.strip() in one for one in passages) == 2
    assert sum(TABLE.strip() in one for one in passages) == 1
    assert {one.split("\n")[0] for one in passages if "```" in one} <= {
        *("```sql", LINES[0], TABLE.split("\n")[0], "> ```sql"),
    }
    long = _cut(CODE * 4, "markdown", size=40)
    assert all("\n" in one.text and not one.text.endswith("SELECT") for one in long)


def test_front_matter_of_markdown_is_no_heading() -> None:
    text = f"---\ntitle: Pools\n---\n{TEXT}\r\n\r\n# One\r\n\r\n{TEXT}"
    assert {one.headings for one in _cut(text, "markdown")} == {(), ("One",)}


def test_html_is_read_without_tags_and_cut_at_headings() -> None:
    text = (
        "<!DOCTYPE html><html><head><title>Caf&eacute;</title><style>p { x: y }</style></head>\r\n"
        f"<body><h1 class='a>b'>The <i>pool</i></h1><p>{TEXT} &lt;&amp;&gt;</p>\n\n"
        f"<script>if (a < b) '<h2>no</h2>'</script><h2>One<br>more</h2><p>{LINES[0]}\n\n"
        f"🙂 {LINES[1]}</p><!-- <h2>no</h2> --><h2>Two</h2><ul><li>{TEXT}<li>&copy; end.</ul>"
    )
    found = _cut(text, "html")
    assert found[0].text == "Café"
    assert found[0].headings == ()
    one = next(one for one in found if one.headings == ("The pool", "One more"))
    assert " ".join(one.text.split()) == f"One more {LINES[0]} 🙂 {LINES[1]}"
    assert text[one.start : one.end] == (f"One<br>more</h2><p>{LINES[0]}\n\n🙂 {LINES[1]}")
    assert found[-1].text.endswith("© end.")
    assert text[: found[-1].end].endswith("&copy; end.")
    assert [words(text[one.start : one.end], "html").strip() for one in found] == [
        one.text for one in found
    ]


def test_tables_and_preformatted_text_of_html_stay_whole() -> None:
    rows = "<tr><td>some more</td><td>words</td></tr>\n" * 9
    table = f"<table>{rows}<tr><td><pre>a  b\nc</pre></td></tr></table>"
    code = "<pre>" + "SELECT 1\n  FROM pools;\n\n" * 9 + "</pre>"
    text = f"<p>{TEXT}</p>{table}<p>{LINES[0]} {LINES[1]}</p>{code}<p>{TEXT}</p>{table}"
    passages = [text[one.start : one.end] for one in _cut(text, "html")]
    assert sum(one.count("some more") == 9 for one in passages) == 2
    [inside] = [one for one in passages if "SELECT" in one]
    assert inside.count("SELECT 1\n  FROM pools;\n\n") >= 8


PARTS = {
    "markdown": [
        "# a\n",
        "\n\n",
        "b c. ",
        "```\n",
        "| a | b |\n|---|---|\n",
        "> ",
        "- ",
        "---\n",
        "\r\n",
        "\r",
    ],
    "html": [
        "<h1>",
        "</h1>",
        "<h3>",
        "a b. ",
        "<pre>",
        "</pre>",
        "<table>",
        "<td>",
        "</table>",
        "&eacute;",
        "&lt",
        "&",
        "<",
        "<script>",
        "</script>",
        "<!--",
        "-->",
        "\r\n",
        "\r",
        "é🙂",
        "<p>",
    ],
}


@pytest.mark.parametrize("structure", PARTS)
@given(data=st.data())
def test_passages_of_any_markup_are_in_order_and_hold_what_is_read(
    structure: Structure, data: st.DataObject
) -> None:
    parts = st.lists(st.sampled_from(PARTS[structure]) | st.text(max_size=5), max_size=30)
    text = "".join(data.draw(parts))
    tokenise = TOKENISE["of_bytes"]
    found = cut(text, tokenise, size=data.draw(st.integers(4, 24)), structure=structure)
    assert "".join("".join(one.text for one in found).split()) == "".join(
        words(text, structure).split()
    )
    for one, tokens in zip(found, tokenise([one.text for one in found]), strict=True):
        assert one.text.strip()
        assert len(tokens) <= 24 or len(one.text) == 1
        assert 0 <= one.start < one.end <= len(text)
        assert structure == "html" or text[one.start : one.end] == one.text
    for before, after in itertools.pairwise(found):
        assert before.end <= after.start or text[after.start] == "&"


def test_an_edit_of_markdown_changes_few_passages() -> None:
    sections = [f"## Part {number}\n\n{essay(700, number)}\n\n" for number in range(28)]
    before = {one.text for one in _cut("".join(sections), "markdown", size=254)}
    assert len(before) > 100
    sections[9] = sections[9].replace(" ", " more ", 40)
    after = {one.text for one in _cut("".join([*sections, TEXT]), "markdown", size=254)}
    assert len(after - before) <= 6


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("- a\n" * 10_000, "markdown"),
        ("> " * 30_000 + "a", "markdown"),
        ("# a\n" * 10_000, "markdown"),
        ("<table>" * 10**5 + "a", "html"),
        ("<h1>a" * 20_000, "html"),
        ("a<!--" * 10**5, "html"),
        ("&amp;" * 10**5, "html"),
    ],
)
def test_hostile_markup_takes_no_long_time(text: str, structure: Structure) -> None:
    begun = time.process_time()
    assert cut(text, TOKENISE["_pieces_of_words"], size=254, structure=structure)
    assert time.process_time() - begun < 20


def test_another_structure_is_refused() -> None:
    with pytest.raises(ValueError, match="structure is 'xml', expected plain, markdown or html"):
        _cut("a", "xml")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("structure", "module"), [("markdown", "markdown_it"), ("html", "turbohtml")]
)
def test_a_missing_parser_is_named(structure: str, module: str) -> None:
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from pgrerank.passages import cut\n"
        f"cut('a', None, size=9, structure={structure!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (
        f"text of structure {structure} needs {module}, which is not installed:"
        " pip install 'pgrerank[passages]'"
    ) in done.stderr
