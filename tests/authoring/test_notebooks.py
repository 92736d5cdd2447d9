"""Running, rendering, checking and emptying notebooks: small ones made here, and at the end the course's own."""

import base64
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_tools.authoring import notebook_checks, notebooks, pages
from course_utils.common.errors import CourseError

ROOT = Path(__file__).parents[2]


def code(source, *tags, outputs=(), count=None):
    metadata = {"tags": list(tags)} if tags else {}
    return new_code_cell(source, metadata=metadata, outputs=list(outputs), execution_count=count)


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def picture(alt=None, size=4, mime="image/png"):
    metadata = {mime: {"alt": alt}} if alt is not None else {}
    return new_output("display_data", data={mime: base64.b64encode(b"x" * size).decode()}, metadata=metadata)


def stored(*cells):
    """A notebook as `course render` leaves it: counted, canonical, stamped."""
    notebook = new_notebook(cells=list(cells))
    for count, cell in enumerate(notebooks.code_cells(notebook), start=1):
        cell.execution_count = count
    notebook = notebooks.canonical(notebook)
    notebook.metadata["course"] = notebooks.stamp(notebook)
    return notebook


def problems(notebook, path):
    notebooks.write_notebook(notebook, path)
    return notebook_checks.problems_of(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "extra.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """One real execution, looked at by several tests: (path, execution, the numbers that on_cell was given)."""
    path = tmp_path_factory.mktemp("notebooks") / "day01.ipynb"
    cells = [
        new_markdown_cell("# A title\n\nSome prose."),
        code(
            "import os, sys\nfrom pathlib import Path\nprint(sys.executable)\nprint(Path.cwd())",
            outputs=[printed("old")],
        ),
        code("print(os.environ.get('COURSE_DATASET'), os.environ.get('MPLBACKEND'))"),
        code(""),
        code("print('one')\nprint('two')", "result"),
        code("def divide(x):\n    return 1 / x\ndivide(0)"),
        code("print('never')"),
    ]
    notebooks.write_notebook(new_notebook(cells=cells), path)
    seen = []
    environ = notebooks.kernel_environment({"MPLBACKEND": "agg", "COURSE_DATASET": "pets"}, "hymenoptera")
    execution = notebooks.run_notebook(path, environ=environ, on_cell=lambda *numbers: seen.append(numbers))
    return path, execution, seen


@pytest.mark.kernel
def test_kernel_is_this_python_in_the_notebooks_folder(executed):
    path, execution, _ = executed
    output = execution.notebook.cells[1].outputs
    assert [o.text for o in output] == [f"{sys.executable}\n{path.parent.resolve()}\n"]


@pytest.mark.kernel
def test_kernel_gets_the_data_set_and_no_plotting_backend_of_ours(executed):
    # Jupyter's own backend is set by the kernel itself; "agg", where figures do not show, must not come through.
    dataset, backend = executed[1].notebook.cells[2].outputs[0].text.split()
    assert dataset == "hymenoptera"
    assert backend != "agg"


@pytest.mark.kernel
def test_result_is_what_the_tagged_cell_printed(executed):
    assert notebooks.result_of(executed[1].notebook) == "one\ntwo"


@pytest.mark.kernel
def test_failure_names_cell_source_and_error_without_colours(executed):
    failure = executed[1].failure
    assert (failure.cell, failure.cells) == (4, 5)
    assert failure.source.startswith("def divide(x):")
    assert failure.error == "ZeroDivisionError: division by zero"
    assert "divide(0)" in failure.traceback
    assert "\x1b" not in str(failure)


@pytest.mark.kernel
def test_cells_behind_a_failure_are_not_run(executed):
    _, execution, seen = executed
    assert execution.notebook.cells[-1].outputs == []
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5)]


@pytest.mark.kernel
def test_the_file_itself_is_left_alone(executed):
    path, execution, _ = executed
    assert notebooks.read_notebook(path).cells[1].outputs[0].text == "old"
    assert execution.notebook.cells[1].execution_count == 1
    assert "execution" not in execution.notebook.cells[1].metadata  # no timing


def test_page_needs_no_network(tmp_path):
    (tmp_path / "figure.png").write_bytes(b"a picture beside the notebook")
    prose = new_markdown_cell("![a cat](figure.png) and $f(x)$ and $$\\nonsense{x}$$ and `$5`")
    notebook = stored(prose, code("1", outputs=[picture("a dog", size=9)]))
    page = pages.page_of(notebook, tmp_path, "day01")
    assert not re.search(
        r"<script[^>]*\ssrc\s*=|<link[^>]*\shref\s*=|@import|url\(\s*['\"]?(https?:|//)|import\(", page
    )
    for inside in (b"a picture beside the notebook", b"x" * 9):
        assert f"data:image/png;base64,{base64.b64encode(inside).decode()}" in page
    assert "<title>day01</title>" in page
    assert re.search(r'<math [^>]*display="inline"[^>]*><mrow><mi>f</mi>', page)
    assert r"<code>\nonsense{x}</code>" in page
    assert "<code>$5</code>" in page


def test_find_notebooks_takes_several_spellings(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("day20.ipynb", "day21.ipynb", "notes.ipynb"):
        (folder / name).touch()
    assert notebooks.find_notebooks(tmp_path) == [folder / "day20.ipynb", folder / "day21.ipynb"]
    for spelling in ("day21", "21", "day21.ipynb", "notebooks/day21.ipynb"):
        assert notebooks.find_notebooks(tmp_path, [spelling]) == [folder / "day21.ipynb"]
    assert len(notebooks.find_notebooks(tmp_path, ["21", "day21"])) == 1
    with pytest.raises(CourseError, match=r"no notebook 'day99': choose among day20, day21\."):
        notebooks.find_notebooks(tmp_path, ["day99"])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"nbformat": 4}', "\x00"])
def test_broken_notebook_is_one_clear_error(path, content):
    path.write_text(content)
    with pytest.raises(CourseError, match="could not be read as a notebook"):
        notebooks.read_notebook(path)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, True),
        ({"COURSE_DATASET": "pets", "COURSE_WEIGHTS": ""}, True),
        ({"COURSE_DATASET": "hymenoptera"}, False),
        ({"COURSE_WEIGHTS": "imagenet"}, False),
        ({"COURSE_SEED": "1"}, False),
    ],
)
def test_default_settings(environ, expected):
    assert notebooks.on_default_settings(environ) is expected


def test_canonical_form_drops_what_depends_on_the_run():
    view = {notebooks.WIDGET: {"model_id": "f00"}, "text/plain": "IntSlider(value=0)"}
    cell = code("slider", "result", outputs=[new_output("display_data", data=view)])
    cell.metadata["execution"] = {"iopub.execute_input": "2026"}
    cell.metadata["collapsed"] = True
    notebook = new_notebook(cells=[cell], metadata={"widgets": {}, "kernelspec": {"name": "x", "display_name": "mine"}})
    plain = notebooks.canonical(notebook)
    assert dict(plain.cells[0].metadata) == {"tags": ["result"]}
    assert plain.cells[0].outputs[0].data == {"text/plain": "(interactive: run this cell in JupyterLab)"}
    assert plain.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert notebook.cells[0].metadata["collapsed"]  # the argument is not changed


def test_used_modules_are_followed_through_the_package(tmp_path):
    (tmp_path / "a.py").write_text("from course_utils.b import something\n")
    (tmp_path / "b.py").write_text("def f():\n    from course_utils import c\n")
    (tmp_path / "c.py").write_text("import course_utils.a\n")
    (tmp_path / "unused.py").write_text("")
    names = [path.name for path in notebooks.used_modules(["%matplotlib inline\nfrom course_utils import a"], tmp_path)]
    assert names == ["a.py", "b.py", "c.py"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from course_utils.engine import runs", ["engine/__init__.py", "engine/runs.py"]),
        ("from course_utils.engine.runs import x", ["engine/__init__.py", "engine/runs.py"]),
        ("import course_utils.engine.runs as r", ["engine/__init__.py", "engine/runs.py"]),
        ("from course_utils import engine", ["engine/__init__.py"]),
        ("from course_utils import use", ["engine/__init__.py", "engine/runs.py", "use.py"]),
        ("from course_utils.data import pets", ["data/__init__.py", "use.py", "engine/__init__.py", "engine/runs.py"]),
        ("import engine.runs\nfrom other.engine import runs\nimport course_utils", []),
    ],
)
def test_used_modules_are_followed_through_rooms(tmp_path, source, expected):
    for name, code in {
        "engine/__init__.py": "",
        "engine/runs.py": "import torch\n",
        "engine/unused.py": "",
        "data/__init__.py": "from course_utils.use import pets\n",
        "use.py": "from course_utils.engine.runs import x\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    found = [path.relative_to(tmp_path).as_posix() for path in notebooks.used_modules([source], tmp_path)]
    assert found == sorted(expected)


def test_used_modules_of_the_package_itself():
    found = {
        path.relative_to(notebooks.PACKAGE).as_posix()
        for path in notebooks.used_modules(["from course_utils.training import fit"])
    }
    assert {"training.py", "common/__init__.py", "common/errors.py", "engine/__init__.py"} <= found


def test_stamp_tells_what_changed(tmp_path):
    (tmp_path / "mini" / "weights").mkdir(parents=True)
    (tmp_path / "a.py").write_text("NAME = 'tiny'\n")
    (tmp_path / "b.py").write_text("")
    (tmp_path / "mini" / "weights" / "tiny.json").write_text("1")
    (tmp_path / "mini" / "weights" / "large.json").write_text("1")
    notebook = stored(code("from course_utils import a", outputs=[printed("x")]))

    def changed(change):
        before = notebooks.stamp(notebook, tmp_path)
        change()
        after = notebooks.stamp(notebook, tmp_path)
        return {part for part in before if before[part] != after[part]}

    assert changed(lambda: (tmp_path / "b.py").write_text("new")) == set()
    assert changed(lambda: (tmp_path / "mini" / "weights" / "large.json").write_text("2")) == set()
    assert changed(lambda: (tmp_path / "mini" / "weights" / "tiny.json").write_text("2")) == {"package"}
    assert changed(lambda: (tmp_path / "a.py").write_text("NAME = 'other'\n")) == {"package"}
    assert changed(lambda: notebook.cells[0].outputs.clear()) == {"outputs"}
    assert changed(lambda: notebook.cells[0].update(source="2")) == {"sources", "package"}


def test_stamp_survives_writing_and_reading(path):
    notebook = stored(code("1", outputs=[printed("a\nb\n"), picture("x")]))
    notebooks.write_notebook(notebook, path)
    first = path.read_bytes()
    assert notebook_checks.stale(notebooks.read_notebook(path)) == []
    notebooks.write_notebook(notebooks.read_notebook(path), path)
    assert path.read_bytes() == first


SOLVED = """def accuracy(right, total):
    ### BEGIN SOLUTION
    return right / total
    ### END SOLUTION
"""


def test_student_copy_hides_solutions_and_keeps_the_rest():
    notebook = stored(
        new_markdown_cell("Exercise"),
        code(SOLVED, "solution", outputs=[printed("x")]),
        code("check(accuracy)", "checker"),
    )
    copy = notebooks.student_copy(notebook)
    assert copy.cells[1].source == "def accuracy(right, total):\n    # your code here\n    ..."
    assert [cell.source for cell in copy.cells[::2]] == ["Exercise", "check(accuracy)"]
    assert all(not cell.outputs and cell.execution_count is None for cell in notebooks.code_cells(copy))
    assert "course" not in copy.metadata
    nbformat.validate(copy)
    assert "return right" in notebook.cells[1].source


def test_student_copy_is_valid_python_where_the_solution_was_the_whole_cell():
    hidden = notebooks.hide_solution("### BEGIN SOLUTION\nx = 1\n### END SOLUTION\nprint(1)")
    assert hidden == "# your code here\n...\nprint(1)"


@pytest.mark.parametrize("source", [notebooks.BEGIN, notebooks.END, f"{notebooks.BEGIN}\n{notebooks.BEGIN}"])
def test_unpaired_markers_are_an_error(source):
    with pytest.raises(CourseError, match="without its partner"):
        notebooks.hide_solution(source)


def test_a_good_notebook_has_no_problems(path):
    notebook = stored(
        new_markdown_cell("See [the site](https://example.org/a/b).\n\n![a cat](cat.png)"),
        code("1", outputs=[printed("train/val/test 3/4 </td> https://a.org/b/c\n"), picture("a curve", size=150_000)]),
        code(SOLVED, "solution"),
        code("check()", "checker"),
        code(f"{SOLVED}\nprint(check(accuracy))", "solution"),
    )
    assert problems(notebook, path) == []


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (
            [code("1", outputs=[new_output("error", ename="KeyError", evalue="x", traceback=[])])],
            "stores an error (KeyError)",
        ),
        ([code("1", outputs=[printed("careful\n", "stderr")])], "stores stderr: 'careful'"),
        ([code("1", outputs=[printed("saved to /home/ada/run.pt")])], "shows an absolute path: '/home/ada'"),
        ([code("1", outputs=[printed("C:\\Users\\ada")])], "shows an absolute path"),
        ([code("1", outputs=[printed("<Net object at 0x7f3a1c2b>")])], "shows a memory address: '0x7f3a1c2b'"),
        ([code("1", outputs=[picture("a curve", size=150_001)])], "a picture of 150,001 bytes, allowed are 150,000"),
        ([code("1", outputs=[picture()])], "a picture without alt text"),
        ([code("1", outputs=[picture("  ")])], "a picture without alt text"),
        ([code("1", outputs=[picture(mime="image/jpeg")])], "a picture without alt text"),
        ([code("\n".join("x = 1" for _ in range(26)))], "has 26 lines, allowed are 25"),
        ([code("!pip install torch")], "installs something"),
        ([code("%pip install torch")], "installs something"),
        ([new_markdown_cell("![cat](https://a.org/cat.png)")], "loaded from the network: https://a.org/cat.png"),
        ([new_markdown_cell('<img alt="cat" src="http://a.org/cat.png">')], "loaded from the network"),
        ([new_markdown_cell("![](cat.png)")], "a picture has no alt text: cat.png"),
        ([new_markdown_cell('<img src="cat.png" alt="">')], "a picture has no alt text"),
        ([code(SOLVED, "solution"), code("1")], "code cell 1 is an exercise without a checker"),
        ([code(SOLVED, "solution")], "code cell 1 is an exercise without a checker"),
        ([code(SOLVED), code("1", "checker")], "belong together"),
        ([code("1", "solution"), code("1", "checker")], "belong together"),
    ],
)
def test_each_fault_is_found_once(path, cells, expected):
    found = problems(stored(*cells), path)
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda n: n.cells[0].update(execution_count=7), "execution counts are not 1 to 1"),
        (lambda n: n.metadata.update(widgets={}), "metadata is not canonical (widgets)"),
        (lambda n: n.metadata.kernelspec.update(name="mine"), "metadata is not canonical (kernelspec"),
        (lambda n: n.cells[0].metadata.update(execution={}), "metadata of its own (execution)"),
        (lambda n: n.metadata.pop("course"), "it carries no stamp: run `course render`"),
        (lambda n: n.cells[0].update(source="2"), "the outputs are older than the cells: run `course render`"),
        (
            lambda n: n.metadata.course.update(package="0"),
            "the outputs are older than the package: run `course render`",
        ),
        (lambda n: n.cells[0].outputs.clear(), "the outputs were changed after rendering: run `course render`"),
    ],
)
def test_what_came_after_rendering_is_found(path, spoil, expected):
    notebook = stored(code("1", outputs=[printed("x")]))
    spoil(notebook)
    found = problems(notebook, path)
    assert len(found) == 1
    assert expected in found[0]


def test_large_file_is_found(path):
    notebook = stored(*[code("1", outputs=[picture("x", size=280_000)]) for _ in range(4)])
    assert any(re.search(r"the file has [\d,]+ bytes, allowed are 1,000,000", p) for p in problems(notebook, path))


def test_size_of_a_day(tmp_path):
    def found(cells, words):
        prose = new_markdown_cell(" ".join(["word"] * words))
        return problems(stored(prose, *[code("1") for _ in range(cells)]), tmp_path / "day30.ipynb")

    assert found(30, 2000) == []
    assert found(24, 2000) == ["it has 24 code cells, a day has 25 to 45"]
    assert found(46, 2000) == ["it has 46 code cells, a day has 25 to 45"]
    assert found(30, 1274) == ["it has 1,274 words of prose, a day has 1,275 to 2,875"]
    assert found(30, 2876) == ["it has 2,876 words of prose, a day has 1,275 to 2,875"]


def test_words_are_those_that_a_reader_reads():
    text = (
        "# Two words\n\nA [link](https://example.org/path) isn't `code`.\n\n```\nx = 1\n```\n\n<b>bold</b> ![a](a.png)"
    )
    assert notebook_checks.count_words(text) == 7


# JupyterLab keeps copies of what is opened in a hidden folder, and git ignores them.
OWN = sorted(path for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_the_courses_own_notebooks(path):
    assert notebook_checks.problems_of(path) == []
