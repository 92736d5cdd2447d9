"""Shared parts of the benchmarks: options, clock and results file.

A benchmark runs our code beside the baseline in one process, prints the ratio, and writes the measurements with the
command, the date and the machine to ``results/benchmarks.json``. ``results/benchmarks.md`` and the table in
``docs/speed.md`` are made from that file. ``--quick`` runs a benchmark on tiny sizes, as a test; such numbers mean
nothing and are written only with ``--out``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from course_utils.common.command_line import OneLineParser
from course_utils.common.files import put_between, write_record
from course_utils.common.measuring import hardware
from course_utils.common.tables import markdown_table, text_table
from course_utils.settings import best_device

ROOT = Path(__file__).resolve().parent.parent
RESULTS, SPEED_PAGE = ROOT / "results" / "benchmarks.json", ROOT / "docs" / "speed.md"
START, END = "<!-- benchmarks: written by the scripts in benchmarks/ -->", "<!-- end of benchmarks -->"


def make_parser(about: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has.

    Parameters
    ----------
    about
        Docstring of the script; its first paragraph is shown by ``--help``.
    """
    parser = OneLineParser(description=about.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="results file (default: results/benchmarks.json; none with --quick)")
    return parser


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes by the wall clock, and its result. Waits for a GPU before and after."""
    _wait_for_gpu()
    start = time.perf_counter()
    result = function()
    _wait_for_gpu()
    return time.perf_counter() - start, result


def _wait_for_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def make_entry(
    title: str,
    *,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    findings: Sequence[str],
    limit: str,
    notes: Sequence[str] = (),
    numbers: dict[str, Any] | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Return the result of one benchmark as plain data.

    Parameters
    ----------
    title
        The two sides of the comparison.
    columns, rows
        A table for readers.
    findings
        Sentences with the ratios, and whether the goal was met.
    limit
        Physical limit for comparison, such as the forward pass alone or the bytes read.
    notes
        Sentences about the method, and about numbers that are derived and not measured.
    numbers
        All measurements with all digits, for programs.
    device
        Name of the device of the run; None for the best one of this machine.
    """
    return {
        "title": title,
        "command": command_line(sys.argv),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(device or best_device()),
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "findings": list(findings),
        "limit": limit,
        "notes": list(notes),
        "numbers": numbers or {},
    }


def command_line(argv: Sequence[str]) -> str:
    """Return the command as it is typed in the folder of the project, without absolute paths."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(argv[0]).name}", *words])


def report(name: str, entry: dict[str, Any], options: argparse.Namespace) -> None:
    """Print an entry, and put it into the results file in the place of an older one of that name."""
    print(f"{entry['title']}\n\n{text_table(entry['columns'], entry['rows'])}\n")
    for line in (*entry["findings"], f"Physical limit: {entry['limit']}", *entry["notes"]):
        print(line)
    path = options.out or (None if options.quick else RESULTS)
    if path is not None:
        results = write_results(path, name, entry)
        if path == RESULTS:
            put_between(SPEED_PAGE, START, END, benchmarks_section(results))
        print(f"\nWritten to {path.name} and {path.with_suffix('.md').name}.")


def write_results(path: Path, name: str, entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Add an entry to a results file and write the page that shows all entries; return all entries."""
    path = Path(path)
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = dict(sorted((results | {name: entry}).items()))
    write_record(path, results, as_markdown(results))
    return results


def benchmarks_section(results: dict[str, dict[str, Any]]) -> str:
    """Return the table for ``docs/speed.md``: the first finding of each benchmark, and its command."""
    rows = [[entry["title"], entry["findings"][0], f"`{entry['command']}`"] for entry in results.values()]
    return "\n".join([START, "", markdown_table(["what", "found", "measure again"], rows), "", END])


def as_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Return all benchmarks as one page."""
    lines = [
        "# Benchmarks",
        "",
        "Ours beside the baseline, in one process run. This page is written by the scripts in `benchmarks/`; each "
        "section names the command that measures it again.",
        "",
    ]
    for name, entry in results.items():
        lines += [f"## {name}: {entry['title']}", ""]
        lines += [f"`{entry['command']}` on {entry['date']}, {entry['hardware']}.", ""]
        lines += [markdown_table(entry["columns"], entry["rows"]), ""]
        lines += [f"- {line}" for line in (*entry["findings"], f"Physical limit: {entry['limit']}", *entry["notes"])]
        lines += [""]
    return "\n".join(lines)
