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
_BUTTONS = {
    "Train": ("success", "play", "Train these settings, or go on where they were stopped"),
    "Stop": ("warning", "stop", "Finish this update, save, and leave a run that can go on"),
    "Measure": ("", "clock-o", "Make a few real updates and note how long one takes"),
}
_STYLE = """<style>
.ftkit-panel { max-width: 1080px; font-size: 13px; line-height: 1.35; }
.ftkit-panel .ftkit-label { font-size: 11px; background: none; padding: 0; white-space: nowrap; }
.ftkit-panel .ftkit-help { font-size: 11.5px; line-height: 1.3; opacity: .72; white-space: normal; }
.ftkit-panel .ftkit-help b { font-weight: 600; }
.ftkit-panel .ftkit-note { font-size: 12px; line-height: 1.3; margin-top: 1px; white-space: normal; }
.ftkit-panel .ftkit-row { border-bottom: 1px solid #8883; padding: 1px 0; overflow: hidden; }
.ftkit-panel .lm-TabBar-tab, .ftkit-panel .p-TabBar-tab { flex: 0 1 auto !important; }
.ftkit-panel .lm-TabBar-tab, .ftkit-panel .p-TabBar-tab { min-width: 0 !important; padding: 0 9px !important; }
.ftkit-row .mod-active { background: #0072B2 !important; color: #fff !important; }
.ftkit-meaning { padding-right: 10px; line-height: 1.35; }
.ftkit-status { white-space: pre-line; line-height: 1.35; }
.ftkit-status progress { width: 120px; }
.ftkit-failed { color: #d13c32; }
.ftkit-tiles { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; margin-bottom: 8px; }
.ftkit-tile { border: 1px solid #8885; border-radius: 6px; padding: 4px 9px 5px; }
.ftkit-tile span { font-size: 11.5px; opacity: .72; display: block; }
.ftkit-tile b { font-size: 19px; font-weight: 600; line-height: 1.25; }
.ftkit-tile small { font-size: 11.5px; opacity: .72; display: block; line-height: 1.25; }
.ftkit-tile .ftkit-unknown { font-size: 14px; opacity: .8; display: block; }
.ftkit-head { font-size: 12px; font-weight: 600; margin: 8px 0 3px; }
.ftkit-bar { position: relative; height: 18px; border: 1px solid #8889; border-radius: 4px; }
.ftkit-bar i { position: absolute; top: 0; bottom: 0; }
.ftkit-bar .ftkit-range { top: 6px; height: 5px; bottom: auto; border: solid currentColor; border-width: 0 2px;
  background: linear-gradient(currentColor, currentColor) center / 100% 1px no-repeat; }
.ftkit-bar .ftkit-limit { border-left: 3px solid #D55E00; top: -4px; bottom: -4px; }
.ftkit-memory { margin-top: 3px; }
.ftkit-keys { font-size: 11.5px; line-height: 1.5; opacity: .9; }
.ftkit-keys span { white-space: nowrap; margin-right: 9px; }
.ftkit-keys i { display: inline-block; width: 9px; height: 9px; border-radius: 2px; margin-right: 3px; }
</style>"""


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
        self.buttons = {name: self._button(name, name) for name in _BUTTONS}
        pages = [ipywidgets.VBox([self.rows[name].root for name in in_group(group)]) for group in GROUPS]
        self.tabs = ipywidgets.Tab(children=pages)
        self.tabs.selected_index = GROUPS.index("adapter")
        self.meaning = ipywidgets.HTML(layout=ipywidgets.Layout(width="100%"))
        self.status = ipywidgets.HTML(layout=ipywidgets.Layout(flex="1 1 auto"))
        self.live = ipywidgets.HTML()
        self._runs, self._overlay = ipywidgets.VBox(), ipywidgets.VBox()
        self._titles: list[str] = []
        self._laid_over: set[str] = set()
        self.root = self._arranged()
        self.running(False)

    def _button(self, name: str, *act: str) -> Any:
        tip, looks, width = "", {}, "auto"
        if name in _BUTTONS:
            style, icon, tip = _BUTTONS[name]
            looks, width = {"button_style": style, "icon": icon}, f"{_BUTTON_PX}px"
        elif name == "start again":
            tip, looks = "Back to the settings that the form began with", {"icon": "undo"}
        else:
            tip = config.describe_preset(name)
        layout = self._w.Layout(width=width, flex="0 0 auto")
        button = self._w.Button(description=name, tooltip=tip, layout=layout, **looks)
        button.on_click(lambda _: self._act(*act))
        return button

    def _arranged(self) -> Any:
        box, line, layout = self._w.VBox, self._w.HBox, self._w.Layout
        wide = layout(margin="2px 4px 2px 10px")
        how_long, made_for = (
            self._w.HTML(element("span", text, class_="ftkit-head"), layout=wide) for text in ("How long", "Made for")
        )
        efforts, machines = self.presets[: len(config.EFFORTS)], self.presets[len(config.EFFORTS) :]
        self.back = self._button("start again", "start again")
        presets = line(
            [how_long, *efforts, made_for, *machines, self.back],
            layout=layout(flex_flow="row wrap", align_items="center", margin="0 0 4px"),
        )
        middle = line(
            [
                box([self.tabs], layout=layout(flex="1.3 1 460px", min_width="0")),
                box([self.meaning], layout=layout(flex="1 1 330px", min_width="0", padding="0 0 0 14px")),
            ],
            layout=layout(width="100%", flex_flow="row wrap", align_items="flex-start"),
        )
        controls = line([*self.buttons.values(), self.status], layout=layout(align_items="center", margin="8px 0 0"))
        root = box([self._w.HTML(_STYLE), presets, middle, controls, self.live, self._runs, self._overlay])
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
        svg = chart(
            curves,
            x="weight updates",
            y="loss, nats a trained token",
            width=720,
            height=210,
            x_max=min(max(total, reached), room),
        )
        self.live.value = element("div", svg, class_="ftkit-live", data_points=len(trained))

    def runs(self, table: RunsTable) -> None:
        """Show the runs so far, each with a box that lays its curve over the others."""
        if not table.rows:
            return
        text, layout = self._w.HTML, self._w.Layout
        cells = [text(""), *(text(element("b", escaped(name))) for name in table.columns)]
        for row in table.rows:
            box = self._w.Checkbox(
                value=row.name in self._laid_over,
                indent=False,
                disabled=row.history is None,
                layout=layout(width="24px"),
            )
            box.observe(lambda change, name=row.name: self._lay_over(table, name, change["new"]), names="value")
            cells += [box, *(text(escaped(cell)) for cell in table.cells(row))]
        grid = self._w.GridBox(
            cells,
            layout=layout(
                grid_template_columns=f"28px repeat({len(table.columns)}, max-content)",
                grid_gap="0 14px",
                overflow="auto",
                align_items="center",
                width="100%",
            ),
        )
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
        label = ipywidgets.HTML(
            element("code", name, class_="ftkit-label", title=self.spec.metadata["help"]),
            layout=layout(width=f"{_LABEL_PX - 4}px", flex="0 0 auto"),
        )
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
        parts = [element("div", help_text, class_="ftkit-help")]
        for severity, sign, text in notes:
            words = f"{element('b', sign)} {escaped(text)}"
            parts.append(element("div", words, class_="ftkit-note", style=f"color:{_COLOURS[severity]}"))
        if typical and positions:
            parts.append(self._usual_range([value for _, value in positions], *typical))
        self.note.value = "".join(parts)

    def _usual_range(self, values: Sequence[float], low: float, high: float) -> str:
        """A style sheet that colours the slider's track between the usual ends."""
        inside = [100 * i / (len(values) - 1) for i, value in enumerate(values) if low <= value <= high]
        left, right = f"{inside[0]:.1f}%", f"{inside[-1]:.1f}%"
        track = f".ftkit-track-{self.name}"
        colours = f"#8885 {left},{figures.GREEN} {left},{figures.GREEN} {right},#8885 {right}"
        ground = f"background:linear-gradient(to right,{colours})!important"
        return f"<style>{track} .noUi-connects,{track} .ui-slider{{{ground}}}</style>"


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
