"""The ``course`` command: work through the course, train on your own photos, and make the notebooks.

Only the standard library is imported at the top. A command imports what it needs when it runs, so that
``course --help`` is instant and ``start.py`` can check a command line before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
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
from course_utils.common.files import write_text
from course_utils.common.tables import text_table
from course_utils.settings import check_dataset

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 1800  # with lite, the longest cell takes one core six minutes
MOST_PROCESSES = 4  # of the tests; each takes about a gigabyte

# --- the commands that are made here -----------------------------------------------------------------------------


def lab_command(args: argparse.Namespace) -> int:
    """Return the exit code of JupyterLab, opened on the project with this Python as its kernel and without news."""
    environ = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PATH": ""}
    environ.pop("MPLBACKEND", None)
    settings = Path(__file__).parent / "lab"
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={args.root}"]
    command += ["--LabApp.default_url=/lab/tree/README.md", f"--LabApp.app_settings_dir={settings}", *args.rest]
    return _call(command, args.root, environ)


def run_command(args: argparse.Namespace) -> int:
    """Run notebooks, write their pages, print one table; return 1 if one of them failed, else 0."""
    from course_tools.authoring import pages

    environ = notebooks.kernel_environment(os.environ, args.data)
    rows, failures = [], []
    for path in args.notebooks:
        execution = _watched(notebooks.run_notebook, path, environ=environ, timeout=CELL_TIMEOUT)
        notebooks.write_notebook(execution.notebook, args.out / path.name)
        page = pages.page_of(execution.notebook, path.parent, path.stem)
        write_text(args.out / f"{path.stem}.html", page)
        result, failure = notebooks.result_of(execution.notebook) or "(nothing reported)", execution.failure
        if failure:
            failures.append(f"{path.stem} failed in {failure}")
            result = f"FAILED in code cell {failure.cell}: {failure.error.splitlines()[0][:80]}"
        first, *more = result.splitlines()
        rows += [[path.stem, f"{execution.seconds:.1f}", first], *(["", "", line] for line in more)]
    for failure in failures:
        print(f"\n{failure}")
    print(f"\n{text_table(['notebook', 'seconds', 'result'], rows)}")
    failed = f"; {len(failures)} of {len(args.notebooks)} failed." if failures else "."
    print(f"\nThe pages are in {args.out}{failed}")
    return 1 if failures else 0


def _watched(run: Callable[..., Execution], path: Path, **options: object) -> Execution:
    """Run a notebook with one line of progress, rewritten at every cell on a terminal, elsewhere printed at the end."""
    clear = "\r\x1b[K" if sys.stdout.isatty() else ""

    def show(number: int, total: int) -> None:
        if clear:
            print(f"{clear}{path.stem}: cell {number} of {total}", end="", flush=True)

    execution = run(path, on_cell=show, **options)
    failure = execution.failure
    outcome = f"failed in cell {failure.cell} of {failure.cells}" if failure else "done"
    print(f"{clear}{path.stem}: {outcome}, {execution.seconds:.1f} s", flush=True)
    return execution


def render_command(args: argparse.Namespace) -> int:
    """Run the notebooks that are out of date on the default settings and store their outputs; return 1 on a failure."""
    from course_tools.authoring import notebook_checks

    failed = False
    for path in args.notebooks:
        if not args.all and not notebook_checks.stale(notebooks.read_notebook(path)):
            print(f"{path.stem}: up to date")
            continue
        execution = _watched(notebooks.render, path)
        if execution.failure:
            print(f"{path.stem} was left as it was; it failed in {execution.failure}")
            failed = True
    return 1 if check_command(args) or failed else 0


def check_command(args: argparse.Namespace) -> int:
    """Return 1 if a stored notebook has a problem, else 0; see :mod:`course_tools.authoring.notebook_checks`."""
    from course_tools.authoring import notebook_checks

    problems = [f"{path.stem}: {text}" for path in args.notebooks for text in notebook_checks.problems_of(path)]
    print("\n".join(problems) if problems else f"{len(args.notebooks)} notebooks checked, nothing to mend.")
    return 1 if problems else 0


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


def _call(command: list[str], folder: Path, environ: dict[str, str]) -> int:
    """Return the exit code of a program. Ctrl-C reaches the program itself, so it can end in its own way."""
    with subprocess.Popen(command, cwd=folder, env=environ) as process:
        while process.poll() is None:
            with contextlib.suppress(KeyboardInterrupt):
                process.wait()
    return process.returncode


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


# --- the command line --------------------------------------------------------------------------------------------

# Every command, in the order of `course --help`: one line about it, and the function that does it here or the module
# whose main(arguments) reads the arguments by itself. A leading dot stands for course_tools.
GROUPS: dict[str, dict[str, tuple[str, Callable[[argparse.Namespace], int] | str]]] = {
    "learn": {
        "lab": ("open the course in JupyterLab; further arguments go to JupyterLab", lab_command),
        "run": ("run notebooks, write them as pages and list their results", run_command),
        "quiz": ("practise the interview questions, with spaced repetition", ".study.quiz"),
        "questions": ("count, list and show the interview questions", ".study.questions"),
        "diary": ("write today's page of your study diary", ".study.diary"),
    },
    "your photos": {
        "ladder": (
            "compare six ways to train on your photos, from kNN to full fine-tuning, and write a report",
            ".photos.ladder_command",
        ),
        "train": ("train one network with one strategy, on one process or several", ".photos.train_command"),
        "predict": ("name what is on pictures, with a network that you trained", ".photos.predict_command"),
        "explain": ("show where in a picture a network looks", ".photos.explain_command"),
        "runs": ("list, compare and delete the logged runs", ".photos.runs_command"),
        "cache": ("list and delete the cached activations and decoded pictures", ".photos.cache_command"),
    },
    "make the course": {
        "render": ("run notebooks and store their outputs in the repository", render_command),
        "check": ("check the stored notebooks without running them", check_command),
        "test": ("run the tests and the notebooks; what follows -- goes to pytest", test_command),
        "doctor": ("check this installation and print what a bug report needs", doctor_command),
        "student": ("write copies of the notebooks without the solutions", student_command),
        "pretrain": ("train the embedded networks again", ".authoring.pretraining"),
        "compare": (
            "measure training from scratch, frozen and fine-tuned, and write the results file",
            "course_utils.experiments.compare",
        ),
        "families": ("measure one network of each family with every strategy", "course_utils.experiments.families"),
        "animate": ("make the animation of a network that learns", ".authoring.animation"),
        "blog": ("renew the pictures and numbers of the day pages", ".authoring.blog"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def make_parser(root: Path = ROOT) -> argparse.ArgumentParser:
    """Return the parser of the commands that have a function here; `root` is the folder with ``notebooks/``."""
    width = max(map(len, COMMANDS))
    groups = [
        "\n".join([f"{group}:", *(f"  {name:{width}}  {about}" for name, (about, _) in commands.items())])
        for group, commands in GROUPS.items()
    ]
    parser = OneLineParser(
        prog="course",
        usage="course COMMAND [ARGUMENTS]",
        description="Work through the course, train on your own photos, and make the notebooks.",
        epilog="\n\n".join([*groups, "course COMMAND --help shows the options of a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # Sub-parsers get the class of this parser, so their errors are one line too.
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", prog="course", required=True, help=argparse.SUPPRESS
    )
    parsers = {}
    for name, (about, function) in COMMANDS.items():
        if callable(function):
            parsers[name] = subparsers.add_parser(name, description=about, allow_abbrev=False)
            parsers[name].set_defaults(function=function, root=root)
    for name in ("run", "render", "check", "student"):
        about = "such as day20; all of them when none is named"
        parsers[name].add_argument("days", nargs="*", metavar="DAY", help=about)
    for name in ("run", "test"):
        parsers[name].add_argument("--data", metavar="NAME|FOLDER", help="pets, hymenoptera, or a folder of photos")
    for name, folder in (("run", "build"), ("student", "build/student")):
        about = f"where to write (default: {folder})"
        parsers[name].add_argument("--out", type=Path, metavar="FOLDER", default=root / folder, help=about)
    parsers["render"].add_argument("--all", action="store_true", help="also those whose outputs are up to date")
    parsers["test"].add_argument("--fast", action="store_true", help="without the notebooks")
    return parser


def parse(argv: Sequence[str], root: Path = ROOT) -> argparse.Namespace:
    """Return the parsed command line, after every check that can be made before anything runs.

    ``function`` does the command, and ``rest`` has the arguments for a module or another program.

    Raises
    ------
    CourseError
        For an unknown day or data set.
    SystemExit
        With code 2 after one line on stderr, when the command or an option is unknown; with 0 after ``--help``.
    """
    parser = make_parser(root)
    name = argv[0] if argv else None
    if name is not None and not name.startswith("-") and name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        parser.exit(2, f"course: unknown command {name!r}: {hint}The commands are {', '.join(COMMANDS)}.\n")
    _, function = COMMANDS.get(name, ("", None))
    if isinstance(function, str):
        return argparse.Namespace(function=_module_command, module=function, rest=list(argv[1:]))
    split = argv.index("--") if "--" in argv else len(argv)
    ours, rest = list(argv[:split]), list(argv[split + 1 :])
    if name == "lab" and not {"-h", "--help"} & set(ours):
        return argparse.Namespace(function=lab_command, root=root, rest=ours[1:] + rest)
    args = parser.parse_args(ours)
    if rest and args.command != "test":
        parser.error(f"nothing can follow -- in course {args.command}: {' '.join(rest)}")
    args.rest = rest
    if getattr(args, "data", None) is not None:
        args.data = check_dataset(args.data)
    if "days" in args:
        args.notebooks = notebooks.find_notebooks(root, args.days)
    return args


def _module_command(args: argparse.Namespace) -> int:
    return importlib.import_module(args.module, __package__).main(args.rest)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Return the exit code of a command line: 0 for success, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C.

    3 stands for pictures that could not be read while others were, 141 for an output that nobody reads any more.
    """

    def work() -> int:
        args = parse(sys.argv[1:] if argv is None else argv, root)
        return args.function(args)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
