"""The folder that notebooks share: whatever a later step needs is a file in it.

A run survives being killed at any moment: files are written under temporary names and renamed, and `run.json`,
which lists the finished steps, is written after everything that a step leaves behind. A run folder carries a mark from
its birth: in a folder without it nothing is overwritten or removed.
"""

import functools
import json
import os
import platform
import re
import shutil
import tempfile
import time
import unicodedata
import warnings
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path, PureWindowsPath
from typing import Any, Self

from ftkit import files, tables
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, FtkitWarning, MissingArtifact, StorageError, without_secrets

FORMAT = 1

MARK = ".ftkit-run"

# What steps write into a run folder: none of it may be a link to a place outside.
_OWN = ("checkpoints", "data", "adapter", "eval", "figures", "tensorboard", "config.yaml", "history.csv", "run.json")

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # a drive may belong to Windows

_WRITTEN_BY = {
    "config.yaml": "training.train",
    "data": "training.train (notebook 00_quickstart or 07_data)",
    "adapter": "training.train (notebook 00_quickstart or 09_train)",
    "checkpoints": "training.train with save_steps",
    "history.csv": "training.train (notebook 00_quickstart or 09_train)",
    "eval/verdict.json": "python -m ftkit evaluate RUN --gate (notebook 12_regression)",
    "eval": "evaluation.evaluate (notebook 00_quickstart or 11_evaluate)",
    "figures": "the notebook's plot cells",
    "export": "python -m ftkit export RUN gguf",
    "MODEL_CARD.md": "publishing.model_card (notebook 13_publish)",
    "run.json": "the first finished step",
}

_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "unsloth", "ftkit")


@dataclass(frozen=True)
class Run:
    """One run folder; see the layout in the README. Nothing is cached: the disk is the truth."""

    path: Path

    @classmethod
    def create(cls, name: str | None = None, root: str | Path | None = None) -> Self:
        """Make `root/name`; an existing run of that name is continued, not emptied.

        A name is that of one folder; before it may stand folders that are there already, as in `"study/first"`.
        Without a name the folder is called after the moment. Without a root: `$FTKIT_RUN_ROOT`, Google Drive when it
        is mounted on Colab, else `runs`.

        Raises:
            ConfigError: the name is not that of one folder.
            StorageError: the root cannot be written, or a folder that ftkit did not make stands there.
        """
        root = Path(root) if root is not None else default_root()
        name = time.strftime("%Y%m%d-%H%M%S") if name is None else name
        if why := _no_name(name, root):
            raise ConfigError(
                f"{str(name)[:60]!r} is no name of a run: {why}. A run is one folder below its root, such as "
                f"'invoices-2'; root={str(root)!r} says where."
            )
        run = cls(root / name)
        with files.disk_errors_explained(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
            if any(run.path.iterdir()):
                run._refuse_unmarked()
            else:
                (run / MARK).touch()  # first of all, so that another process never sees a file without it
            tempfile.TemporaryFile(dir=run.path).close()  # can it be written?
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing run folder.

        Raises:
            MissingArtifact: no such folder; names the runs that stand beside it.
        """
        path = Path(path)
        if not path.is_dir():
            beside = sorted(p.name for p in path.parent.glob("*") if (p / "run.json").exists())
            there = f"There are: {', '.join(beside)}." if beside else f"{path.parent} holds no runs yet."
            raise MissingArtifact(f"{path} is no run folder. {there} Run.sample() gives a finished one.")
        return cls(path)

    @classmethod
    def sample(cls) -> Self:
        """A small finished run that comes with the package, read-only by custom: a start without training."""
        return cls(Path(str(resources.files("ftkit").joinpath("samples/run"))))

    def refuse_foreign(self) -> None:
        """Stand before every step that replaces or removes what is in the folder.

        Raises:
            StorageError: ftkit did not make the folder, or something in it is a link to another place.
        """
        self._refuse_unmarked()
        if links := [name for name in (*_OWN, ".lock", ".soft-lock") if (self / name).is_symlink()]:
            raise StorageError(
                f"{self / links[0]} is a link. A run keeps to its own folder: remove the link, and choose the root of "
                "the run where there is room."
            )

    def _refuse_unmarked(self) -> None:
        if (self / MARK).is_file():
            return
        try:
            if "ftkit" in self.facts.get("versions", {}):  # earlier versions set no mark
                return
        except (DataError, TypeError, OSError):
            pass
        raise StorageError(
            f"{self.path} holds files, and ftkit did not make it: they might be overwritten. Choose another run name, "
            "or move them away."
        )

    def __truediv__(self, name: str) -> Path:
        """The path of a file in the run, whether or not it is there yet."""
        return self.path / name

    def require(self, name: str) -> Path:
        """The path of a file or folder that must be there.

        Raises:
            MissingArtifact: says which step writes it.
        """
        path = self.path / name
        if path.exists():
            return path
        writer = _WRITTEN_BY.get(name) or _WRITTEN_BY.get(name.split("/")[0], "an earlier step")
        raise MissingArtifact(
            f"{self.path} has no {name}. It is written by {writer}; run that first, or start from Run.sample()."
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says: `finished` steps in order, versions, each step's own facts. Empty before the first."""
        path = self.path / "run.json"
        if not path.exists():
            return {}
        try:
            facts: Any = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of 5,000 digits
            raise DataError(
                f"{path} is damaged ({error}). Delete it; the step that wrote it can be run again."
            ) from error
        if (
            not isinstance(facts, dict)
            or not isinstance(facts.get("format", FORMAT), int)
            or not isinstance(facts.get("finished", []), list)
        ):
            raise DataError(
                f"{path} does not look as ftkit writes it. Delete it; the steps that it listed can be run again."
            )
        if facts.get("format", FORMAT) > FORMAT:
            raise DataError(
                f"{path} was written by a newer ftkit (format {facts['format']}, this one reads {FORMAT}). "
                "Upgrade ftkit."
            )
        return dict(facts)

    def finish(self, step: str, **facts: Any) -> None:
        """Mark a step as done, with what is known of it. Call it after the step's files are written."""
        known = self.facts
        done = [name for name in known.get("finished", []) if name != step] + [step]
        merged = known | {"format": FORMAT, "finished": done, "versions": versions(), step: facts}
        if (self / "run.json").exists():
            self._refuse_unmarked()
        self._write(merged)

    def reopen(self, step: str) -> None:
        """Take back the mark of a step that is about to run again."""
        known = self.facts
        if step in known.get("finished", []):
            known["finished"].remove(step)
            known.pop(step, None)
            self._write(known)

    def _write(self, facts: dict[str, Any]) -> None:
        text = json.dumps(facts, indent=2, ensure_ascii=False)
        files.write_text(self.path / "run.json", without_secrets(text) + "\n")

    def finished(self, step: str) -> bool:
        """Whether a step has been marked as done."""
        return step in self.facts.get("finished", [])

    @staticmethod
    def compare(a: "Run", b: "Run") -> dict[str, tuple[Any, Any]]:
        """Settings and facts in which two runs differ, as `{name: (in a, in b)}`; versions are among them.

        Runs of other versions are told in a warning: what differs may be the library, and not the settings.
        """
        old, new = (run.facts.get("versions", {}) for run in (a, b))
        if old and new and (other := [name for name in _PACKAGES if old.get(name) != new.get(name)]):
            listed = ", ".join(f"{name} {old.get(name, 'absent')} and {new.get(name, 'absent')}" for name in other)
            warnings.warn(
                f"{a.path.name} and {b.path.name} were made with other versions ({listed}): what differs between them "
                "may come from there.",
                FtkitWarning,
                stacklevel=2,
            )
        left, right = a._flat(), b._flat()
        return {k: (left.get(k), right.get(k)) for k in sorted(left | right) if left.get(k) != right.get(k)}

    def _flat(self) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        if (self.path / "config.yaml").exists():
            config = TrainConfig.load(self.path / "config.yaml")
            flat |= {name: getattr(config, name) for name in config.__dataclass_fields__}
        for section, value in self.facts.items():
            flat |= {f"{section}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {section: value}
        return flat

    def __str__(self) -> str:
        done = ", ".join(map(str, self.facts.get("finished", []))) or "nothing finished yet"
        return tables.visible(f"{self.path} ({done})")

    def _repr_html_(self) -> str:
        """Every file with its size; a run inside of this one, such as a search and its trials, is one row."""
        own = [path for path in sorted(self.path.rglob("*")) if path.is_file() and not path.name.startswith(".")]
        listed = [path for path in own if "checkpoints" not in path.parts]
        inner = {path.parent for path in listed if path.name == "run.json" and path.parent != self.path}
        sizes: dict[str, list[int]] = {}
        for path in listed:
            run = next((folder for folder in reversed(path.parents) if folder in inner), None)
            name = f"{run.relative_to(self.path)}/" if run else str(path.relative_to(self.path))
            sizes.setdefault(name, []).append(path.stat().st_size)
        rows = [(f"{n} ({len(of)} files)" if n.endswith("/") else n, _size(sum(of))) for n, of in sizes.items()]
        return tables.Table(("file", "size"), rows, caption=f"Run {self.path}")._repr_html_()


def remove(path: Path) -> None:
    """Delete a run folder; one without ftkit's mark, or a link to one, stays."""
    if (path / MARK).is_file() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)


def _no_name(name: Any, root: Path) -> str | None:
    """Why this cannot be the name of a run's folder, on this system or on the drive of another one."""
    if not isinstance(name, str) or not name.strip():
        return "it is empty" if isinstance(name, str) else "it is no text"
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in name):
        return "it has control characters"
    *above, last = name.split("/")
    if PureWindowsPath(last).name != last or any(part in ("", ".", "..") for part in (*above, last)):
        return "it leads to another folder"
    if len(name.encode()) > 150:
        return "it is longer than 150 bytes"
    if last[0] in ". -" or last[-1] in ". ":
        return "it begins with a dot, a space or a dash, or ends with a dot or a space"
    if _RESERVED.fullmatch(last):
        return "Windows reserves it for a device"
    folder = root.joinpath(*above).resolve()
    if above and not (folder.is_dir() and folder.is_relative_to(root.resolve())):
        return f"there is no folder {'/'.join(above)} in its root"
    return None


def default_root() -> Path:
    """Where runs go: `$FTKIT_RUN_ROOT`, Google Drive when mounted on Colab, else `runs` beside `notebooks`."""
    if named := os.environ.get("FTKIT_RUN_ROOT"):
        return Path(named)
    drive = Path("/content/drive/MyDrive")
    if drive.is_dir():
        return drive / "ftkit-runs"
    return Path("../runs") if Path.cwd().name == "notebooks" else Path("runs")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run does; a missing package is left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = _version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache  # a process keeps what it has imported; a package that is missing raises, and is asked for again
def _version(package: str) -> str:
    return metadata.version(package)


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
