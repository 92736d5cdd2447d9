r"""A study diary: ``course diary`` writes a page for every day you learn.

The upper part of a page is rendered by jinja2 from ``template.md``, which is yours to change. Its placeholders:

==============================  ====================================================================
``{{DATE_PRETTY}}``             the day of the page, such as Tuesday, 24 November 2026
``{{DAY_SINCE_2025_08_18}}``    days since that date; any date will do
``{{DAYS_SINCE_REPO_START}}``   days since the first commit of the repository that the diary lies in, or,
                                without git, since the first page of the diary
==============================  ====================================================================

Other double braces are written ``\{{`` and ``\}}``; Markdown hides the backslash. Below the template's text a page
lists the work of the day. What you write under its last line is kept byte for byte, however often it is written again.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from jinja2 import Environment, StrictUndefined

from course_tools.study.work_done import day_of, work_done
from course_utils.common.command_line import OneLineParser
from course_utils.common.errors import CourseError
from course_utils.common.files import written_whole

PROJECT = Path(__file__).resolve().parents[2]
TEMPLATE = """\
# My Diary

Today  **{{DATE_PRETTY}}**.

## General Counter
It has been    **{{DAY_SINCE_2025_08_18}}** days since I started this diary.

# Repository Counter

Day **{{DAYS_SINCE_REPO_START}}** From I started this repository
"""
# Only double braces mean something: a template may hold {% and {# as text.
JINJA = Environment("{{%", "%}}", comment_start_string="{{#", comment_end_string="#}}", undefined=StrictUndefined)
BRACES = re.compile(r"(?<!\\)\{{2,}[^{}]*\}*|\{?[^{}]*(?<!\\)\}{2,}")
PLACEHOLDER = re.compile(
    r"\{\{\s*(DATE_PRETTY|DAYS_SINCE_REPO_START|DAY_SINCE_([0-9]{4})_([0-9]{2})_([0-9]{2}))\s*\}\}"
)
PLACEHOLDERS = "DATE_PRETTY", "DAY_SINCE_YYYY_MM_DD", "DAYS_SINCE_REPO_START"
ISO_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
UNKNOWN = "…"  # in place of a count that is not known

DONE, NOTHING = "## What was done", "Nothing is on record for this day."
BORDER = "<!-- Yours from here on: course diary keeps every byte below this line. -->"
# Hash of the part above it: a page shows whether somebody wrote there by hand.
FINGERPRINT = re.compile(r"<!-- written by course diary, ([0-9a-f]{16}) -->\n")


def time_zone(environ: Mapping[str, str] = os.environ) -> tzinfo | None:
    """Return the reader's time zone: ``COURSE_TZ``, else ``TZ`` if it is a name, else None for the machine's."""
    given = environ.get("COURSE_TZ")
    name = given or environ.get("TZ", "").removeprefix(":")
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        if not given:
            return None  # TZ has other forms too, which the system understands
        raise CourseError(
            f"COURSE_TZ={given!r} is no time zone that this machine knows. Give a name such as Europe/Berlin or "
            "UTC; on Windows the names come with `pip install tzdata`."
        ) from error


def parse_day(text: str) -> date:
    """Return a day written as YYYY-MM-DD; raise :class:`CourseError` for anything else."""
    try:
        return date.fromisoformat(text if ISO_DAY.fullmatch(text) else "")
    except ValueError as error:
        raise CourseError(f"{text!r} is no day: write it as YYYY-MM-DD, 2026-11-24 for instance.") from error


def pretty(day: date) -> str:
    """Return a day in words, such as ``"Tuesday, 24 November 2026"``."""
    return f"{day:%A}, {day.day} {day:%B} {day.year}"


def first_commit(folder: Path, zone: tzinfo | None) -> date | None:
    """Return the day of the oldest commit of the repository that a folder lies in.

    None without git, repository or commit, and for a shallow clone, which does not know its first commit.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())

    def git(*arguments: str) -> list[str]:
        done = subprocess.run(["git", *arguments], cwd=existing, capture_output=True, check=True, timeout=5)
        return done.stdout.decode().split()

    try:
        if git("rev-parse", "--is-shallow-repository") == ["true"]:
            return None
        return day_of(min(map(int, git("log", "--max-parents=0", "--format=%at"))), zone)
    except (OSError, subprocess.SubprocessError):
        return None


def fill_in(template: str, day: date, start: date | None) -> str:
    """Return a template with its placeholders filled in for a page of `day`.

    The repository, or the diary, began on the day `start`; None puts ``UNKNOWN`` in place of the days since then.
    Double braces that hold anything but a placeholder, and dates that do not exist or lie after `day`, are a
    :class:`CourseError`, which names all of them with their lines.
    """
    values, problems = {}, []
    for number, line in enumerate(template.split("\n"), start=1):
        for braces in BRACES.findall(line):
            try:
                values |= _value(braces, day, start)
            except ValueError as error:
                problems.append(f"line {number}: {braces.strip()} {error}")
    if BORDER in template:
        problems.append("it contains the line that separates your notes; every page gets one by itself")
    if problems:
        allowed = ", ".join(f"{{{{{name}}}}}" for name in PLACEHOLDERS)
        raise CourseError(
            f"The template cannot be filled in. {'; '.join(problems)}. Placeholders are {allowed}; "
            r"other double braces are written \{{ and \}}."
        )
    # jinja2 must not see the braces behind a backslash.
    return JINJA.from_string(template.replace(r"\{{", "\0")).render(values).replace("\0", r"\{{")


def _value(braces: str, day: date, start: date | None) -> dict[str, str]:
    """Return the name of the placeholder in braces, and the text for it; raise ``ValueError`` if there is none."""
    found = PLACEHOLDER.fullmatch(braces)
    if not found:
        raise ValueError(f"is not a placeholder{_hint(braces)}")
    name, *numbers = found.groups()
    if name == "DATE_PRETTY":
        return {name: pretty(day)}
    since = date(*map(int, numbers)) if numbers[0] else start
    if since and since > day:
        clock = "" if numbers[0] else f" (it counts from {since}: is this machine's clock right?)"
        raise ValueError(f"lies in the future of {day}{clock}")
    return {name: str((day - since).days) if since else UNKNOWN}


def _hint(braces: str) -> str:
    """Return ``"; did you mean {{…}}?"``, or nothing if no placeholder is similar."""
    plain = re.sub(r"[^A-Z0-9]+", "_", braces.upper()).strip("_")
    near = difflib.get_close_matches(plain, PLACEHOLDERS, n=1)
    if numbers := re.fullmatch(r"(?:DAYS?|DATE)?_?SINCE_(\d{4})_?(\d{1,2})_?(\d{1,2})", plain):
        near = ["DAY_SINCE_{}_{:0>2}_{:0>2}".format(*numbers.groups())]
    return f"; did you mean {{{{{near[0]}}}}}?" if near else ""


@dataclass(frozen=True)
class Page:
    """A page as it is on disk: all of it, the text of the course, and every byte after the border.

    ``untouched`` is True if the text of the course still is as it was written.
    """

    content: bytes = b""
    upper: str = ""
    notes: bytes = b"\n\n"
    untouched: bool = True

    @property
    def facts(self) -> dict[str, str]:
        """The work of the day, as :func:`~course_tools.study.work_done.work_done` gave it."""
        done = self.upper.rpartition(f"{DONE}\n")[2]
        return dict(re.findall(r"(?m)^- (.+?): (.*)$", done))


def page_bytes(head: str, facts: Mapping[str, str], notes: bytes = b"\n\n") -> bytes:
    """Return the content of a page: filled-in template, work of the day, and every byte after the border."""
    upper = _upper(head, facts)
    return f"{upper}<!-- written by course diary, {_fingerprint(upper)} -->\n{BORDER}".encode() + notes


def _upper(head: str, facts: Mapping[str, str]) -> str:
    done = "\n".join(f"- {key}: {value}" for key, value in facts.items()) or NOTHING
    return f"{head.rstrip()}\n\n{DONE}\n\n{done}\n\n## Notes\n\n"


def _fingerprint(upper: str) -> str:
    return hashlib.sha256(upper.replace("\r", "").encode()).hexdigest()[:16]


def parse_page(content: bytes, path: Path) -> Page:
    """Return the parts of a page; raise :class:`CourseError` if no border says which part is the reader's."""
    before, border, notes = content.partition(BORDER.encode())
    if not border:
        raise CourseError(
            f"{path} has no line {BORDER!r}, so nobody can tell your notes from the rest, and nothing was written. Put "
            "that line above your notes, or give the file another name."
        )
    # Editors and git may have changed the ends of lines; that does not count as a change by hand.
    text = before.decode("utf-8-sig", "replace").replace("\r\n", "\n")
    mark = FINGERPRINT.search(text)
    upper = text[: mark.start()] if mark else text
    untouched = mark is not None and mark.end() == len(text) and mark[1] == _fingerprint(upper)
    return Page(content, upper, notes, untouched)


def read_page(path: Path) -> Page:
    """Return the parts of a page on disk, of an empty one if there is none; raises as :func:`parse_page`."""
    try:
        return parse_page(path.read_bytes(), path) if path.exists() else Page()
    except OSError as error:
        raise CourseError(f"{path} cannot be read ({error.strerror or error}).") from error


def _write(path: Path, content: bytes) -> None:
    with written_whole(path) as beside:
        beside.write_bytes(content)


def page_days(folder: Path) -> list[date]:
    """Return the days that have a page, in order; raise :class:`CourseError` if one of them does not exist."""
    return sorted(parse_day(path.stem) for path in folder.glob("*.md") if ISO_DAY.fullmatch(path.stem))


class Written(NamedTuple):
    """A page just written: its path, the work that it lists, and where the page before was kept, if it was edited."""

    path: Path
    facts: dict[str, str]
    aside: Path | None


@dataclass(frozen=True)
class Diary:
    """A folder of pages, with an aware moment as the present and the reader's time zone (None: the machine's).

    The work of a day is looked for in ``project``, the course's folder.
    """

    folder: Path
    now: datetime
    zone: tzinfo | None = None
    project: Path = PROJECT

    @property
    def today(self) -> date:
        """The present day in the reader's time zone."""
        return day_of(self.now, self.zone)

    def start(self, day: date) -> date:
        """Return the day of the repository's first commit; without one, of the first page, at the latest `day`."""
        return first_commit(self.folder, self.zone) or min([*page_days(self.folder), day])

    def template(self) -> str:
        """Return the reader's template, or that of the course if there is none."""
        path = self.folder / "template.md"
        try:
            return path.read_text(encoding="utf-8-sig") if path.exists() else TEMPLATE
        except (OSError, UnicodeDecodeError) as error:
            raise CourseError(f"The template {path} cannot be read as UTF-8 text ({error}).") from error

    def path_of(self, day: date) -> Path:
        """Return the path of a day's page; raise :class:`CourseError` for a day in the future."""
        if day > self.today:
            raise CourseError(
                f"{day} lies in the future: today is {self.today}. A page is written on its day or later."
            )
        return self.folder / f"{day}.md"

    def work(self, day: date) -> dict[str, str]:
        """Return what is on disk of a day's work, as :func:`~course_tools.study.work_done.work_done` does."""
        return work_done(day, self.project, self.now, self.zone)

    def write(self, day: date | None = None) -> Written:
        """Write a day's page (default: today's), or write it again: the notes stay as they are, byte for byte.

        The work that the page lists stays too, also when it is not on disk any more; newer work is added. If the part
        above the notes was changed by hand, a copy of that page is kept. After an error the page is as it was.
        """
        day = day or self.today
        path = self.path_of(day)
        head = fill_in(self.template(), day, self.start(day))
        if not (self.folder / "template.md").exists():
            _write(self.folder / "template.md", TEMPLATE.encode())
        page = read_page(path)
        facts = page.facts | self.work(day)
        aside = None
        if not page.untouched:
            copies = (path.with_name(f"{day}.before-{number}.md") for number in itertools.count(1))
            aside = next(copy for copy in copies if not copy.exists())
            _write(aside, page.content)
        with written_whole(path) as beside:
            beside.write_bytes(page_bytes(head, facts, page.notes))
            if (path.read_bytes() if path.exists() else b"") != page.content:
                raise CourseError(f"{path} was saved by another program just now: nothing was written. Try again.")
        return Written(path, facts, aside)

    def check(self) -> list[str]:
        """Return what is wrong with the diary, a line for each problem.

        Every page has to be readable and untouched above its notes, and none may lie in the future. The newest one has
        to be what the template gives; the days since the repository's start, which not every clone knows, may differ.
        """
        problems = []
        days = page_days(self.folder)
        head = fill_in(self.template(), days[-1] if days else self.today, None)
        for day in days:
            try:
                page = read_page(self.path_of(day))
            except CourseError as error:
                problems.append(f"{day}.md: {error}")
                continue
            if not page.untouched:
                problems.append(f"{day}.md: the part above the notes was changed by hand; `course diary --date {day}`")
            elif day == days[-1]:
                problems += _first_difference(day, _upper(head, page.facts | self.work(day)), page.upper)
        return problems


def _first_difference(day: date, expected: str, found: str) -> list[str]:
    pairs = itertools.zip_longest(expected.split("\n"), found.split("\n"), fillvalue="(no line)")
    for number, (wanted, shown) in enumerate(pairs, start=1):
        if not re.fullmatch(re.escape(wanted).replace(UNKNOWN, rf"(\d+|{UNKNOWN})"), shown):
            return [f"{day}.md, line {number}: {shown!r}, and it should be {wanted!r}; `course diary`"]
    return []


def main(
    arguments: Sequence[str] | None = None, now: datetime | None = None, environ: Mapping[str, str] = os.environ
) -> int:
    """Write a page, or check all of them; return the exit code. `now`, an aware moment, is the present by default."""
    parser = OneLineParser(prog="course diary", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--date", metavar="YYYY-MM-DD", help="the page of another day than today")
    parser.add_argument("--folder", type=Path, help="where it lies (default: $COURSE_DIARY, or diary/ in the course)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is not what is expected")
    args = parser.parse_args(arguments)
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
