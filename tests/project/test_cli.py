"""The `course` command, on small projects made here."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from course_tools import cli
from course_tools.authoring import doctor, notebooks, pages
from course_utils.common.errors import CourseError
from course_utils.mini.networks import BUILDERS

pytest_plugins = ("pytester",)
ROOT = Path(__file__).parents[2]
COMMANDS = {"run", "lab", "test", "doctor", "student", "render", "check", "pretrain", "compare"}
COMMANDS |= {"animate", "blog", "cache", "diary", "explain", "families", "ladder", "predict"}
COMMANDS |= {"questions", "quiz", "runs", "train"}
MODULES = {name: module for name, (_, module) in cli.COMMANDS.items() if isinstance(module, str)}


def write(root, name, *sources, tags=()):
    cells = [new_code_cell(source, metadata={"tags": list(tags)} if tags else {}) for source in sources]
    notebooks.write_notebook(new_notebook(cells=cells), root / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def project(tmp_path):
    write(tmp_path, "day20", "print('accuracy 81 %\\nof 60 pictures')", tags=["result"])
    write(tmp_path, "day21", "x = 1", "def f():\n    return {}['key']\nf()", "print('never')")
    return tmp_path


@pytest.fixture
def called(monkeypatch):
    """List of (command, environment) that would have been started; the exit code of each is 5."""
    commands = []

    def call(command, folder, environ):
        commands.append((command, environ))
        return 5

    monkeypatch.setattr(cli, "_call", call)
    return commands


def test_commands_are_the_documented_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"\n  {name}\s", text) for name in COMMANDS)
    assert max(map(len, text.splitlines())) <= 120
    listed = {block.partition(":")[0]: re.findall(r"^  (\w+)", block, re.M) for block in text.split("\n\n")[2:]}
    assert listed["learn"] == ["lab", "run", "quiz", "questions", "diary"]
    assert listed["your photos"] == ["ladder", "train", "predict", "explain", "runs", "cache"]
    assert listed["make the course"][:4] == ["render", "check", "test", "doctor"]
    assert {name for names in listed.values() for name in names} == COMMANDS


def test_modules_of_commands_exist():
    assert MODULES.keys() < cli.COMMANDS.keys() == COMMANDS
    assert all(importlib.util.find_spec(module, "course_tools") for module in MODULES.values())


@pytest.mark.parametrize("name", sorted(COMMANDS - MODULES.keys()))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: course {name}" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_every_command_and_what_it_starts_has_threads_that_wait_passively(given, found):
    code = """
import os, sys
from course_tools import cli
assert "torch" not in sys.modules, "which reads the variable when it is loaded"
started = []
cli._call = lambda command, folder, environ: started.append(environ["OMP_WAIT_POLICY"])
cli.main(["lab"])
cli.main(["test", "--fast"])
print(os.environ["OMP_WAIT_POLICY"], *started, cli.notebooks.kernel_environment(os.environ)["OMP_WAIT_POLICY"])
"""
    environ = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environ |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.stdout.split() == [found] * 4, done.stderr


def test_threads_of_the_tests_wait_passively():
    assert os.environ["OMP_WAIT_POLICY"]
    assert "import course_utils" in (ROOT / "conftest.py").read_text(encoding="utf-8").partition("def ")[0]


def test_help_imports_nothing_heavy():
    code = "import sys; from course_tools import cli; cli.make_parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "nbformat", "nbclient", "pooch", "IPython"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["rnu"], "course: unknown command 'rnu': did you mean run or runs? The commands are lab, run, quiz, "),
        (["zzzz"], "course: unknown command 'zzzz': The commands are lab, "),
        ([], "course: the following arguments are required: COMMAND"),
        (["run", "--dta", "x"], "course: unrecognized arguments: --dta"),
        (["run", "--data"], "course run: argument --data: expected one argument (see course run --help)"),
        (["run", "day20", "--", "-k", "x"], "course: nothing can follow -- in course run: -k x"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(project, argv, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv, project)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(expected)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["run", "day99"], "course: There is no notebook 'day99': choose among day20, day21."),
        (["check", "day99"], "course: There is no notebook 'day99'"),
        (["run", "--data", "no such folder"], "course: COURSE_DATASET='no such folder' is neither one of"),
    ],
)
def test_course_error_is_one_line_and_code_1(project, argv, expected, capsys):
    assert cli.main(argv, project) == 1
    error = capsys.readouterr().err
    assert error.startswith(expected)
    assert error.count("\n") == 1


def test_without_notebooks_the_way_out_is_named(tmp_path, capsys):
    assert cli.main(["run"], tmp_path) == 1
    assert "run this in a checkout of the course" in capsys.readouterr().err


def test_interrupt_ends_cleanly(project, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(notebooks, "run_notebook", interrupted)
    assert cli.main(["run"], project) == 130
    assert capsys.readouterr().err == "\ncourse: stopped\n"


@pytest.mark.kernel
def test_run_reports_results_and_failures_and_goes_on(project, capsys):
    write(project, "day22", "print('after the failure')", tags=["result"])
    assert cli.main(["run"], project) == 1
    out = capsys.readouterr().out
    assert "day20: done" in out
    assert (
        "day21 failed in code cell 2 of 3:\n    def f():\n        return {}['key']\n    f()\nKeyError: 'key'\n" in out
    )
    table = out[out.index("notebook  seconds  result") :].splitlines()
    assert table[2].split(maxsplit=2)[::2] == ["day20", "accuracy 81 %"]
    assert table[3].strip() == "of 60 pictures"
    assert table[4].split(maxsplit=2)[::2] == ["day21", "FAILED in code cell 2: KeyError: 'key'"]
    assert table[5].split(maxsplit=2)[::2] == ["day22", "after the failure"]
    assert "\x1b" not in out
    written = {path.name for path in (project / "build").iterdir()}
    assert written == {f"day{n}.{kind}" for n in (20, 21, 22) for kind in ("html", "ipynb")}


def fake_execution(monkeypatch):
    """Let run_notebook give a finished notebook at once; what it was called with."""
    calls = []

    def run_notebook(path, **options):
        calls.append((path, options))
        return notebooks.Execution(notebooks.read_notebook(path), 0.5)

    monkeypatch.setattr(notebooks, "run_notebook", run_notebook)
    monkeypatch.setattr(pages, "page_of", lambda *args: "<html>")
    return calls


def test_run_all_well_is_0_and_honours_days_data_and_out(project, monkeypatch, capsys):
    calls = fake_execution(monkeypatch)
    assert cli.main(["run", "20", "--data", "hymenoptera", "--out", str(project / "elsewhere")], project) == 0
    assert [path.name for path, _ in calls] == ["day20.ipynb"]
    assert calls[0][1]["environ"]["COURSE_DATASET"] == "hymenoptera"
    assert (project / "elsewhere" / "day20.html").read_text() == "<html>"
    assert "(nothing reported)" in capsys.readouterr().out


def test_render_skips_what_is_up_to_date_and_ignores_the_readers_settings(project, monkeypatch, capsys):
    calls = fake_execution(monkeypatch)
    monkeypatch.setenv("COURSE_DATASET", "hymenoptera")
    cli.main(["render", "day20"], project)
    assert "COURSE_DATASET" not in calls[0][1]["environ"]
    assert notebooks.read_notebook(project / "notebooks" / "day20.ipynb").metadata["course"]
    cli.main(["render", "day20"], project)
    assert len(calls) == 1
    assert "day20: up to date" in capsys.readouterr().out
    cli.main(["render", "day20", "--all"], project)
    assert len(calls) == 2


def test_render_leaves_a_failing_notebook_as_it_was(project, monkeypatch, capsys):
    path = project / "notebooks" / "day21.ipynb"
    before = path.read_bytes()
    failure = notebooks.Failure(2, 3, "f()", "KeyError: 'key'")
    execution = notebooks.Execution(notebooks.read_notebook(path), 0.5, failure)
    monkeypatch.setattr(notebooks, "run_notebook", lambda *args, **kwargs: execution)
    assert cli.main(["render", "day21"], project) == 1
    assert path.read_bytes() == before
    assert "day21 was left as it was; it failed in code cell 2 of 3:" in capsys.readouterr().out


def test_check_lists_problems_and_fails(project, capsys):
    assert cli.main(["check", "day20"], project) == 1
    assert "day20: it carries no stamp: run `course render`" in capsys.readouterr().out


def test_student_writes_copies(project, capsys):
    write(project, "day20", "### BEGIN SOLUTION\nx = 1\n### END SOLUTION", tags=["solution"])
    assert cli.main(["student", "day20"], project) == 0
    copy = notebooks.read_notebook(project / "build" / "student" / "day20.ipynb")
    assert copy.cells[0].source == "# your code here\n..."


def test_test_runs_tests_and_notebooks_in_one_go(project, called, monkeypatch):
    for name in notebooks.DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")
    assert cli.main(["test"], project) == 5
    (command, environ) = called[0]
    assert command[:5] == [sys.executable, "-m", "pytest", "notebooks", "tests"]
    assert {"--nbval-lax", "--nbval-current-env", "--must-run=tests", "--must-run=notebooks"} <= set(command)
    assert "--no-compare" not in command
    assert "MPLBACKEND" not in environ


def test_test_on_other_data_runs_only_notebooks_and_compares_nothing(project, called):
    cli.main(["test", "--data", str(project)], project)
    (command, environ) = called[0]
    assert "tests" not in command
    assert {"notebooks", "--nbval-lax", "--no-compare", "--must-run=notebooks"} <= set(command)
    assert environ["COURSE_DATASET"] == str(project)


def test_fast_test_leaves_the_notebooks_out(tmp_path, called):
    cli.main(["test", "--fast"], tmp_path)
    assert called[0][0][2:5] == ["pytest", "tests", "--must-run=tests"]


@pytest.mark.parametrize(
    ("cores", "processes", "threads"), [(None, None, "1"), (1, None, "1"), (2, "2", "1"), (8, "4", "2")]
)
def test_whole_files_are_shared_out_among_processes(tmp_path, called, monkeypatch, cores, processes, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cli.main(["test", "--fast"], tmp_path)
    command, environ = called[0]
    assert command[5:] == (["-n", processes, "--dist", "loadfile", "--no-loadscope-reorder"] if processes else [])
    assert environ["OMP_NUM_THREADS"] == threads


def test_who_gives_arguments_of_his_own_gets_one_process(tmp_path, called):
    cli.main(["test", "--fast", "--", "-x"], tmp_path)
    assert "-n" not in called[0][0], "--pdb and -s need the terminal"


def test_what_follows_the_dashes_goes_to_pytest(project, called):
    cli.main(["test", "--fast", "--", "-k", "pets", "-x"], project)
    assert called[0][0][-3:] == ["-k", "pets", "-x"]
    assert "--must-run=" in called[0][0]


@pytest.mark.parametrize("name", ["tests/test_pets.py", "tests/test_pets.py::test_a", "notebooks/day20.ipynb"])
def test_a_named_file_is_run_instead_of_the_folders(project, called, name):
    cli.main(["test", "--", name], project)
    command = called[0][0]
    assert command[-1] == name
    assert not {"tests", "notebooks"} & set(command)


def test_lab_opens_the_front_page_with_this_python(project, called):
    cli.main(["lab", "--no-browser"], project)
    (command, environ) = called[0]
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert "--LabApp.default_url=/lab/tree/README.md" in command
    assert command[-1] == "--no-browser"
    assert environ["JUPYTER_PREFER_ENV_PATH"] == "1"
    settings = next(part for part in command if part.startswith("--LabApp.app_settings_dir=")).partition("=")[2]
    overrides = json.loads((Path(settings) / "overrides.json").read_text())
    assert overrides["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"


@pytest.mark.parametrize("name", ["pretrain", "compare"])
def test_modules_of_commands_get_their_arguments_untouched(name, monkeypatch):
    seen = []
    module = type("module", (), {"main": staticmethod(lambda arguments: seen.append(arguments))})
    monkeypatch.setattr(cli.importlib, "import_module", lambda *given: module)
    assert cli.main([name, "resnet18_mini", "--epochs", "2", "--help"]) == 0
    assert seen == [["resnet18_mini", "--epochs", "2", "--help"]]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("def test_a(): pass", 0),
        ("def test_a(): assert 0", 1),
        ("import pytest\n@pytest.mark.skip\ndef test_a(): pass", 5),
        ("", 5),
    ],
)
def test_a_run_without_a_passing_test_is_no_success(pytester, content, code):
    pytester.makeconftest((ROOT / "conftest.py").read_text(encoding="utf-8"))
    pytester.mkdir("tests").joinpath("test_a.py").write_text(content)
    done = pytester.runpytest_inprocess("tests", "--must-run=tests")
    assert done.ret == code
    assert ("No test ran in tests: that counts as a failure." in done.outlines) is (code != 0)


@pytest.mark.kernel
def test_notebook_outputs_are_compared_by_tag_and_not_on_other_data(tmp_path):
    cells = [
        new_code_cell("import sys\nprint('warning', file=sys.stderr)\nprint('now')", execution_count=1),
        new_code_cell("print('now')", execution_count=2, metadata={"tags": ["nbval-check-output"]}),
    ]
    for cell in cells:
        cell.outputs = [new_output("stream", name="stdout", text="stored\n")]
    notebooks.write_notebook(new_notebook(cells=cells), tmp_path / "notebooks" / "day20.ipynb")
    shutil.copy(ROOT / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "notebooks", "--must-run=notebooks"]
    command += ["--nbval-lax", "--nbval-current-env"]
    compared = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert compared.returncode == 1
    assert "1 failed, 1 passed" in compared.stdout
    assert subprocess.run([*command, "--no-compare"], cwd=tmp_path, capture_output=True).returncode == 0


def check(name):
    return doctor.findings(getattr(doctor, name), ROOT)


def test_doctor_counts_problems(monkeypatch, capsys):
    good, bad = doctor.Line("disk", "9.0 GiB free"), doctor.Line("memory", "0.1 GiB free", "close other programs")
    monkeypatch.setattr(doctor, "CHECKS", (lambda root: iter([good]),))
    assert doctor.main(ROOT) == 0
    assert capsys.readouterr().out == "ok      disk       9.0 GiB free\n\nEverything works.\n"
    monkeypatch.setattr(doctor, "CHECKS", (lambda root: iter([good, bad]),))
    assert doctor.main(ROOT) == 1
    assert "PROBLEM memory     0.1 GiB free\n                   -> close other programs\n" in capsys.readouterr().out


def test_doctor_turns_any_error_into_a_finding():
    def _broken(root):
        raise RuntimeError("operator torchvision::nms\ndoes not exist")
        yield

    def _refused(root):
        raise CourseError("COURSE_SEED='x' is not a whole number.")
        yield

    (line,) = doctor.findings(_broken, ROOT)
    assert (line.subject, line.found) == ("broken", "RuntimeError: operator torchvision::nms does not exist")
    assert line.todo
    (line,) = doctor.findings(_refused, ROOT)
    assert line.todo.startswith("COURSE_SEED='x'")


def test_doctor_names_versions_and_missing_packages(monkeypatch):
    needs = ["pytest>=8.3", "no-such-package", "left-out; extra == 'test'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needs)
    present, missing = check("_packages")
    assert present.found == f"pytest {pytest.__version__}"
    assert missing.found == "missing: no-such-package"
    assert missing.todo


def test_doctor_shows_device_memory_disk():
    assert check("_device")[0].found.startswith("CPU, ")
    assert " GiB free" in check("_memory")[0].found
    assert check("_disk")[0].found.endswith(" GiB free")


def test_doctor_finds_damaged_and_missing_weights(monkeypatch, tmp_path):
    lines = check("_embedded")
    assert [line.todo for line in lines] == [""] * len(BUILDERS)
    folder = tmp_path / "mini" / "weights"
    folder.mkdir(parents=True)
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path)
    assert check("_embedded")[0].found == "no weights in the package"
    sha = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # of "hello"
    (folder / "a.json").write_text(json.dumps({"file": "a.safetensors", "sha256": sha}))
    assert check("_embedded")[0].found == "a.safetensors is missing"
    (folder / "a.safetensors").write_text("hello")
    assert not check("_embedded")[0].todo
    (folder / "a.safetensors").write_text("hellO")
    assert "git checkout course_utils/mini/weights" in check("_embedded")[0].todo


def test_doctor_lists_caches_and_checks_the_mirror(monkeypatch, tmp_path):
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "a.png").write_bytes(b"x" * 2_500_000)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setenv("COURSE_DATA_MIRROR", str(tmp_path / "nowhere"))
    monkeypatch.delenv("COURSE_DATASET", raising=False)
    settings, data, mirror = check("_settings")
    assert settings.found.startswith("weights: ")
    assert data.found == f"{tmp_path}: pets 2.5 MB"
    assert mirror.todo == "correct or unset COURSE_DATA_MIRROR"


def test_doctor_reports_a_notebook_that_fails(monkeypatch):
    failed = notebooks.Execution(new_notebook(), 1.0, notebooks.Failure(1, 2, "import torch", "ImportError: x"))
    monkeypatch.setattr(doctor, "run_notebook", lambda *args, **kwargs: failed)
    (line,) = check("_notebook")
    assert line.found == "a trial notebook failed: ImportError: x"
    assert line.todo
