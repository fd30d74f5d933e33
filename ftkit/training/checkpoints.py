"""Checkpoints that are complete or absent: sealed with the digest of every file, moved into place last, and few.

The trainer writes into a folder that nobody reads. A finished checkpoint gets a mark that lists its files and is
renamed into `checkpoints/`; a reader believes the mark only after it has compared every digest. A `Mirror` is a second
copy of a run, under the same seal. What is inside the files is not looked at here.
"""

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit import files
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, FtkitWarning, StorageError
from ftkit.runs import Run

MARK = "ftkit.json"
FORMAT = 1

# What a mirror holds beside checkpoints; run.json comes last, since it says what is finished.
_LIGHT = ("config.yaml", "history.csv", "data", "adapter", "figures", "run.json")


def partial_folder(folder: Path) -> Path:
    """Where the trainer may write half-finished checkpoints; emptied before and after a run."""
    return folder / ".partial"


def publish(working: Path, folder: Path, facts: Mapping[str, Any], keep: int) -> Path:
    """Seal a checkpoint that the trainer has written, move it into `folder`, and remove all but the newest `keep`."""
    seal(working, facts)
    place = folder / working.name
    with files.disk_errors_explained(place):
        if place.exists():  # from an earlier life of this run, refused or overtaken
            remove(place)
        working.rename(place)
    for old in all_in(folder)[:-keep]:
        remove(old)
    return place


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the mark: `facts`, and size and SHA-256 of every file."""
    listed = {
        name: {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for name, path in _files(folder).items()
        if name != MARK
    }
    files.write_json(folder / MARK, {"format": FORMAT, **facts, "files": listed})


def problem(folder: Path) -> str | None:
    """Why this checkpoint is not whole, or None where it is."""
    try:
        noted = mark(folder)
        _refuse_newer(folder, noted.get("format", 0))
        for name, known in noted.get("files", {}).items():  # marks of format 0 list no files
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != known["bytes"]:
                return f"{name} has {path.stat().st_size:,} of {known['bytes']:,} bytes"
            if _digest(path) != known["sha256"]:
                return f"{name} does not have the digest that was recorded for it"
    except DataError:
        raise
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return f"its mark {MARK} is missing or damaged"
    return None


def _refuse_newer(folder: Path, version: int) -> None:
    if version > FORMAT:
        raise DataError(
            f"{folder} was written by a newer ftkit (format {version}). Update ftkit, or choose another run name."
        )


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


def remove(checkpoint: Path) -> None:
    """Take it out of sight with one rename, then delete it: a kill in between leaves no half checkpoint."""
    hidden = checkpoint.with_name(f".{checkpoint.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


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
        mirror, asked = cls(Path(folder), run.path.name), f"mirror={str(folder)!r}"
        above = mirror.folder.parent
        if not above.is_dir():
            raise StorageError(f"{asked}: {above} does not exist. Mount the drive or make the folder first.")
        if mirror.path.resolve() == run.path.resolve():
            raise StorageError(f"{asked} is where the run itself lies. Choose a folder on another disk or drive.")
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
            if not self.folder.is_dir():  # never made anew: on Colab that would write beside the unmounted drive
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
        """Copy back what the run folder has lost: the newest whole checkpoint, where its own is older, and its history.

        Returns:
            Whether anything was taken from the mirror.
        """
        with files.disk_errors_explained(run.path):
            if run.finished("train") or not self.path.is_dir():
                return False
            theirs, ours = (newest(place / "checkpoints") for place in (self.path, run.path))
            newer = theirs is not None and (ours is None or step_of(theirs) > step_of(ours))
            if not newer and not Run(self.path).finished("train"):
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
            shutil.rmtree(self.path / name, ignore_errors=True)  # leaves a file where it is
            if (self.path / name).is_file():
                (self.path / name).unlink()


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
    """Whether both hold the same files with the same content; sizes are compared first, since they cost nothing."""
    sizes = [{name: path.stat().st_size for name, path in _files(place).items()} for place in (source, copy)]
    if sizes[0] != sizes[1]:
        return False
    left, right = _files(source), _files(copy)
    return all(_digest(left[name]) == _digest(right[name]) for name in left)


def _files(path: Path) -> dict[str, Path]:
    """Every file below `path` under its relative name; a file itself is called "."."""
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p for p in found}


def _digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
