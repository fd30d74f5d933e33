"""How deep a JSON file nests, told before a parser meets it: a streaming parser's memory grows with the square of it."""

import itertools
from pathlib import Path
from typing import BinaryIO

from ftkit.errors import DataError

MAX_DEPTH = 100
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class Shallow:
    """A JSON file to read from that stops where it nests too deep, before a parser's memory grows with the depth."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.read_bytes = 0
        self._path, self._file = path, file
        self._depth, self._in_string, self._escape = 0, False, b""

    def read(self, size: int = -1) -> bytes:
        """The next bytes, as a file gives them.

        Raises:
            DataError: they open more than 100 lists and objects within each other.
        """
        chunk = self._file.read(size)
        self.read_bytes += len(chunk)
        text = self._escape + chunk
        slashes = len(text) - len(text.rstrip(b"\\"))
        self._escape = b"\\" if chunk and slashes % 2 else b""
        text = text[: len(text) - len(self._escape)].replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = text.split(b'"')
        outside = b"".join(parts[int(self._in_string) :: 2]).translate(None, _NO_BRACKETS)
        self._in_string ^= len(parts) % 2 == 0
        depths = list(itertools.accumulate((1 if c in b"[{" else -1 for c in outside), initial=self._depth))
        self._depth = depths[-1]
        if max(depths) > MAX_DEPTH:
            raise DataError(f"{self._path} is nested more than {MAX_DEPTH} levels deep. Write the inner part as text.")
        return chunk
