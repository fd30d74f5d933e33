"""Every report of the kit, built with hostile texts: what others wrote is shown, never obeyed."""

import collections.abc
import dataclasses
import importlib
import pkgutil
import types
import typing
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.text import Text
from toys import CPU

import ftkit
from ftkit import cleaning, decision, errors, evaluation, figures, lessons, memory, tuning
from ftkit.cleaning.cleaning import RuleCount
from ftkit.config import TrainConfig
from ftkit.evaluation import Score
from ftkit.memory import estimate, find
from ftkit.preflight import Finding
from ftkit.training import History, HistoryPoint, plot_curves, plot_runs
from ftkit.training.history import RunRow
from ftkit.tuning.consequences import Situation
from ftkit.tuning.form import ConfigForm

HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J\u202e\x00\r\x9b\u200b\u2028|$x_$"
CONTROL = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def classes():
    """Every class of the package that says how it is shown."""
    for info in pkgutil.walk_packages(ftkit.__path__, "ftkit."):
        if not info.name.endswith("__main__"):
            for cls in vars(importlib.import_module(info.name)).values():
                if (
                    isinstance(cls, type)
                    and cls.__module__ == info.name
                    and {"__str__", "_repr_html_"} & set(vars(cls))
                ):
                    yield cls


REPORTS = {cls.__qualname__: cls for cls in classes() if dataclasses.is_dataclass(cls)}
ANSWER = {"prompt": HOSTILE, "expected": [HOSTILE], "answer": HOSTILE, "exact_match": 1.0}
SAID = {"answer": HOSTILE, "tokens": 3, "stopped": True}
# What cannot hold any text, by the class and the name of the field.
GIVEN = {
    ("Finding", "severity"): "error",
    ("Reading", "severity"): "problem",
    ("Run", "path"): Path(HOSTILE.replace("\x00", "")),
    ("EvalReport", "rows"): (ANSWER,),
    ("Examples", "pairs"): ((ANSWER, ANSWER),),
    ("Comparison", "metric"): HOSTILE,
    ("HardwareTable", "cells"): (),
    ("GpuRecord", "rows"): ({HOSTILE: HOSTILE},),
    ("GpuRecord", "heads"): (HOSTILE,),
    ("Trial", "settings"): {HOSTILE: HOSTILE},
    ("Axis", "choices"): (HOSTILE, "b"),
    ("Axis", "log"): False,
    ("CleanReport", "kept"): [],
    ("Need", "estimate"): None,
    ("DropTable", "texts"): ((HOSTILE, HOSTILE),),
    ("Mixture", "counts"): {"task": 1, "general": 1},
    ("Selection", "chosen"): {"messages": [[{"role": "assistant", "content": HOSTILE}]]},
    ("Selection", "baseline"): {"messages": [[{"role": "assistant", "content": HOSTILE}]]},
    ("Selection", "chosen_rows"): (0,),
    ("Selection", "baseline_rows"): (0,),
    ("Trial", "state"): "failed",
    ("Recommendation", "path"): (("need", "knowledge"),),
    ("_Tree", "of"): decision.recommend(),
    ("Change", "state"): "lost",
    ("SickRun", "metric"): "exact_match",
    ("SickRun", "kept"): {"rows": ({"prompt": HOSTILE, "wanted": HOSTILE, "base": SAID, "tuned": SAID},)},
}


def built(kind, name=("", "")):
    """Something of a type in which every text is hostile."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if name in GIVEN:
        return GIVEN[name]
    if kind is TrainConfig:
        return TrainConfig(target_modules=(HOSTILE,))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        wanted = [field for field in dataclasses.fields(kind) if field.init]
        return kind(**{f.name: built(hints[f.name], (kind.__name__, f.name)) for f in wanted})
    if origin in (typing.Union, types.UnionType):
        return built(inside[0])
    if origin is tuple and inside[-1] is not Ellipsis:
        return tuple(map(built, inside))
    if origin in (tuple, list, collections.abc.Sequence):
        return origin([built(inside[0])]) if origin is not collections.abc.Sequence else [built(inside[0])]
    if origin in (dict, collections.abc.Mapping):
        return {built(key): built(value) for key, value in [inside]}
    return {int: 3, float: 0.5, bool: True}.get(kind, HOSTILE)


def obeyed(text):
    """Characters of a text that a terminal or a page would act on."""
    return {character for character in text if unicodedata.category(character) in CONTROL} - {"\n", "\t"}


@pytest.mark.parametrize("name", sorted(REPORTS))
def test_a_report_shows_what_others_wrote_and_obeys_none_of_it(name):
    report = built(REPORTS[name])
    assert obeyed(str(report)) == set()
    if hasattr(report, "_repr_html_"):
        page = report._repr_html_()
        assert "<img src=x" not in page
        assert obeyed(page) == set()


def situation():
    """A model, a run and a machine with hostile names."""
    shape = dataclasses.replace(find(ftkit.models.BUNDLED), name=HOSTILE)
    return Situation(dataclasses.replace(CPU, name=HOSTILE), shape, rows=100)


def test_the_form_and_its_panel_show_hostile_names_as_text():
    config = TrainConfig(target_modules=(HOSTILE,))
    form = ConfigForm(config, situation(), Path("/none"), None)
    panel = form.panel and form._panel
    panel.progress([], 0, HOSTILE, running=False, failed=True)
    history = History.of([HistoryPoint(1, loss=1.0)])
    panel.runs(ftkit.training.RunsTable((RunRow(HOSTILE, HOSTILE, history, config),)))
    panel.rows["lora_r"].say([Finding(HOSTILE, "error", HOSTILE, HOSTILE, HOSTILE)], HOSTILE)
    pages = [form._repr_html_(), *(w.value for w in tree(panel.root) if type(w).__name__ == "HTML")]
    for page in pages:
        assert "<img" not in page
        assert obeyed(page) == set()
    assert [w.description for w in tree(panel.root) if obeyed(getattr(w, "description", ""))] == []


def tree(widget):
    """A widget and all that it holds."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from tree(child)


ERRORS = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)]


@pytest.mark.parametrize("kind", [*ERRORS, ftkit.colab.ColabError], ids=lambda kind: kind.__name__)
def test_messages_of_errors_and_warnings_move_no_cursor(kind):
    """A terminal's escape, a carriage return or a right-to-left mark in a file name would rewrite the line."""
    assert obeyed(str(kind(f"{HOSTILE} is no file"))) == set()
    assert str(kind(f"{HOSTILE} is no file")).endswith("|$x_$ is no file")


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_a_message_keeps_its_ends_whatever_it_quotes(kind):
    """A value of a hundred thousand characters, or ten thousand problems, would bury the sentence that helps."""
    text = str(kind(f"setting={'x' * 10**5} is no number. Give 16."))
    assert len(text) < 2_000
    assert text.startswith("setting=xxx")
    assert text.endswith("is no number. Give 16.")
    lines = str(kind("\n".join(f"line {i}" for i in range(10**4)))).splitlines()
    assert (lines[0], lines[-1], len(lines) < 200) == ("line 0", "line 9999", True)
    assert [line for line in lines if "more lines" in line] == ["… and 9,880 more lines …"]


HISTORY = History.of([HistoryPoint(1, loss=1.0), HistoryPoint(2, loss=0.5)])
SCORE = Score(0.5, 0.4, 0.6)
COUNT = RuleCount("", "", 4, 1, 0, 0, 0.1)
SHAPE = find(ftkit.models.BUNDLED)
ESTIMATE = estimate(SHAPE, TrainConfig())


def compared(name):
    """A comparison of a system of this name with itself under another."""
    rows = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]}]
    return evaluation.compare(*(evaluation.score_answers(["x"], rows, name=called) for called in ("base", name)))


# Every figure that takes somebody's name: how it is drawn with one.
FIGURES = {
    "plot_runs": lambda name, ax: plot_runs({name: HISTORY}, ax),
    "plot_curves": lambda name, ax: plot_curves({name: HISTORY}, [ax])[0],
    "plot_scores": lambda name, ax: evaluation.plot_scores({name: {name: SCORE}}, ax),
    "plot_comparison": lambda name, ax: evaluation.plot_comparison(compared(name), ax),
    "plot_cleaned": lambda name, ax: cleaning.plot_cleaned(
        SimpleNamespace(counts=[dataclasses.replace(COUNT, name=name)], kept=[1], total=2), ax
    ),
    "plot_parts": lambda name, ax: memory.plot_parts({name: ESTIMATE}, ax=ax),
    "plot_over_length": lambda name, ax: memory.plot_over_length(
        dataclasses.replace(SHAPE, name=name), {name: TrainConfig()}, ax=ax
    ),
    "plot_schedules": lambda name, ax: tuning.plot_schedules({name: [1e-4, 2e-4]}, 2e-4, ax),
    "plot_losses": lambda name, ax: lessons.plot_losses({name: [1.0, 0.5]}, ax),
    "plot_rounding": lambda name, ax: lessons.plot_rounding({name: [0.1, 0.2]}, ax),
}


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("name", [HOSTILE, "$\\frac{$", "_hidden", "a" * 10_000, "costs $5 or $6"], ids=range(5))
def test_a_name_in_a_figure_is_a_label(figure, name):
    """No formula, no name that matplotlib hides from its legend, no label wider than the figure."""
    ax = figures.blank_axes()
    ax.figure.set_layout_engine("none")  # would measure every label three times
    ax = FIGURES[figure](name, ax)
    ax.figure.canvas.draw()
    label = figures.plain(name)
    texts = [text.get_text() for text in ax.figure.findobj(Text)]
    assert [text for text in texts if label in text]
    assert [text for text in texts if obeyed(text) or len(text) > 200] == []
    assert label.count("$") == label.count(r"\$")
