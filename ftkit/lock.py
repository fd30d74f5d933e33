"""One process a run folder: a lock of the operating system, which dies with its process and so is never stale."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftkit import storage
from ftkit.errors import StorageError

_NAME = ".lock"


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the run folder `path` for as long as the block runs.

    Raises:
        StorageError: another process, or another thread of this one, holds it.
    """
    from filelock import Timeout

    if os.environ.get("RANK", "0") != "0":  # torchrun: the first process holds the folder for all
        yield
        return
    try:
        lock = _acquired(path)
    except Timeout as error:
        raise StorageError(
            f"{path} is in use: another process is training there. Wait for it, stop it, or choose another run name."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _acquired(path: Path) -> Any:
    """The lock, in the folder itself or, where its file system knows no locks (some mounted drives), in this machine's temporary folder."""
    from filelock import FileLock

    with storage.explained(path):
        try:
            return _taken(FileLock(path / _NAME, timeout=0))
        except NotImplementedError:
            name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
            return _taken(FileLock(Path(tempfile.gettempdir()) / f"ftkit-{name}.lock", timeout=0))


def _taken(lock: Any) -> Any:
    lock.acquire()
    return lock
