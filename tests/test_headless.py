"""A notebook runs without a person, and the terminal tells how far its training has come."""

import json
import time

import pytest

from ftkit import headless
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, MissingArtifact, NotebookError

TRAINS = """
import time
from ftkit import Run, TrainConfig
run = Run.create("demo", run_root)
TrainConfig(max_steps=10).save(run / "config.yaml")
(run / "history.csv").write_text("step,loss,val_loss,seconds\\n1,2.5,,1\\n4,1.25,,12\\n4,,1.5,13\\n")
time.sleep(1)
"""


def notebook(path, *sources):
    """Write a notebook whose first cell declares its parameters."""
    cells = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": source, "outputs": [], "execution_count": None}
        for i, source in enumerate(("run_root = 'auto'\nseed = 0  #@param", *sources))
    ]
    cells[0]["metadata"]["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(book))
    return path


@pytest.mark.slow
def test_a_training_is_told_on_the_terminal_and_the_kernel_complains_of_nothing(tmp_path, capfd, monkeypatch):
    """A person at a terminal sees step, loss and minutes left, and no warning that nobody can act on."""
    monkeypatch.setattr(headless, "_LOOK_S", 0.2)
    path = notebook(tmp_path / "x.ipynb", TRAINS)
    executed = headless.execute(path, tmp_path / "out", {"run_root": str(tmp_path / "runs")})
    told = capfd.readouterr().err
    assert "demo: step 4 of 10 · loss 1.250 · about 0.3 min left" in told
    assert "WARNING" not in told
    assert executed.html.read_text().lstrip().startswith("<!DOCTYPE html>")


def test_a_cell_that_raises_is_one_line_and_keeps_what_ran(tmp_path):
    path = notebook(tmp_path / "x.ipynb", "1 / 0")
    with pytest.raises(NotebookError, match=r"x.ipynb cell 2: ZeroDivisionError: division by zero"):
        headless.execute(path, tmp_path / "out", {})
    assert (tmp_path / "out/x.ipynb").exists()


def test_a_parameter_that_is_not_declared_is_refused_before_the_run(tmp_path):
    with pytest.raises(ConfigError, match=r"no parameter sead. It has: run_root, seed"):
        headless.execute(notebook(tmp_path / "x.ipynb"), tmp_path / "out", {"sead": 1})


def whole(**changes):
    """A notebook's JSON with some of its parts replaced; `cell` replaces parts of its only cell."""
    cell = {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "source": "x = 1", "outputs": []}
    cell |= {"execution_count": None} | changes.pop("cell", {})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5} | changes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        "\x00",
        "[" * 100_000,
        whole(cells=3),
        whole(cells=[None]),
        whole(metadata=[]),
        whole(metadata={}),
        whole(nbformat=3),
        whole(nbformat=99),
        whole(nbformat="x"),
        whole(cell={"source": 5}),
        whole(cell={"metadata": None}),
        whole(cell={"metadata": {"tags": 5}}),
        whole(cell={"outputs": 3}),
        whole().encode("utf-16"),
        b"\x80\xff",
    ],
    ids=range(21),
)
def test_a_damaged_notebook_is_named_with_what_to_do(tmp_path, text):
    path = tmp_path / "x.ipynb"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(NotebookError, match=r"x.ipynb is no notebook that can be read .* Fetch it again"):
        headless.execute(path, tmp_path / "out", {})


def test_the_executed_copy_never_takes_the_notebooks_place(tmp_path):
    path = notebook(tmp_path / "x.ipynb", "1 + 1")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"is the notebook itself. Choose another folder"):
        headless.execute(path, tmp_path / ".", {})
    assert path.read_bytes() == before


def test_a_kernel_that_dies_is_one_message(tmp_path):
    """As the system ends it when memory runs out."""
    path = notebook(tmp_path / "x.ipynb", "import os; os._exit(9)")
    with pytest.raises(NotebookError, match=r"x.ipynb: the Python that ran it ended .* Memory may have run out"):
        headless.execute(path, tmp_path / "out", {"run_root": 5})


def test_a_notebook_is_found_by_its_number_or_the_others_are_named():
    assert headless.find("00").stem == "00_quickstart"
    with pytest.raises(MissingArtifact, match="There are: 00_quickstart"):
        headless.find("99")


@pytest.mark.parametrize(
    "history",
    ["", *(f"step,loss,val_loss,seconds\n{line}" for line in ("", "1,2.", "0,1.0,,5\n", "x,y,z,w\n", "1,\x00,,"))],
)
def test_a_run_that_is_just_being_made_tells_nothing_yet(tmp_path, history):
    (tmp_path / "demo").mkdir()
    TrainConfig(max_steps=10).save(tmp_path / "demo/config.yaml")
    (tmp_path / "demo/history.csv").write_text(history)
    assert headless.latest_step(tmp_path, since=0) == ""


def test_an_older_training_is_not_told_as_this_one(tmp_path):
    (tmp_path / "demo").mkdir()
    TrainConfig().save(tmp_path / "demo/config.yaml")
    (tmp_path / "demo/history.csv").write_text("step,loss,val_loss,seconds\n3,2.5,,60\n")
    assert headless.latest_step(tmp_path, since=0) == "demo: step 3 · loss 2.500 · 1.0 min so far"
    assert headless.latest_step(tmp_path, since=time.time() + 9) == ""
