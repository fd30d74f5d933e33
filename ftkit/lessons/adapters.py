"""What adapters' files hold: number format, how many numbers, how large. Knows files, no models."""

import math
from collections.abc import Mapping
from pathlib import Path

from ftkit.tables import Table

_WEIGHTS = "adapter_model.safetensors"


def adapter_files(folders: Mapping[str, Path]) -> Table:
    """For each adapter's folder: the format of its numbers as the file names it, their count, and the file's size.

    Raises:
        FileNotFoundError: a folder holds no adapter.
    """
    from safetensors import safe_open

    rows = []
    for name, folder in folders.items():
        file = Path(folder) / _WEIGHTS
        with safe_open(file, framework="pt") as tensors:
            parts = [tensors.get_slice(key) for key in tensors.keys()]  # noqa: SIM118  # safe_open is no mapping
            formats = dict.fromkeys(part.get_dtype() for part in parts)
            count = sum(math.prod(part.get_shape()) for part in parts)
        rows.append((name, ", ".join(formats), f"{count:,}", f"{file.stat().st_size / 2**20:.1f}"))
    return Table(("adapter of", "number format", "numbers", "file, MiB"), rows)
