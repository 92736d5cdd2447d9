"""List, compare and delete the runs that ``fit`` has logged: ``course runs``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from course_utils.common.command_line import OneLineParser
from course_utils.engine.run_log import runs_root
from course_utils.engine.runs import RunRecord, compare_runs, delete_run, find_run, list_runs, runs_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 when the question before a deletion was not answered with yes."""
    parser = OneLineParser(prog="course runs", description=__doc__, allow_abbrev=False)
    about = (
        "a run's name or a part of it: one run is shown in full, several are compared, without a name all are listed"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=about)
    parser.add_argument("--delete", action="store_true", help="delete the named runs, after a question")
    parser.add_argument("--yes", action="store_true", help="delete without the question")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    options = parser.parse_args(arguments)
    if options.delete and (not options.names or options.json):
        parser.error("--delete takes the names of the runs to delete, and no --json")
    if options.yes and not options.delete:
        parser.error("--yes belongs to --delete")
    records = [find_run(name) for name in options.names] if options.names else list_runs()
    if options.delete:
        return _delete(list({record.folder: record for record in records}.values()), options.yes)
    print(_as_json(records, bool(options.names)) if options.json else _as_text(records, bool(options.names)))
    return 0


def _as_text(records: list[RunRecord], named: bool) -> str:
    if named:
        return str(records[0]) if len(records) == 1 else compare_runs(records)
    if not records:
        return f"No runs yet in {runs_root()}. Every call of fit writes one there; COURSE_RUNS chooses another folder."
    total = sum(record.size for record in records) / 1e6
    damaged = [f"{record.name} is damaged: {record.problem}" for record in records if record.problem]
    count = f"{len(records)} run{'s' if len(records) > 1 else ''}, {total:.1f} MB in {runs_root()}"
    return "\n".join([runs_table(records), "", *damaged, count])


def _as_json(records: list[RunRecord], named: bool) -> str:
    content = [record.summary() for record in records]
    if named:  # also everything that is stored
        for entry, record in zip(content, records, strict=True):
            history = [epoch.as_row() for epoch in record.history]
            entry |= {"facts": record.facts, "history": history, "reports": record.reports}
    return json.dumps(content, indent=1)  # in ASCII, which every terminal prints as it is


def _delete(records: list[RunRecord], sure: bool) -> int:
    for record in records:
        print(f"{record.name} ({record.status}, {record.size / 1e6:.1f} MB)")
    if not sure and not _confirmed(f"Delete {'these' if len(records) > 1 else 'this'}? [y/N] "):
        print("Nothing was deleted.")
        return 1
    for record in records:
        left = delete_run(record)
        print(f"{record.name}: deleted" + (f"; not by the course, so left: {', '.join(left)}" if left else ""))
    return 0


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # nobody is there to answer
        print()
        return False
