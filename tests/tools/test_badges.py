"""The table of notebooks and their badges come from the repository, and the committed ones are current."""

import json
from pathlib import Path

import pytest

from ftkit.errors import ConfigError
from tools import badges

ROOT = Path(__file__).parents[2]
COST = badges.Cost(minutes=4.5, peak_gib=2.0, device="2 CPU cores", date="2026-11-23")


def write_notebook(folder: Path, name: str, *cells: str) -> Path:
    """Write a notebook of Markdown cells with one code cell before them."""
    code = {"cell_type": "code", "source": ["# not a title\n"], "metadata": {}, "outputs": []}
    markdown = [{"cell_type": "markdown", "source": text.splitlines(True), "metadata": {}} for text in cells]
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps({"cells": [code, *markdown], "metadata": {}, "nbformat": 4}), encoding="utf-8")
    return path


def write_pyproject(folder: Path, address: str) -> Path:
    """Write the part of a pyproject.toml that holds the repository's address."""
    path = folder / "pyproject.toml"
    path.write_text(f'[project.urls]\nRepository = "{address}"\n', encoding="utf-8")
    return path


@pytest.fixture
def notebooks(tmp_path):
    """Two toy notebooks, of which the second is written first."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder, "01_decide", "Promise.\n\n## Do I need A | B?\n\n### Later")
    write_notebook(folder, "00_quickstart", f"# Can I?\n\n{badges.badge('00_quickstart', 'someone/kit')}")
    return folder


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/some-one/kit.py",
        "https://github.com/some-one/kit.py.git",
        "https://github.com/some-one/kit.py/",
    ],
)
def test_slug_comes_from_pyproject(tmp_path, address):
    """Owner and name are read from the address, with or without its common endings."""
    assert badges.slug(write_pyproject(tmp_path, address)) == "some-one/kit.py"


@pytest.mark.parametrize("address", ["https://example.org/some-one/kit", "https://github.com/some-one", ""])
def test_other_addresses_are_refused(tmp_path, address):
    """An address that is no GitHub repository names itself and the form that is wanted."""
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        badges.slug(write_pyproject(tmp_path, address))


def test_pyproject_without_address_is_refused(tmp_path):
    """A pyproject.toml without [project.urls] is told what is missing."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "kit"\n')
    with pytest.raises(ConfigError, match=r"project\.urls"):
        badges.slug(tmp_path / "pyproject.toml")


def test_badge_opens_the_notebook_in_colab():
    """The badge is Colab's image with a link to the notebook on the main branch."""
    assert badges.badge("00_quickstart", "someone/kit") == (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        "(https://colab.research.google.com/github/someone/kit/blob/main/notebooks/00_quickstart.ipynb)"
    )


def test_title_is_the_first_markdown_heading(notebooks):
    """Comments of code cells and text before the heading do not count."""
    assert badges.title(notebooks / "01_decide.ipynb") == "Do I need A | B?"


def test_notebook_without_title_is_refused(tmp_path):
    """A notebook without a heading is named."""
    with pytest.raises(ConfigError, match=r"02_lora\.ipynb has no Markdown heading"):
        badges.title(write_notebook(tmp_path, "02_lora", "no heading"))


def test_table_has_a_row_for_each_notebook(notebooks):
    """Rows come in the order of the names; recorded costs are shown with device and date."""
    *_, first, second = badges.render(notebooks, "someone/kit", {"00_quickstart": COST}).splitlines()
    assert first == (
        "| [00_quickstart](notebooks/00_quickstart.ipynb) | Can I? | 4.5 (2 CPU cores, 2026-11-23) | 2 GiB | "
        f"{badges.badge('00_quickstart', 'someone/kit')} |"
    )
    assert second.startswith("| [01_decide](notebooks/01_decide.ipynb) | Do I need A \\| B? | not measured yet | ")


def test_costs_of_an_unknown_notebook_are_refused(notebooks):
    """A misspelt name in the costs is an error instead of a row that stays unmeasured."""
    with pytest.raises(ConfigError, match="00_quikstart: no such notebook in notebooks/"):
        badges.render(notebooks, "someone/kit", {"00_quikstart": COST})


FIRST_CELL = "# Can I?\n\n{badge}\n\nYou leave\nwith one.\n\n2 minutes\n\n25 minutes to read. You need Python."


def test_the_title_cell_says_what_a_reader_gets_and_how_long_it_takes(tmp_path):
    """The promise is the paragraph after the badge; minutes are those "to read", and not the machine's."""
    path = write_notebook(tmp_path, "00_quickstart", FIRST_CELL.format(badge=badges.badge("00_quickstart", "a/kit")))
    assert badges.promise(path) == "You leave with one."
    assert badges.reading(path) == 25


def test_a_title_cell_may_say_neither(notebooks):
    """A notebook without them has no promise and no minutes, and the table says so."""
    assert badges.promise(notebooks / "01_decide.ipynb") == ""
    assert badges.reading(notebooks / "01_decide.ipynb") is None
    assert badges.minutes(None, None) == badges.UNMEASURED
    assert badges.minutes(25, COST) == "25 minutes to read, 4.5 to run on 2 CPU cores"


def test_the_lessons_of_the_readme_have_a_row_each(notebooks):
    """Question, minutes to read, minutes to run."""
    *_, first, second = badges.lessons(notebooks, {"00_quickstart": COST}).splitlines()
    assert first == "| 00 | [Can I?](notebooks/00_quickstart.ipynb) |  | 4.5 |"
    assert second == "| 01 | [Do I need A \\| B?](notebooks/01_decide.ipynb) |  | not measured yet |"


def test_only_what_is_between_the_markers_is_written_anew():
    """Before and after them a person writes; a second writing changes nothing."""
    text = f"before\n{badges.BEGIN}\nold\n{badges.END}\nafter\n"
    made = badges.with_lessons(text, "| new |")
    assert made == f"before\n{badges.BEGIN}\n\n| new |\n\n{badges.END}\nafter\n"
    assert badges.with_lessons(made, "| new |") == made


@pytest.mark.parametrize("text", ["", badges.BEGIN, badges.END])
def test_a_readme_without_markers_is_refused(text):
    """A lost marker is named instead of a table that is written nowhere."""
    with pytest.raises(ConfigError, match="one of them is missing"):
        badges.with_lessons(text, "| new |")


def test_costs_are_read(tmp_path):
    """The recorded file becomes one Cost a notebook; without the file there are none."""
    path = tmp_path / "costs.json"
    assert badges.load_costs(path) == {}
    entry = {"minutes": 4.5, "peak_gib": 2.0, "device": "2 CPU cores", "date": "2026-11-23"}
    path.write_text(json.dumps({"00_quickstart": entry}))
    assert badges.load_costs(path) == {"00_quickstart": COST}


def test_all_problems_of_the_costs_are_told_at_once(tmp_path):
    """A misspelt field and a date that is none make one message."""
    good = {"minutes": 1, "peak_gib": 2, "device": "T4", "date": "2026-11-23"}
    bad = {"a": {**good, "minute": 1}, "b": {**good, "date": "yesterday"}}
    (tmp_path / "costs.json").write_text(json.dumps(bad))
    with pytest.raises(ConfigError, match=r"(?s)a: .*minute.*; b: .*yesterday"):
        badges.load_costs(tmp_path / "costs.json")


def test_wrong_badges_are_found(notebooks):
    """A badge that is missing, that opens another notebook, or that opens another repository is reported."""
    write_notebook(notebooks, "02_lora", f"# Why?\n\n{badges.badge('01_decide', 'someone/kit')}")
    found = [problem.partition(":")[0] for problem in badges.wrong_badges(notebooks, "someone/kit")]
    assert found == ["01_decide.ipynb", "02_lora.ipynb"]
    assert len(badges.wrong_badges(notebooks, "someone/fork")) == 3


def test_main_writes_the_table(notebooks, tmp_path, capsys):
    """The command writes colab_badges.md and README's table, and fails on a wrong badge."""
    (tmp_path / "README.md").write_text(f"{badges.BEGIN}\n{badges.END}\n")
    write_pyproject(tmp_path, "https://github.com/someone/kit")
    assert badges.main(tmp_path) == 1
    assert "01_decide.ipynb" in capsys.readouterr().err
    (notebooks / "01_decide.ipynb").unlink()
    assert badges.main(tmp_path) == 0
    assert (tmp_path / "colab_badges.md").read_text() == badges.render(notebooks, "someone/kit", {})
    assert badges.lessons(notebooks, {}) in (tmp_path / "README.md").read_text()


class TestRepository:
    """What is committed here."""

    def test_there_are_notebooks(self):
        """The other two rules would hold for an empty folder."""
        assert list((ROOT / "notebooks").glob("*.ipynb"))

    def test_table_is_current(self):
        """colab_badges.md is what the notebooks and costs here make; `make badges` renews it."""
        notebooks = ROOT / "notebooks"
        made = badges.render(notebooks, badges.slug(), badges.load_costs(notebooks / "costs.json"))
        assert (ROOT / "colab_badges.md").read_text(encoding="utf-8") == made

    def test_lessons_of_the_readme_are_current(self):
        """So is README's table, with the minutes to read that the notebooks' first cells name."""
        readme, notebooks = (ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "notebooks"
        made = badges.lessons(notebooks, badges.load_costs(notebooks / "costs.json"))
        assert badges.with_lessons(readme, made) == readme

    def test_each_lesson_says_how_long_it_takes_to_read(self):
        """An honest 15 to 30 minutes, and one promise."""
        for notebook in (ROOT / "notebooks").glob("*.ipynb"):
            assert 15 <= (badges.reading(notebook) or 0) <= 30, notebook.name
            assert badges.promise(notebook), notebook.name

    def test_each_badge_opens_its_own_notebook(self):
        """Every notebook's first Markdown cell holds its own badge and no other."""
        assert badges.wrong_badges(ROOT / "notebooks", badges.slug()) == []
