"""Run a notebook without a person: papermill executes it, nbconvert makes it a page.

What a person would see grow on the page, the steps of a training, is told on the terminal: it is read from the run
folder, so every notebook that trains is followed, and none has to know of it.
"""

import csv
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit import files, runs
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitError, MissingArtifact, NotebookError
from ftkit.tables import visible

_LOOK_S = 5.0


@dataclass(frozen=True)
class Executed:
    """A notebook that ran to its end: the executed file and the same as a page."""

    notebook: Path
    html: Path


def find(name: str) -> Path:
    """The path of a notebook by its name, number or path.

    Raises:
        MissingArtifact: none of that name (lists those that exist), or a package installed without its repository.
    """
    if name.endswith(".ipynb") and os.path.isfile(name):  # noqa: PTH113 - pathlib raises for a name that is too long
        return Path(name)
    roots = (Path.cwd(), Path.cwd().parent, Path(__file__).resolve().parent.parent)
    known = next((found for root in roots if (found := sorted(root.glob("notebooks/[0-9]*.ipynb")))), [])
    if not known:
        raise MissingArtifact(
            "The notebooks are not part of the installed package. Clone the repository and run this inside it."
        )
    for path in known:
        if name in (path.stem, path.stem.split("_")[0]):
            return path
    raise MissingArtifact(f"No notebook {name!r}. There are: {', '.join(path.stem for path in known)}.")


def execute(path: Path, output: Path, parameters: dict[str, Any]) -> Executed:
    """Run a notebook from a cold start and leave `<name>.ipynb` and `<name>.html` in the folder `output`.

    Raises:
        ConfigError: a parameter that the notebook does not declare (papermill alone would only warn).
        NotebookError: it is damaged, or a cell failed; the executed notebook up to there is kept.
    """
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError

    declared = declared_parameters(path)
    if unknown := set(parameters) - set(declared):
        raise ConfigError(f"{path.name} has no parameter {', '.join(sorted(unknown))}. It has: {', '.join(declared)}.")
    with files.disk_errors_explained(output):
        output.mkdir(parents=True, exist_ok=True)
    notebook = output / path.name
    folder = path.resolve().parent
    if notebook.resolve() == path.resolve():
        raise ConfigError(f"{notebook} is the notebook itself. Choose another folder for its executed copy.")
    cwd = folder.parent if folder.name == "notebooks" else folder
    named = str(parameters.get("run_root", "auto"))
    root = runs.default_root() if named == "auto" else Path(named)
    os.environ["FTKIT_HEADLESS"] = "1"  # widgets show their defaults instead of waiting for a person
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        with _private_sockets() as config, _progress(cwd / root):
            papermill.execute_notebook(
                str(path),
                str(notebook),
                parameters=parameters,
                kernel_name="python3",
                cwd=str(cwd),
                config=config,
            )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(
            f"{path.name} cell {error.exec_count}: {error.ename}: {error.evalue}\nAs far as it came: {notebook}"
        ) from error
    except (DeadKernelError, NoSuchKernel) as error:
        raise NotebookError(
            f"{path.name}: the Python that ran it ended ({error}). Memory may have run out: close other programs, or "
            f"choose a smaller model. Where no kernel is found: pip install ipykernel.\nAs far as it came: {notebook}"
        ) from error
    return Executed(notebook, _page(notebook))


def declared_parameters(path: Path) -> tuple[str, ...]:
    """Names in the cell tagged `parameters`.

    Raises:
        NotebookError: the file is no notebook, or a damaged one.
    """
    import papermill
    from nbformat import ValidationError

    try:
        return tuple(papermill.inspect_notebook(str(path)))
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError, ValidationError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NotebookError(
            f"{path} is no notebook that can be read ({said}). Fetch it again, or mend its JSON."
        ) from error


def _page(notebook: Path) -> Path:
    """Write an executed notebook as one self-contained page beside it."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab")
    # what a kernel sent in two pieces is one text again, without a gap between them
    exporter.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
    body, _ = exporter.from_filename(str(notebook))
    # a page is read or printed: a long line of code goes on below instead of ending at the margin
    wrapped = "<style>.jp-CodeMirrorEditor .highlight pre { white-space: pre-wrap; }</style></head>"
    return files.write_text(notebook.with_suffix(".html"), body.replace("</head>", wrapped, 1))


@contextmanager
def _private_sockets() -> Iterator[Any]:
    """Jupyter's configuration under which a kernel is spoken to through files of this user; Windows has TCP alone.

    Over TCP the kernel would warn on the terminal that its traffic is not encrypted.
    """
    from traitlets.config import Config

    if os.name != "posix":
        yield Config()
        return
    with tempfile.TemporaryDirectory() as folder:  # short, as the system allows some hundred characters
        yield Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})


@contextmanager
def _progress(root: Path) -> Iterator[None]:
    """While the block runs, tell every few seconds how far a training below `root` has come, on stderr."""
    began, ended = time.time(), threading.Event()

    def watch() -> None:
        """Tell each new line once."""
        told = ""
        while not ended.wait(_LOOK_S):
            line = latest_step(root, began)
            if line and line != told:
                sys.stderr.write(f"\n{visible(line)}")
                sys.stderr.flush()
                told = line

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def latest_step(root: Path, since: float) -> str:
    """How far the training below `root` that wrote last has come: step, loss, minutes left; empty where none has.

    A history from before `since`, seconds since the epoch, belongs to another training.
    """
    try:
        written = {path: path.stat().st_mtime for path in root.glob("*/history.csv")}
        newest = max(written, key=written.__getitem__, default=None)
        if newest is None or written[newest] < since:
            return ""
        with newest.open(encoding="utf-8", newline="") as file:
            last = [point for point in csv.DictReader(file) if point["loss"]][-1]
        steps, seconds, loss = int(last["step"]), float(last["seconds"]), float(last["loss"])
        total = TrainConfig.load(newest.parent / "config.yaml").max_steps
        left = f"about {seconds / steps * (total - steps) / 60:.1f} min left"
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, csv.Error, FtkitError):
        return ""  # half a line, or a run that is just being made: the next look will see it whole
    reached, far = f"{newest.parent.name}: step {steps}", f"loss {loss:.3f}"
    if total <= 0:
        return f"{reached} · {far} · {seconds / 60:.1f} min so far"
    return f"{reached} of {total} · {far} · {left}"
