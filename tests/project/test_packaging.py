"""The files of the project agree with one another, and the packages keep their promises."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PACKAGES = ("course_utils", "course_tools")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CONDA_NAMES = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "jupyter-client": "jupyter_client",
    "huggingface-hub": "huggingface_hub",
}
# fit_overhead.py measures ours beside these two, in an environment that has them.
NOT_INSTALLED = {"fastai", "lightning"}
DISTRIBUTIONS = packages_distributions()


def names(requirements):
    """Normalised names of requirements, without versions and extras."""
    return {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line).group()).lower() for line in requirements}


REQUIRED = names(PROJECT["project"]["dependencies"])
FOR_TESTS = names(PROJECT["project"]["optional-dependencies"]["test"])


def pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_environment_yml_is_in_step_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    conda = {line for line in environment["dependencies"] if isinstance(line, str)}
    (by_pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert "-e ." in by_pip
    python = next(line for line in conda if line.startswith("python="))
    assert python.removeprefix("python=") in {"3.11", "3.12", "3.13"}
    given = conda - {python, "pip"} | set(by_pip) - {"-e ."}
    assert given == {CONDA_NAMES.get(name, name) for name in REQUIRED | FOR_TESTS}


def test_constraints_pin_every_direct_dependency_exactly():
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in pinned())
    assert names(pinned()) >= REQUIRED | FOR_TESTS


def test_constraints_name_each_package_once_in_order():
    assert pinned() == sorted(set(pinned()), key=lambda line: line.partition("==")[0])


def test_constraints_leave_out_what_only_one_system_has():
    systems = re.compile(r"nvidia-|cuda-|triton|pywin|colorama|appnope")
    assert not [line for line in pinned() if systems.match(line)]


def test_constraints_satisfy_the_lower_bounds():
    def numbers(version):
        return [int(n) for n in re.findall(r"\d+", version)]

    exact = dict(line.split("==") for line in pinned())
    for line in PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["test"]:
        name, bound = line.split(">=")
        assert numbers(exact[name]) >= numbers(bound), line


def imported(*folders):
    """Map each imported package that is neither standard library nor the project's own to the files that import it."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    own = {*PACKAGES, *(file.stem for folder in ("tests", "benchmarks") for file in (ROOT / folder).rglob("*.py"))}
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in {module.partition(".")[0] for module in modules} - own - set(sys.stdlib_module_names):
                found.setdefault(name, set()).add(file.name)
    return found


def distributions(import_name):
    """Normalised names of the distributions that an import comes from."""
    return names(DISTRIBUTIONS.get(import_name, [import_name]))


def test_everything_that_the_packages_import_is_a_dependency():
    undeclared = {name: files for name, files in imported(*PACKAGES).items() if not distributions(name) & REQUIRED}
    assert undeclared == {}


def test_everything_that_tests_and_scripts_import_is_declared():
    found = imported("tests", "benchmarks", "appendix")
    assert {name for name in found if not distributions(name) & (REQUIRED | FOR_TESTS)} <= NOT_INSTALLED
    assert all(found[name] <= {"fit_overhead.py", "alternatives.py"} for name in NOT_INSTALLED)


def test_an_undeclared_import_would_be_found():
    assert {"torch", "PIL", "sklearn"} <= imported(*PACKAGES).keys()
    assert distributions("PIL") == {"pillow"} and distributions("sklearn") == {"scikit-learn"}
    assert not distributions("a_package_that_nobody_has") & (REQUIRED | FOR_TESTS)


# --- the house ---------------------------------------------------------------------------------------------------


def test_imports_keep_to_the_walls():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "Contracts: 3 kept, 0 broken." in done.stdout


def test_the_lesson_has_few_rooms():
    assert len(list((ROOT / "course_utils").glob("*.py"))) <= 16


def test_the_training_loop_is_a_short_file():
    assert len((ROOT / "course_utils" / "training.py").read_text(encoding="utf-8").splitlines()) < 300


# --- what is installed -------------------------------------------------------------------------------------------


def test_installed_versions_are_found_by_name():
    assert PROJECT["project"]["scripts"] == {"course": "course_tools.cli:main"}
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "course_utils.__version__"}


def test_package_data_patterns_cover_every_file_of_the_package():
    data = PROJECT["tool"]["setuptools"]["package-data"]
    packed = {
        path for name, patterns in data.items() for p in patterns for path in (ROOT / name.replace(".", "/")).glob(p)
    }
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    present = {p for p in files if p.suffix not in (".py", ".pyc") and p.name[0] != "."}
    assert present == packed


def test_package_is_small():
    files = [p for p in (ROOT / "course_utils").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(path.stat().st_size for path in files) < 12_000_000


def test_importing_the_package_imports_no_torch():
    code = "import sys, course_utils; print(course_utils.__version__, 'torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == ["False", "False"]


def public_definitions(tree):
    """Public functions, classes, and their public methods, with their names."""
    waiting = [(node.name, node) for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    while waiting:
        name, node = waiting.pop()
        if name.rpartition(".")[2].startswith("_"):
            continue
        yield name, node
        if isinstance(node, ast.ClassDef):
            waiting += [(f"{name}.{n.name}", n) for n in node.body if isinstance(n, ast.FunctionDef)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_public_is_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert [name for name, node in public_definitions(tree) if not ast.get_docstring(node)] == []


def test_settings_of_jupyterlab_are_valid_json():
    settings = json.loads((ROOT / "course_tools" / "lab" / "overrides.json").read_text(encoding="utf-8"))
    assert settings["@jupyterlab/docmanager-extension:plugin"]["defaultViewers"] == {"markdown": "Markdown Preview"}


def test_licence_and_version():
    assert "MIT License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "MIT"
    assert PROJECT["project"]["requires-python"] == ">=3.11"
