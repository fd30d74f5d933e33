"""The widgets of the form: a row of controls a setting, the buttons, the chart of the run, the runs so far.

Shows what it is given and passes on what a person does; decides, computes and trains nothing.
ipywidgets is loaded with the first panel.
"""

import io
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib import resources
from typing import Any

from ftkit import config, figures, training
from ftkit.config import TrainConfig
from ftkit.preflight import Finding
from ftkit.tables import escaped, flat
from ftkit.training import HistoryPoint, RunsTable
from ftkit.tuning.consequences import Consequences, Line, as_text, chart, drawn, element

SPECS = {spec.name: spec for spec in fields(TrainConfig)}
GROUPS = tuple(dict.fromkeys(spec.metadata["group"] for spec in fields(TrainConfig)))  # in order of declaration
_LABEL_PX, _BOX_PX, _BUTTON_PX = 190, 72, 104
_SERIES, _COARSE, _MANY_DECADES = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), 5
_NO_SLIDER_FROM = 2**31 - 1  # a seed has no better or worse end
_COLOURS = {"error": "#d13c32", "warning": "#ad6500", "note": "#4f7ca6"}  # to be read on white and on black
_RUN_BUTTONS = ("Train", "Stop", "Measure")
_BUTTONS = {
    "Train": ("success", "play", "Train these settings, or go on where they were stopped"),
    "Stop": ("warning", "stop", "Finish this update, save, and leave a run that can go on"),
    "Measure": ("", "clock-o", "Make a few real updates and note how long one takes"),
    "start again": ("", "undo", "Back to the settings that the form began with"),
}


class Panel:
    """Widgets of one form.

    Args:
        targets: weight matrices to choose from.
        trainable: whether Train and Measure can ever be pressed.
        act: `act(what, *given)` is called when a person does something: "set" with a name and a value,
            "preset" with a name, "start again", "Train", "Stop", "Measure".
    """

    def __init__(self, targets: Sequence[str], trainable: bool, act: Callable[..., None]) -> None:
        import ipywidgets

        self._w, self._act, self._trainable = ipywidgets, act, trainable
        self.rows = {name: KnobRow(name, targets, lambda *moved: act("set", *moved)) for name in SPECS}
        self.presets = [self._button(name, "preset", name) for name in (*config.EFFORTS, *config.MACHINES)]
        self.buttons = {name: self._button(name, name) for name in _RUN_BUTTONS}
        pages = [ipywidgets.VBox([self.rows[name].root for name in in_group(group)]) for group in GROUPS]
        self.tabs = ipywidgets.Tab(children=pages)
        self.tabs.selected_index = GROUPS.index("adapter")
        self.meaning = ipywidgets.HTML(layout=ipywidgets.Layout(width="100%"))
        self.status = ipywidgets.HTML(layout=ipywidgets.Layout(flex="1 1 auto"))
        self.live = ipywidgets.HTML()
        self._runs, self._overlay = ipywidgets.VBox(), ipywidgets.VBox()
        self._titles: list[str] = []
        self._laid_over: set[str] = set()
        self.back = self._button("start again", "start again")
        self.root = self._arranged()
        self.running(False)

    def _button(self, name: str, *act: str) -> Any:
        style, icon, tip = _BUTTONS.get(name) or ("", "", config.preset(name)["about"])
        width = f"{_BUTTON_PX}px" if name in _RUN_BUTTONS else "auto"
        layout = self._w.Layout(width=width, flex="0 0 auto")
        button = self._w.Button(description=name, tooltip=tip, layout=layout, button_style=style, icon=icon)
        button.on_click(lambda _: self._act(*act))
        return button

    def _arranged(self) -> Any:
        box, line, layout = self._w.VBox, self._w.HBox, self._w.Layout
        wide = layout(margin="2px 4px 2px 10px")
        heads = [element("span", text, class_="ftkit-head") for text in ("How long", "Made for")]
        how_long, made_for = (self._w.HTML(head, layout=wide) for head in heads)
        efforts, machines = self.presets[: len(config.EFFORTS)], self.presets[len(config.EFFORTS) :]
        row = layout(flex_flow="row wrap", align_items="center", margin="0 0 4px")
        presets = line([how_long, *efforts, made_for, *machines, self.back], layout=row)
        left = box([self.tabs], layout=layout(flex="1.3 1 460px", min_width="0"))
        right = box([self.meaning], layout=layout(flex="1 1 330px", min_width="0", padding="0 0 0 14px"))
        middle = line([left, right], layout=layout(width="100%", flex_flow="row wrap", align_items="flex-start"))
        controls = line([*self.buttons.values(), self.status], layout=layout(align_items="center", margin="8px 0 0"))
        style = resources.files("ftkit").joinpath("samples/panel.css").read_text(encoding="utf-8")
        sheet = self._w.HTML(f"<style>\n{style}</style>")
        root = box([sheet, presets, middle, controls, self.live, self._runs, self._overlay])
        root.add_class("ftkit-panel")
        return root

    def show(self, config: TrainConfig) -> None:
        """Move all controls to `config`."""
        for name, row in self.rows.items():
            row.show(getattr(config, name))

    def explain(self, found: Consequences, refused: Mapping[str, str]) -> None:
        """Show what the settings mean; each finding, and why a value was not taken, below the setting it concerns."""
        self.meaning.value = drawn(found)
        noted: dict[str, list[Finding]] = {}
        for finding in found.findings:
            noted.setdefault(finding.field, []).append(finding)
        for name, row in self.rows.items():
            row.say(noted.get(name, []), refused.get(name, ""))
        counts = Counter(SPECS[name].metadata["group"] for name in noted if name in SPECS)
        titles = [group.capitalize() + (f" ! {counts[group]}" if counts[group] else "") for group in GROUPS]
        if titles != self._titles:
            self._titles = titles
            for i, title in enumerate(titles):
                self.tabs.set_title(i, title)

    def running(self, is_running: bool) -> None:
        """Enable the buttons that make sense now."""
        for name, button in self.buttons.items():
            button.disabled = not self._trainable or is_running != (name == "Stop")

    def progress(
        self, points: Sequence[HistoryPoint], total: int, message: str, *, running: bool, failed: bool
    ) -> None:
        """Show how far the run is, or came, and its curve; `total` is not above 0 until it is known."""
        reached = points[-1].step if points else 0
        bar = element("progress", value=reached, max=total) + " " if running and total > 0 else ""
        failure = " ftkit-failed" if failed else ""
        self.status.value = element("div", bar + escaped(message), class_=f"ftkit-status{failure}")
        trained = [(float(p.step), p.loss) for p in points if p.loss is not None]
        if not trained:
            self.live.value = ""
            return
        smoothed = zip([step for step, _ in trained], figures.smooth([loss for _, loss in trained]), strict=True)
        measured = [(float(p.step), p.val_loss) for p in points if p.val_loss is not None]
        curves = [
            Line(trained, "each update", faint=True),
            Line(list(smoothed), "smoothed"),
            Line(measured, "validation", figures.ORANGE, dash="5 4", marked=True),
        ]
        room = max(2 * reached, 20)  # to grow into, without a long run's beginning looking like a dot
        unit, right = "loss per token", min(max(total, reached), room)
        svg = chart(curves, x="weight updates", y=unit, width=720, height=210, x_max=right)
        self.live.value = element("div", svg, class_="ftkit-live", data_points=len(trained))

    def runs(self, table: RunsTable) -> None:
        """Show the runs so far, each with a box that lays its curve over the others."""
        if not table.rows:
            return
        text, layout = self._w.HTML, self._w.Layout
        cells = [text(""), *(text(element("b", escaped(name))) for name in table.columns)]
        for row in table.rows:
            ticked, narrow = row.name in self._laid_over, layout(width="24px")
            box = self._w.Checkbox(value=ticked, indent=False, disabled=row.history is None, layout=narrow)
            box.observe(lambda change, name=row.name: self._lay_over(table, name, change["new"]), names="value")
            cells += [box, *(text(escaped(cell)) for cell in table.cells(row))]
        columns = f"28px repeat({len(table.columns)}, max-content)"
        look = {"grid_gap": "0 14px", "overflow": "auto", "align_items": "center", "width": "100%"}
        grid = self._w.GridBox(cells, layout=layout(grid_template_columns=columns, **look))
        grid.add_class("ftkit-runs")
        head = "Runs so far, with the settings that differ. Tick some to lay their curves over each other."
        self._runs.children = [text(element("div", head, class_="ftkit-head")), grid]
        self._draw(table)

    def _lay_over(self, table: RunsTable, name: str, wanted: bool) -> None:
        (self._laid_over.add if wanted else self._laid_over.discard)(name)
        self._draw(table)

    def _draw(self, table: RunsTable) -> None:
        picked = {row.name: row.history for row in table.rows if row.name in self._laid_over and row.history}
        if not picked:
            self._overlay.children = []
            return
        buffer = io.BytesIO()
        training.plot_runs(picked, figures.blank_axes(7.5, 3.2)).figure.savefig(buffer, format="png", dpi=96)
        layout = self._w.Layout(width="720px", max_width="100%")
        self._overlay.children = [self._w.Image(value=buffer.getvalue(), format="png", layout=layout)]


class KnobRow:
    """The controls of one setting. `changed(name, value)` is called when a person moves them, not when `show` does."""

    def __init__(self, name: str, options: Sequence[str], changed: Callable[[str, Any], None]) -> None:
        import ipywidgets

        self.name, self.spec, self._changed = name, SPECS[name], changed
        self._silent = False
        self._written: tuple[Any, ...] = ()
        self.slider: Any = None
        self.box: Any = None
        self.picker: Any = None
        self.toggles: dict[str, Any] = {}
        layout = ipywidgets.Layout
        code = element("code", name, class_="ftkit-label", title=self.spec.metadata["help"])
        label = ipywidgets.HTML(code, layout=layout(width=f"{_LABEL_PX - 4}px", flex="0 0 auto"))
        controls = self._controls(ipywidgets, options)
        self.note = ipywidgets.HTML(layout=layout(margin=f"0 0 2px {_LABEL_PX}px", width="auto"))
        line = ipywidgets.HBox([label, *controls], layout=layout(align_items="center", width="100%"))
        self.root = ipywidgets.VBox([line, self.note], layout=layout(width="100%"))
        self.root.add_class("ftkit-row")

    def _controls(self, widgets: Any, options: Sequence[str]) -> list[Any]:
        """Toggles for names, a list for choices, a tick for yes or no, a slider and a box for a number."""
        default, facts, layout = self.spec.default, self.spec.metadata, widgets.Layout
        if isinstance(default, tuple):
            for option in options:
                toggle = self.toggles[option] = widgets.ToggleButton(
                    description=flat(option), layout=layout(width="auto")
                )
                toggle.observe(self._moved, names="value")
            return [widgets.Box(list(self.toggles.values()), layout=layout(flex_flow="row wrap", flex="1 1 auto"))]
        if facts["choices"]:
            self.picker = widgets.Dropdown(options=facts["choices"], layout=layout(width="220px"))
        elif isinstance(default, bool):
            self.picker = widgets.Checkbox(indent=False, description="on", layout=layout(width="auto"))
        else:
            self.box = widgets.Text(continuous_update=False, layout=layout(width=f"{_BOX_PX}px", flex="0 0 auto"))
            if facts["high"] < _NO_SLIDER_FROM:
                positions = [(as_text(value), value) for value in stops(self.name)]
                bar = layout(flex="1 1 auto", width="auto")
                self.slider = widgets.SelectionSlider(options=positions, readout=False, layout=bar)
                self.slider.add_class(f"ftkit-track-{self.name}")
        made = [control for control in (self.picker, self.slider, self.box) if control is not None]
        for control in made:
            control.observe(self._moved, names="value")
        return made

    def _moved(self, change: Any) -> None:
        if self._silent:
            return
        value = change["new"]
        if self.toggles:
            value = tuple(name for name, toggle in self.toggles.items() if toggle.value)
        elif change["owner"] is self.box:
            value = parse(self.name, value)
        self._changed(self.name, value)

    def show(self, value: Any) -> None:
        """Move the controls to `value`; nobody is told."""
        self._silent = True
        try:
            for name, toggle in self.toggles.items():
                toggle.value = name in value
            if self.picker is not None:
                self.picker.value = value
            if self.box is not None:
                self.box.value = as_text(value)
            if self.slider is not None:
                options = [(as_text(stop), stop) for stop in sorted({*stops(self.name), value})]
                if list(self.slider.options) != options:
                    self.slider.options = options
                self.slider.value = value
        finally:
            self._silent = False

    def say(self, findings: Sequence[Finding], refusal: str) -> None:
        """Write below the controls: help, usual range, findings, and why a value was not taken."""
        positions = self.slider.options if self.slider is not None else ()
        if self._written == (findings, refusal, positions):
            return
        self._written = (findings, refusal, positions)
        help_text, typical = escaped(self.spec.metadata["help"]), self.spec.metadata["typical"]
        if typical:
            help_text += element("b", f" · usual {as_text(typical[0])} to {as_text(typical[1])}")
        notes = [(f.severity, "✗" if f.severity == "error" else "!", f"{f.title} {f.fix}") for f in findings]
        if refusal:
            notes.append(("error", "✗ not taken:", refusal))
        parts = element("div", help_text, class_="ftkit-help")
        for severity, sign, text in notes:
            words = f"{element('b', sign)} {escaped(text)}"
            parts += element("div", words, class_="ftkit-note", style=f"color:{_COLOURS[severity]}")
        if typical and positions:  # the slider's track is green between the usual ends
            low, high = typical
            inside = [100 * i / (len(positions) - 1) for i, (_, stop) in enumerate(positions) if low <= stop <= high]
            left, right, track = f"{inside[0]:.1f}%", f"{inside[-1]:.1f}%", f".ftkit-track-{self.name}"
            colours = f"#8885 {left},{figures.GREEN} {left},{figures.GREEN} {right},#8885 {right}"
            ground = f"background:linear-gradient(to right,{colours})!important"
            parts += f"<style>{track} .noUi-connects,{track} .ui-slider{{{ground}}}</style>"
        self.note.value = parts


def in_group(group: str) -> list[str]:
    """Names of the settings of a group, in the order of their declaration."""
    return [name for name, spec in SPECS.items() if spec.metadata["group"] == group]


def stops(name: str) -> list[Any]:
    """Round values between the ends of a number: powers of two for a logarithmic whole one, else 1, 1.5, 2, 3, 5, 7."""
    spec = SPECS[name]
    low, high, whole = spec.metadata["low"], spec.metadata["high"], isinstance(spec.default, int)
    if spec.metadata["log"] and whole:
        found = {2**i for i in range(int(math.log2(high)) + 1) if low <= 2**i}
        return sorted(found | {low, high, spec.default})
    smallest = low
    if low <= 0:
        smallest = 1.0 if whole else spec.metadata["typical"][1] / 10
    decades = range(math.floor(math.log10(smallest)), math.ceil(math.log10(high)) + 1)
    digits = _SERIES if len(decades) <= _MANY_DECADES else _COARSE
    numbers = [float(f"{digit}e{decade}") for decade, digit in itertools.product(decades, digits)]
    inside = [number for number in numbers if smallest <= number <= high]
    if whole:
        return sorted({int(number) for number in inside if number == int(number)} | {low, high, spec.default})
    return sorted({*inside, float(low), float(high), spec.default})


def parse(name: str, text: str) -> Any:
    """The number in a box; text that is none comes back as it is, and the config refuses it."""
    try:
        number = float(text.replace(",", "").replace("_", ""))
    except ValueError:
        return text
    if isinstance(SPECS[name].default, int):
        return int(number) if math.isfinite(number) and number == int(number) else text
    return number
