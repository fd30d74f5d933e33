"""How the package hangs together: light import, one-way dependencies, README and Makefile in step."""

import ast
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ftkit

ROOT = Path(__file__).parents[1]
MODULES = {path.stem: path for path in (ROOT / "ftkit").glob("*.py") if not path.stem.startswith("__init__")}
HEAVY = (
    "torch",
    "transformers",
    "unsloth",
    "trl",
    "peft",
    "datasets",
    "matplotlib",
    "ipywidgets",
    "bitsandbytes",
    "numpy",
    "yaml",
)
# The foundation, lowest first: each knows at most those before it.
FOUNDATION = ("errors", "quiet", "hardware", "storage", "config", "runs")
# Names that other people's code relies on.
PROMISED = {
    "clean",
    "colab",
    "config",
    "data",
    "diagnosis",
    "errors",
    "evaluate",
    "generate",
    "hardware",
    "learn",
    "memory",
    "models",
    "plots",
    "preflight",
    "runs",
    "sweep",
    "train",
    "widgets",
}


def imports_of(path: Path) -> set[str]:
    """Names of ftkit's own modules that a module imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "ftkit":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ftkit."):
            found.add(node.module.split(".")[1])
    return found & set(MODULES)


def test_import_is_silent_and_light():
    """`import ftkit` prints nothing and loads nothing heavy."""
    script = (
        f"import ftkit, sys; heavy = [m for m in {HEAVY} if m in sys.modules]; sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_public_module_is_reachable_from_the_package():
    assert PROMISED <= set(ftkit._MODULES) <= set(MODULES)
    assert list(ftkit._MODULES) == sorted(ftkit._MODULES)
    with pytest.raises(AttributeError, match="nothing"):
        _ = ftkit.nothing


def test_dependencies_point_one_way():
    """No module imports one that imports it again, over however many others."""
    list(graphlib.TopologicalSorter({name: imports_of(path) for name, path in MODULES.items()}).static_order())


@pytest.mark.parametrize("name", FOUNDATION)
def test_the_foundation_knows_nobody_above_it(name):
    assert imports_of(MODULES[name]) <= set(FOUNDATION[: FOUNDATION.index(name)])


def test_nothing_stands_on_the_command_line_or_the_form():
    """The command line may open the form; no other module knows either."""
    users = {name for name, path in MODULES.items() if imports_of(path) & {"__main__", "widgets"}}
    assert users <= {"__main__"}


def test_only_models_knows_unsloth():
    """Everywhere else Unsloth's objects are plain Hugging Face objects."""
    knowing = {
        name for name, path in MODULES.items() if re.search(r"^\s*(import|from) unsloth", path.read_text(), re.M)
    }
    assert knowing == {"models"}


def test_readme_commands_are_make_targets():
    makefile = (ROOT / "Makefile").read_text()
    commands = set(
        re.findall(r"`?make ([\w-]+)`?", (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text())
    )
    assert {"quickstart", "test", "lab", "check", "badges"} <= commands
    for command in commands:
        assert re.search(rf"^{command}:", makefile, re.M), command


def test_readme_tree_names_every_module():
    tree = (ROOT / "README.md").read_text().split("## The tree")[1]
    assert [name for name in MODULES if not re.search(rf"\b{name}\b", tree) and name not in {"quiet"}] == []


def test_slug_stands_in_pyproject_and_is_what_notebooks_use():
    slug = re.search(r'Repository = "https://github.com/([^"]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        used = set(
            re.findall(r"github(?:\.com)?/([\w.-]+/[\w.-]+?)(?:/blob|[\"'\s#]|$)", "".join(map(str, sources(path))))
        )
        assert used == {slug}


@pytest.mark.parametrize("command", [["--help"], ["doctor"]])
def test_command_line_answers(command):
    done = subprocess.run([sys.executable, "-m", "ftkit", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command_line_errors_are_one_message():
    done = subprocess.run([sys.executable, "-m", "ftkit", "notebook", "99_none"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("MissingArtifact: No notebook '99_none'")


def sources(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
