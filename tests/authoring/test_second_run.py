"""second_run.py: tagged cells beside what they said elsewhere, and the statements that hold there."""

from __future__ import annotations

import base64
import copy
import json

import nbformat
import pytest

from course_tools.authoring import second_run
from course_tools.authoring.notebooks import find_notebooks, read_notebook
from course_tools.authoring.second_run import ROOT, claims, outputs_text, page, shown_cells
from course_utils.common.errors import CourseError

PNG = base64.b64encode(b"\x89PNG of the second run").decode()


def notebook(*lines, figure=False):
    text = nbformat.v4.new_output("stream", name="stdout", text="\n".join(lines) + "\n")
    outputs = [text]
    if figure:
        outputs.append(
            nbformat.v4.new_output("display_data", data={"image/png": PNG}, metadata={"image/png": {"alt": "Dots."}})
        )
    cell = nbformat.v4.new_code_cell("measure()", id="one", outputs=outputs, metadata={"tags": ["second-run"]})
    other = nbformat.v4.new_code_cell("other()", id="two")
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("## 3. Load\n\nText."), cell, other])


def test_statements_are_read_from_what_was_printed():
    found = dict(claims(notebook("80 %", "Holds: it learns.", "Does not hold on this data: 5 % help.")))
    assert found == {"it learns": True, "5 % help": False}


def test_the_page_shows_both_outputs_the_figure_and_what_does_not_hold(tmp_path):
    comparison = json.loads((ROOT / "results" / "day20.json").read_text(encoding="utf-8"))
    one = copy.deepcopy(comparison)
    one["data"] = {"hymenoptera": one["data"]["hymenoptera"]}
    pairs = [("day20", notebook("drawn 81 %", "Holds: it helps."), notebook(
        "photographs 62 %", "Does not hold on this data: it helps.", figure=True))]  # fmt: skip
    text = page(pairs, one, comparison, tmp_path)
    assert "| day20 | it helps | **no** |" in text and "## Day 20: Load" in text
    assert text.index("drawn 81 %") < text.index("photographs 62 %")
    assert (tmp_path / "photographs-day20-1-0.png").read_bytes() == base64.b64decode(PNG)
    assert "![Dots.](media/photographs-day20-1-0.png)" in text


def test_a_run_of_another_version_is_refused(tmp_path):
    stored, second = notebook("Holds: it helps."), notebook("nothing")
    with pytest.raises(CourseError, match="does not state 'it helps'"):
        second_run.claims_table([("day20", stored, second)])
    second.cells[1].source = "measure_otherwise()"
    with pytest.raises(CourseError, match="has been changed since"):
        list(shown_cells(stored, second))


def test_a_cell_with_a_figure_alone_says_where_it_is():
    cell = notebook("", figure=True).cells[1]
    assert outputs_text(cell, None, "") == "(a figure: see the notebook)"


def test_the_stored_page_is_about_the_cells_as_they_are():
    """Headings, drawn outputs and statements of the page are those of the notebooks."""
    text = (ROOT / "docs" / "photographs.md").read_text(encoding="utf-8")
    for path in find_notebooks(ROOT):
        stored = read_notebook(path)
        for statement, holds in claims(stored):
            assert holds and f"| {path.stem} | {statement} | " in text
        shown = list(shown_cells(stored, stored))
        assert len(shown) >= 4
        for heading, *_ in shown:
            assert f"## Day {path.stem[3:]}: {heading}" in text
