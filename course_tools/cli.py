"""The ``course`` command: run, read, test and check the notebooks.

Only the standard library is imported here. A command imports what it needs when it runs, so that ``course --help`` is
instant, and so that ``start.py`` can check a command line before anything is installed.
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

from course_tools.authoring.notebooks import Execution, find_notebooks
from course_utils.common.command_line import OneLineParser, exit_code
from course_utils.common.tables import text_table
from course_utils.settings import check_dataset

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 600
MOST_PROCESSES = 4  # of the tests; each takes about a gigabyte

# These parse their own arguments: command, module that has a main(arguments), one line about it.
ELSEWHERE = {
    "pretrain": ("course_tools.authoring.pretraining", "make the embedded weights again"),
    "explain": ("course_tools.photos.explain_command", "show where a network looks, for any picture"),
    "animate": ("course_tools.authoring.animation", "make the animation of a network that learns"),
    "blog": ("course_tools.authoring.blog", "renew the pictures and numbers of the day pages"),
    "diary": ("course_tools.study.diary", "write today's page of your study diary"),
    "cache": ("course_tools.photos.cache_command", "list and clear the cached activations of frozen stages"),
    "runs": ("course_tools.photos.runs_command", "list, compare and delete what fit wrote about its runs"),
    "compare": (
        "course_utils.experiments.compare",
        "measure scratch, frozen and fine-tuned, and write the results file",
    ),
    "quiz": ("course_tools.study.quiz", "practise the interview questions, with spaced repetition"),
    "questions": ("course_tools.study.questions", "count, list and show the interview questions"),
    "families": ("course_utils.experiments.families", "measure one network of each family by every strategy"),
    "ladder": ("course_tools.photos.ladder_command", "climb from kNN to full fine-tuning on any photos, and report"),
    "train": ("course_tools.photos.train_command", "train one network by one strategy, on one process or several"),
    "predict": ("course_tools.photos.predict_command", "name what is on pictures, with a network of your own"),
}


def make_parser(root: Path = ROOT) -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = OneLineParser(prog="course", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        sub.set_defaults(function=function, root=root)
        return sub

    run = command("run", run_command, "execute notebooks, write pages, and list what each of them found")
    _days(run)
    _data(run)
    _out(run, "build")
    lab = command("lab", lab_command, "open JupyterLab at the front page; further arguments go to JupyterLab")
    lab.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    test = command("test", test_command, "run the tests and the notebooks; what follows -- goes to pytest")
    _data(test)
    test.add_argument("--fast", action="store_true", help="without the notebooks")
    command("doctor", doctor_command, "print what a bug report needs, and what is wrong with this set-up")
    student = command("student", student_command, "write the notebooks with the solutions taken out")
    _days(student)
    _out(student, "build/student")
    render = command("render", render_command, "execute notebooks and store their outputs in the repository")
    _days(render)
    render.add_argument("--all", action="store_true", help="also those whose outputs are up to date")
    _days(command("check", check_command, "check the stored notebooks without running them"))
    for name, (_, about) in ELSEWHERE.items():
        commands.add_parser(name, help=about, add_help=False)
    return parser


def _days(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("days", nargs="*", metavar="DAY", help="such as day20; all of them when none is named")


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="NAME|FOLDER", help="pets, hymenoptera, or a folder of photos")


def _out(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"where to write (default: {default})")
    parser.set_defaults(default_out=default)


def parse(argv: Sequence[str], root: Path = ROOT) -> argparse.Namespace:
    """Read a command line, and check all of it that can be checked before anything runs.

    Returns
    -------
    argparse.Namespace
        With ``command``, its options, and ``rest``: what belongs to another program, such as pytest.

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
    if argv and argv[0] in ELSEWHERE:
        return argparse.Namespace(command=argv[0], function=other_command, root=root, rest=argv[1:])
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
        args.notebooks = find_notebooks(root, args.days)
    if "out" in args:
        args.out = args.out or root / args.default_out
    return args


def _check_command(name: str, parser: argparse.ArgumentParser) -> None:
    known = [*next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        parser.exit(2, f"course: unknown command {name!r}: {hint}The commands are {', '.join(known)}.\n")


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run the command line and return its exit code: 0 well, 1 something failed, 2 wrong usage, 130 stopped."""
    argv = sys.argv[1:] if argv is None else argv

    def work() -> int:
        args = parse(argv, root)
        return args.function(args)

    return exit_code(work)


def run_command(args: argparse.Namespace) -> int:
    """``course run``: execute, write pages, print one table."""
    from course_tools.authoring import notebooks, pages

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
    from course_tools.authoring.notebooks import result_of

    if execution.failure:
        return f"FAILED in code cell {execution.failure.cell}: {execution.failure.error.splitlines()[0][:80]}"
    return result_of(execution.notebook) or "(nothing reported)"


def _one_line_rows(rows: list[list[str]]) -> list[list[str]]:
    """Rows in which a result of several lines goes on in rows of its own."""
    laid_out = []
    for name, seconds, result in rows:
        first, *more = result.splitlines()
        laid_out += [[name, seconds, first], *(["", "", line] for line in more)]
    return laid_out


class _Progress:
    """A line per notebook: rewritten at every cell on a terminal, printed once at the end elsewhere."""

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
    """``course lab``: JupyterLab on the project, with this Python as its kernel and nothing fetched as news."""
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
    """``course test``: pytest over the tests and, through nbval, over the notebooks.

    With ``--data`` only the notebooks run, and nothing is compared: stored outputs belong to the default data.
    """
    from course_tools.authoring import notebooks

    environ = notebooks.kernel_environment(os.environ, args.data)
    # Notebooks first: they take longest, and what is long has to begin early where several processes share the work.
    folders = ["tests"] if args.fast else ["notebooks"] if args.data else ["notebooks", "tests"]
    # A file named behind the dashes is run instead of the folders, not besides.
    named = any("/" in part or ".py" in part for part in args.rest)
    command = [sys.executable, "-m", "pytest", *([] if named else folders)]
    if "notebooks" in folders:
        find_notebooks(args.root)
        command += ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_TIMEOUT}"]
        if not notebooks.on_default_settings(environ):
            command.append("--no-compare")
    # With arguments of one's own, such as -k, a folder may rightly run nothing; the whole may not.
    command += [f"--must-run={name}" for name in ([""] if args.rest else folders)]
    if not args.rest:
        command += _side_by_side(environ)
    return _call([*command, *args.rest], args.root, environ)


def _side_by_side(environ: dict[str, str]) -> list[str]:
    """Options that share the files out among processes; each computes with as many threads as it has cores.

    Whole files, because the cells of a notebook need each other; in the order given, because xdist would begin with the
    files that have the most tests and come to the notebooks, which have few and long ones, at the very end. Two
    processes of one thread do more than one of two threads: networks as small as these leave the second thread waiting
    most of the time.
    """
    cores = os.cpu_count() or 1
    processes = min(cores, MOST_PROCESSES)
    environ.setdefault("OMP_NUM_THREADS", str(cores // processes))
    return ["-n", str(processes), "--dist", "loadfile", "--no-loadscope-reorder"] if processes > 1 else []


def doctor_command(args: argparse.Namespace) -> int:
    """``course doctor``: see :mod:`course_tools.authoring.doctor`."""
    from course_tools.authoring import doctor

    return doctor.main(args.root)


def student_command(args: argparse.Namespace) -> int:
    """``course student``: the notebooks without outputs and solutions."""
    from course_tools.authoring import notebooks

    for path in args.notebooks:
        notebook = notebooks.student_copy(notebooks.read_notebook(path))
        notebooks.write_notebook(notebook, args.out / path.name)
        print(args.out / path.name)
    return 0


def render_command(args: argparse.Namespace) -> int:
    """``course render``: execute on the default settings and store the outputs, where they are out of date."""
    from course_tools.authoring import notebook_checks, notebooks

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
    """``course check``: what stored notebooks have to be; see :mod:`course_tools.authoring.notebook_checks`."""
    from course_tools.authoring import notebook_checks

    problems = [f"{path.stem}: {text}" for path in args.notebooks for text in notebook_checks.problems_of(path)]
    print("\n".join(problems) if problems else f"{len(args.notebooks)} notebooks checked, nothing to mend.")
    return 1 if problems else 0


def other_command(args: argparse.Namespace) -> int:
    """A command that lives in a module of its own and reads its own arguments."""
    return importlib.import_module(ELSEWHERE[args.command][0]).main(args.rest)


def _call(command: list[str], folder: Path, environ: dict[str, str]) -> int:
    """Run a program until it ends by itself; Ctrl-C reaches it directly, so it may end in its own way."""
    with subprocess.Popen(command, cwd=folder, env=environ) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


if __name__ == "__main__":
    sys.exit(main())
