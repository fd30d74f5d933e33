"""One row of controls for each setting, made from the line that declares it: ends, usual range, choices and help.

Sliders move along round values; a box beside each takes any value in between. Works with ipywidgets 7.7 and 8.
"""

import dataclasses
import html
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from ftkit.config import TrainConfig

SPECS = {spec.name: spec for spec in fields(TrainConfig)}
LABEL_PX, BOX_PX = 190, 72
_SERIES, _COARSE, _MANY_DECADES = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), 5
_NO_SLIDER_FROM = 2**31 - 1  # a seed has no better or worse end
_COLOURS = {"error": "#d13c32", "warning": "#ad6500", "note": "#4f7ca6"}  # to be read on white and on black


def stops(name: str) -> list[Any]:
    """Round values between the ends of a numeric setting: powers of two for logarithmic whole numbers, else 1, 1.5, 2, 3, 5, 7."""
    spec = SPECS[name]
    low, high, whole = spec.metadata["low"], spec.metadata["high"], isinstance(spec.default, int)
    if spec.metadata["log"] and whole:
        found = {2**i for i in range(int(math.log2(high)) + 1) if low <= 2**i}
    else:
        typical = spec.metadata["typical"] or (1.0, 1.0)
        smallest = low if low > 0 else 1.0 if whole else typical[1] / 10
        decades = range(math.floor(math.log10(smallest)), math.ceil(math.log10(high)) + 1)
        series = _SERIES if len(decades) <= _MANY_DECADES else _COARSE
        values = [float(f"{digit * 10.0**decade:.3g}") for decade in decades for digit in series]
        found = {int(v) if whole else v for v in values if smallest <= v <= high and (not whole or v == int(v))}
    ends = {low, high} if whole else {float(low), float(high)}
    return sorted(found | ends | {spec.default})


def as_text(value: Any) -> str:
    """A number as one types it: 0.0002 becomes 2e-4, 1.0 becomes 1."""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or abs(value) >= 1e-2:
        return f"{value:g}"
    mantissa, exponent = f"{value:.4e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def parse(name: str, text: str) -> Any:
    """The number in a box; text that is none comes back as it is, and the config refuses it."""
    try:
        number = float(text.replace(",", "").replace("_", ""))
    except ValueError:
        return text
    if isinstance(SPECS[name].default, int):
        return int(number) if math.isfinite(number) and number == int(number) else text
    return number


class KnobRow:
    """The controls of one setting. `changed(name, value)` is called when a person moves them, not when `show` does."""

    def __init__(self, name: str, options: Sequence[str], changed: Callable[[str, Any], None]) -> None:
        import ipywidgets

        self.name, self.spec, self._changed = name, SPECS[name], changed
        self._silent, self._positions = False, [0.0, 0.0]
        self._notes: tuple[tuple[str, str], ...] = ()
        self._refusal = ""
        self.slider: Any = None
        self.box: Any = None
        control = self._build(ipywidgets, options)
        self._note = ipywidgets.HTML(layout=ipywidgets.Layout(margin=f"0 0 2px {LABEL_PX}px", width="auto"))
        label = ipywidgets.HTML(
            f'<code class="ftkit-label" title="{html.escape(self.spec.metadata["help"])}">{name}</code>',
            layout=ipywidgets.Layout(width=f"{LABEL_PX - 4}px", flex="0 0 auto"),
        )
        line = ipywidgets.HBox([label, *control], layout=ipywidgets.Layout(align_items="center", width="100%"))
        self.root = ipywidgets.VBox([line, self._note], layout=ipywidgets.Layout(width="100%"))
        self.root.add_class("ftkit-row")
        self.show(self.spec.default)

    def _build(self, widgets: Any, options: Sequence[str]) -> list[Any]:
        default, choices = self.spec.default, self.spec.metadata["choices"]
        if isinstance(default, tuple):
            self.toggles = {
                n: widgets.ToggleButton(description=n, layout=widgets.Layout(width="auto")) for n in options
            }
            for toggle in self.toggles.values():
                toggle.observe(self._toggled, names="value")
            wrap = widgets.Layout(flex_flow="row wrap", flex="1 1 auto")
            return [widgets.Box(list(self.toggles.values()), layout=wrap)]
        if choices:
            self.picker = widgets.Dropdown(options=choices, layout=widgets.Layout(width="220px"))
        elif isinstance(default, bool):
            self.picker = widgets.Checkbox(indent=False, description="on", layout=widgets.Layout(width="auto"))
        else:
            return self._number(widgets)
        self.picker.observe(self._picked, names="value")
        return [self.picker]

    def _number(self, widgets: Any) -> list[Any]:
        self.box = widgets.Text(continuous_update=False, layout=widgets.Layout(width=f"{BOX_PX}px", flex="0 0 auto"))
        self.box.observe(self._typed, names="value")
        if self.spec.metadata["high"] >= _NO_SLIDER_FROM:
            return [self.box]
        self.slider = widgets.SelectionSlider(
            options=[(as_text(v), v) for v in stops(self.name)],
            readout=False,
            layout=widgets.Layout(flex="1 1 auto", width="auto"),
        )
        self.slider.add_class(f"ftkit-track-{self.name}")
        self.slider.observe(self._picked, names="value")
        return [self.slider, self.box]

    def show(self, value: Any) -> None:
        """Move the controls to `value`; nobody is told."""
        self._silent = True
        try:
            if isinstance(self.spec.default, tuple):
                for name, toggle in self.toggles.items():
                    toggle.value = name in value
            elif self.box is None:
                self.picker.value = value
            else:
                self.box.value = as_text(value)
                self._slide(value)
        finally:
            self._silent = False
        self._write_note()

    def _slide(self, value: Any) -> None:
        if self.slider is None:
            return
        values = sorted({*stops(self.name), value})
        if [v for _, v in self.slider.options] != values:
            self.slider.options = [(as_text(v), v) for v in values]
        self.slider.value = value
        if typical := self.spec.metadata["typical"]:
            inside = [i for i, v in enumerate(values) if typical[0] <= v <= typical[1]]
            self._positions = [100 * inside[0] / (len(values) - 1), 100 * inside[-1] / (len(values) - 1)]

    def notes(self, notes: Sequence[tuple[str, str]]) -> None:
        """Set what stands below the controls, as `(severity, text)`, after the help."""
        if tuple(notes) != self._notes:
            self._notes = tuple(notes)
            self._write_note()

    def refuse(self, problem: str) -> None:
        """Say why a value was not taken; an empty problem clears it."""
        if problem != self._refusal:
            self._refusal = problem
            self._write_note()

    def _write_note(self) -> None:
        facts = self.spec.metadata
        usual = f" · usual {as_text(facts['typical'][0])} to {as_text(facts['typical'][1])}" if facts["typical"] else ""
        parts = [f'<div class="ftkit-help">{html.escape(facts["help"])}<b>{usual}</b></div>']
        parts += [
            f'<div class="ftkit-note" style="color:{_COLOURS[kind]}"><b>{"✗" if kind == "error" else "!"}</b> {html.escape(text)}</div>'
            for kind, text in self._notes
        ]
        if self._refusal:
            parts.append(
                f'<div class="ftkit-note" style="color:{_COLOURS["error"]}"><b>✗ not taken:</b> {html.escape(self._refusal)}</div>'
            )
        if facts["typical"] and self.slider is not None:
            low, high = self._positions
            track = f".ftkit-track-{self.name}"
            parts.append(
                f"<style>{track} .noUi-connects,{track} .ui-slider{{background:linear-gradient(to right,#8885 {low:.1f}%,"
                f"#009E73 {low:.1f}%,#009E73 {high:.1f}%,#8885 {high:.1f}%)!important}}</style>"
            )
        text = "".join(parts)
        if self._note.value != text:
            self._note.value = text

    def _picked(self, change: Any) -> None:
        if not self._silent:
            self._changed(self.name, change["new"])

    def _typed(self, change: Any) -> None:
        if not self._silent:
            self._changed(self.name, parse(self.name, change["new"]))

    def _toggled(self, _: Any) -> None:
        if not self._silent:
            self._changed(self.name, tuple(name for name, toggle in self.toggles.items() if toggle.value))


def groups() -> dict[str, list["dataclasses.Field[Any]"]]:
    """The settings by group, groups and settings in the order of their declaration."""
    found: dict[str, list[dataclasses.Field[Any]]] = {}
    for spec in SPECS.values():
        found.setdefault(spec.metadata["group"], []).append(spec)
    return found
