"""Each notebook runs once a session, alone and from a cold start: in a folder of its own, in a kernel of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from ftkit import hardware, headless, models
from ftkit.runs import Run

ROOT = Path(__file__).parents[2]
STANDARD = {"base_model", "run_root", "max_steps", "max_examples", "seed"}
OWN = {  # of a reader; empty, or what suits most, by default
    *("my_file", "my_columns", "my_documents", "my_metric", "my_adapter", "my_run", "full"),
    *("judge_url", "judge_model", "judge_key_name"),
}


class Executed:
    """A notebook after its run: the folder it left, and what its cells printed."""

    def __init__(self, name: str, root: Path, output: Path) -> None:
        self.run = Run.open(root / name.split("_", 1)[1])  # a notebook's run folder bears its name without the number
        self.root, self.page = root, output / f"{name}.html"
        self.cells = json.loads((output / f"{name}.ipynb").read_text())["cells"]

    @property
    def leftovers(self) -> list[str]:
        """Results that a page shows only because the last line of a cell happens to have a value."""
        shown = [o["data"] for c in self.cells for o in c.get("outputs", []) if o["output_type"] == "execute_result"]
        plain = ["".join(data["text/plain"]) for data in shown if not {"text/html", "text/markdown"} & set(data)]
        return [text[:80] for text in plain if text.startswith(("tensor(", "PosixPath(", "<", "False", "None"))]

    @property
    def text(self) -> str:
        """Everything printed, streams and plain-text results; a kernel may cut a line of a stream in two."""
        outputs = [o for c in self.cells for o in c.get("outputs", [])]
        return "".join("".join(o["text"]) if "text" in o else f"\n{_plain(o)}\n" for o in outputs)


@pytest.fixture(scope="session")
def shallow(tmp_path_factory):
    """The bundled model without all but two of its thirty layers: for tests of a way, not of what is learned on it."""
    folder, whole = tmp_path_factory.mktemp("shallow"), Path(models.resolve(models.BUNDLED))
    for path in whole.glob("[!.]*"):
        shutil.copy(path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    return folder


def _plain(output: dict) -> str:
    return "".join(output.get("data", {}).get("text/plain", ""))


@pytest.fixture(scope="session")
def execute(tmp_path_factory):
    """Run a notebook by name, with parameters; the names are checked first, since papermill would only warn.

    Code cells in which a word of `without` stands are left out.
    """

    def run(name: str, *, without: tuple[str, ...] = (), **parameters: object) -> Executed:
        path = ROOT / "notebooks" / f"{name}.ipynb"
        assert set(headless.declared_parameters(path)) - OWN == STANDARD
        if without:
            book = nbformat.read(path, as_version=4)
            unwanted = [c for c in book.cells if c.cell_type == "code" and any(word in c.source for word in without)]
            book.cells = [cell for cell in book.cells if cell not in unwanted]
            path = tmp_path_factory.mktemp("cut") / path.name
            nbformat.write(book, path)
        root, output = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("executed")
        model = (
            {} if hardware.detect().device == "cpu" else {"base_model": models.BUNDLED}
        )  # on a GPU "auto" is a Hub model
        parameters = {"run_root": root, **model, **parameters}
        arguments = [str(part) for item in parameters.items() for part in ("-p", *item)]
        # the tests' own MPLBACKEND would keep figures out of the page
        environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {"FTKIT_RUN_ROOT": str(root)}
        done = subprocess.run(
            [sys.executable, "-m", "ftkit", "notebook", str(path), "-o", str(output), *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        book = Executed(name, root, output)
        assert book.leftovers == []
        return book

    return run
