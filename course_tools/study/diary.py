"""A study diary: ``course diary`` writes a page for every day you learn.

The upper part of a page is made from a template of yours, in which fields are filled in:

==============================  ====================================================================
``{{DATE_PRETTY}}``             the day of the page, such as Tuesday, 24 November 2026
``{{DAY_SINCE_2025_08_18}}``    days since that date; any date will do
``{{DAYS_SINCE_REPO_START}}``   days since the first commit of the repository that the diary lies in, or,
                                where there is no git, since the first page of the diary
==============================  ====================================================================

Both counts are 0 on the day itself. Below it stands what was done, as far as it is on disk. What you write under the
line at the end of a page is yours, and is kept byte for byte however often the page is written again.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from course_utils.common.errors import CourseError
from course_utils.common.files import written_whole

if TYPE_CHECKING:
    from nbformat import NotebookNode

PROJECT = Path(__file__).resolve().parents[2]
TEMPLATE_FILE = "template.md"
TEMPLATE = """\
# My Diary

Today  **{{DATE_PRETTY}}**.

## General Counter
It has been    **{{DAY_SINCE_2025_08_18}}** days since I started this diary.

# Repository Counter

Day **{{DAYS_SINCE_REPO_START}}** From I started this repository
"""

DATE, REPOSITORY = "DATE_PRETTY", "DAYS_SINCE_REPO_START"
SINCE = re.compile(r"DAY_SINCE_([0-9]{4})_([0-9]{2})_([0-9]{2})")
# A whole field, or half of one. After a backslash, which Markdown does not show, two braces are just two braces.
BRACES = re.compile(r"(?<!\\)(?:\{\{([^{}\n]*)\}\}|\{\{|\}\})")
PAGE_NAME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\.md")

# Names of our own: strftime would take those of the reader's locale, and a page would change with the machine.
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
MONTHS += ("November", "December")

DONE, NOTHING = "## What was done", "Nothing is on record for this day."
NOTES = "## Notes"
BORDER = "<!-- Yours from here on: course diary keeps every byte below this line. -->"
# Of the part above it, so that a page can tell whether somebody wrote there by hand.
FINGERPRINT = re.compile(r"<!-- written by course diary, ([0-9a-f]{16}) -->\n")
GIT_SECONDS = 5


# --- days --------------------------------------------------------------------------------------------------------


def time_zone(environ: Mapping[str, str] | None = None) -> tzinfo | None:
    """The reader's time zone: ``COURSE_TZ``, else ``TZ``, else None for the one that the machine is set to.

    Raises
    ------
    CourseError
        If ``COURSE_TZ`` is no name of a time zone. Of ``TZ``, whose other forms the system understands, names are
        used and the rest is left to it.
    """
    environ = os.environ if environ is None else environ
    given, system = environ.get("COURSE_TZ"), environ.get("TZ", "").removeprefix(":")
    if given:
        try:
            return ZoneInfo(given)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise CourseError(
                f"COURSE_TZ={given!r} is no time zone that this machine knows. Give a name such as Europe/Berlin or "
                "UTC; on Windows the names come with `pip install tzdata`."
            ) from error
    with contextlib.suppress(ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo(system) if system else None
    return None


def day_of(moment: datetime | float, zone: tzinfo | None) -> date:
    """The day on which a moment, aware or in seconds since 1970, falls in a time zone (None: the machine's)."""
    moment = datetime.fromtimestamp(moment, UTC) if isinstance(moment, float | int) else moment
    return moment.astimezone(zone).date()


def pretty(day: date) -> str:
    """A day as ``{{DATE_PRETTY}}`` shows it, in English whatever the machine speaks.

    Examples
    --------
    >>> pretty(date(2026, 11, 24))
    'Tuesday, 24 November 2026'
    """
    return f"{WEEKDAYS[day.weekday()]}, {day.day} {MONTHS[day.month - 1]} {day.year}"


def first_commit(folder: Path, zone: tzinfo | None) -> date | None:
    """The day of the oldest commit of the repository that a folder lies in.

    Returns
    -------
    date or None
        None where there is no git, no repository, no commit, or a shallow clone: there the first commit is not known.
    """
    there = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), None)
    shallow = _git(["rev-parse", "--is-shallow-repository"], there)
    if shallow is None or shallow.strip() == "true":
        return None
    times = _git(["log", "--max-parents=0", "--format=%at"], there)
    return day_of(min(map(int, times.split())), zone) if times and times.strip() else None


def _git(arguments: list[str], folder: Path | None) -> str | None:
    """What git answers; None where it is missing, fails or does not answer."""
    # Nothing is locked or started by this look, as in provenance.git_state.
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        asked = subprocess.run(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_SECONDS,
        )
        return asked.stdout if asked.returncode == 0 else None
    return None


# --- the template ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """A field of a template: the line that it is in, from 1, and its name without braces."""

    line: int
    name: str


def fields_of(template: str, day: date) -> list[Field]:
    """The fields of a template, checked.

    Parameters
    ----------
    template
        Text with fields; two braces that are none are written with a backslash in front, which Markdown hides.
    day
        Of the page: a date to count from must not lie behind it.

    Raises
    ------
    CourseError
        Naming the line of everything that is no field, and the field that is nearest to it; of a date that does not
        exist, and of one that lies in the future.
    """
    found, problems = [], []
    for number, line in enumerate(template.split("\n"), start=1):
        for match in BRACES.finditer(line):
            problem = _problem_of(match, line, day)
            if problem:
                problems.append(f"line {number}: {problem}")
            else:
                found.append(Field(number, match[1]))
    if BORDER in template:
        problems.append("it contains the line that separates your notes; every page gets one by itself")
    if problems:
        raise CourseError(
            f"The template cannot be filled in. {'; '.join(problems)}. Fields are {{{{{DATE}}}}}, "
            f"{{{{DAY_SINCE_YYYY_MM_DD}}}} and {{{{{REPOSITORY}}}}}; other double braces are written \\{{{{ and \\}}}}."
        )
    return found


def _problem_of(match: re.Match[str], line: str, day: date) -> str:
    """What is wrong with two braces; empty if they are a field."""
    name = match[1]
    if name is None:
        shown = line[max(0, match.start() - 25) : match.end()] if match[0] == "}}" else line[match.start() :][:30]
        return f"{match[0]} without its partner in {shown.strip()!r}{_nearest(shown)}"
    if name in (DATE, REPOSITORY):
        return ""
    since = SINCE.fullmatch(name)
    if since is None:
        return f"{match[0]} is no field{_nearest(name)}"
    try:
        start = date(*map(int, since.groups()))
    except ValueError as error:
        return f"{match[0]} is no date ({error})"
    return f"{match[0]} lies in the future of {day}" if start > day else ""


def _nearest(given: str) -> str:
    """``"; did you mean …?"``, or nothing when no field comes near."""
    plain = re.sub(r"[^A-Z0-9]+", "_", given.upper()).strip("_")
    numbers = re.fullmatch(r"(?:DAYS?|DATE)?_?SINCE_(\d{4})_?(\d{1,2})_?(\d{1,2})", plain)
    if numbers:
        year, month, of_month = numbers.groups()
        return f"; did you mean {{{{DAY_SINCE_{year}_{month:0>2}_{of_month:0>2}}}}}?"
    near = difflib.get_close_matches(plain, [DATE, REPOSITORY, "DAY_SINCE_YYYY_MM_DD"], n=1, cutoff=0.6)
    return f"; did you mean {{{{{near[0]}}}}}?" if near else ""


def fill_in(template: str, day: date, start: date) -> str:
    """A template with its fields replaced.

    Parameters
    ----------
    template
        As :func:`fields_of` takes it.
    day
        Of the page.
    start
        Day on which the repository, or the diary, began.

    Raises
    ------
    CourseError
        As :func:`fields_of`, and if `start` lies behind `day`.
    """
    fields = fields_of(template, day)
    if start > day and any(field.name == REPOSITORY for field in fields):
        raise CourseError(
            f"The repository began on {start}, which lies in the future of {day}. Is this machine's clock right?"
        )
    return BRACES.sub(lambda match: _value(match[1], day, start), template)


def _value(name: str, day: date, start: date) -> str:
    if name == DATE:
        return pretty(day)
    since = start if name == REPOSITORY else date(*map(int, SINCE.fullmatch(name).groups()))
    return str((day - since).days)


# --- pages -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """A page as it is on disk.

    Parameters
    ----------
    upper
        What the course wrote: filled-in template and what was done, ending before its fingerprint.
    notes
        Every byte behind the border.
    untouched
        Whether `upper` still is as it was written.
    """

    upper: str
    notes: bytes
    untouched: bool

    @property
    def facts(self) -> dict[str, str]:
        """What was done, as :func:`what_was_done` gives it."""
        _, _, done = self.upper.rpartition(f"{DONE}\n")
        lines = (line[2:].partition(": ") for line in done.splitlines() if line.startswith("- "))
        return {key: value for key, colon, value in lines if colon}


def page_bytes(head: str, facts: Mapping[str, str], notes: bytes = b"\n\n") -> bytes:
    """A page: the filled-in template, what was done, and the reader's notes.

    Parameters
    ----------
    head
        From :func:`fill_in`.
    facts
        From :func:`what_was_done`.
    notes
        Every byte behind the border, beginning with the end of its line.
    """
    upper = _upper(head, facts)
    return f"{upper}<!-- written by course diary, {_fingerprint(upper)} -->\n{BORDER}".encode() + notes


def _upper(head: str, facts: Mapping[str, str]) -> str:
    done = "\n".join(f"- {key}: {value}" for key, value in facts.items()) or NOTHING
    return f"{head.rstrip()}\n\n{DONE}\n\n{done}\n\n{NOTES}\n\n"


def _fingerprint(upper: str) -> str:
    return hashlib.sha256(upper.replace("\r", "").encode()).hexdigest()[:16]


def read_page(path: Path) -> Page:
    """Take a page apart.

    Raises
    ------
    CourseError
        If it cannot be read, or has no border: then nobody can tell what in it is the reader's.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CourseError(f"{path} cannot be read ({error.strerror or error}).") from error
    return _taken_apart(content, path)


def _taken_apart(content: bytes, path: Path) -> Page:
    before, border, notes = content.partition(BORDER.encode())
    if not border:
        raise CourseError(
            f"{path} has no line {BORDER!r}, so nobody can tell your notes from the rest, and nothing was written. Put "
            "that line above your notes, or give the file another name."
        )
    # Editors and git may have changed the ends of lines; that is nobody's handwriting.
    upper = before.decode("utf-8-sig", "replace").replace("\r\n", "\n")
    sealed = FINGERPRINT.search(upper)
    if sealed is None:
        return Page(upper, notes, untouched=False)
    whole = sealed.end() == len(upper) and _fingerprint(upper[: sealed.start()]) == sealed[1]
    return Page(upper[: sealed.start()], notes, untouched=whole)


def page_days(folder: Path) -> list[date]:
    """Days that have a page, in order. Files of other names are not looked at.

    Raises
    ------
    CourseError
        If a file is named after a day that does not exist, or the folder cannot be read.
    """
    days = []
    try:
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise CourseError(f"The diary {folder} cannot be read ({error.strerror or error}).") from error
    for name in names:
        if PAGE_NAME.fullmatch(name):
            days.append(parse_day(name.removesuffix(".md")))
    return days


def parse_day(text: str) -> date:
    """A day given as YYYY-MM-DD; :class:`CourseError` for anything else."""
    try:
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
            raise ValueError("it has another form")
        return date.fromisoformat(text)
    except ValueError as error:
        raise CourseError(f"{text!r} is no day ({error}): write it as YYYY-MM-DD, 2026-11-24 for instance.") from error


@dataclass(frozen=True)
class Diary:
    """A folder of pages, and the clock that they are written by.

    Parameters
    ----------
    folder
        Where template and pages lie; made when the first page is written.
    now
        An aware moment.
    zone
        The reader's time zone; None for the machine's.
    project
        The course's folder: what was done is looked for there.
    """

    folder: Path
    now: datetime
    zone: tzinfo | None = None
    project: Path = PROJECT

    @property
    def today(self) -> date:
        """The day that it is where the reader is."""
        return day_of(self.now, self.zone)

    def start(self, day: date) -> date:
        """Day of the repository's first commit; without one, of the first page, at the latest `day`."""
        return first_commit(self.folder, self.zone) or min([*page_days(self.folder), day])

    def template(self) -> str:
        """The reader's template; that of the course where the reader has none.

        Raises
        ------
        CourseError
            If it cannot be read or is no UTF-8 text.
        """
        path = self.folder / TEMPLATE_FILE
        if not path.exists():
            return TEMPLATE
        try:
            return path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise CourseError(f"The template {path} cannot be read as UTF-8 text ({error}).") from error

    def path_of(self, day: date) -> Path:
        """File of a day's page; :class:`CourseError` for a day that has not come yet."""
        if day > self.today:
            raise CourseError(
                f"{day} lies in the future: today is {self.today}. A page is written on its day or later."
            )
        return self.folder / f"{day.isoformat()}.md"

    def write(self, day: date | None = None) -> Written:
        """Write a day's page, or write it again: the notes stay as they are, byte for byte.

        What the page says was done stays too, also when it is on disk no more; what has come since is added. If the
        part above the notes was changed by hand, the page as it was is set aside first.

        Parameters
        ----------
        day
            Today by default.

        Raises
        ------
        CourseError
            For a day in the future, a template that cannot be filled in, a page whose notes cannot be told from the
            rest, and a disk that cannot be written to. The page is then as it was.
        """
        day = day or self.today
        path = self.path_of(day)
        head = fill_in(self.template(), day, self.start(day))
        self._hand_out_template()
        before = path.read_bytes() if path.exists() else None
        facts = what_was_done(self, day)
        if before is None:
            content, aside = page_bytes(head, facts), None
        else:
            page = _taken_apart(before, path)
            facts = page.facts | facts
            aside = None if page.untouched else _set_aside(path, before)
            content = page_bytes(head, facts, page.notes)
        with written_whole(path) as beside:
            beside.write_bytes(content)
            if (path.read_bytes() if path.exists() else None) != before:
                raise CourseError(f"{path} was saved by another program just now: nothing was written. Try again.")
        return Written(path, facts, aside)

    def _hand_out_template(self) -> None:
        path = self.folder / TEMPLATE_FILE
        if not path.exists():
            with written_whole(path) as beside:
                beside.write_text(TEMPLATE, encoding="utf-8", newline="\n")

    def check(self) -> list[str]:
        """What is wrong with the diary; dates and counts of days are not compared.

        Every page has to be readable and untouched above its notes, and none may lie in the future. The newest one has
        to be what the template gives.

        Raises
        ------
        CourseError
            If the template cannot be filled in, or a file is named after a day that does not exist.
        """
        problems = []
        days = page_days(self.folder)
        fields_of(self.template(), days[-1] if days else self.today)
        for day in days:
            name = f"{day.isoformat()}.md"
            try:
                page = read_page(self.path_of(day))
            except CourseError as error:
                problems.append(f"{name}: {error}")
                continue
            if not page.untouched:
                problems.append(f"{name}: the part above the notes was changed by hand; `course diary --date {day}`")
            elif day == days[-1]:
                expected = page_bytes(self.template(), page.facts | what_was_done(self, day))
                problems += _differences(name, _taken_apart(expected, Path(name)).upper, page.upper)
        return problems


@dataclass(frozen=True)
class Written:
    """A page that was written: its path, what it says was done, and where the page before it was set aside, if so."""

    path: Path
    facts: dict[str, str]
    aside: Path | None


def _set_aside(path: Path, content: bytes) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.stem}.before-{number}.md")).exists():
        number += 1
    with written_whole(aside) as beside:
        beside.write_bytes(content)
    return aside


def _differences(name: str, template: str, upper: str) -> Iterator[str]:
    """The first line of a page that the template does not give, whatever day it is."""
    wanted, found = template.split("\n"), upper.split("\n")
    for number in range(max(len(wanted), len(found))):
        line = wanted[number] if number < len(wanted) else None
        shown = found[number] if number < len(found) else None
        if line is None or shown is None or not re.fullmatch(_any_day(line), shown):
            yield f"{name}, line {number + 1}: {_quoted(shown)}, and it should be {_quoted(line)}; `course diary`"
            return


def _quoted(line: str | None) -> str:
    return "there is no line" if line is None else f"the line {line!r}" if line else "an empty line"


def _any_day(line: str) -> str:
    """A pattern for what a line of a template can become."""
    parts, end = [], 0
    for match in BRACES.finditer(line):
        weekdays, months = "|".join(WEEKDAYS), "|".join(MONTHS)
        value = rf"(?:{weekdays}), \d{{1,2}} (?:{months}) \d+" if match[1] == DATE else r"\d+"
        parts += [re.escape(line[end : match.start()]), value]
        end = match.end()
    return "".join([*parts, re.escape(line[end:])])


# --- what was done -----------------------------------------------------------------------------------------------


def what_was_done(diary: Diary, day: date) -> dict[str, str]:
    """What is on disk of a day's work.

    Returns
    -------
    dict
        ``"Notebook day20"`` → how many of its cells ran; ``"Exercises day20"`` → how many were passed; ``"Cards"`` →
        how many were answered and how many are due; ``"Runs"`` → how many, and the best. What cannot be read is left
        out.

    Notes
    -----
    A notebook counts for the day on which it was last saved. Looked at are what ``course run`` wrote, the student's
    copies, and the notebooks of the course where somebody has run them: their outputs are then not those of
    ``course render``. An exercise counts where the course's solution is not in the cell and the checker said "Right".
    """
    found = {**_notebooks(diary, day), **_cards(diary, day), **_runs(diary, day)}
    # One line each, and no tag: a strategy may be called anything, also what the border looks like.
    return {key: " ".join(value.split()).replace("<", "&lt;") for key, value in found.items()}


def _notebooks(diary: Diary, day: date) -> dict[str, str]:
    facts = {}
    for path in _notebook_files(diary.project):
        if day_of(path.stat().st_mtime, diary.zone) != day:
            continue
        with contextlib.suppress(CourseError):  # half a file, or none of ours: no evidence of anything
            facts |= _notebook(path, diary.project)
    return facts


def _notebook_files(project: Path) -> list[Path]:
    folders = (project / "notebooks", project / "build", project / "build" / "student")
    return [path for folder in folders for path in sorted(folder.glob("day*.ipynb"))]


def _notebook(path: Path, project: Path) -> dict[str, str]:
    from course_tools.authoring.notebooks import code_cells, read_notebook, stamp, tags

    notebook = read_notebook(path)
    cells = code_cells(notebook)
    ran = sum(cell.execution_count is not None for cell in cells)
    stored = notebook.metadata.get("course", {}).get("outputs")
    if not ran or (path.parent == project / "notebooks" and stored == stamp(notebook)["outputs"]):
        return {}
    name = f"{path.stem} (student's copy)" if path.parent.name == "student" else path.stem
    facts = {f"Notebook {name}": f"{ran} of {len(cells)} code cells ran"}
    checkers = sum("checker" in tags(cell) for cell in cells)
    passed = _passed(cells)
    return facts | ({f"Exercises {path.stem}": f"{passed} of {checkers} passed"} if passed else {})


def _passed(cells: Sequence[NotebookNode]) -> int:
    """How many checkers said that an answer is right which is not the course's own."""
    from course_tools.authoring.notebooks import BEGIN, tags

    passed, answer = 0, ""
    for cell in cells:
        answer = cell.source if "solution" in tags(cell) else answer
        printed = "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout")
        said_right = any(line.startswith("Right: ") for line in printed.splitlines())
        passed += "checker" in tags(cell) and said_right and BEGIN not in answer
    return passed


def _cards(diary: Diary, day: date) -> dict[str, str]:
    """How many questions were answered, and how many were due again at the end of the day; today: by now."""
    try:
        from course_tools.study.quiz_progress import Schedule, quiz_path
    except ImportError:  # an environment of one's own may lack what the quiz needs
        return {}
    with contextlib.suppress(OSError):
        by_then = [a for a in _answers(quiz_path()) if a.when <= diary.now and day_of(a.when, diary.zone) <= day]
        if by_then:
            schedule = Schedule(by_then)
            due = [schedule.due(question) for question in {answer.question for answer in by_then}]
            waiting = sum(when <= diary.now and day_of(when, diary.zone) <= day for when in due)
            answered = sum(day_of(answer.when, diary.zone) == day for answer in by_then)
            return {"Cards": f"{answered} answered, {waiting} due"} if answered or waiting else {}
    return {}


def _answers(path: Path) -> list[Any]:
    """What the quiz has kept, in the order of time; damaged lines are the quiz's business, which sets them aside."""
    from course_tools.study.quiz_progress import Answer

    answers = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            answers.append(Answer.from_line(line))
    return sorted(answers, key=lambda answer: answer.when)


def _runs(diary: Diary, day: date) -> dict[str, str]:
    given = os.environ.get("COURSE_RUNS")
    if given and not Path(given).expanduser().is_dir():
        return {}  # at once: what follows imports torch
    from course_utils.engine.run_log import runs_root

    if not runs_root().is_dir():
        return {}
    from course_utils.engine.runs import list_runs
    from course_utils.evaluation import interval_text

    records = [r for r in list_runs() if not r.problem]
    todays = [r for r in records if day_of(datetime.fromisoformat(r.facts["started"]), diary.zone) == day]
    scored = [r for r in todays if r.best is not None]
    if not scored:
        return {"Runs": f"{len(todays)}, none with a finished epoch"} if todays else {}
    best = max(scored, key=lambda r: (r.best.val_accuracy, -r.best.val_loss))
    pictures = best.facts["data"]["val"]["pictures"]
    accuracy = interval_text(round(best.best.val_accuracy * pictures), pictures)
    strategy = best.facts["strategy"]["name"]
    return {"Runs": f"{len(todays)}, the best one {best.id}: {best.model_text}, {strategy}, validation {accuracy}"}


# --- the command -------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """The arguments of ``course diary``."""
    parser = argparse.ArgumentParser(prog="course diary", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--date", metavar="YYYY-MM-DD", help="the page of another day than today")
    parser.add_argument(
        "--folder", type=Path, help="where the diary lies (default: $COURSE_DIARY, or diary/ in the course)"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail when a page is not what the template gives, dates aside",
    )
    return parser


def main(
    arguments: Sequence[str] | None = None, now: datetime | None = None, environ: Mapping[str, str] | None = None
) -> int:
    """Write a page, or check all of them; return the exit code.

    Parameters
    ----------
    arguments
        Of the command line.
    now
        An aware moment; the clock's by default.
    environ
        ``COURSE_DIARY``, ``COURSE_TZ`` and ``TZ`` are read from it; that of the process by default.
    """
    args = make_parser().parse_args(arguments)
    environ = os.environ if environ is None else environ
    folder = args.folder or Path(environ.get("COURSE_DIARY") or PROJECT / "diary").expanduser()
    diary = Diary(folder, now or datetime.now(UTC), time_zone(environ))
    if args.check:
        problems = diary.check()
        print("\n".join(problems) if problems else f"{len(page_days(folder))} pages checked, nothing to mend.")
        return 1 if problems else 0
    written = diary.write(parse_day(args.date) if args.date else None)
    if written.aside:
        print(f"The part above the notes had been changed by hand; that page is kept as {written.aside.name}.")
    print(written.path)
    print("\n".join(f"  {key}: {value}" for key, value in written.facts.items()) or f"  {NOTHING}")
    return 0
