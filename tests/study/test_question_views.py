"""question_views.py and formulas.py: nothing of an answer gets lost on its way to a terminal, a card or Anki."""

from __future__ import annotations

import csv
import html
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_tools.authoring.formulas import plain_formula
from course_tools.study.question_views import anki_rows, anki_text, as_html, as_text, place, titled, write_anki
from course_tools.study.questions import PARTS, read_bank, without_snippets
from course_utils.common.errors import CourseError

BANK = read_bank()
FORMULAS = sorted(
    {
        one or other
        for question in BANK
        for part in PARTS
        for one, other in re.findall(r"(?s)\$\$(.+?)\$\$|\$([^$]+)\$", without_snippets(getattr(question, part)))
    }
)


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\frac{k^2 C_\text{in}}{9}", "(k² C_in)/9"),
        (r"\frac{\gamma}{\sigma}\left(g_i - \overline{g}\right)", "(γ/σ)(gᵢ − g̅)"),
        (r"\ln\frac{\pi'_y}{\pi_y}", "ln(π'_y/π_y)"),
        (r"\tfrac12(1 + \cos 0.09\pi)", "(1/2)(1 + cos 0.09π)"),
        (r"\frac{R}{K}\sqrt s, \qquad x", "(R/K)√s, x"),
        (r"\sqrt{p(1-p)/n}", "√(p(1−p)/n)"),
        (r"25{,}088 \cdot 4096", "25,088 · 4096"),
        (r"\hat x_i", "x̂ᵢ"),
        (r"\sum_{k=0}^{n-1} F(k)^m", "Σₖ₌₀ⁿ⁻¹ F(k)ᵐ"),
        (r"x_{\ell+1}", "x_(ℓ+1)"),
        (r"\left\lfloor \frac{n + 2p - k}{s} \right\rfloor + 1 .", "⌊(n + 2p − k)/s⌋ + 1."),
        (r"p(y\mid x) \propto \pi_y", "p(y ∣ x) ∝ π_y"),
        (r"\pm 1/\sqrt d", "±1/√d"),
        (r"2 \cdot 2^{-8}", "2 · 2⁻⁸"),
        (r"\binom{N-1}{k}", "C(N−1, k)"),
        (r"\unknown{x}", r"\unknownx"),
        ("", ""),
    ],
)
def test_formulas_in_a_line(latex, text):
    assert plain_formula(latex) == text


def test_no_formula_of_the_bank_keeps_a_command():
    assert len(FORMULAS) > 100
    assert [latex for latex in FORMULAS if re.search(r"[\\{}]", plain_formula(latex))] == []


@given(st.text(alphabet=r"\{}_^ abfrcsqtle1+-().,", max_size=30))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_misprinted_formula_loses_no_letters(latex):
    text = plain_formula(latex)
    assert "\n" not in text
    if "\\" not in latex and "^" not in latex and "_" not in latex:
        assert re.sub(r"[\s{}−-]", "", latex) == re.sub(r"[\s{}−-]", "", text)


@pytest.mark.parametrize("width", [40, 80])
def test_lines_fit_and_no_word_is_lost(width):
    for question in BANK:
        markdown = without_snippets(titled(question))
        if "|" in markdown:
            continue  # tables keep their width
        text = as_text(markdown, width)
        longest = max((line for line in text.splitlines() if "http" not in line), key=len)
        assert len(longest) <= width or "    " in longest, longest
        plain = re.sub(r"\$\$[^$]*\$\$|\$[^$]*\$|\]\([^)\s]*\)|[*\[\]`]|^\s*\d+\. ", " ", markdown, flags=re.M)
        words = set(re.findall(r"[A-Za-z]{4,}", plain))
        assert words <= set(re.findall(r"[A-Za-z]{4,}", text)), words - set(re.findall(r"[A-Za-z]{4,}", text))


def test_code_is_shown_as_it_is():
    for question in BANK:
        lines = as_text(question.full, 60).splitlines()
        for code in question.snippets:
            wanted = [f"    {line}" if line else "" for line in code.rstrip("\n").split("\n")]
            start = lines.index(wanted[0])
            assert lines[start : start + len(wanted)] == wanted


def test_markdown_in_a_terminal():
    markdown = (
        "**Bold** and *slanted* `co*d*e`, $x_i^2$, [arXiv 1411.1792](https://arxiv.org/abs/1411.1792),\n"
        "[He et al.](https://arxiv.org/abs/1512.03385) and [section 3](../notebooks/day20.ipynb#3.-Load).\n\n"
        "1. one\n   more\n2. two\n\n- a\n\n$$\\frac{a}{b}$$\n\n| a | b |\n| --- | --- |\n| `x` | 1 |"
    )
    assert as_text(markdown, 200).split("\n\n") == [
        "Bold and slanted `co*d*e`, xᵢ², arXiv 1411.1792, He et al. [arXiv 1512.03385] and section 3 "
        "[notebooks/day20.ipynb].",
        "1. one more\n2. two",
        "- a",
        "    a/b",
        "  a    b\n  ---  -\n  `x`  1",
    ]
    styled = as_text("**Bold** *slanted* `code`", 200, styled=True)
    assert styled == "\x1b[1mBold\x1b[22m \x1b[3mslanted\x1b[23m \x1b[36mcode\x1b[39m"


def test_the_second_line_of_an_item_stands_under_its_first_word():
    text = as_text("- " + "word " * 12 + "\n  end", 40)
    first, *others = text.splitlines()
    assert first.startswith("- word") and all(line.startswith("  w") for line in others)


def test_html_draws_formulas_and_keeps_code_and_links_into_the_world():
    page = as_html(
        "**A** $a < b$ [day 20](../notebooks/day20.ipynb#x) [w](https://a.b)\n\n```python\nassert 1 < 2\n```\n\nEnd."
    )
    assert "<mi>a</mi><mo>&#x0003C;</mo><mi>b</mi></mrow></math> day 20 [notebooks/day20.ipynb]" in page
    assert page.startswith("<p><strong>A</strong> <math ")
    assert '<a href="https://a.b">w</a>' in page
    assert "assert 1 &lt; 2</pre>" in page and "```" not in page
    assert page.endswith("<p>End.</p>")
    for question in BANK:
        page = as_html(titled(question))
        assert "../" not in re.sub(r"<pre.*?</pre>", "", page, flags=re.S)
        assert "$" not in re.sub(r"<(pre|code).*?</\1>", "", page, flags=re.S)
        for code in question.snippets:
            assert html.escape(code.rstrip()) in page


def test_a_place_in_the_course():
    assert place("../notebooks/day20.ipynb#1.-The-idea") == "notebooks/day20.ipynb"
    assert place("../course_utils/gradcam.py") == "course_utils/gradcam.py"


def read_as_anki_does(text):
    """Header lines, then rows as Anki's importer takes them apart: separated by tabs, quoted as in CSV."""
    lines = text.split("\n")
    headers = list(iter(lambda: lines.pop(0) if lines[0].startswith("#") else "", ""))
    return dict(line[1:].split(":", 1) for line in headers), list(
        csv.reader(io.StringIO("\n".join(lines)), delimiter="\t")
    )


def test_anki_finds_every_card_with_its_answer_and_tags(tmp_path):
    write_anki(BANK, tmp_path / "cards.tsv")
    headers, rows = read_as_anki_does((tmp_path / "cards.tsv").read_text(encoding="utf-8"))
    assert headers == {
        "separator": "tab",
        "html": "true",
        "guid column": "1",
        "tags column": "4",
        "deck": "Transfer learning",
    }
    assert rows == anki_rows(BANK) and [row[0] for row in rows] == [question.id for question in BANK]
    for question, (_, front, back, tags) in zip(BANK, rows, strict=True):
        assert front.startswith("<p>") and "In 30 seconds." in back and "Follow-up." in back
        assert tags.split()[:2] == [question.level, question.topic.replace(" ", "_")]
        assert len(tags.split()) == 2 + len(question.tags)
        assert not re.search(r"\$[^$]*\$", re.sub(r"<(pre|code).*?</\1>", "", front + back, flags=re.S))
    assert sum(row[2].count(r"\(") for row in rows) > 100


def test_an_export_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match="could not be written"):
        write_anki(BANK[:1], tmp_path / "file" / "cards.tsv")
    assert anki_text(BANK[:1]).count("\n#") == 4
