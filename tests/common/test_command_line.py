"""command_line.py: one line for every error, and the exit codes that shells and CI read."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils.common.command_line import OneLineParser, at_least_one, exit_code, from_zero
from course_utils.common.errors import CourseError

ROOT = Path(__file__).parents[2]


def parser_with_everything():
    parser = OneLineParser(prog="course")
    parser.add_argument("--epochs", type=at_least_one)
    parser.add_argument("--seed", type=from_zero)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("train").add_argument("--rate", type=float)
    return parser


@pytest.mark.parametrize(
    ("argv", "command", "message"),
    [
        (["--nonsense"], "course", "unrecognized arguments: --nonsense"),
        (["--epochs"], "course", "argument --epochs: expected one argument"),
        (["train", "--rate", "x"], "course train", "argument --rate: invalid float value: 'x'"),
        (["--epochs", "0"], "course", "argument --epochs: '0' is not a whole number from 1 upwards"),
        (["--seed=-1"], "course", "argument --seed: '-1' is not a whole number from 0 upwards"),
    ],
)
def test_a_wrong_option_is_one_line_on_stderr_and_code_2(argv, command, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parser_with_everything().parse_args(argv)
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", f"{command}: {message} (see {command} --help)\n")


def test_numbers_within_their_range():
    given = parser_with_everything().parse_args(["--epochs", "1", "--seed", "0"])
    assert (given.epochs, given.seed) == (1, 0)


@pytest.mark.parametrize("text", ["1.5", "", "one", "1e3", " 1", "²"])
def test_what_is_no_whole_number(text, capsys):
    for option in ("--epochs", "--seed"):
        with pytest.raises(SystemExit):
            parser_with_everything().parse_args([option, text])
    assert "is not a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), (5, 5)])
def test_the_exit_code_of_a_command_is_passed_on(result, code):
    assert exit_code(lambda: result) == code


def test_an_error_for_the_reader_is_one_line_and_code_1(capsys):
    def command():
        raise CourseError("There is no run 'x':\n  choose\tamong a, b.")

    assert exit_code(command) == 1
    assert capsys.readouterr() == ("", "course: There is no run 'x': choose among a, b.\n")


def test_ctrl_c_is_code_130(capsys):
    def command():
        raise KeyboardInterrupt

    assert exit_code(command) == 130
    assert capsys.readouterr() == ("", "\ncourse: stopped\n")


def test_other_errors_are_not_hidden():
    def command():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_code(command)


def test_needs_nothing_but_the_standard_library():
    code = "import course_utils.common.command_line"
    subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True)


def test_every_parser_is_the_one_line_parser():
    files = [
        file for folder in ("course_utils", "course_tools", "benchmarks") for file in (ROOT / folder).rglob("*.py")
    ]
    calls = [
        (file.name, node.lineno, ast.unparse(node.func))
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert [call for call in calls if call[2].endswith("ArgumentParser")] == []
    assert len([call for call in calls if call[2] == "OneLineParser"]) >= 4


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", "\\u4eba \\xe9 \\udce9"),
        ("cp437", "\\u4eba é \\udce9"),
        ("utf-8", "人 é \\udce9"),
    ],
)
def test_a_terminal_of_any_encoding_gets_what_it_can_show(encoding, printed, monkeypatch):
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)

    def command():
        print("人 é \udce9", end="")
        raise CourseError("人 é \udce9")

    assert exit_code(command) == 1
    assert out.buffer.getvalue().decode(encoding) == printed
    assert error.buffer.getvalue().decode(encoding).splitlines() == [f"course: {printed}"]


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe that nobody reads is another error on Windows")
@pytest.mark.parametrize(
    "command", ["print", "lambda: print('x' * 100_000)", "lambda: OneLineParser().parse_args(['--help'])"]
)
def test_an_output_that_nobody_reads_ends_quietly(command):
    """What ``course … | head`` does when head has seen enough."""
    code = f"import sys; from course_utils.common.command_line import *; sys.exit(exit_code({command}))"
    reading, writing = os.pipe()
    os.close(reading)
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run([sys.executable, "-c", code], stdout=nobody, stderr=subprocess.PIPE, env=environ)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_broken_pipe_is_an_error():
    def command():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        exit_code(command)
