"""Where an export goes, by free space, and the record of what was exported: `export.json` in its folder.

Nothing is written here over a file that the record does not know, or that was changed since.
"""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from ftkit import files, models
from ftkit.errors import ConfigError, FtkitWarning, ModelError, StorageError
from ftkit.hardware import GIB
from ftkit.runs import Run

RECORD = "export.json"
MERGED = "merged"
EXPORT = "export"
_MARGIN = 1.05  # what a file has beside its weights, and what others write meanwhile


def candidates(source: Run | Path, out: str | Path | None) -> list[Path]:
    """Folders where the export of a run, or of an adapter's folder, may stand; the first with room is taken."""
    if out is not None:
        return [Path(out)]
    path = source.path if isinstance(source, Run) else source
    if path.resolve().is_relative_to(Run.sample().path.resolve()):
        raise ConfigError(
            "The sample run belongs to the installed package, and nothing is written there. Name a folder of your "
            "own: out='exports/sample', or --out exports/sample."
        )
    beside = path / EXPORT if isinstance(source, Run) else path.parent / EXPORT
    return [beside, models.cache_root() / "exports" / path.resolve().name]


def with_room(folders: list[Path], needed: float, what: str) -> Path:
    """The first folder whose disk has room for so many bytes; a warning says where another than the first was taken.

    Raises:
        StorageError: none has; names each with its free space. Nothing has been written.
    """
    needed *= _MARGIN
    free = {folder: _free(folder) for folder in folders}
    roomy = next((folder for folder in folders if free[folder] >= needed), None)
    told = "; ".join(f"{folder} has {size / GIB:.2f} GiB free" for folder, size in free.items())
    if roomy is None:
        raise StorageError(
            f"No room for {what}: it needs {needed / GIB:.2f} GiB, and {told}. Nothing was written. Free some space, "
            "or name a folder on another disk with out=… (--out)."
        )
    if roomy != folders[0]:
        warnings.warn(f"{what} needs {needed / GIB:.2f} GiB, and {told}: it goes to {roomy}.", FtkitWarning, 3)
    return roomy


def _free(folder: Path) -> int:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with files.disk_errors_explained(folder):
        return shutil.disk_usage(there).free


def record(folder: Path) -> dict[str, dict[str, Any]]:
    """What was exported to a folder, by file name; empty where nothing was, or where the record cannot be read."""
    try:
        known = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: facts for name, facts in known.items() if isinstance(facts, dict)} if isinstance(known, dict) else {}


def note(folder: Path, name: str, **facts: Any) -> None:
    """Add to the record what is known of a file or folder in it."""
    known = record(folder)
    files.write_json(folder / RECORD, known | {name: known.get(name, {}) | facts})


def put(made: Path, target: Path, **facts: Any) -> None:
    """Move a file to its place and into the record, of which a kill at any moment leaves the one that fits.

    Raises:
        StorageError: another file stands there, which ftkit did not write or somebody has changed since.
    """
    refuse_foreign(target)
    known = {"sha256": files.digest(made), "bytes": made.stat().st_size, **facts}
    target.unlink(missing_ok=True)
    files.write_json(target.parent / RECORD, record(target.parent) | {target.name: known})
    made.replace(target)


def is_as_recorded(path: Path, **facts: Any) -> bool:
    """Whether a file stands there with the recorded digest, and the record says these facts of it."""
    known = record(path.parent).get(path.name, {})
    if not path.is_file() or any(known.get(name) != value for name, value in facts.items()):
        return False
    return bool(known.get("bytes") == path.stat().st_size and known.get("sha256") == files.digest(path))


def refuse_foreign(path: Path) -> None:
    """Let no file be replaced that was not exported here, or that somebody has changed since.

    Raises:
        StorageError: names it.
    """
    if path.is_symlink() or path.exists():
        whole = path.is_file() and not path.is_symlink()
        if not (whole and record(path.parent).get(path.name, {}).get("sha256") == files.digest(path)):
            raise StorageError(
                f"{path} would be replaced, and it is not as ftkit wrote it. Move it away, or name another folder."
            )


def refuse_tampered(folder: Path, again: str) -> None:
    """Take nothing from a sealed folder whose files are not as they were written; one without a seal is somebody's own.

    Raises:
        ModelError: names the file and how to make it again.
    """
    if files.noted(folder) is not None and (why := files.problem(folder)):
        raise ModelError(f"{folder} is not as it was written: {why}. {again}")
