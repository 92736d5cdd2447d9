"""Settings of pytest for the notebooks, and a failure where no test passed.

``course test`` passes the options; see ``course_tools.cli.test_command``.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest

import course_utils  # noqa: F401 - before torch, so that its threads wait passively

# Outputs that differ between two correct runs: warnings, glyph outlines, and ids of objects that are gone.
NOT_COMPARED = ("stderr", "image/svg+xml", "text/html", "application/vnd.jupyter.widget-view+json")
PASSED: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options of the course."""
    group = parser.getgroup("course")
    group.addoption("--no-compare", action="store_true", help="run the notebooks on other data: compare no outputs")
    group.addoption(
        "--must-run", action="append", default=[], metavar="FOLDER", help="fail when no test in FOLDER passed"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Cut the kernels of the default run off the network: it must not need one. See tests/project/test_offline.py.

    Runs and activations of the tests are written to temporary folders, not to the reader's cache.
    """
    for name in ("COURSE_RUNS", "COURSE_ACTIVATIONS"):
        if name not in os.environ:
            folder = tempfile.TemporaryDirectory(prefix=name.lower().replace("_", "-") + "-")
            os.environ[name] = folder.name
            config.add_cleanup(folder.cleanup)
    if not config.getoption("no_compare"):
        offline = str(Path(__file__).parent / "tests" / "offline")
        others = [
            folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder not in ("", offline)
        ]
        os.environ["PYTHONPATH"] = os.pathsep.join([offline, *others])


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Give nbval the outputs that it must not compare."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += NOT_COMPARED


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give cells time for their outputs, and compare nothing on other data."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 60  # nbval's 5 seconds are short for a machine that has other work
            if config.getoption("no_compare"):
                item.options["check"] = False


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the passed tests of each folder."""
    if report.when == "call" and report.passed:
        PASSED[report.nodeid.partition("/")[0]] += 1


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn a run in which nothing passed and nothing failed into a failure."""
    if hasattr(session.config, "workerinput"):
        return  # one of several processes has only a part of the results; the one that started it has all
    empty = [f for f in session.config.getoption("must_run") if not (PASSED[f] if f else PASSED.total())]
    if exitstatus == pytest.ExitCode.OK and empty and not session.config.getoption("collectonly"):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the reason of such a failure."""
    for folder in config.getoption("must_run"):
        if not (PASSED[folder] if folder else PASSED.total()):
            terminalreporter.write_line(f"No test ran{f' in {folder}' if folder else ''}: that counts as a failure.")
