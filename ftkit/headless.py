"""Run a notebook without a person: papermill executes it, nbconvert makes it a page."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit import files
from ftkit.errors import ConfigError, FtkitError, MissingArtifact


@dataclass(frozen=True)
class Executed:
    """A notebook that ran to its end: the executed file and the same as a page."""

    notebook: Path
    html: Path


class NotebookError(FtkitError, RuntimeError):
    """A cell raised; names the cell and its error."""


def notebooks_folder() -> Path:
    """The repository's notebooks: below the current folder, or beside the package.

    Raises:
        MissingArtifact: the package was installed without its repository.
    """
    for root in (Path.cwd(), Path.cwd().parent, Path(__file__).resolve().parent.parent):
        if (root / "notebooks/00_quickstart.ipynb").exists():
            return root / "notebooks"
    raise MissingArtifact(
        "The notebooks are not part of the installed package. Clone the repository and run this inside it."
    )


def find(name: str) -> Path:
    """The path of a notebook by its name, number or path.

    Raises:
        MissingArtifact: none of that name; lists those that exist.
    """
    if name.endswith(".ipynb") and Path(name).exists():
        return Path(name)
    known = sorted(notebooks_folder().glob("*.ipynb"))
    found = [path for path in known if path.stem == name or path.stem.split("_")[0] == name]
    if not found:
        raise MissingArtifact(f"No notebook {name!r}. There are: {', '.join(path.stem for path in known)}.")
    return found[0]


def execute(path: Path, output: Path, parameters: dict[str, Any]) -> Executed:
    """Run a notebook from a cold start and leave `<name>.ipynb` and `<name>.html` in the folder `output`.

    Raises:
        ConfigError: a parameter that the notebook does not declare (papermill alone would only warn).
        NotebookError: a cell failed; the executed notebook up to there is kept.
    """
    import papermill

    _check_parameters(path, parameters)
    with files.disk_errors_explained(output):
        output.mkdir(parents=True, exist_ok=True)
    notebook = output / path.name
    os.environ["FTKIT_HEADLESS"] = "1"  # widgets show their defaults instead of waiting for a person
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            str(path),
            str(notebook),
            parameters=parameters,
            progress_bar=True,
            kernel_name="python3",
            cwd=str(_working_folder(path)),
        )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(
            f"{path.name} cell {error.exec_count}: {error.ename}: {error.evalue}\nAs far as it came: {notebook}"
        ) from error
    return Executed(notebook, export(notebook))


def _working_folder(path: Path) -> Path:
    folder = path.resolve().parent
    return folder.parent if folder.name == "notebooks" else folder


def export(notebook: Path) -> Path:
    """Write an executed notebook as one self-contained page beside it."""
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(template_name="lab").from_filename(str(notebook))
    # a page is read or printed: a long line of code goes on below instead of ending at the margin
    wrapped = "<style>.jp-CodeMirrorEditor .highlight pre { white-space: pre-wrap; }</style></head>"
    return files.write_text(notebook.with_suffix(".html"), body.replace("</head>", wrapped, 1))


def declared_parameters(path: Path) -> dict[str, str]:
    """Names and default expressions in the cell tagged `parameters`."""
    import ast

    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    body = ast.parse("".join("".join(c["source"]) + "\n" for c in tagged)).body
    return {
        t.id: ast.unparse(n.value)
        for n in body
        if isinstance(n, ast.Assign)
        for t in n.targets
        if isinstance(t, ast.Name)
    }


def _check_parameters(path: Path, parameters: dict[str, Any]) -> None:
    declared = declared_parameters(path)
    if unknown := set(parameters) - set(declared):
        raise ConfigError(f"{path.name} has no parameter {', '.join(sorted(unknown))}. It has: {', '.join(declared)}.")
