"""Run a notebook, store its outputs, and make the student's copy.

nbclient executes the notebooks, always in a kernel of the Python that runs this code. Tags of code cells that have a
meaning here:

======================  ===========================================================================
``result``              what it prints is the notebook's result in the table of ``course run``
``solution``            an exercise: the region between the markers is emptied in the student's copy
``checker``             checks the answer to the exercise above, where that is not done in the same cell
``nbval-check-output``  ``course test`` compares its output with the stored one
======================  ===========================================================================
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import os
import re
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import course_utils
from course_utils.common.errors import CourseError
from course_utils.common.files import write_text

# cli.py imports this module at its start, so nbformat, nbclient and jupyter_client are imported where they are used.
if TYPE_CHECKING:
    from nbclient import NotebookClient
    from nbformat import NotebookNode

PACKAGE = Path(course_utils.__file__).parent
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
# From a line with one marker to the next with the other; the group is the indentation of the first.
SOLUTION = re.compile(rf"^([^\S\n]*){BEGIN}[^\S\n]*\n(?:(?!\s*{BEGIN}).*\n)*?[^\S\n]*{END}[^\S\n]*$", re.MULTILINE)
WIDGET = "application/vnd.jupyter.widget-view+json"
# The settings that change what a notebook prints, with the defaults for which outputs are stored.
DEFAULTS = {"COURSE_WEIGHTS": "mini", "COURSE_DATASET": "pets", "COURSE_SEED": "0"}


@dataclass(frozen=True)
class Failure:
    """The cell that stopped a notebook: its number among `cells` code cells, from 1, and its first lines.

    ``error`` is one line; ``traceback`` has the last lines of the traceback, without colours.
    """

    cell: int
    cells: int
    source: str
    error: str
    traceback: str = ""

    def __str__(self) -> str:
        source, traceback = textwrap.indent(self.source, "    "), textwrap.indent(self.traceback, "    ")
        return "\n".join(filter(None, [f"code cell {self.cell} of {self.cells}:", source, self.error, traceback]))


@dataclass(frozen=True)
class Execution:
    """The result of running one notebook: the notebook with its outputs, seconds, and the failure, if any."""

    notebook: NotebookNode
    seconds: float
    failure: Failure | None = None


def find_notebooks(root: Path, days: Sequence[str] = ()) -> list[Path]:
    """Return the paths of the notebooks in ``root/notebooks``: all in order, or those of the days that are named.

    A day has a name such as ``"day20"``, ``"20"`` or ``"day20.ipynb"``; an unknown one is a :class:`CourseError`.
    """
    existing = {path.stem: path for path in sorted((root / "notebooks").glob("day*.ipynb"))}
    if not existing:
        raise CourseError(
            f"There are no notebooks in {root / 'notebooks'}: run this in a checkout of the course, with the package "
            "installed from there (pip install -e .)."
        )
    wanted = ["day" + day if day.isdecimal() else Path(day).name.removesuffix(".ipynb") for day in days]
    for given, name in zip(days, wanted, strict=True):
        if name not in existing:
            raise CourseError(f"There is no notebook {given!r}: choose among {', '.join(existing)}.")
    return [existing[name] for name in dict.fromkeys(wanted or existing)]


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook in format 4; raise :class:`CourseError` when the file is not one."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        text = f"{path} could not be read as a notebook ({reason}). Restore it, with git for example."
        raise CourseError(text) from error


def write_notebook(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook in one fixed form, so that a diff shows what changed and nothing else."""
    import nbformat

    write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells that are not empty."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def kernel_environment(environ: Mapping[str, str], dataset: str | None = None) -> dict[str, str]:
    """Return the variables for a kernel that runs without a reader: those given, and `dataset` if it is not None."""
    # Where the variable is set, Jupyter does not choose its inline backend, and figures are missing from the outputs.
    env = {name: value for name, value in environ.items() if name != "MPLBACKEND"}
    env.setdefault("COURSE_PROGRESS", "0")
    # A notebook imports the package that this code belongs to, even where another version is installed.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), env.get("PYTHONPATH")]))
    return env if dataset is None else {**env, "COURSE_DATASET": dataset}


def on_default_settings(environ: Mapping[str, str]) -> bool:
    """True if the settings are those for which outputs are stored."""
    return all(environ.get(name) in (None, "", default) for name, default in DEFAULTS.items())


def run_notebook(
    path: Path,
    *,
    environ: Mapping[str, str] | None = None,
    timeout: float = 600,
    on_cell: Callable[[int, int], None] = lambda number, total: None,
) -> Execution:
    """Execute a notebook in a fresh kernel, with its own folder as working directory, up to the first failure.

    Parameters
    ----------
    path
        Notebook file; it is read, never written.
    environ, timeout
        Environment variables of the kernel, by default those of this process; seconds that one cell may take.
    on_cell
        Function that is called with the number of the code cell that starts, from 1, and the number of code cells.
    """
    notebook = _without_outputs(read_notebook(path))
    # nbclient wants the index of a cell among all cells, readers its number among the code cells.
    places = {id(cell): index for index, cell in enumerate(notebook.cells)}
    cells, failure = code_cells(notebook), None
    start = time.perf_counter()
    client = _client(notebook, timeout)
    env = kernel_environment(os.environ if environ is None else environ)
    with client.setup_kernel(cwd=str(path.resolve().parent), env=env, cleanup_kc=True):
        for number, cell in enumerate(cells, start=1):
            on_cell(number, len(cells))
            if error := _execute(client, cell, places[id(cell)]):
                failure = Failure(number, len(cells), _first_lines(cell.source), *error)
                break
    return Execution(notebook, time.perf_counter() - start, failure)


def _client(notebook: NotebookNode, timeout: float) -> NotebookClient:
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    # With no folders to look in, "python3" can only mean the interpreter that runs this.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    options = {"record_timing": False, "store_widget_state": False, "coalesce_streams": True}
    errors_only = ["--log-level=40"]  # warnings of the kernel itself would mix with the table
    return NotebookClient(notebook, km=manager, timeout=timeout, extra_arguments=errors_only, **options)


def _execute(client: NotebookClient, cell: NotebookNode, index: int) -> tuple[str, str] | None:
    """Run one cell; return None, or the error in one line and the end of its traceback."""
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    try:
        client.execute_cell(cell, index)
    except CellExecutionError as error:
        # In some versions of IPython a syntax error has an empty value: then its name alone is shown.
        return f"{error.ename}: {error.evalue}".strip(": "), _end_of_traceback(cell)
    except CellTimeoutError:
        return f"Timeout: the cell took more than {client.timeout:g} seconds.", ""
    except DeadKernelError:
        return "The kernel died, often because memory ran out. Close other programs and run it again.", ""
    return None


def _end_of_traceback(cell: NotebookNode) -> str:
    text = "\n".join(line for output in cell.outputs if output.output_type == "error" for line in output.traceback)
    without_colours = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    return "\n".join(without_colours.splitlines()[-12:])


def _first_lines(source: str, lines: int = 6) -> str:
    kept = source.strip().splitlines()
    return "\n".join(kept[:lines] + (["..."] if len(kept) > lines else []))


def _without_outputs(notebook: NotebookNode) -> NotebookNode:
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def result_of(notebook: NotebookNode) -> str:
    """Return the text that the last cell tagged ``result`` printed; empty when there is none."""
    tagged = [cell for cell in code_cells(notebook) if "result" in tags(cell)]
    return "".join(map(printed, tagged[-1:])).strip()


def printed(cell: NotebookNode) -> str:
    """Return what a code cell wrote to stdout."""
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def canonical(notebook: NotebookNode) -> NotebookNode:
    """Return a copy in the form in which a notebook is stored: nothing in it depends on who ran it, or when.

    A sentence stands in the place of a widget, because the widget's model ended with its kernel.
    """
    import nbformat

    notebook = copy.deepcopy(notebook)
    metadata = {key: notebook.metadata[key] for key in ("course", "title") if key in notebook.metadata}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}, **metadata})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": tags(cell)} if tags(cell) else {})
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                output.data = nbformat.from_dict({"text/plain": "(interactive: run this cell in JupyterLab)"})
    return notebook


def stamp(notebook: NotebookNode, package: Path = PACKAGE) -> dict[str, str]:
    """Return the SHA-256 of ``sources``, ``outputs`` and ``package``: they tell if outputs still belong to the code.

    ``package`` covers the modules that the notebook imports, directly or through one another, and the data files that
    they name.
    """
    sources = [cell.source for cell in code_cells(notebook)]
    outputs = [cell.outputs for cell in code_cells(notebook)]
    modules = [path.read_text(encoding="utf-8") for path in used_modules(sources, package)]
    text = "\n".join([*sources, *modules])
    files = [*sorted(package.glob("mini/weights/*.json")), *sorted(package.glob("data/*.json"))]
    data = [path.read_text(encoding="utf-8") for path in files if path.stem in text]
    parts = {"outputs": outputs, "package": [*modules, *data], "sources": sources}
    return {name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for name, part in parts.items()}


def used_modules(sources: Iterable[str], package: Path = PACKAGE) -> list[Path]:
    """Return the files of course_utils that some code imports, directly or through one another, sorted.

    Importing ``course_utils.engine.runs`` runs ``engine/__init__.py`` too, so that file is one of them.
    """
    found: set[Path] = set()
    waiting = list(sources)
    while waiting:
        for name in _imported(waiting.pop()):
            root, *parts = name.split(".")
            places = [package.joinpath(*parts[:end]) for end in range(1, len(parts) + 1) if root == PACKAGE.name]
            files = {file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")}
            new = {file for file in files - found if file.exists()}
            found |= new
            waiting += [file.read_text(encoding="utf-8") for file in new]
    return sorted(found)


def _imported(source: str) -> Iterator[str]:
    """Yield the dotted names of the modules that a source imports, and of the things in them."""
    code = re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE)  # IPython's own commands are not Python
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def render(path: Path, on_cell: Callable[[int, int], None] = lambda number, total: None) -> Execution:
    """Run a notebook on the default settings; store its outputs in the file, stamped, unless a cell fails."""
    environ = {name: value for name, value in os.environ.items() if name not in DEFAULTS}
    execution = run_notebook(path, environ=environ, on_cell=on_cell)
    if execution.failure is None:
        notebook = canonical(execution.notebook)
        notebook.metadata["course"] = stamp(notebook)
        write_notebook(notebook, path)
    return execution


def student_copy(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook that a student starts from: no outputs, and a place to write instead of each solution."""
    notebook = canonical(_without_outputs(notebook))
    notebook.metadata.pop("course", None)
    for cell in notebook.cells:
        if "solution" in tags(cell):
            cell.source = hide_solution(cell.source)
    return notebook


def hide_solution(source: str) -> str:
    r"""Return a source with a comment and ``...`` in the place of the markers and the lines between them.

    Raises
    ------
    CourseError
        If the markers do not come in pairs.

    Examples
    --------
    >>> print(hide_solution("def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"))
    def double(x):
        # your code here
        ...
    """
    lines = SOLUTION.sub(r"\1# your code here\n\1...", source).splitlines()
    for marker in (line.strip() for line in lines if line.strip() in (BEGIN, END)):
        raise CourseError(f"{marker!r} without its partner in a cell that starts with {_first_lines(source, 1)!r}.")
    return "\n".join(lines)
