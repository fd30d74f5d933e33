"""Prompt, retrieve, constrain or fine-tune? A short questionnaire, the tree that it walks, and the form that asks it.

Questions, reasons, the tree and its sources stand in `samples/guide.json`; here they are walked, drawn and asked. What
comes out is a rule of thumb that says so: it knows nobody's data.
"""

import base64
import html
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from ftkit import figures, files, tables
from ftkit.errors import ConfigError
from ftkit.tables import Table, escaped

_WIDTH, _HEIGHT = 11.5, 4.6  # inches of the tree
_SHAPES = {True: (figures.BLUE, "#e4f0f8", 2.2), False: (figures.GREY, "#ffffff", 0.8)}  # line, fill, thickness


@dataclass(frozen=True)
class Reason:
    """What one answer means for the decision, and who measured it."""

    question: str
    answer: str
    means: str
    sources: tuple[str, ...]


@tables.shown
@dataclass(frozen=True)
class Recommendation:
    """What to do first, and why. `approaches` belong together; `rivals` are what to measure them against.

    `path` holds the answers that the tree asked for; `assumed` names questions without an answer, whose first option
    was taken.
    """

    say: str
    approaches: tuple[str, ...]
    rivals: tuple[str, ...]
    reasons: tuple[Reason, ...]
    path: tuple[tuple[str, str], ...]
    answers: dict[str, str]
    assumed: tuple[str, ...]
    measure: str

    @property
    def fine_tune(self) -> bool:
        """Whether a fine-tune is part of it."""
        return "fine_tune" in self.approaches

    def _parts(self) -> list[Any]:
        named = _guide()["approaches"]
        heads = [
            "do first",
            *("together with" for _ in self.approaches[1:]),
            *("measure beside it" for _ in self.rivals),
        ]
        what = [named.get(name, name) for name in (*self.approaches, *self.rivals)]
        rows = [(r.question, r.answer, r.means, "; ".join(map(_short, r.sources))) for r in self.reasons]
        cited = dict.fromkeys(itertools.chain.from_iterable(reason.sources for reason in self.reasons))
        last = f"Not answered, so the first option was taken: {', '.join(self.assumed)}." if self.assumed else ""
        return [
            self.say,
            _Tree(self),
            Table((), list(zip(heads, what, strict=True))),
            Table(("question", "your answer", "what it means", "source"), rows, prose=True),
            self.measure,
            *(f"Source: {source}" for source in cited),
            *([last] if last else []),
        ]


@dataclass(frozen=True)
class _Tree:
    """The tree as a picture on a page, and its path as a line in a terminal."""

    of: Recommendation

    def __str__(self) -> str:
        questions = _guide()["questions"]
        return tables.visible(" → ".join(f"{questions[q]['short']} {_label(q, (a,))}" for q, a in self.of.path))

    def _repr_html_(self) -> str:
        data = base64.b64encode(_png(self.of)).decode()
        return f'<img style="max-width:100%" alt="{html.escape(str(self))}" src="data:image/png;base64,{data}">'


def recommend(answers: Mapping[str, str] | None = None) -> Recommendation:
    """What the rules of thumb say for these answers: `{question: option}`, as `decision_form().value` has them.

    A question without an answer takes its first option, and the result says so.

    Raises:
        ConfigError: names all questions and options that there are not.
    """
    if answers is not None and not isinstance(answers, Mapping):
        raise ConfigError(f"answers is {type(answers).__name__}, wanted a dict such as {{'need': 'knowledge'}}.")
    given, guide = dict(answers or {}), _guide()
    questions = guide["questions"]
    options = {name: list(question["options"]) for name, question in questions.items()}
    faults = [f"no question {name!r}" for name in given if name not in questions]
    faults += [
        f"{name}={given[name]!r} is none of {', '.join(known)}"
        for name, known in options.items()
        if name in given and given[name] not in known
    ]
    if faults:
        raise ConfigError(f"The guide cannot use these answers: {'; '.join(faults)}. It asks {', '.join(questions)}.")
    chosen = {name: given.get(name, known[0]) for name, known in options.items()}
    node, path = guide["tree"], []
    while "ask" in node:
        path.append((node["ask"], chosen[node["ask"]]))
        node = next(below for keys, below in node["then"].items() if path[-1][1] in keys.split("|"))
    use, rivals = list(node["use"]), list(node["rivals"])
    reasons = [_reason(questions[name]["short"], _option(name, value)) for name, value in chosen.items()]
    if node.get("sources"):
        reasons.append(_reason("taken together", node | {"means": node["say"]}))
    for rule in guide["rules"]:
        applies = all(chosen[name] in values for name, values in rule["when"].items())
        if applies and rule.get("if", use[0]) in use and rule.get("unless") not in use:
            use += [rule["add"]] if "add" in rule else []
            rivals += [rule["rival"]] if "rival" in rule else []
            reasons.append(_reason("taken together", rule | {"label": "", "means": rule["say"]}))
    together = [*use, *(name for name in rivals if name not in use)]
    *others, last = (guide["approaches"][name].partition(":")[0] for name in dict.fromkeys(["prompt", *together]))
    measured = f"{', '.join(others)} and {last}" if others else last
    return Recommendation(
        say=node["say"],
        approaches=tuple(use),
        rivals=tuple(dict.fromkeys(rivals)),
        reasons=tuple(reasons),
        path=tuple(path),
        answers=chosen,
        assumed=tuple(name for name in options if name not in given),
        measure=guide["measure"].format(measured=measured),
    )


def plot_guide(recommendation: Recommendation, ax: Any = None) -> Any:
    """Which way do my answers lead? The guide's tree from left to right, with the path drawn thick.

    Args:
        recommendation: whose path.
        ax: where to draw; best on a wide figure.
    """
    ax = figures.axes(ax)
    taken = dict(recommendation.path)
    rows = iter(range(1_000))

    def draw(node: Mapping[str, Any], edge: str, depth: int, on_path: bool) -> float:
        """Draw a node with all below it; its height."""
        below = []
        for keys, child in node.get("then", {}).items():
            reached = on_path and taken.get(node["ask"]) in keys.split("|")
            said = child.get("edge") or _label(node["ask"], keys.split("|"))
            below.append((draw(child, said, depth + 1, reached), reached))
        height = sum(y for y, _ in below) / len(below) if below else -float(next(rows))
        for y, reached in below:
            line, _, thickness = _SHAPES[reached]
            ax.plot([depth, depth + 1], [height, y], color=line, linewidth=thickness, zorder=2 if reached else 1)
        line, fill, thickness = _SHAPES[on_path]
        name = node.get("label") or _guide()["questions"][node["ask"]]["short"]
        ax.text(
            depth,
            height,
            f"{edge}:\n{name}" if edge else name,
            ha="center",
            va="center",
            fontsize=8.5,
            fontweight="bold" if on_path else "normal",
            color="black" if on_path else "#555555",
            bbox={"boxstyle": "round,pad=0.35", "facecolor": fill, "edgecolor": line, "linewidth": thickness},
            zorder=3,
        )
        return height

    draw(_guide()["tree"], "", 0, True)
    ax.set_xlim(-0.45, 5.45)
    ax.margins(y=0.09)
    ax.set_axis_off()
    ax.set_title("Which way do my answers lead?", loc="left")
    return ax


def decision_form(answers: Mapping[str, str] | None = None) -> "DecisionForm":
    """The questionnaire, whose `.value` holds the answers and `.recommendation` what follows from them.

    As the last line of a cell it is a form that answers as it is filled in; without a front end it shows the
    recommendation for `answers`, or for the first option of each question.

    Raises:
        ConfigError: names all questions and options that there are not.
    """
    return DecisionForm(recommend(answers))


@tables.shown
class DecisionForm:
    """Questions that a person answers. Made by `decision_form`."""

    def __init__(self, recommendation: Recommendation) -> None:
        self.recommendation = recommendation
        self.pickers: dict[str, Any] = {}
        self._root: Any = None

    @property
    def value(self) -> dict[str, str]:
        """The answers as they stand; assign a dict to change them, as `recommend` takes it."""
        return dict(self.recommendation.answers)

    @value.setter
    def value(self, answers: Mapping[str, str]) -> None:
        """Show these answers."""
        self._show(recommend(answers))

    @property
    def panel(self) -> Any:
        """The widgets, made on first use."""
        if self._root is None:
            self._root = self._made()
            self._show(self.recommendation)
        return self._root

    def _made(self) -> Any:
        import ipywidgets as w

        self._say, self._why = w.HTML(layout=w.Layout(margin="10px 0 0")), w.HTML(layout=w.Layout(width="100%"))
        self._tree = w.Image(format="png", layout=w.Layout(width="100%", max_width="1060px"))
        asked = []
        for name, question in _guide()["questions"].items():
            options = [(option["label"], value) for value, option in question["options"].items()]
            picker = w.Dropdown(options=options, value=self.value[name], layout=w.Layout(width="98%"))
            picker.add_class(f"ftkit-ask-{name}")
            picker.observe(lambda change, name=name: self._answered(name, change["new"]), names="value")
            self.pickers[name] = picker
            text = w.HTML(f'<div class="ftkit-head" style="line-height:1.3">{escaped(question["ask"])}</div>')
            asked.append(w.VBox([text, picker], layout=w.Layout(flex="1 1 460px", justify_content="flex-end")))
        questions = w.HBox(asked, layout=w.Layout(width="100%", flex_flow="row wrap"))
        style = resources.files("ftkit").joinpath("samples/panel.css").read_text(encoding="utf-8")
        root = w.VBox([w.HTML(f"<style>\n{style}</style>"), questions, self._say, self._tree, self._why])
        root.add_class("ftkit-panel")
        return root

    def _answered(self, name: str, option: str) -> None:
        """Follow a person who has picked an option; not what `_show` itself sets."""
        if option != self.recommendation.answers[name]:
            self._show(recommend(self.value | {name: option}))

    def _show(self, recommendation: Recommendation) -> None:
        self.recommendation = recommendation
        if not self.pickers:
            return
        for name, picker in self.pickers.items():
            picker.value = recommendation.answers[name]
        self._say.value = f'<div class="ftkit-say" style="font-size:15px"><b>{escaped(recommendation.say)}</b></div>'
        self._tree.value = _png(recommendation)
        parts = recommendation._parts()[2:]
        shown = "".join(f"<p>{escaped(p)}</p>" if isinstance(p, str) else p._repr_html_() for p in parts)
        self._why.value = f'<div style="line-height:1.35">{shown}</div>'

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(self.panel if figures.front_end() else HTML(self._repr_html_()))  # type: ignore[attr-defined]

    def _parts(self) -> list[Any]:
        return self.recommendation._parts()


@cache
def _guide() -> dict[str, Any]:
    return dict(files.sample("guide"))


def _option(question: str, value: str) -> dict[str, Any]:
    return dict(_guide()["questions"][question]["options"][value])


def _label(question: str, values: Sequence[str]) -> str:
    return " or ".join(_option(question, value)["short"] for value in values)


def _reason(question: str, text: Mapping[str, Any]) -> Reason:
    sources = tuple(_guide()["sources"][name] for name in text.get("sources", ()))
    return Reason(question, text["label"], text["means"], sources)


def _short(source: str) -> str:
    """The authors and the year of a reference."""
    return source.partition(",")[0]


def _png(recommendation: Recommendation) -> bytes:
    buffer = io.BytesIO()
    ax = plot_guide(recommendation, figures.blank_axes(_WIDTH, _HEIGHT))
    ax.figure.savefig(buffer, format="png", dpi=96)
    return buffer.getvalue()
