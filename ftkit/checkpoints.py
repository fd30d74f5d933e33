"""Checkpoints that are complete or absent: sealed with the digest of every file, moved into place last, bounded in number.

The trainer writes into a workshop folder that nobody reads. A finished checkpoint gets a mark that lists its files and
is renamed into `checkpoints/`; a reader believes the mark only after it has compared every digest.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftkit import storage
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, FtkitWarning

MARK = "ftkit.json"
FORMAT = 1
_WORKSHOP = ".partial"


def workshop(folder: Path) -> Path:
    """Where the trainer may write half-finished checkpoints; swept before and after a run."""
    return folder / _WORKSHOP


def publish(working: Path, folder: Path, facts: Mapping[str, Any], keep: int) -> Path:
    """Seal a checkpoint that lies in the workshop, move it into `folder`, and remove all but the newest `keep`."""
    seal(working, facts)
    place = folder / working.name
    with storage.explained(place):
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
    storage.write_json(folder / MARK, {"format": FORMAT, **facts, "files": files})


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


def sweep(folder: Path) -> None:
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
