"""The work of a day, as far as it is on disk: notebooks, exercises, cards of the quiz, runs. The diary lists it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, date, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING

from course_tools.authoring.notebooks import BEGIN, code_cells, read_notebook, stamp, tags
from course_tools.study.quiz_progress import Answer, Schedule, in_order, quiz_path, read_lines
from course_utils.common.errors import CourseError

if TYPE_CHECKING:
    from nbformat import NotebookNode


def day_of(moment: datetime | float, zone: tzinfo | None) -> date:
    """Return the day of an aware moment, or of seconds since 1970, in a time zone (None: the machine's)."""
    moment = datetime.fromtimestamp(moment, UTC) if isinstance(moment, float | int) else moment
    return moment.astimezone(zone).date()


def work_done(day: date, project: Path, now: datetime, zone: tzinfo | None) -> dict[str, str]:
    """Return what is on disk of a day's work under the course's folder; what cannot be read is left out.

    ``"Notebook day20"`` → how many of its cells ran; ``"Exercises day20"`` → how many were passed; ``"Cards"`` → how
    many were answered and how many are due; ``"Runs"`` → how many, and the best.

    A notebook counts for the day on which it was last saved. Looked at are the copies that ``course run`` wrote, the
    student's copies, and the notebooks of the course if their outputs are not those of ``course render``. An exercise
    counts if the cell does not hold the course's solution and the checker said "Right".
    """
    found = {**_notebooks(day, project, zone), **_cards(day, now, zone), **_runs(day, zone)}
    # One line each, and no tag: the name of a strategy may hold anything, also the border of a page.
    return {key: " ".join(value.split()).replace("<", "&lt;") for key, value in found.items()}


def _notebooks(day: date, project: Path, zone: tzinfo | None) -> dict[str, str]:
    facts = {}
    for folder in ("notebooks", "build", "build/student"):
        for path in sorted((project / folder).glob("day*.ipynb")):
            if day_of(path.stat().st_mtime, zone) == day:
                with contextlib.suppress(CourseError):  # not a notebook, or half of one
                    facts |= _notebook(path, folder)
    return facts


def _notebook(path: Path, folder: str) -> dict[str, str]:
    notebook = read_notebook(path)
    cells = code_cells(notebook)
    ran = sum(cell.execution_count is not None for cell in cells)
    stored = notebook.metadata.get("course", {}).get("outputs")
    if not ran or (folder == "notebooks" and stored == stamp(notebook)["outputs"]):
        return {}
    copy = " (student's copy)" if folder == "build/student" else ""
    facts = {f"Notebook {path.stem}{copy}": f"{ran} of {len(cells)} code cells ran"}
    if passed := _passed(cells):
        checkers = sum("checker" in tags(cell) for cell in cells)
        facts[f"Exercises {path.stem}"] = f"{passed} of {checkers} passed"
    return facts


def _passed(cells: Sequence[NotebookNode]) -> int:
    """Return the number of checkers that said "Right" to an answer that is not the course's own."""
    passed, answer = 0, ""
    for cell in cells:
        answer = cell.source if "solution" in tags(cell) else answer
        printed = "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout")
        right = any(line.startswith("Right: ") for line in printed.splitlines())
        passed += "checker" in tags(cell) and right and BEGIN not in answer
    return passed


def _cards(day: date, now: datetime, zone: tzinfo | None) -> dict[str, str]:
    """Return the count of cards answered on a day, and of those due again at its end (today: by now)."""

    def until_then(when: datetime) -> bool:
        return when <= now and day_of(when, zone) <= day

    try:
        answers = [one for one in in_order(map(Answer.from_line, read_lines(quiz_path())[0])) if until_then(one.when)]
    except CourseError:
        return {}
    schedule = Schedule(answers)
    due = sum(until_then(schedule.due(question)) for question in {answer.question for answer in answers})
    answered = sum(day_of(answer.when, zone) == day for answer in answers)
    return {"Cards": f"{answered} answered, {due} due"} if answered or due else {}


def _runs(day: date, zone: tzinfo | None) -> dict[str, str]:
    # These import torch, which takes seconds.
    from course_utils.engine.runs import list_runs
    from course_utils.evaluation import interval_text

    readable = [run for run in list_runs() if not run.problem]
    runs = [run for run in readable if day_of(datetime.fromisoformat(run.facts["started"]), zone) == day]
    scored = [run for run in runs if run.best is not None]
    if not scored:
        return {"Runs": f"{len(runs)}, none with a finished epoch"} if runs else {}
    best = max(scored, key=lambda run: (run.best.val_accuracy, -run.best.val_loss))
    pictures = best.facts["data"]["val"]["pictures"]
    accuracy = interval_text(round(best.best.val_accuracy * pictures), pictures)
    strategy = best.facts["strategy"]["name"]
    return {"Runs": f"{len(runs)}, the best one {best.id}: {best.model_text}, {strategy}, validation {accuracy}"}
