"""The ``course`` command: work through the course, train on your own photos, and make the notebooks.

Only the standard library is imported at the top. A command imports what it needs when it runs, so that
``course --help`` is instant and ``start.py`` can check a command line before anything is installed.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from course_tools.authoring import notebooks
from course_tools.authoring.notebooks import Execution
from course_utils.common.command_line import OneLineParser, exit_code
from course_utils.common.tables import text_table
from course_utils.settings import check_dataset

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 600
MOST_PROCESSES = 4  # of the tests; each takes about a gigabyte

# Every command, in the order of `course --help`: group, command, one line about it.
GROUPS = {
    "learn": {
        "lab": "open the course in JupyterLab; further arguments go to JupyterLab",
        "run": "run notebooks, write them as pages and list their results",
        "quiz": "practise the interview questions, with spaced repetition",
        "questions": "count, list and show the interview questions",
        "diary": "write today's page of your study diary",
    },
    "your photos": {
        "ladder": "compare six ways to train on your photos, from kNN to full fine-tuning, and write a report",
        "train": "train one network with one strategy, on one process or several",
        "predict": "name what is on pictures, with a network that you trained",
        "explain": "show where in a picture a network looks",
        "runs": "list, compare and delete the logged runs",
        "cache": "list and delete the cached activations and decoded pictures",
    },
    "make the course": {
        "render": "run notebooks and store their outputs in the repository",
        "check": "check the stored notebooks without running them",
        "test": "run the tests and the notebooks; what follows -- goes to pytest",
        "doctor": "check this installation and print what a bug report needs",
        "student": "write copies of the notebooks without the solutions",
        "pretrain": "train the embedded networks again",
        "compare": "measure training from scratch, frozen and fine-tuned, and write the results file",
        "families": "measure one network of each family with every strategy",
        "animate": "make the animation of a network that learns",
        "blog": "renew the pictures and numbers of the day pages",
    },
}
ABOUT = {name: about for commands in GROUPS.values() for name, about in commands.items()}

# Commands that read their own arguments: the module that has a main(arguments).
COMMAND_MODULES = {
    "quiz": "course_tools.study.quiz",
    "questions": "course_tools.study.questions",
    "diary": "course_tools.study.diary",
    "ladder": "course_tools.photos.ladder_command",
    "train": "course_tools.photos.train_command",
    "predict": "course_tools.photos.predict_command",
    "explain": "course_tools.photos.explain_command",
    "runs": "course_tools.photos.runs_command",
    "cache": "course_tools.photos.cache_command",
    "pretrain": "course_tools.authoring.pretraining",
    "compare": "course_utils.experiments.compare",
    "families": "course_utils.experiments.families",
    "animate": "course_tools.authoring.animation",
    "blog": "course_tools.authoring.blog",
}


def make_parser(root: Path = ROOT) -> argparse.ArgumentParser:
    """Return the parser of the command line, for all commands except those of :data:`COMMAND_MODULES`.

    Parameters
    ----------
    root
        Folder of the project, with ``notebooks/``.
    """
    parser = OneLineParser(
        prog="course",
        usage="course COMMAND [ARGUMENTS]",
        description="Work through the course, train on your own photos, and make the notebooks.",
        epilog=_command_list(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # Sub-parsers get the class of this parser, so their errors are one line too.
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", prog="course", required=True, help=argparse.SUPPRESS
    )

    def command(name: str, function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, description=ABOUT[name], allow_abbrev=False)
        sub.set_defaults(function=function, root=root)
        return sub

    command("lab", lab_command)
    run = command("run", run_command)
    _days(run)
    _data(run)
    _out(run, "build")
    render = command("render", render_command)
    _days(render)
    render.add_argument("--all", action="store_true", help="also those whose outputs are up to date")
    _days(command("check", check_command))
    test = command("test", test_command)
    _data(test)
    test.add_argument("--fast", action="store_true", help="without the notebooks")
    command("doctor", doctor_command)
    student = command("student", student_command)
    _days(student)
    _out(student, "build/student")
    return parser


def _command_list() -> str:
    width = max(map(len, ABOUT))
    lines = []
    for group, commands in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:{width}}  {about}" for name, about in commands.items()), ""]
    return "\n".join([*lines, "course COMMAND --help shows the options of a command."])


def _days(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("days", nargs="*", metavar="DAY", help="such as day20; all of them when none is named")


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="NAME|FOLDER", help="pets, hymenoptera, or a folder of photos")


def _out(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"where to write (default: {default})")
    parser.set_defaults(default_out=default)


def parse(argv: Sequence[str], root: Path = ROOT) -> argparse.Namespace:
    """Return the parsed command line, after every check that can be made before anything runs.

    Returns
    -------
    argparse.Namespace
        ``command``, its options, and ``rest``: the arguments for another program, such as pytest.

    Raises
    ------
    CourseError
        For an unknown day or data set.
    SystemExit
        With code 2 after one line on stderr, when the command or an option is unknown; with 0 after ``--help``.
    """
    argv = list(argv)
    parser = make_parser(root)
    if argv and not argv[0].startswith("-"):
        _check_command(argv[0], parser)
    if argv and argv[0] in COMMAND_MODULES:
        return argparse.Namespace(command=argv[0], function=module_command, root=root, rest=argv[1:])
    ours, rest = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    if ours[:1] == ["lab"] and not {"-h", "--help"} & set(ours):
        return argparse.Namespace(command="lab", function=lab_command, root=root, rest=ours[1:] + rest)
    args = parser.parse_args(ours)
    if rest and args.command != "test":
        parser.error(f"nothing can follow -- in course {args.command}: {' '.join(rest)}")
    args.rest = rest
    if getattr(args, "data", None) is not None:
        args.data = check_dataset(args.data)
    if "days" in args:
        args.notebooks = notebooks.find_notebooks(root, args.days)
    if "out" in args:
        args.out = args.out or root / args.default_out
    return args


def _check_command(name: str, parser: argparse.ArgumentParser) -> None:
    if name not in ABOUT:
        near = difflib.get_close_matches(name, ABOUT, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        parser.exit(2, f"course: unknown command {name!r}: {hint}The commands are {', '.join(ABOUT)}.\n")


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Return the exit code of a command line: 0 for success, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv

    def work() -> int:
        args = parse(argv, root)
        return args.function(args)

    return exit_code(work)


def run_command(args: argparse.Namespace) -> int:
    """Run notebooks, write their pages, print one table; return 1 if one of them failed, else 0."""
    from course_tools.authoring import pages

    environ = notebooks.kernel_environment(os.environ, args.data)
    rows, failures = [], []
    for path in args.notebooks:
        progress = _Progress(path.stem)
        execution = notebooks.run_notebook(path, environ=environ, timeout=CELL_TIMEOUT, on_cell=progress.cell)
        progress.end(execution)
        notebooks.write_notebook(execution.notebook, args.out / path.name)
        page = pages.page_of(execution.notebook, path.parent, path.stem)
        (args.out / f"{path.stem}.html").write_text(page, encoding="utf-8")
        if execution.failure:
            failures.append((path.stem, execution.failure))
        rows.append([path.stem, f"{execution.seconds:.1f}", _result(execution)])
    for name, failure in failures:
        print(f"\n{name} failed in {failure}")
    print(f"\n{text_table(['notebook', 'seconds', 'result'], _one_line_rows(rows))}")
    print(f"\nThe pages are in {args.out}" + (f"; {len(failures)} of {len(rows)} failed." if failures else "."))
    return 1 if failures else 0


def _result(execution: Execution) -> str:
    if execution.failure:
        return f"FAILED in code cell {execution.failure.cell}: {execution.failure.error.splitlines()[0][:80]}"
    return notebooks.result_of(execution.notebook) or "(nothing reported)"


def _one_line_rows(rows: list[list[str]]) -> list[list[str]]:
    """Return the rows with one row for each line of a result."""
    laid_out = []
    for name, seconds, result in rows:
        first, *more = result.splitlines()
        laid_out += [[name, seconds, first], *(["", "", line] for line in more)]
    return laid_out


class _Progress:
    """One line of progress per notebook: rewritten at every cell on a terminal, elsewhere printed once at the end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.live = sys.stdout.isatty()

    def cell(self, number: int, total: int) -> None:
        if self.live:
            print(f"\r\x1b[K{self.name}: cell {number} of {total}", end="", flush=True)

    def end(self, execution: Execution) -> None:
        failure = execution.failure
        outcome = f"failed in cell {failure.cell} of {failure.cells}" if failure else "done"
        start = "\r\x1b[K" if self.live else ""
        print(f"{start}{self.name}: {outcome}, {execution.seconds:.1f} s", flush=True)


def lab_command(args: argparse.Namespace) -> int:
    """Return the exit code of JupyterLab, opened on the project with this Python as its kernel and without news."""
    environ = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PATH": ""}
    environ.pop("MPLBACKEND", None)
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={args.root}",
        "--LabApp.default_url=/lab/tree/README.md",
        f"--LabApp.app_settings_dir={Path(__file__).parent / 'lab'}",
        *args.rest,
    ]
    return _call(command, args.root, environ)


def test_command(args: argparse.Namespace) -> int:
    """Return the exit code of pytest, run over the tests and, through nbval, over the notebooks.

    With ``--data`` only the notebooks run, and nothing is compared: stored outputs belong to the default data.
    """
    environ = notebooks.kernel_environment(os.environ, args.data)
    # Notebooks first: they take longest, and long work has to begin early where several processes share it.
    folders = ["tests"] if args.fast else ["notebooks"] if args.data else ["notebooks", "tests"]
    # A file named after -- replaces the folders.
    named = any("/" in part or ".py" in part for part in args.rest)
    command = [sys.executable, "-m", "pytest", *([] if named else folders)]
    if "notebooks" in folders:
        notebooks.find_notebooks(args.root)
        command += ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_TIMEOUT}"]
        if not notebooks.on_default_settings(environ):
            command.append("--no-compare")
    # With pytest arguments such as -k one folder may run no test, but not all of them.
    command += [f"--must-run={name}" for name in ([""] if args.rest else folders)]
    if not args.rest:
        command += _side_by_side(environ)
    return _call([*command, *args.rest], args.root, environ)


def _side_by_side(environ: dict[str, str]) -> list[str]:
    """Return the options with which pytest distributes the files over processes, and set their number of threads.

    Whole files, because the cells of a notebook need each other. In the given order, because xdist would start with the
    files that have the most tests and leave the notebooks, which have few and long ones, to the end. Two processes with
    one thread each are faster than one with two threads: in networks this small the second thread mostly waits.
    """
    cores = os.cpu_count() or 1
    processes = min(cores, MOST_PROCESSES)
    environ.setdefault("OMP_NUM_THREADS", str(cores // processes))
    return ["-n", str(processes), "--dist", "loadfile", "--no-loadscope-reorder"] if processes > 1 else []


def doctor_command(args: argparse.Namespace) -> int:
    """Return 0 if this installation works, else 1; see :mod:`course_tools.authoring.doctor`."""
    from course_tools.authoring import doctor

    return doctor.main(args.root)


def student_command(args: argparse.Namespace) -> int:
    """Write the notebooks without outputs and solutions; return 0."""
    for path in args.notebooks:
        notebook = notebooks.student_copy(notebooks.read_notebook(path))
        notebooks.write_notebook(notebook, args.out / path.name)
        print(args.out / path.name)
    return 0


def render_command(args: argparse.Namespace) -> int:
    """Run the notebooks that are out of date on the default settings and store their outputs; return 1 on a failure."""
    from course_tools.authoring import notebook_checks

    failed = 0
    for path in args.notebooks:
        if not args.all and not notebook_checks.stale(notebooks.read_notebook(path)):
            print(f"{path.stem}: up to date")
            continue
        progress = _Progress(path.stem)
        execution = notebooks.render(path, progress.cell)
        progress.end(execution)
        if execution.failure:
            print(f"{path.stem} was left as it was; it failed in {execution.failure}")
            failed += 1
    return 1 if check_command(args) or failed else 0


def check_command(args: argparse.Namespace) -> int:
    """Return 1 if a stored notebook has a problem, else 0; see :mod:`course_tools.authoring.notebook_checks`."""
    from course_tools.authoring import notebook_checks

    problems = [f"{path.stem}: {text}" for path in args.notebooks for text in notebook_checks.problems_of(path)]
    print("\n".join(problems) if problems else f"{len(args.notebooks)} notebooks checked, nothing to mend.")
    return 1 if problems else 0


def module_command(args: argparse.Namespace) -> int:
    """Return the exit code of a command that has a module of its own."""
    return importlib.import_module(COMMAND_MODULES[args.command]).main(args.rest)


def _call(command: list[str], folder: Path, environ: dict[str, str]) -> int:
    """Return the exit code of a program. Ctrl-C reaches the program itself, so it can end in its own way."""
    with subprocess.Popen(command, cwd=folder, env=environ) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


if __name__ == "__main__":
    sys.exit(main())
