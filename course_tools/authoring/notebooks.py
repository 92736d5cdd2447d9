"""Run a notebook, store its outputs, and make the student's copy.

The notebooks are executed by nbclient in a kernel of the Python that runs this code: whatever kernels somebody has
installed elsewhere, the one that sees this package is used. Tags of code cells that mean something here:

======================  ===========================================================================
``result``              what it prints is the notebook's result in the table of ``course run``
``solution``            an exercise: the region between the markers is emptied in the student's copy
``checker``             tells whether the exercise above it is right, where that is not in the same cell
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
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import course_utils
from course_utils.common.errors import CourseError
from course_utils.common.files import written_whole

if TYPE_CHECKING:
    from nbformat import NotebookNode

PACKAGE = Path(course_utils.__file__).parent
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
WIDGET = "application/vnd.jupyter.widget-view+json"
# The settings that decide what a notebook prints, and their defaults: outputs are stored for these.
DEFAULTS = {"COURSE_WEIGHTS": "mini", "COURSE_DATASET": "pets", "COURSE_SEED": "0"}


@dataclass(frozen=True)
class Failure:
    """The cell that stopped a notebook.

    Parameters
    ----------
    cell, cells
        Its number among the code cells, from 1, and how many there are.
    source
        Its first lines.
    error
        One line, such as ``"ZeroDivisionError: division by zero"``.
    traceback
        The last lines of the traceback, without colours.
    """

    cell: int
    cells: int
    source: str
    error: str
    traceback: str = ""

    def __str__(self) -> str:
        parts = [f"code cell {self.cell} of {self.cells}:", _indent(self.source), self.error]
        return "\n".join([*parts, _indent(self.traceback)] if self.traceback else parts)


@dataclass(frozen=True)
class Execution:
    """What running one notebook gave: the notebook with its outputs, seconds, and the failure, if any."""

    notebook: NotebookNode
    seconds: float
    failure: Failure | None = None


def find_notebooks(root: Path, days: Sequence[str] = ()) -> list[Path]:
    """Paths of the course's notebooks under a project folder.

    Parameters
    ----------
    root
        The folder that contains ``notebooks``.
    days
        Which ones: ``"day20"``, ``"20"`` or ``"day20.ipynb"``; empty for all, in order.

    Raises
    ------
    CourseError
        If there are no notebooks, or a day is unknown.
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
    return [existing[name] for name in dict.fromkeys(wanted)] if wanted else list(existing.values())


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook in format 4; raise :class:`CourseError` when the file is not one."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CourseError(
            f"{path} could not be read as a notebook ({reason}). Restore it, with git for example."
        ) from error


def write_notebook(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook in one fixed form, so that a diff shows what changed and nothing else."""
    import nbformat

    with written_whole(path) as beside:
        beside.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8", newline="\n")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells that contain anything, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tags(cell: NotebookNode) -> list[str]:
    """Tags of a cell, empty when it has none."""
    return cell.metadata.get("tags", [])


def kernel_environment(environ: Mapping[str, str], dataset: str | None = None) -> dict[str, str]:
    """Environment variables for a kernel that nobody watches: the given ones, and `dataset` where it is not None."""
    # Jupyter chooses its inline backend itself, but not where the variable is set: figures would be missing then.
    env = {name: value for name, value in environ.items() if name != "MPLBACKEND"}
    env.setdefault("COURSE_PROGRESS", "0")
    # OpenMP's threads wait for each other by spinning: as soon as anything else wants a core, a lesson of a minute and
    # a half was seen to take nine. Sleeping instead was no slower where nothing else ran.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A notebook imports the package that this code belongs to, even where another version is installed.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), env.get("PYTHONPATH")]))
    return env if dataset is None else {**env, "COURSE_DATASET": dataset}


def on_default_settings(environ: Mapping[str, str]) -> bool:
    """Whether a notebook would print what is stored in it, as far as the settings go."""
    return all(environ.get(name) in (None, "", default) for name, default in DEFAULTS.items())


def run_notebook(
    path: Path,
    *,
    environ: Mapping[str, str] | None = None,
    timeout: float = 600,
    on_cell: Callable[[int, int], None] = lambda number, total: None,
) -> Execution:
    """Execute a notebook from top to bottom in a fresh kernel, with its own folder as working directory.

    Parameters
    ----------
    path
        The file; it is read, never written.
    environ
        The kernel's environment variables; those of this process by default.
    timeout
        Seconds that one cell may take.
    on_cell
        Called with the number of the code cell that starts, from 1, and the number of code cells.

    Returns
    -------
    Execution
        With ``failure`` set when a cell failed; the cells behind it were then not run and have no outputs.
    """
    notebook = _without_outputs(read_notebook(path))
    cells = code_cells(notebook)
    number, failure = 0, None
    start = time.perf_counter()
    client = _client(notebook, timeout)
    env = kernel_environment(os.environ if environ is None else environ)
    with client.setup_kernel(cwd=str(path.resolve().parent), env=env, cleanup_kc=True):
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "code" or not cell.source.strip():
                continue
            number += 1
            on_cell(number, len(cells))
            error = _execute(client, cell, index, timeout)
            if error:
                failure = Failure(number, len(cells), _first_lines(cell.source), *error)
                break
    return Execution(notebook, time.perf_counter() - start, failure)


def _client(notebook: NotebookNode, timeout: float):  # noqa: ANN202  (its class is imported when it is needed)
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    # With no folders to look in, "python3" can only mean the interpreter that runs this.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    return NotebookClient(
        notebook,
        km=manager,
        timeout=timeout,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=40"],  # errors only: warnings of the kernel itself would mix with the table
    )


def _execute(client, cell: NotebookNode, index: int, timeout: float) -> tuple[str, str] | None:  # noqa: ANN001
    """Run one cell; None, or the error in one line and the end of its traceback."""
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    try:
        client.execute_cell(cell, index)
    except CellExecutionError as error:
        # A syntax error comes with an empty value in some versions of IPython; its name alone must do.
        return f"{error.ename}: {error.evalue}".strip(": "), _end_of_traceback(cell)
    except CellTimeoutError:
        return f"Timeout: the cell took more than {timeout:g} seconds.", ""
    except DeadKernelError:
        return "The kernel died, often because memory ran out. Close other programs and run it again.", ""
    return None


def _end_of_traceback(cell: NotebookNode, lines: int = 12) -> str:
    tracebacks = [output.traceback for output in cell.outputs if output.output_type == "error"]
    text = without_colours("\n".join(line for traceback in tracebacks for line in traceback))
    return "\n".join(text.splitlines()[-lines:])


def without_colours(text: str) -> str:
    """Text without the escape sequences that colour a terminal."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def _first_lines(source: str, lines: int = 6) -> str:
    kept = source.strip().splitlines()
    return "\n".join(kept[:lines] + (["..."] if len(kept) > lines else []))


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _without_outputs(notebook: NotebookNode) -> NotebookNode:
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def result_of(notebook: NotebookNode) -> str:
    """What the last cell tagged ``result`` printed; empty when there is none."""
    tagged = [cell for cell in code_cells(notebook) if "result" in tags(cell)]
    if not tagged:
        return ""
    printed = [o.text for o in tagged[-1].outputs if o.output_type == "stream" and o.name == "stdout"]
    return "".join(printed).strip()


def canonical(notebook: NotebookNode) -> NotebookNode:
    """The form in which a notebook with outputs is stored: nothing in it depends on who ran it, or when.

    Returns
    -------
    NotebookNode
        A copy: no timing, no widget state, no collapsed cells; the same kernel name everywhere; a widget is replaced
        by a sentence, because its model lives in a kernel that is gone.
    """
    import nbformat

    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            **{key: notebook.metadata[key] for key in ("course", "title") if key in notebook.metadata},
        }
    )
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in ("tags",) if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict(kept)
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                output.data = nbformat.from_dict({"text/plain": "(interactive: run this cell in JupyterLab)"})
    return notebook


def stamp(notebook: NotebookNode, package: Path = PACKAGE) -> dict[str, str]:
    """Fingerprints that tell whether stored outputs still belong to the code.

    Parameters
    ----------
    notebook
        With outputs.
    package
        Folder of ``course_utils``.

    Returns
    -------
    dict
        SHA-256 of ``sources`` (the code cells), of ``outputs``, and of ``package``: those modules that the notebook
        imports, directly or through one another, and the data files that they name.
    """
    sources = [cell.source for cell in code_cells(notebook)]
    outputs = [cell.outputs for cell in code_cells(notebook)]
    modules = [path.read_text(encoding="utf-8") for path in used_modules(sources, package)]
    text = "\n".join([*sources, *modules])
    data = [
        p for pattern in ("mini/weights/*.json", "data/*.json") for p in sorted(package.glob(pattern)) if p.stem in text
    ]
    return {
        "outputs": _sha256(json.dumps(outputs, sort_keys=True)),
        "package": _sha256(json.dumps([*modules, *(path.read_text(encoding="utf-8") for path in data)])),
        "sources": _sha256(json.dumps(sources)),
    }


def used_modules(sources: Iterable[str], package: Path = PACKAGE) -> list[Path]:
    """Files of the package that some code imports, directly or through one another, sorted."""
    found: set[Path] = set()
    waiting = list(sources)
    while waiting:
        for name in _imported(waiting.pop()):
            path = package / f"{name.replace('.', '/')}.py"
            if path.exists() and path not in found:
                found.add(path)
                waiting.append(path.read_text(encoding="utf-8"))
    return sorted(found)


def _imported(source: str) -> Iterable[str]:
    """Names of the modules of course_utils that a source imports, and a few that are no modules."""
    code = re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE)  # IPython's own commands are not Python
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("course_utils."))
        elif isinstance(node, ast.ImportFrom) and node.module == "course_utils":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("course_utils."):
            name = node.module.partition(".")[2]
            yield from (name, *(f"{name}.{alias.name}" for alias in node.names))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def render(path: Path, on_cell: Callable[[int, int], None] = lambda number, total: None) -> Execution:
    """Execute a notebook on the default settings and store its outputs in the file, stamped.

    The file stays as it was when a cell fails.
    """
    environ = {name: value for name, value in os.environ.items() if name not in DEFAULTS}
    execution = run_notebook(path, environ=environ, on_cell=on_cell)
    if execution.failure is None:
        notebook = canonical(execution.notebook)
        notebook.metadata["course"] = stamp(notebook)
        write_notebook(notebook, path)
    return execution


def student_copy(notebook: NotebookNode) -> NotebookNode:
    """The notebook that a student starts from: no outputs, and each solution replaced by a place to write.

    Raises
    ------
    CourseError
        If the markers of a solution do not come in pairs.
    """
    notebook = canonical(_without_outputs(notebook))
    notebook.metadata.pop("course", None)
    for cell in notebook.cells:
        if "solution" in tags(cell):
            cell.source = hide_solution(cell.source)
    return notebook


def hide_solution(source: str) -> str:
    r"""Replace what stands between the markers, and the markers, by a comment and ``...``.

    Examples
    --------
    >>> print(hide_solution("def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"))
    def double(x):
        # your code here
        ...
    """
    kept, hidden = [], False
    for line in source.splitlines():
        marker = line.strip()
        if marker in (BEGIN, END) and hidden is (marker == BEGIN):
            raise CourseError(f"{marker!r} without its partner in a cell that starts with {_first_lines(source, 1)!r}.")
        if marker == BEGIN:
            indent = line[: len(line) - len(line.lstrip())]
            kept += [f"{indent}# your code here", f"{indent}..."]
        if marker in (BEGIN, END):
            hidden = marker == BEGIN
        elif not hidden:
            kept.append(line)
    if hidden:
        raise CourseError(f"{BEGIN!r} without its partner in a cell that starts with {_first_lines(source, 1)!r}.")
    return "\n".join(kept)
