"""Files that appear whole or not at all: written under a temporary name, then renamed."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from ftkit.errors import StorageError


def sample(name: str) -> Any:
    """What a JSON file among the bundled samples holds."""
    return json.loads(resources.files("ftkit").joinpath("samples", f"{name}.json").read_text(encoding="utf-8"))


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
WRITE_FAILED = ("No space left", "File too large", "inline_container", "iostream error", "PytorchStreamWriter")


@contextmanager
def weight_errors_explained(path: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise when weights do not fit on the disk into a StorageError."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if any(sign in str(error) for sign in WRITE_FAILED):
            raise StorageError(
                f"Cannot write {path}: the disk is full or refuses a file of this size. "
                "Free some space, or choose another folder."
            ) from error
        raise


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file atomically, making its folder where it is missing."""
    path = Path(path)
    with disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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
    """Write a UTF-8 text file atomically."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> Path:
    """Write one JSON document atomically, indented, with characters as they are."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: str | Path, rows: list[dict[str, Any]]) -> Path:
    """Write one JSON object a line, atomically."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def remove_leftovers(path: Path, names: Iterable[str]) -> None:
    """Remove temporary files and folders that a killed write of one of `names` left in the folder `path`."""
    for name in names:
        for leftover in list(path.glob(f".{name}.*")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


@contextmanager
def folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `path` when the block ends well, and vanishes when not."""
    path = Path(path)
    with disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield working
            working.chmod(0o755)
            replaced = working.with_name(working.name + ".old")
            if path.exists():
                path.rename(replaced)
            working.rename(path)
            shutil.rmtree(replaced, ignore_errors=True)
        finally:
            shutil.rmtree(working, ignore_errors=True)
