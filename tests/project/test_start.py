"""start.py without any installation: small scripts stand in for pip and the virtual environment."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
START = ROOT / "start.py"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in for .venv's Python is a shell script")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start.py as a module that believes it lies in an empty project."""
    spec = importlib.util.spec_from_file_location("start", START)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(module, "ROOT", str(tmp_path))
    monkeypatch.setattr(module, "VENV", str(tmp_path / ".venv"))
    monkeypatch.setattr(module, "STAMP", str(tmp_path / ".venv" / "course-stamp.txt"))
    monkeypatch.setattr(module, "LOG", str(tmp_path / ".venv" / "setup.log"))
    monkeypatch.setattr(module, "check_arguments", lambda argv: None)
    return module


def fake_python(start, pip="exit 0", course="exit 0", version=sys.version_info[:2]):
    """A `.venv/bin/python` that notes how it was called, and stands in for pip and for the course."""
    python = Path(start.venv_python())
    python.parent.mkdir(parents=True, exist_ok=True)
    same = "0" if tuple(version) == sys.version_info[:2] else "1"
    python.write_text(
        f'#!/bin/sh\necho "$@" >> "{start.ROOT}/calls"\n'
        f'case "$1 $2" in\n"-m pip") {pip};;\n"-m course_tools.cli") {course};;\n"-c "*) exit {same};;\nesac\n'
    )
    python.chmod(0o755)
    return python


def calls(start):
    """Names of the calls of the stand-in: pip, cli or -c."""
    path = Path(start.ROOT, "calls")
    words = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [w[1].rpartition(".")[2] if w[0] == "-m" else "-c" for w in words]


@pytest.fixture
def venv_made(start, monkeypatch):
    """Let making the virtual environment put the stand-in there; how often it was made."""
    made = []

    def make(**scripts):
        def make_venv():
            made.append(1)
            shutil.rmtree(start.VENV, ignore_errors=True)
            fake_python(start, **scripts)

        monkeypatch.setattr(start, "make_venv", make_venv)
        return made

    return make


def run(*arguments, python=sys.executable, cwd=None):
    return subprocess.run([python, str(START), *arguments], capture_output=True, text=True, cwd=cwd)


def test_parses_on_old_pythons():
    ast.parse(START.read_text(encoding="utf-8"), feature_version=(3, 6))


def test_imports_only_the_standard_library():
    tree = ast.parse(START.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names - {"course_utils", "course_tools"} <= set(sys.stdlib_module_names)


def test_checks_arguments_without_any_installed_package():
    # -S and -I leave only the standard library and what start.py itself adds to the path.
    done = subprocess.run([sys.executable, "-I", "-S", str(START), "rnu"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("course: unknown command 'rnu': did you mean run")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 10, 13)])
def test_old_python_is_refused_with_the_way_out(start, version):
    with pytest.raises(start.Stop, match=r"needs 3\.11, 3\.12 or 3\.13: install one") as stop:
        start.check_python(version)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 1), (3, 13, 9)])
def test_tested_pythons_pass_silently(start, version, capsys):
    start.check_python(version)
    assert capsys.readouterr() == ("", "")


def test_newer_python_is_warned_of_and_goes_on(start, capsys):
    start.check_python((3, 15, 0))
    assert "newer than the tested" in capsys.readouterr().err


def test_no_command_prints_usage_and_fails():
    done = run()
    assert done.returncode == 2
    assert done.stdout.startswith("usage: python3 start.py")


def test_help_succeeds():
    assert run("--help").returncode == 0
    everything = run("--help-all")
    assert everything.returncode == 0
    assert "pretrain" in everything.stdout


@pytest.mark.parametrize("argument", ["--help", "--help-all"])
def test_an_output_that_nobody_reads_ends_quietly(argument):
    reading, writing = os.pipe()
    os.close(reading)
    environ = os.environ | {"PYTHONUNBUFFERED": ""}
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run([sys.executable, START, argument], stdout=nobody, stderr=subprocess.PIPE, env=environ)
    assert (done.returncode, done.stderr) == (141, b"")


def test_unknown_day_lists_the_days_before_installing(tmp_path):
    project = tmp_path / "course"
    (project / "notebooks").mkdir(parents=True)
    (project / "notebooks" / "day20.ipynb").write_text("{}")
    shutil.copy(START, project)
    for package in ("course_utils", "course_tools"):
        shutil.copytree(ROOT / package, project / package, ignore=shutil.ignore_patterns("weights", "*.pyc"))
    done = subprocess.run([sys.executable, "start.py", "run", "day99"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "start.py: There is no notebook 'day99': choose among day20.\n"
    assert not (project / ".venv").exists()


def test_first_call_sets_up_and_second_goes_straight_to_the_command(start, venv_made, capsys):
    made = venv_made()
    assert start.main(["doctor"]) == 0
    assert "about 6 GB" in capsys.readouterr().out
    assert calls(start) == ["pip", "cli"]
    assert start.main(["doctor"]) == 0
    assert calls(start) == ["pip", "cli", "cli"]
    assert made == [1]
    assert capsys.readouterr() == ("", "")


def test_exit_code_of_the_command_is_passed_on(start, venv_made):
    venv_made(course="exit 7")
    assert start.main(["test"]) == 7


def test_arguments_are_passed_on(start, venv_made):
    venv_made()
    start.main(["run", "day20", "--data", "hymenoptera"])
    assert Path(start.ROOT, "calls").read_text().endswith("-m course_tools.cli run day20 --data hymenoptera\n")


def test_pip_is_given_the_constraints_and_the_extras(start, venv_made):
    venv_made()
    start.main(["doctor"])
    first = Path(start.ROOT, "calls").read_text().splitlines()[0]
    assert f"-c {start.ROOT}/constraints.txt -e {start.ROOT}[test]" in first


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_install_again(start, venv_made, name):
    made = venv_made()
    start.main(["doctor"])
    Path(start.ROOT, name).write_text("changed")
    start.main(["doctor"])
    assert calls(start) == ["pip", "cli", "-c", "pip", "cli"]
    assert made == [1]


def test_line_endings_do_not_count_as_a_change(start):
    before = start.fingerprint()
    Path(start.ROOT, "constraints.txt").write_bytes(b"a\r\nb\r\n")
    windows = start.fingerprint()
    Path(start.ROOT, "constraints.txt").write_bytes(b"a\nb\n")
    assert start.fingerprint() == windows != before


def test_another_python_makes_the_environment_anew(start, venv_made):
    made = venv_made()
    fake_python(start, version=(3, 1))
    start.main(["doctor"])
    assert made == [1]
    assert calls(start) == ["-c", "pip", "cli"]


def test_a_moved_folder_installs_again(start, monkeypatch, tmp_path):
    before = start.fingerprint()
    other = tmp_path / "moved"
    other.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(tmp_path / name, other)
    monkeypatch.setattr(start, "ROOT", str(other))
    assert start.fingerprint() != before


def test_failed_installation_leaves_no_stamp_and_is_repeated(start, venv_made, capsys):
    venv_made(pip="echo 'ERROR: something odd'; exit 1")
    assert start.main(["doctor"]) == 1
    assert not Path(start.STAMP).exists()
    assert not start.is_ready()
    error = capsys.readouterr().err
    assert error.startswith("start.py: pip failed: ERROR: something odd (tried: ")
    assert error.count("\n") == 1
    fake_python(start)
    assert start.main(["doctor"]) == 0
    assert start.is_ready()


def test_interrupted_installation_invalidates_an_older_stamp(start, venv_made, monkeypatch, capsys):
    venv_made()
    start.main(["doctor"])
    Path(start.ROOT, "constraints.txt").write_text("newer")

    def interrupt(command):
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "install", interrupt)
    assert start.main(["doctor"]) == 130
    assert not Path(start.STAMP).exists()
    # Back at the old versions, the half-changed environment must still not pass as complete.
    Path(start.ROOT, "constraints.txt").write_text("constraints.txt")
    assert not start.is_ready()


@pytest.mark.parametrize("content", ["", "0" * 64, "é"])
def test_foreign_stamp_is_not_trusted(start, content):
    fake_python(start)
    Path(start.STAMP).write_text(content, encoding="utf-8")
    assert not start.is_ready()


def test_small_disk_is_refused_before_anything_is_made(start, monkeypatch, capsys):
    monkeypatch.setattr(start.shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**30))
    assert start.main(["run"]) == 1
    assert capsys.readouterr().err.startswith("start.py: 3.0 GiB are free on the disk of ")
    assert not Path(start.VENV).exists()


def test_small_disk_does_not_stop_a_repeated_installation(start, monkeypatch):
    fake_python(start)
    monkeypatch.setattr(start.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    assert start.main(["doctor"]) == 0


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_missing_venv_module_names_the_package(start, monkeypatch, missing, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    assert start.main(["run"]) == 1
    error = capsys.readouterr().err
    assert f"no module {missing}: install it (Debian and Ubuntu: sudo apt install python3." in error
    assert error.count("\n") == 1


def test_venv_that_cannot_be_made_is_one_line(start, monkeypatch, capsys):
    failed = SimpleNamespace(returncode=1, stdout=b"first\nError: [Errno 13] Permission denied\n")
    monkeypatch.setattr(start.subprocess, "run", lambda *args, **kwargs: failed)
    assert start.main(["run"]) == 1
    error = capsys.readouterr().err
    assert "Permission denied" in error
    assert error.count("\n") == 1


OFFLINE = """Looking in indexes
WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError('<pip._vendor.urllib3.connection.
HTTPSConnection object>: Failed to establish a new connection: [Errno -3] Temporary failure in name resolution')'
ERROR: Could not find a version that satisfies the requirement setuptools>=77 (from versions: none)
ERROR: No matching distribution found for setuptools>=77
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (OFFLINE, "the Python package index cannot be reached: connect to the network"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "the disk ran full",
        ),
        ("ERROR: ResolutionImpossible: for help visit", "pip failed: ERROR: ResolutionImpossible"),
        ("", "pip failed: no message"),
    ],
)
def test_reason_names_the_cause_and_the_command(start, log, expected):
    reason = start.reason(log, ["python", "-m", "pip", "install"])
    assert reason.startswith(expected)
    assert "tried: python -m pip install; log: .venv/setup.log" in reason
    assert "\n" not in reason


def test_threads_wait_passively_in_every_python_of_the_venv(start, venv_made, monkeypatch):
    """Also in a kernel that VS Code starts, which imports torch before it imports the course."""
    venv_made()
    start.main(["doctor"])
    (line,) = Path(start.VENV).rglob("course-threads.pth")
    assert line.parent.name == "site-packages"
    code = f"import os, site; site.addsitedir({str(line.parent)!r}); print(os.environ['OMP_WAIT_POLICY'])"
    for given, found in [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")]:
        environ = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
        done = subprocess.run([sys.executable, "-I", "-S", "-c", code], env=environ, capture_output=True, text=True)
        assert done.stdout == f"{found}\n", done.stderr


def test_environment_does_not_leak(start, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("PYTHONHOME", "elsewhere")
    environment = start.environment()
    assert "PYTHONPATH" not in environment
    assert "PYTHONHOME" not in environment
    assert environment["PYTHONNOUSERSITE"] == "1"


def test_sign_of_life_every_half_minute_where_nobody_watches(start, capsys):
    shown = 0
    for second in range(95):
        shown = start.sign_of_life(second, shown)
    assert capsys.readouterr().out.split("\n") == [f"  installing, {s} s ..." for s in (30, 60, 90)] + [""]
