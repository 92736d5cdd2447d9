"""The interview answers are true as far as a machine can tell: every snippet runs, every link leads somewhere."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from helpers import generators_untouched

from course_tools.study.questions import BANK, LINK, is_relative, read_bank, without_snippets
from course_utils.common.state import generators_put_back

QUESTIONS = read_bank()
WITH_CODE = [question for question in QUESTIONS if question.snippets]
LINKS = sorted({target for question in QUESTIONS for target in question.links})


class _Marked(ast.NodeTransformer):
    """Lets every assert of a snippet leave its line number behind when it is reached."""

    def visit_Assert(self, node):
        mark = ast.parse(f"_reached.add({node.lineno})").body
        return [ast.copy_location(statement, node) for statement in mark] + [node]


def run(code, name):
    """Run a snippet as if it stood in a file of its own; return the lines of its asserts, and of those reached."""
    tree = ast.parse(code)
    asserts = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)}
    reached = set()
    marked = ast.fix_missing_locations(_Marked().visit(tree))
    exec(compile(marked, name, "exec"), {"__name__": "snippet", "_reached": reached})
    return asserts, reached


@pytest.fixture
def cut_off(monkeypatch, tmp_path):
    """No network, a folder of its own, and torch afterwards as it was before."""

    def refused(*_args, **_options):
        raise AssertionError("a snippet wants the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.chdir(tmp_path)
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_device()
    with generators_put_back():
        yield
    assert before == (
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_device()
    )  # fmt: skip
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("question", WITH_CODE, ids=lambda question: question.id)
def test_every_snippet_runs_and_reaches_all_its_asserts(question, cut_off):
    for number, code in enumerate(question.snippets):
        asserts, reached = run(code, f"{question.id}, snippet {number + 1}")
        assert asserts == reached and asserts


def test_nearly_every_answer_is_checked_by_a_machine():
    without = {question.id for question in QUESTIONS if not question.snippets}
    assert without == {
        "easy-what-is-transfer-learning",
        "easy-domain-shift",
        "easy-pros-and-cons",
        "easy-when-to-fine-tune",
        "hard-two-hundred-thousand-pictures",
    }


def test_the_runner_tells_a_wrong_snippet_and_an_assert_that_is_never_reached(cut_off):
    with pytest.raises(AssertionError):
        run("x = 2\nassert x == 3\n", "wrong")
    assert run("def f():\n    assert 0\n\n\nassert 1\n", "idle") == ({2, 5}, {5})
    with pytest.raises(AssertionError, match="wants the network"):
        run("import urllib.request\nurllib.request.urlopen('http://192.0.2.1/')\n", "online")
    with generators_untouched():
        run("assert 1\n", "still")


@functools.cache
def anchors(path):
    """What a link can point to in a file: the headings of a notebook, as JupyterLab names them."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.suffix == ".ipynb" else []
    texts = (without_snippets("".join(cell["source"])) for cell in cells if cell["cell_type"] == "markdown")
    return {heading.strip().replace(" ", "-") for text in texts for heading in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("target", [target for target in LINKS if is_relative(target)])
def test_every_link_into_the_course_leads_somewhere(target):
    name, _, anchor = target.partition("#")
    path = (BANK / unquote(name)).resolve()
    assert path.is_relative_to(BANK.parent)
    assert path.is_file(), f"{path.name} is not there"
    assert not anchor or unquote(anchor) in anchors(path), f"{path.name} has no heading {anchor!r}"


@pytest.mark.parametrize("target", [target for target in LINKS if not is_relative(target)])
def test_every_link_into_the_world_is_one(target):
    parts = urlsplit(target)
    assert parts.scheme == "https" and re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc) and len(parts.path) > 1
    if parts.netloc == "arxiv.org":
        assert re.fullmatch(r"/abs/\d{4}\.\d{4,5}", parts.path)


def test_links_say_the_day_and_the_section_that_they_lead_to():
    wrong = []
    for question in QUESTIONS:
        for text, target in LINK.findall(question.shown):
            said = re.findall(r"\b(day|section) (\d+)", text)
            leads = dict(
                re.findall(r"(day)(\d\d)\.ipynb", target) + [("section", n) for n in re.findall(r"#(\d+)\.", target)]
            )
            wrong += [(question.id, text) for kind, number in said if leads.get(kind) != number]
    assert wrong == []


def test_anchors_are_found(tmp_path):
    cells = [{"cell_type": "markdown", "source": ["# A b?\n", "```python\n", "# no\n", "```"]}]
    path = Path(tmp_path / "a.ipynb")
    path.write_text(json.dumps({"cells": [*cells, {"cell_type": "code", "source": ["# no"]}]}))
    assert anchors(path) == {"A-b?"}
