"""Axolotl in an environment of its own: what its schema says of files, the rows that it makes, a training by it."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ftkit import tables
from ftkit.errors import MissingExtra, TrainingError

ENVIRONMENT = ".venv-axolotl"
_INSIDE = Path(__file__).with_name("inside_axolotl.py")
_LOSS = re.compile(r"""'loss': ['"]?([\d.]+)""")


@tables.shown
@dataclass(frozen=True)
class AxolotlVerdict:
    """What the schema of the installed release says of files: why each is refused, and what it would pass over."""

    release: str
    files: tuple[str, ...]
    refused: tuple[str, ...]
    unknown: tuple[tuple[str, ...], ...]
    fields: frozenset[str]

    def _parts(self) -> list[tables.Table | str]:
        rows = []
        for file, why, unknown in zip(self.files, self.refused, self.unknown, strict=True):
            rows.append((file, why or "accepted", ", ".join(unknown) or "nothing"))
        return [tables.Table(("file", f"Axolotl {self.release}", "passed over in silence"), rows, prose=True)]


def axolotl_recipe() -> str:
    """A recipe for Axolotl that is often passed around, as YAML."""
    return resources.files("ftkit").joinpath("samples", "axolotl_recipe.yml").read_text(encoding="utf-8")


def axolotl_python() -> Path | None:
    """The Python of Axolotl's environment, in `$FTKIT_AXOLOTL` or where `make axolotl` built it, or None."""
    beside = (Path.cwd(), Path.cwd().parent, Path(__file__).parents[2])
    named = os.environ.get("FTKIT_AXOLOTL")
    places = [Path(named)] if named else [folder / ENVIRONMENT for folder in beside]
    return next((place / "bin/python" for place in places if (place / ".installed").is_file()), None)


def axolotl_says(*files: str | Path) -> AxolotlVerdict:
    """Ask the schema of the installed Axolotl about YAML files.

    Raises:
        MissingExtra: Axolotl is not installed beside ftkit.
    """
    said = _inside("check", *files)
    return AxolotlVerdict(
        release=said["release"],
        files=tuple(Path(file).name for file in files),
        refused=tuple(one["refused"] for one in said["files"]),
        unknown=tuple(tuple(one["unknown"]) for one in said["files"]),
        fields=frozenset(said["fields"]),
    )


def axolotl_rows(file: str | Path) -> list[dict[str, list[int]]]:
    """The rows that Axolotl makes of the data sets in a YAML file: `input_ids` and `labels`, in its own order."""
    said = _inside("rows", file)
    pairs = zip(said["input_ids"], said["labels"], strict=True)
    return [{"input_ids": ids, "labels": labels} for ids, labels in pairs]


def axolotl_stored(file: str | Path) -> dict[str, int]:
    """How many parameters Axolotl keeps in which number format when it loads the model of a YAML file."""
    return _inside("stored", file)


def train_with_axolotl(file: str | Path) -> list[float]:
    """Let Axolotl train what a YAML file says, and give back the loss of each logged update, nats per token.

    Raises:
        MissingExtra: Axolotl is not installed beside ftkit.
        TrainingError: it failed; ends with what it said last.
    """
    said = _run("train", ["-m", "axolotl.cli.main", "train", file, "--launcher", "python"], Path(file))
    return [float(loss) for loss in _LOSS.findall(said)]


def _inside(action: str, *files: str | Path) -> dict[str, Any]:
    # -P: beside the script lies this file, which is called as the package
    *_, last = _run(action, ["-P", _INSIDE, action, *files], Path(files[0])).strip().splitlines()
    said: dict[str, Any] = json.loads(last)
    return said


def _run(action: str, arguments: list[str | Path], file: Path) -> str:
    """What Axolotl's Python prints; it works in the folder of the file, where it leaves prepared rows."""
    python = axolotl_python()
    if python is None:
        raise MissingExtra("Axolotl is not installed beside ftkit. Run: make axolotl (4 GB, about ten minutes).")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MPLBACKEND")}
    environment |= {"AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"}
    absolute = [part.resolve() if isinstance(part, Path) else part for part in arguments]
    done = subprocess.run(
        [python, *absolute], capture_output=True, text=True, cwd=file.resolve().parent, env=environment
    )
    if done.returncode:
        raise TrainingError(f"Axolotl failed to {action} {file}:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout
