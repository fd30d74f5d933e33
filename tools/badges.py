"""The tables of notebooks in `colab_badges.md` and in README, and the badge in each notebook's first cell.

Made from the notebooks' title cells, from the recorded costs in `notebooks/costs.json`, and from the repository's
address, which `pyproject.toml` alone holds. `python -m tools.badges` rewrites both tables. Runs no notebook.

```json
{"00_quickstart": {"minutes": 4.5, "peak_gib": 2.0, "device": "2 CPU cores", "date": "2026-11-23"}}
```
"""

import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ftkit.errors import ConfigError

ROOT = Path(__file__).parents[1]

IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"

UNMEASURED = "not measured yet"

BEGIN, END = "<!-- lessons: written by make badges -->", "<!-- end of lessons -->"

_BADGE = re.compile(rf"\[!\[[^\]]*\]\({re.escape(IMAGE)}\)\]\([^)]*\)")


@dataclass(frozen=True)
class Cost:
    """What one run of a notebook took, on which device, on which day (ISO 8601)."""

    minutes: float
    peak_gib: float
    device: str
    date: str


def slug(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """Return OWNER/NAME from the project's Repository address."""
    urls = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {}).get("urls", {})
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", urls.get("Repository", ""))
    if found is None:
        raise ConfigError(
            f"{pyproject.name} says Repository = {urls.get('Repository')!r} under [project.urls]; "
            'badges need "https://github.com/OWNER/NAME".'
        )
    return found[1]


def link(name: str, repository: str | None = None) -> str:
    """Address that opens the notebook `name` in Colab."""
    return f"https://colab.research.google.com/github/{repository or slug()}/blob/main/notebooks/{name}.ipynb"


def badge(name: str, repository: str | None = None) -> str:
    """Markdown of the badge for the notebook `name`, such as `00_quickstart`; belongs in its first cell."""
    return f"[![Open in Colab]({IMAGE})]({link(name, repository)})"


def strip(cost: Cost) -> str:
    """One line of a notebook's first cell: what a run took, where and when."""
    minutes = "1 minute" if cost.minutes == 1 else f"{cost.minutes:g} minutes"
    return f"{minutes} · {cost.peak_gib:g} GiB of memory · {cost.device} · measured {cost.date}"


def title(notebook: Path) -> str:
    """First Markdown heading of a notebook: the question that it answers."""
    for cell in _markdown(notebook):
        if found := re.search(r"^#{1,6}\s+(.+?)\s*#*\s*$", cell, re.M):
            return found[1]
    raise ConfigError(f"{notebook.name} has no Markdown heading; begin its first cell with '# Question?'.")


def promise(notebook: Path) -> str:
    """The paragraph after the badge of a notebook's first cell: what a reader leaves with; empty where none is."""
    paragraphs = next(_markdown(notebook), "").split("\n\n")
    after = [place + 1 for place, text in enumerate(paragraphs) if _BADGE.search(text)]
    return " ".join(paragraphs[after[0]].split()) if after and after[0] < len(paragraphs) else ""


def reading(notebook: Path) -> int | None:
    """Minutes that a notebook's first cell gives a reader; None where it says nothing."""
    found = re.search(r"\b(\d+) minutes to read\b", next(_markdown(notebook), ""))
    return int(found[1]) if found else None


def minutes(read: int | None, cost: Cost | None) -> str:
    """What a lesson takes of a person and of a machine, as one line."""
    parts = [f"{read} minutes to read"] if read else []
    parts += [f"{cost.minutes:g} to run on {cost.device}"] if cost else []
    return ", ".join(parts) or UNMEASURED


def load_costs(path: Path) -> dict[str, Cost]:
    """Read recorded costs by notebook name; all problems of the file are raised at once."""
    if not path.exists():
        return {}
    costs, problems = {}, []
    for name, entry in json.loads(path.read_text(encoding="utf-8")).items():
        try:
            costs[name] = Cost(**entry)
            date.fromisoformat(costs[name].date)
        except (TypeError, ValueError) as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ConfigError(f"{path.name} wants minutes, peak_gib, device, date: {'; '.join(problems)}")
    return costs


def render(notebooks_dir: Path, repository: str, costs: Mapping[str, Cost]) -> str:
    """Text of `colab_badges.md`: one row a notebook, in the order of their names.

    Raises:
        ConfigError: costs of a notebook that does not exist, or a notebook without a title.
    """
    notebooks = sorted(notebooks_dir.glob("*.ipynb"))
    if strays := sorted(set(costs) - {notebook.stem for notebook in notebooks}):
        raise ConfigError(f"costs.json names {', '.join(strays)}: no such notebook in {notebooks_dir.name}/.")
    lines = [
        "# Notebooks",
        "",
        "Made by `make badges` from the notebooks and from `notebooks/costs.json`; do not edit by hand.",
        "Minutes and peak memory are those of one run on the device beside them, and vary from run to run.",
        "",
        "| Notebook | Question | Minutes | Peak memory | Open |",
        "|---|---|---|---|---|",
    ]
    for notebook in notebooks:
        name, cost = notebook.stem, costs.get(notebook.stem)
        minutes = f"{cost.minutes:g} ({cost.device}, {cost.date})" if cost else UNMEASURED
        memory = f"{cost.peak_gib:g} GiB" if cost else UNMEASURED
        file = f"[{name}]({notebooks_dir.name}/{name}.ipynb)"
        cells = (file, title(notebook), minutes, memory, badge(name, repository))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def lessons(notebooks_dir: Path, costs: Mapping[str, Cost]) -> str:
    """The table for README: what each notebook asks, and the minutes it takes of a reader and of a machine."""
    lines = ["| # | Question | Minutes to read | Minutes to run |", "|---|---|---|---|"]
    for notebook in sorted(notebooks_dir.glob("*.ipynb")):
        name, read, cost = notebook.stem, reading(notebook), costs.get(notebook.stem)
        question = f"[{title(notebook)}]({notebooks_dir.name}/{name}.ipynb)"
        cells = (name.partition("_")[0], question, str(read or ""), f"{cost.minutes:g}" if cost else UNMEASURED)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def with_lessons(text: str, table: str) -> str:
    """`text` with `table` between its two markers.

    Raises:
        ConfigError: it lacks a marker.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"README.md wants the table of notebooks between {BEGIN} and {END}; one of them is missing.")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def wrong_badges(notebooks_dir: Path, repository: str) -> list[str]:
    """Say which notebooks lack their own badge in the first Markdown cell, or show another one there."""
    problems = []
    for notebook in sorted(notebooks_dir.glob("*.ipynb")):
        own = badge(notebook.stem, repository)
        if _BADGE.findall(next(_markdown(notebook), "")) != [own]:
            problems.append(f"{notebook.name}: its first Markdown cell wants this badge and no other: {own}")
    return problems


def main(root: Path = ROOT) -> int:
    """Rewrite `colab_badges.md` and README's table in `root`; 1 where a notebook's badge is wrong, which is printed."""
    notebooks, repository = root / "notebooks", slug(root / "pyproject.toml")
    costs, readme = load_costs(notebooks / "costs.json"), root / "README.md"
    (root / "colab_badges.md").write_text(render(notebooks, repository, costs), encoding="utf-8")
    if readme.exists():
        text = with_lessons(readme.read_text(encoding="utf-8"), lessons(notebooks, costs))
        readme.write_text(text, encoding="utf-8")
    problems = wrong_badges(notebooks, repository)
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return int(bool(problems))


def _markdown(notebook: Path) -> Iterator[str]:
    """Text of each Markdown cell; a notebook stores it as one string or as lines."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            yield "".join(cell["source"])


if __name__ == "__main__":
    sys.exit(main())
