"""A second copy of a run in another folder (Google Drive, another disk), read back after each write.

A mirror never stops a training: where it vanishes or fills up, a warning says so and the next checkpoint tries again.
"""

import shutil
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ftkit import checkpoints, storage
from ftkit.errors import FtkitWarning, StorageError
from ftkit.runs import Run

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
        with storage.explained(mirror.folder):
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
            with storage.explained(self.path):
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
        checkpoints.sweep(place)
        storage.sweep(self.path, _LIGHT)
        ours = _sealed(run / "checkpoints")
        for checkpoint in ours:
            copied = _same(checkpoint / checkpoints.MARK, place / checkpoint.name / checkpoints.MARK)
            if not copied and checkpoints.problem(checkpoint) is None:
                _copy(checkpoint, place / checkpoint.name)
        for stale in {p.name for p in _sealed(place)} - {p.name for p in ours}:
            checkpoints.remove(place / stale)
        for name in _LIGHT:
            if (run / name).exists() and not _same(run / name, self.path / name):
                _copy(run / name, self.path / name)

    def restore(self, run: Run) -> bool:
        """Copy back what the run folder has lost: the newest whole checkpoint, where the run's own is older, and its history.

        Returns:
            Whether anything was taken from the mirror.
        """
        with storage.explained(run.path):
            if run.finished("train") or not self.path.is_dir():
                return False
            finished = "train" in Run(self.path).facts.get("finished", [])
            theirs, ours = (checkpoints.newest(p / "checkpoints") for p in (self.path, run.path))
            newer = theirs is not None and (ours is None or checkpoints.step_of(theirs) > checkpoints.step_of(ours))
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
            checkpoints.remove(checkpoint)
        for name in _LIGHT:
            _remove(self.path / name)


def _sealed(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(mark.parent for mark in folder.glob(f"{pattern}/{checkpoints.MARK}"))


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
    return a.stat().st_size == b.stat().st_size and checkpoints.digest(a) == checkpoints.digest(b)


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
