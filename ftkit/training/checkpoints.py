"""Checkpoints that are complete or absent: sealed with the digest of every file, moved into place last, and few.

The trainer writes into a folder that nobody reads. A finished checkpoint is sealed (`files.seal`) and renamed into
`checkpoints/`; a reader believes it only after it has compared every digest. One without a seal is somebody else's: it
is moved aside. A `Mirror` is a second copy of a run, under the same seals. What is inside the files is not looked at.
"""

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit import files
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitWarning, StorageError
from ftkit.files import problem as problem
from ftkit.runs import Run

# What a mirror holds beside checkpoints; run.json comes last, since it says what is finished.
_LIGHT = ("config.yaml", "history.csv", "data", "figures", "adapter", "run.json")

# What a run must have in common with the one that it goes on from, and how a difference is told.
_FACTS = {
    "data_digest": "other data",
    "base_model": "another base_model",
    "backend": "another backend",
    "base_weights": "other weights of the base model, under the same name",
    "token_digest": "other tokens or labels, of another chat template or tokenizer",
    "init_from": "another adapter to begin with",
    "processes": "another number of processes, so other batches",
}
_BEFORE = {"init_from": "none", "processes": 1}  # what a mark without these facts means


def partial_folder(folder: Path) -> Path:
    """Where the trainer may write half-finished checkpoints; emptied before and after a run."""
    return folder / f".partial{files.TEMPORARY}"


def publish(working: Path, folder: Path, facts: Mapping[str, Any], keep: int) -> Path:
    """Seal a checkpoint that the trainer has written, move it into `folder`, and remove all but the newest `keep`."""
    files.seal(working, facts)
    place = folder / working.name
    with files.disk_errors_explained(place):
        if place.exists():  # from an earlier life of this run, refused or overtaken
            remove(place)
        working.rename(place)
    for old in all_in(folder)[:-keep]:
        remove(old)
    return place


def mark(folder: Path) -> dict[str, Any]:
    """What was noted when a checkpoint was sealed."""
    return files.noted(folder) or {}


def all_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, whole or not, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and p.name.removeprefix("checkpoint-").isdecimal()]
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


def remove(place: Path) -> None:
    """Take a sealed folder out of sight with one rename, then delete it: a kill in between leaves no half checkpoint.

    One without a seal, with files that its seal does not list, or behind a link was not written here: it is renamed.
    """
    if files.noted(place) and not files.strangers(place):
        hidden = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.", suffix=files.TEMPORARY))
        place.rename(hidden / place.name)
        shutil.rmtree(hidden, ignore_errors=True)
        return
    aside, number = place.with_name(f"{place.name}.not-ours"), 1
    while aside.exists() or aside.is_symlink():
        number += 1
        aside = place.with_name(f"{place.name}.not-ours-{number}")
    place.rename(aside)
    warnings.warn(
        f"{place} is in the way and holds what ftkit did not write (or its {files.SEAL} is lost): it is kept as "
        f"{aside.name}. Delete it when you do not need it.",
        FtkitWarning,
        stacklevel=3,
    )


def refuse_other(checkpoint: Path, settings: TrainConfig, facts: Mapping[str, Any], saved: Path) -> None:
    """Compare what a checkpoint was trained with, and on, to what is wanted now.

    Args:
        checkpoint: a whole one.
        settings: those of now.
        facts: digests of data, tokens and base weights, base model and backend of now.
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
    for fact, what in _FACTS.items():
        past = noted.get(fact, _BEFORE.get(fact, "not recorded"))
        if past != (wanted := facts.get(fact, _BEFORE.get(fact))):
            raise ConfigError(f"{checkpoint} belongs to a run on {what} ({past} then, {wanted} now). {other}")


@dataclass(frozen=True)
class Mirror:
    """The copy of one run: `folder` must exist, the run gets a folder of its name in it."""

    folder: Path
    name: str

    @classmethod
    def open(cls, folder: str | Path, run: Run) -> "Mirror":
        """The mirror of `run` below `folder`, which is made where only its last part is missing.

        Raises:
            StorageError: the folder is out of reach, cannot be written, lies within the run or around it, or holds a
                folder of the run's name that ftkit did not make.
        """
        mirror, asked = cls(Path(folder), run.path.resolve().name), f"mirror={str(folder)!r}"
        above = mirror.folder.parent
        if not above.is_dir():
            raise StorageError(f"{asked}: {above} does not exist. Mount the drive or make the folder first.")
        within, home = mirror.folder.resolve(), run.path.resolve()
        if within == home.parent:
            raise StorageError(f"{asked} is where the run itself lies. Choose a folder on another disk or drive.")
        if within.is_relative_to(home) or home.is_relative_to(within):
            raise StorageError(
                f"{asked} and the run {run.path} lie within each other. Choose a folder on another disk or drive."
            )
        with files.disk_errors_explained(mirror.folder):
            mirror.folder.mkdir(exist_ok=True)
        Run.create(mirror.name, mirror.folder).refuse_foreign()
        return mirror

    @property
    def path(self) -> Path:
        """Where the copy lies."""
        return self.folder / self.name

    def push(self, run: Run) -> bool:
        """Bring the copy up to date; whatever an earlier push missed is made up for. Says whether it succeeded."""
        try:
            if not self.folder.is_dir():  # never made anew: on Colab that would write beside the unmounted drive
                raise StorageError(f"{self.folder} is gone.")
            Run.create(self.name, self.folder).refuse_foreign()
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
        place.mkdir(exist_ok=True)
        for swept in (self.path, place, self.path / "data", self.path / "figures"):
            files.remove_leftovers(swept)
        ours = _sealed(run / "checkpoints")
        for checkpoint in ours:
            copied = _same(checkpoint / files.SEAL, place / checkpoint.name / files.SEAL)
            if not copied and problem(checkpoint) is None:
                _copy(checkpoint, place / checkpoint.name)
        for stale in {p.name for p in _sealed(place)} - {p.name for p in ours}:
            remove(place / stale)
        _copy_light(run.path, self.path)

    def restore(self, run: Run) -> bool:
        """Copy back what the run folder has lost: the newest whole checkpoint, where its own is older, and its history.

        Returns:
            Whether anything was taken from the mirror.
        """
        with files.disk_errors_explained(run.path):
            if run.finished("train"):
                return False
            theirs, ours = (newest(place / "checkpoints") for place in (self.path, run.path))
            newer = theirs is not None and (ours is None or step_of(theirs) > step_of(ours))
            if not newer and not Run(self.path).finished("train"):
                return False
            for place in [theirs, *_sealed(self.path / "checkpoints", "best")] if theirs else []:
                _copy(place, run / "checkpoints" / place.name)
            _copy_light(self.path, run.path)
        return True

    def clear(self) -> None:
        """Forget an earlier training, as its run folder does; the rest is replaced by the first push."""
        for place in [*_sealed(self.path / "checkpoints"), *_sealed(self.path, "adapter")]:
            remove(place)
        (self.path / "run.json").unlink(missing_ok=True)


def _sealed(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(place for place in folder.glob(pattern) if files.noted(place) is not None)


def _copy_light(source: Path, target: Path) -> None:
    """Copy what is small: an adapter as a whole, all else file by file, so that a stranger's file is never replaced."""
    for name in _LIGHT:
        whole = [source / name] if name == "adapter" else _below(source / name)
        for path in whole:
            copy = target / path.relative_to(source)
            if path.exists() and not _same(path, copy):
                _copy(path, copy)


def _below(path: Path) -> Iterator[Path]:
    """The file itself, or every file in a folder; links are left out."""
    for found in files.inside(path).values():
        if not found.is_symlink() and not found.name.endswith(files.TEMPORARY):
            yield found


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder under a temporary name, compare every digest, and only then give it its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=files.TEMPORARY))
    try:
        copy = working / target.name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy)
        if not _same(source, copy):
            raise StorageError(f"{copy.name} came out different from what was written.")
        if target.is_dir():  # a checkpoint of the same name from an earlier life, or an older adapter
            remove(target)
        copy.rename(target)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _same(source: Path, copy: Path) -> bool:
    """Whether both hold the same files with the same content; sizes are compared first, since they cost nothing."""
    left, right = files.inside(source), files.inside(copy)
    sizes = [{name: path.stat().st_size for name, path in found.items()} for found in (left, right)]
    return sizes[0] == sizes[1] and all(files.digest(left[name]) == files.digest(right[name]) for name in left)
