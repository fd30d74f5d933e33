"""The panel that a person sees: presets, settings by group, what they mean, buttons, the live curve, the runs so far.

Only arranges widgets; what they show is computed elsewhere. Works with ipywidgets 7.7 and 8.
"""

import html
import io
from collections.abc import Callable
from typing import Any

from ftkit import consequence_view, knobs, presets, sketch
from ftkit.config import TrainConfig
from ftkit.consequences import Consequences
from ftkit.plots import ORANGE, smooth
from ftkit.runs_table import RunsTable, chosen
from ftkit.session import Session

_BUTTON_PX = 104


class Panel:
    """Widgets of one form. `act(what, argument)` is called when a person does something."""

    def __init__(self, targets: tuple[str, ...], act: Callable[[str, Any], None], trainable: bool) -> None:
        import ipywidgets

        self._w, self._act = ipywidgets, act
        self.rows = {n: knobs.KnobRow(n, targets, lambda name, value: act("set", (name, value))) for n in knobs.SPECS}
        self._meaning = ipywidgets.HTML(layout=ipywidgets.Layout(width="100%"))
        self._status, self._live = ipywidgets.HTML(layout=ipywidgets.Layout(flex="1 1 auto")), ipywidgets.HTML()
        self.buttons = {name: self._button(name, trainable) for name in ("Train", "Stop", "Measure")}
        self._tabs = self._make_tabs()
        self._titles: list[str] = []
        self._runs, self._overlay = ipywidgets.VBox(), ipywidgets.VBox()
        self._drawn: set[str] = set()
        self.table = RunsTable(())
        self.root = self._arrange()
        self.running(False)

    def _button(self, name: str, enabled: bool) -> Any:
        looks = {
            "Train": ("success", "play", "Train these settings, or go on where they were stopped"),
            "Stop": ("warning", "stop", "Finish this update, save, and leave a run that can go on"),
            "Measure": ("", "clock-o", "Make a few real updates and note how long one takes"),
        }
        style, icon, tip = looks[name]
        button = self._w.Button(
            description=name,
            button_style=style,
            icon=icon,
            tooltip=tip,
            disabled=not enabled,
            layout=self._w.Layout(width=f"{_BUTTON_PX}px", flex="0 0 auto"),
        )
        button.on_click(lambda _: self._act(name.lower(), None))
        button.enabled_at_all = enabled
        return button

    def _make_tabs(self) -> Any:
        grouped = knobs.groups()
        pages = [self._w.VBox([self.rows[spec.name].root for spec in specs]) for specs in grouped.values()]
        tabs = self._w.Tab(children=pages)
        self._groups = {name: [spec.name for spec in specs] for name, specs in grouped.items()}
        tabs.selected_index = list(grouped).index("adapter")
        return tabs

    def _presets(self) -> Any:
        def button(name: str) -> Any:
            """One preset."""
            made = self._w.Button(
                description=name, tooltip=presets.describe(name), layout=self._w.Layout(width="auto", flex="0 0 auto")
            )
            made.on_click(lambda _: self._act("preset", name))
            return made

        back = self._w.Button(
            description="start again",
            icon="undo",
            tooltip="Back to the settings that the form began with",
            layout=self._w.Layout(width="auto", flex="0 0 auto"),
        )
        back.on_click(lambda _: self._act("reset", None))
        label = self._label
        return self._w.HBox(
            [label("How long"), *map(button, presets.EFFORTS), label("Made for"), *map(button, presets.MACHINES), back],
            layout=self._w.Layout(flex_flow="row wrap", align_items="center", margin="0 0 4px"),
        )

    def _label(self, text: str) -> Any:
        return self._w.HTML(f'<span class="ftkit-head">{text}</span>', layout=self._w.Layout(margin="2px 4px 2px 10px"))

    def _arrange(self) -> Any:
        box, layout = self._w.VBox, self._w.Layout
        left = box([self._tabs], layout=layout(flex="1.3 1 460px", min_width="0"))
        right = box([self._meaning], layout=layout(flex="1 1 330px", min_width="0", padding="0 0 0 14px"))
        controls = self._w.HBox(
            [*self.buttons.values(), self._status], layout=layout(align_items="center", margin="8px 0 0")
        )
        middle = self._w.HBox(
            [left, right], layout=layout(width="100%", flex_flow="row wrap", align_items="flex-start")
        )
        root = box(
            [
                self._w.HTML(consequence_view.STYLE),
                self._presets(),
                middle,
                controls,
                self._live,
                self._runs,
                self._overlay,
            ]
        )
        root.add_class("ftkit-panel")
        return root

    def show(self, config: TrainConfig) -> None:
        """Move all controls to `config`."""
        for name, row in self.rows.items():
            row.show(getattr(config, name))

    def mean(self, found: Consequences) -> None:
        """Show what the settings mean, and each finding below the setting that it concerns."""
        self._meaning.value = consequence_view.view(found)
        noted: dict[str, list[tuple[str, str]]] = {}
        for finding in found.findings:
            noted.setdefault(finding.field, []).append((finding.severity, f"{finding.title} {finding.fix}"))
        for name, row in self.rows.items():
            row.notes(noted.get(name, []))
        titles = [self._title(group, sum(n in noted for n in names)) for group, names in self._groups.items()]
        if titles != self._titles:
            self._titles = titles
            for i, title in enumerate(titles):
                self._tabs.set_title(i, title)

    def _title(self, group: str, count: int) -> str:
        return f"{group.capitalize()} ! {count}" if count else group.capitalize()

    def refuse(self, name: str, problem: str) -> None:
        """Say below a setting why its value was not taken; with an empty name all is well again."""
        for row in self.rows.values():
            row.refuse(problem if row.name == name else "")

    def running(self, is_running: bool) -> None:
        """Enable the buttons that make sense now."""
        for name, button in self.buttons.items():
            wanted = button.enabled_at_all and (is_running if name == "Stop" else not is_running)
            button.disabled = not wanted

    def progress(self, session: Session) -> None:
        """Show how far the run is, and its curve."""
        colour = ' style="color:#d13c32"' if session.error else ""
        step = session.points[-1].step if session.points else 0
        bar = (
            f'<progress value="{step}" max="{session.total}" style="width:120px"></progress> '
            if session.total > 0 and session.running
            else ""
        )
        self._status.value = f'<div class="ftkit-status"{colour}>{bar}{html.escape(session.message)}</div>'
        trained = [(float(p.step), p.loss) for p in session.points if p.loss is not None]
        measured = [(float(p.step), p.val_loss) for p in session.points if p.val_loss is not None]
        if not trained:
            self._live.value = ""
            return
        smoothed = list(zip([step for step, _ in trained], smooth([loss for _, loss in trained]), strict=True))
        lines = [
            sketch.Line(trained, "each update", faint=True),
            sketch.Line(smoothed, "smoothed"),
            sketch.Line(measured, "validation", ORANGE, dash="5 4", marked=True),
        ]
        drawn = sketch.chart(
            lines, x="weight updates", y="loss, nats a trained token", width=720, height=210, x_max=_right_end(session)
        )
        self._live.value = f'<div class="ftkit-live" data-points="{len(trained)}">{drawn}</div>'

    def runs(self, table: RunsTable) -> None:
        """Show the runs so far, each with a box that draws its curve."""
        self.table = table
        if not table.rows:
            return
        w = self._w
        cells = [w.HTML(""), *(w.HTML(f"<b>{html.escape(name)}</b>") for name in table.columns)]
        for row in table.rows:
            mark = w.Checkbox(
                value=row.name in self._drawn, indent=False, disabled=row.history is None, layout=w.Layout(width="24px")
            )
            mark.observe(lambda change, name=row.name: self._choose(name, change["new"]), names="value")
            cells += [mark, *(w.HTML(html.escape(text)) for text in table.cells(row))]
        grid = w.GridBox(
            cells,
            layout=w.Layout(
                grid_template_columns=f"28px repeat({len(table.columns)}, max-content)",
                grid_gap="0 14px",
                overflow="auto",
                align_items="center",
                width="100%",
            ),
        )
        head = '<div class="ftkit-head">Runs so far, with the settings that differ. Tick some to lay their curves over each other.</div>'
        grid.add_class("ftkit-runs")
        self._runs.children = [w.HTML(head), grid]
        self._draw()

    def _choose(self, name: str, wanted: bool) -> None:
        (self._drawn.add if wanted else self._drawn.discard)(name)
        self._draw()

    def _draw(self) -> None:
        from ftkit import plots, run_plots

        picked = {
            row.name: row.history for row in chosen(self.table.rows, sorted(self._drawn)) if row.history is not None
        }
        if not picked:
            self._overlay.children = []
            return
        buffer = io.BytesIO()
        run_plots.compare_runs(picked, plots.blank_axes(7.5, 3.2)).figure.savefig(buffer, format="png", dpi=96)
        self._overlay.children = [
            self._w.Image(value=buffer.getvalue(), format="png", layout=self._w.Layout(width="720px", max_width="100%"))
        ]


def _right_end(session: Session) -> float:
    """Of the live curve: room to grow into, without a long run's beginning looking like a dot."""
    reached = session.points[-1].step if session.points else 0
    return float(min(max(session.total, reached), max(2 * reached, 20)))
