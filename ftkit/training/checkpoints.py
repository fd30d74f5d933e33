"""Checkpoints that are complete or absent: sealed with the digest of every file, moved into place last, bounded in number.

The trainer writes into a workshop folder that nobody reads. A finished checkpoint gets a mark that lists its files and
is renamed into `checkpoints/`; a reader believes the mark only after it has compared every digest.
"""

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit import files
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, FtkitWarning, StorageError
from ftkit.files import write_json
from ftkit.runs import Run

MARK = "ftkit.json"

FORMAT = 1

_WORKSHOP = ".partial"


def partial_folder(folder: Path) -> Path:
    """Where the trainer may write half-finished checkpoints; swept before and after a run."""
    return folder / _WORKSHOP


def publish(working: Path, folder: Path, facts: Mapping[str, Any], keep: int) -> Path:
    """Seal a checkpoint that lies in the workshop, move it into `folder`, and remove all but the newest `keep`."""
    seal(working, facts)
    place = folder / working.name
    with files.disk_errors_explained(place):
        if place.exists():  # from an earlier life of this run, refused or overtaken
            shutil.rmtree(place)
        working.rename(place)
    prune(folder, keep)
    return place


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the mark: `facts`, and size and SHA-256 of every file."""
    files = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": digest(p)}
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MARK
    }
    write_json(folder / MARK, {"format": FORMAT, **facts, "files": files})


def problem(folder: Path) -> str | None:
    """Why this checkpoint is not whole, or None where it is."""
    try:
        noted = mark(folder)
        if noted.get("format", 0) > FORMAT:
            raise DataError(
                f"{folder} was written by a newer ftkit (format {noted['format']}). Update ftkit, or choose another run name."
            )
        for name, known in noted.get("files", {}).items():  # marks of format 0 list no files
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != known["bytes"]:
                return f"{name} has {path.stat().st_size:,} of {known['bytes']:,} bytes"
            if digest(path) != known["sha256"]:
                return f"{name} does not have the digest that was recorded for it"
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        return f"its mark {MARK} is missing or damaged"
    return None


def mark(folder: Path) -> dict[str, Any]:
    """What was noted when a checkpoint was sealed."""
    noted: dict[str, Any] = json.loads((folder / MARK).read_text(encoding="utf-8"))
    return noted


def all_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, whole or not, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and p.name.rsplit("-", 1)[1].isdigit()]
    return sorted(found, key=step_of)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint; damaged newer ones are named in a warning and passed over."""
    for place in reversed(all_in(folder)):
        if (why := problem(place)) is None:
            return place
        warnings.warn(f"{place} is not whole ({why}): an older checkpoint is used.", FtkitWarning, stacklevel=2)
    return None


def step_of(checkpoint: Path) -> int:
    """Weight updates behind a checkpoint, from its name."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; a removal that a kill cuts short leaves nothing that looks whole."""
    for old in all_in(folder)[:-keep]:
        remove(old)


def remove(checkpoint: Path) -> None:
    """Take the mark away first, then the rest."""
    (checkpoint / MARK).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill left behind: half-written checkpoints and temporary folders."""
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


def refuse_other(checkpoint: Path, settings: TrainConfig, facts: Mapping[str, str], saved: Path) -> None:
    """Compare what a checkpoint was trained with, and on, to what is wanted now.

    Args:
        checkpoint: a whole one.
        settings: those of now.
        facts: data digest, base model and backend of now.
        saved: the run's `config.yaml`, for marks that hold no settings.

    Raises:
        ConfigError: names every setting or fact that differs.
    """
    noted = mark(checkpoint)
    other = "Go on with the same, start another run, or pass resume=False to start this one afresh."
    then = noted.get("settings")
    try:
        before = TrainConfig.load(saved) if then is None else TrainConfig(**then)
    except (ConfigError, TypeError) as error:
        raise ConfigError(
            f"{checkpoint} was written by a version of ftkit with other settings ({error}). "
            "Go on with that version, start another run, or pass resume=False to start this one afresh."
        ) from error
    changed = [n for n in settings.__dataclass_fields__ if getattr(settings, n) != getattr(before, n)]
    if changed:
        listed = ", ".join(f"{n} ({getattr(before, n)} then, {getattr(settings, n)} now)" for n in changed)
        raise ConfigError(f"{checkpoint} belongs to a run with other settings: {listed}. {other}")
    for fact in ("data_digest", "base_model", "backend"):
        if (past := noted.get(fact, "unknown")) != facts[fact]:
            what = "other data" if fact == "data_digest" else f"another {fact} ({past} then, {facts[fact]} now)"
            raise ConfigError(f"{checkpoint} belongs to a run on {what}. {other}")


def digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_LIGHT = (
    "config.yaml",
    "history.csv",
    "data",
    "adapter",
    "figures",
    "run.json",
)  # run.json last: it says what is finished


@dataclass(frozen=True)
class Mirror:
    """The copy of one run: `folder` must exist, the run gets a folder of its name in it."""

    folder: Path
    name: str

    @classmethod
    def open(cls, folder: str | Path, run: Run) -> "Mirror":
        """The mirror of `run` below `folder`, which is made where only its last part is missing.

        Raises:
            StorageError: the folder is out of reach, cannot be written, or holds the run itself.
        """
        mirror = cls(Path(folder), run.path.name)
        if not mirror.folder.parent.is_dir():
            raise StorageError(
                f"mirror={str(folder)!r}: {mirror.folder.parent} does not exist. Mount the drive or make the folder first."
            )
        if mirror.path.resolve() == run.path.resolve():
            raise StorageError(
                f"mirror={str(folder)!r} is where the run itself lies. Choose a folder on another disk or drive."
            )
        with files.disk_errors_explained(mirror.folder):
            mirror.folder.mkdir(exist_ok=True)
            tempfile.TemporaryFile(dir=mirror.folder).close()
        return mirror

    @property
    def path(self) -> Path:
        """Where the copy lies."""
        return self.folder / self.name

    def push(self, run: Run) -> bool:
        """Bring the copy up to date; whatever an earlier push missed is made up for. Says whether it succeeded."""
        try:
            if not self.folder.is_dir():
                raise StorageError(f"{self.folder} is gone")
            with files.disk_errors_explained(self.path):
                self._push(run)
        except OSError as error:  # a StorageError is one too
            warnings.warn(
                f"The mirror {self.path} is not up to date: {error} Training goes on; the next checkpoint tries again.",
                FtkitWarning,
                stacklevel=2,
            )
            return False
        return True

    def _push(self, run: Run) -> None:
        place = self.path / "checkpoints"
        place.mkdir(parents=True, exist_ok=True)
        remove_leftovers(place)
        files.remove_leftovers(self.path, _LIGHT)
        ours = _sealed(run / "checkpoints")
        for checkpoint in ours:
            copied = _same(checkpoint / MARK, place / checkpoint.name / MARK)
            if not copied and problem(checkpoint) is None:
                _copy(checkpoint, place / checkpoint.name)
        for stale in {p.name for p in _sealed(place)} - {p.name for p in ours}:
            remove(place / stale)
        for name in _LIGHT:
            if (run / name).exists() and not _same(run / name, self.path / name):
                _copy(run / name, self.path / name)

    def restore(self, run: Run) -> bool:
        """Copy back what the run folder has lost: the newest whole checkpoint, where the run's own is older, and its history.

        Returns:
            Whether anything was taken from the mirror.
        """
        with files.disk_errors_explained(run.path):
            if run.finished("train") or not self.path.is_dir():
                return False
            finished = "train" in Run(self.path).facts.get("finished", [])
            theirs, ours = (newest(p / "checkpoints") for p in (self.path, run.path))
            newer = theirs is not None and (ours is None or step_of(theirs) > step_of(ours))
            if not finished and not newer:
                return False
            for place in [theirs, *_sealed(self.path / "checkpoints", "best")] if theirs else []:
                _copy(place, run / "checkpoints" / place.name)
            for name in _LIGHT:
                if (self.path / name).exists():
                    _copy(self.path / name, run / name)
        return True

    def clear(self) -> None:
        """Forget an earlier training, as its run folder does."""
        for checkpoint in _sealed(self.path / "checkpoints"):
            remove(checkpoint)
        for name in _LIGHT:
            _remove(self.path / name)


def _sealed(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(mark.parent for mark in folder.glob(f"{pattern}/{MARK}"))


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder under a temporary name, compare every digest, and only then give it its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        copy = working / target.name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy)
        if not _same(source, copy):
            raise StorageError(f"{copy.name} came out different from what was written.")
        if target.is_dir():  # a checkpoint of the same name from an earlier life, or an older adapter
            target.rename(working / "old")
        copy.rename(target)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _same(source: Path, copy: Path) -> bool:
    """Whether both hold the same files with the same content."""
    left, right = (_files(p) for p in (source, copy))
    return left.keys() == right.keys() and all(_equal(left[name], right[name]) for name in left)


def _equal(a: Path, b: Path) -> bool:
    return a.stat().st_size == b.stat().st_size and digest(a) == digest(b)


def _files(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {"": path}
    found: Iterable[Path] = path.rglob("*") if path.is_dir() else ()
    return {str(p.relative_to(path)): p for p in found if p.is_file()}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
