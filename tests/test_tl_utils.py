"""tl_utils.py: it hands on existing names, and its docstring lists each of them with its home."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from course_utils import tl_utils

HOMES = dict(re.findall(r"^``(\w+)``  .*``([\w.]+)``$", tl_utils.__doc__, re.M))


@pytest.mark.parametrize("name", tl_utils.__all__)
def test_a_name_is_the_object_of_its_home_and_is_documented(name):
    home = importlib.import_module(f"course_utils.{HOMES[name]}")
    handed_on = getattr(tl_utils, name)
    assert handed_on is getattr(home, name)
    assert handed_on.__module__ == home.__name__ and handed_on.__doc__


def test_the_table_and_all_list_the_same_names():
    assert sorted(HOMES) == sorted(tl_utils.__all__)


def test_it_contains_no_logic():
    tree = ast.parse(Path(tl_utils.__file__).read_text(encoding="utf-8"))
    docstring, *statements, names = tree.body
    assert isinstance(docstring, ast.Expr) and isinstance(names, ast.Assign)
    assert all(isinstance(statement, ast.ImportFrom) for statement in statements)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "confusion"])
def test_the_metrics_of_the_brief_are_in_the_report(metric):
    assert isinstance(getattr(tl_utils.Report, metric).__doc__, str)
