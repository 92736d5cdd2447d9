"""The pages of the project: their links lead somewhere, and the names that they mention exist."""

import ast
import importlib
import json
import re
import tomllib
from pathlib import Path

import pytest

from course_tools import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```python\n(.*?)```", re.S)
BRIEF = (ROOT / "docs" / "brief.md").read_text(encoding="utf-8")


def page_names(path):
    return str(path.relative_to(ROOT))


def is_module(name):
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=page_names)
def test_relative_links_lead_to_a_file(page):
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if not re.match(r"[a-z]+:|#", t)]
    assert [t for t in targets if not (page.parent / t.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_names)
def test_names_in_code_blocks_can_be_imported(page):
    for code in CODE.findall(page.read_text(encoding="utf-8")):
        for node in ast.parse(code).body:
            if isinstance(node, ast.ImportFrom) and node.module.startswith("course_"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=page_names)
def test_modules_commands_and_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for package in ("course_utils", "course_tools"):
        for path in re.findall(rf"\b{package}/[\w/.-]*\w", text):
            assert (ROOT / path).exists(), path
        for name in re.findall(rf"\b{package}\.[a-z_.]*[a-z_]", text):
            head, _, last = name.rpartition(".")
            assert is_module(name) or hasattr(importlib.import_module(head), last), name
    named = set(re.findall(r"(?:`|^)course ([a-z]+)", text, re.M)) | set(re.findall(r"start\.py ([a-z]+)", text))
    assert named <= set(cli.COMMANDS)


def test_every_page_of_the_docs_is_listed_on_their_front_page():
    listed = set(LINK.findall((ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


def test_the_front_page_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 115


# --- docs/brief.md -----------------------------------------------------------------------------------------------


def test_the_functions_that_the_page_about_the_brief_names_exist():
    rooms = {path.stem for path in (ROOT / "course_utils").glob("*.py")}
    names = {(m, name) for m, name in re.findall(r"`(\w+)\.(\w+)`", BRIEF) if m in rooms and name != "py"}
    assert len(names) >= 25
    for module, name in names:
        assert hasattr(importlib.import_module(f"course_utils.{module}"), name), f"{module}.{name}"


def test_the_sections_that_it_names_exist():
    references = re.findall(r"\[day (\d+), sections? (\d+)(?: to (\d+))?\]", BRIEF)
    assert len(references) > 30
    for day, first, last in references:
        cells = json.loads((ROOT / "notebooks" / f"day{day}.ipynb").read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        headings = {int(number) for number in re.findall(r"^## (\d+)\.", text, re.M)}
        assert set(range(int(first), int(last or first) + 1)) <= headings, (day, first, last)


def test_the_questions_that_it_names_exist():
    bank = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "interview_questions").glob("*.md"))
    ids = set(re.findall(r"<!-- id: ([\w-]+)", bank))
    named = set(re.findall(r"`((?:easy|medium|hard)-[\w-]+)`", BRIEF))
    assert len(named) > 15 and named <= ids


def test_the_four_files_of_the_brief_exist():
    for name in ("pretrained_models", "feature_extraction", "fine_tuning", "tl_utils"):
        assert (ROOT / "course_utils" / f"{name}.py").is_file() and f"### `{name}.py`" in BRIEF


# --- CONTRIBUTING.md ---------------------------------------------------------------------------------------------


def test_the_picture_of_the_house_shows_the_contracts_that_ci_checks():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = {
        c["containers"][0]: [re.split(r"\s*\|\s*", line) for line in c["layers"]] for c in contracts if "layers" in c
    }
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    picture = next(block for block in re.findall(r"```\n(.*?)```", contributing, re.S) if "the wall" in block)
    drawn = [re.split(r"[\s·]+", line.strip()) for line in picture.splitlines()]
    wall = next(i for i, line in enumerate(drawn) if "wall" in line)
    assert drawn[:wall] == [["course_tools", *layers["course_tools"][0]], *layers["course_tools"][1:]]
    assert drawn[wall + 1 :] == [["course_utils", *layers["course_utils"][0]], *layers["course_utils"][1:]]
