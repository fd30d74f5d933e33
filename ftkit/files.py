"""Files and folders that appear whole or not at all, and of which only our own are ever replaced or removed.

Everything is written under a temporary name and then renamed. A folder gets a seal that lists its files with their
digests: what carries none, or holds a file that its seal does not list, was not written here and is left alone.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from ftkit.errors import DataError, FtkitError, StorageError

SEAL = "ftkit.json"  # of a checkpoint
HIDDEN = ".ftkit.json"  # of a folder that other programs read
FORMAT = 1
TEMPORARY = ".ftkit-tmp"  # how every temporary name ends; it begins with a dot


def sample(name: str) -> Any:
    """What a JSON file among the bundled samples holds."""
    return json.loads(resources.files("ftkit").joinpath("samples", f"{name}.json").read_text(encoding="utf-8"))


def worded(texts: Mapping[str, Any], variant: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """Sentences of a sample with `facts` in their gaps; those of `variant`, where there are any, replace the usual."""
    chosen = {**texts, **texts.get(variant, {})}
    return {name: text.format(**facts) for name, text in chosen.items() if isinstance(text, str)}


@contextmanager
def disk_errors_explained(path: Path) -> Iterator[None]:
    """Turn the system's errors about `path` into a StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        reasons = {
            errno.ENOSPC: "the disk is full. Free some space, or choose another folder",
            errno.EFBIG: "the file is larger than this system allows. Choose another folder",
            errno.EDQUOT: "the disk quota is used up. Free some space, or choose another folder",
            errno.ENOENT: "no folder can be made there. Choose another folder, such as run_root='runs'",
            errno.EROFS: "the file system is read-only. Choose another folder",
            errno.EACCES: "this user may not write there. Choose another folder, such as run_root='runs'",
            errno.EPERM: "this user may not write there. Choose another folder, such as run_root='runs'",
            errno.ENOTDIR: "a file stands where a folder is wanted. Choose another folder",
            errno.EEXIST: "a file stands where a folder is wanted. Choose another folder",
            errno.EISDIR: "a folder stands where a file is wanted. Choose another name",
            errno.ENAMETOOLONG: "the name is longer than this system allows. Choose a shorter one",
            errno.EINVAL: "this file system does not take such a name. Choose another one",
            errno.ELOOP: "a link there leads back to itself. Choose another folder",
        }
        if error.errno not in reasons:
            raise
        raise StorageError(f"Cannot write {path}: {reasons[error.errno]}.") from error
    except ValueError as error:
        if "null byte" not in str(error):
            raise
        raise StorageError(f"Cannot write {path}: the name holds a NUL. Choose another one.") from error


# What torch and safetensors say, in classes of their own, when a file does not fit.
_WRITE_FAILED = ("No space left", "File too large", "inline_container", "iostream error", "PytorchStreamWriter")


@contextmanager
def weight_errors_explained(path: Path) -> Iterator[None]:
    """As `disk_errors_explained`, and for weights that do not fit: torch and safetensors raise classes of their own."""
    from safetensors import SafetensorError

    try:
        with disk_errors_explained(path):
            yield
    except (SafetensorError, RuntimeError) as error:
        failed = any(sign in str(error) for sign in _WRITE_FAILED) or shutil.disk_usage(path.parent).free < 2**20
        if isinstance(error, FtkitError) or not failed:
            raise
        raise StorageError(
            f"Cannot write {path}: the disk is full or refuses a file of this size. Free some space, or choose another "
            "folder. A training that is called again goes on from its last complete checkpoint."
        ) from error


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file atomically, making its folder where it is missing."""
    path = Path(path)
    with disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
        try:
            os.fchmod(handle, 0o644)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 text file atomically; half a character (a lone surrogate) becomes a question mark."""
    return write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: str | Path, value: Any) -> Path:
    """Write one JSON document atomically, indented, with characters as they are."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: str | Path, rows: list[dict[str, Any]]) -> Path:
    """Write one JSON object a line, atomically."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: str | Path, row: Mapping[str, Any]) -> Path:
    """Add one JSON object as a line that is on disk when this returns; after half a line of a killed program, below it.

    Half a character (a lone surrogate) becomes a question mark.
    """
    path = Path(path)
    line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    with disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            cut = file.read(1) not in (b"", b"\n")
            file.write(b"\n" + line if cut else line)
            file.flush()
            os.fsync(file.fileno())
    return path


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files and folders that a killed write left in the folder `path`."""
    for leftover in list(path.glob(f".*{TEMPORARY}")):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def folder(path: str | Path, names: Collection[str] | None = None) -> Iterator[Path]:
    """Yield a temporary folder that is sealed and takes the place of `path` when the block ends well, else vanishes.

    With `names` files of these names alone are replaced; what else stands there stays.

    Raises:
        StorageError: something else stands there; or the disk is full, the folder cannot be written.
    """
    path = Path(path)
    refuse_foreign(path, names=names)
    with disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY))
        try:
            yield working
            replaced_too = {*(names or ()), HIDDEN}
            for name, beside in inside(path).items() if names is not None else ():
                if name not in replaced_too:
                    (working / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(beside, working / name, follow_symlinks=False)
            seal(working, {}, HIDDEN)
            working.chmod(0o755)
            if path.exists():
                path.rename(replaced := working.with_name(f".old{working.name}"))
                working.rename(path)
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                working.rename(path)
        finally:
            shutil.rmtree(working, ignore_errors=True)


def seal(folder: Path, facts: Mapping[str, Any], name: str = SEAL) -> None:
    """Write the seal: `facts`, and size and SHA-256 of every file."""
    listed = {
        found: {"bytes": path.stat().st_size, "sha256": digest(path)}
        for found, path in inside(folder).items()
        if found != name
    }
    write_json(folder / name, {"format": FORMAT, **facts, "files": listed})


def noted(folder: Path) -> dict[str, Any] | None:
    """What the seal of a folder says, or None where there is none that can be read; a link has none."""
    path = next((folder / name for name in (SEAL, HIDDEN) if (folder / name).is_file()), folder / SEAL)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return known if isinstance(known, dict) and not folder.is_symlink() else None


def problem(folder: Path) -> str | None:
    """Why this folder is not as it was sealed, or None where it is.

    Raises:
        DataError: a newer version sealed it.
    """
    known, damaged = noted(folder), f"its mark {SEAL} is missing or damaged"
    if known is None or not isinstance(known.get("format", 0), int) or not isinstance(known.get("files", {}), dict):
        return damaged
    if known.get("format", 0) > FORMAT:
        raise DataError(
            f"{folder} was written by a newer ftkit (format {known['format']}). Update ftkit, or choose another run "
            "name."
        )
    for name, of in known.get("files", {}).items():  # seals of format 0 list no files
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != of["bytes"]:
                return f"{name} has {path.stat().st_size:,} of {of['bytes']:,} bytes"
            if digest(path) != of["sha256"]:
                return f"{name} does not have the digest that was recorded for it"
        except (OSError, ValueError, KeyError, TypeError):
            return damaged
    return None


def strangers(folder: Path, *, edited: bool = False) -> list[str]:
    """Files in a folder that its seal does not list; with `edited` also those that were changed since it was sealed."""
    listed = (noted(folder) or {}).get("files")
    listed = listed if isinstance(listed, dict) else {}
    return [
        name
        for name, path in inside(folder).items()
        if (path.name not in (SEAL, HIDDEN) or not listed)
        and (name not in listed or (edited and digest(path) != listed[name].get("sha256")))
    ]


def refuse_foreign(folder: Path, *, edited: bool = False, names: Collection[str] | None = None) -> None:
    """Let nothing be written over a folder, or a link, that was not made here; with `names` over files of these names.

    Raises:
        StorageError: names what stands there.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise StorageError(f"{folder} is a link or a file, and a folder is wanted there. Move it, or choose another.")
    if strange := [name for name in strangers(folder, edited=edited) if names is None or name in names]:
        raise StorageError(
            f"{folder} would be replaced, and ftkit did not write what is in it: {', '.join(strange[:3])}. Move that "
            "away, or choose another folder or run name."
        )


def inside(path: Path) -> dict[str, Path]:
    """Every file below `path` under its relative name; a file itself is called "."."""
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() or p.is_symlink())
    return {str(p.relative_to(path)): p for p in found}


def digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
