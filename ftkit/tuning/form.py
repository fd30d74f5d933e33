"""A form for a config: sliders made from `TrainConfig`'s own fields, with what they mean shown as they move.

Sits on top of several modules and computes nothing itself. Without a person before the kernel it is a table.
"""

import dataclasses
import html
import io
import math
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

from ftkit import chat, config, figures, memory, models, training
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitError
from ftkit.figures import ORANGE, smooth
from ftkit.hardware import Hardware, detect
from ftkit.memory import ModelShape
from ftkit.runs import Run, default_root
from ftkit.training import History, HistoryPoint, RunsTable, chosen, resumable_step, train
from ftkit.tuning import consequences
from ftkit.tuning.consequences import Consequences, Situation, StepTime, as_text, clock, work_out

Watch = Callable[[Sequence[HistoryPoint], int], None]

Trainer = Callable[[TrainConfig, Run, threading.Event, Watch], History]

_MEASURED_STEPS = 4

_DRAWING_SHARE = 0.02


def trainer_of(base_model: str, splits: Any) -> Trainer:
    """How a button trains: load the base model anew, since an adapter of other settings may hang on the last one."""

    def work(config: TrainConfig, run: Run, stop: threading.Event, watch: Watch) -> History:
        """One run on a fresh copy of the base model."""
        import gc

        gc.collect()  # a trainer is a ring of references: the last run's model may still be there
        model, tokenizer = models.load(base_model, config)
        return train(model, tokenizer, splits, config, run, stop=stop, watch=watch)

    return work


class Session:
    """Runs the trainer in a thread and keeps what it reported.

    `told(ended)` is called from that thread at a bounded rate while it trains, and once with True when it has ended.
    """

    def __init__(self, trainer: Trainer | None, root: Path, told: Callable[[bool], None]) -> None:
        self.trainer, self.root, self._told = trainer, root, told
        self.points: list[HistoryPoint] = []
        self.total, self.message = 0, ""
        self.error: BaseException | None = None
        self.run: Run | None = None
        self.pace: StepTime | None = None
        self._stop = threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._future: Future[History] | None = None
        self._drawn_at = self._cost_s = 0.0

    @property
    def running(self) -> bool:
        """Whether a training or a measurement is under way."""
        return self._future is not None and not self._future.done()

    def folder(self, config: TrainConfig) -> Path:
        """Where these settings train."""
        return self.root / f"panel-{config.digest()[:6]}"

    def start(self, config: TrainConfig) -> None:
        """Train `config`, or go on with it where it was stopped.

        Raises:
            ConfigError: nothing to train with, something is running already, or these settings are trained already.
            StorageError: the run folder cannot be written.
        """
        trainer = self._ready()
        run = Run.create(self.folder(config).name, self.root)
        if run.finished("train"):
            raise ConfigError(
                f"{run.path} holds a finished training with these settings. Change one, such as seed, to train again."
            )
        step = resumable_step(run)
        self._begin(
            trainer,
            config,
            run,
            f"Goes on at update {step}: loading the model …" if step else "Loading the model …",
            lambda history: self._ended(config, run, history),
        )

    def measure(self, config: TrainConfig) -> None:
        """Make a few real updates in a folder that is thrown away, and note how long one takes.

        Raises:
            ConfigError: nothing to train with, or something is running already.
        """
        trainer = self._ready()
        folder = tempfile.TemporaryDirectory(prefix="ftkit-measure-")
        short = config.replace(
            max_steps=_MEASURED_STEPS,
            early_stopping_patience=0,
            eval_steps=0,
            save_steps=0,
            logging_steps=1,
            report_to="none",
        )

        def thrown_away(config: TrainConfig, run: Run, stop: threading.Event, watch: Watch) -> History:
            """The same training; nothing of it stays, however it ends."""
            with folder:
                return trainer(config, run, stop, watch)

        def ended(history: History) -> str:
            """Keep the pace alone."""
            self.pace = StepTime.of_points(history.points, config, "measured now") or self.pace
            return f"Measured {history.steps} updates, and one validation."

        self._begin(
            thrown_away,
            short,
            Run.create("measure", folder.name),
            f"Measuring {_MEASURED_STEPS} updates: loading the model …",
            ended,
        )

    def stop(self) -> None:
        """Ask for the end: the update in progress is finished and a checkpoint saved."""
        if self.running:
            self._stop.set()
            self.message = "Stopping after this update …"

    def wait(self, timeout_s: float | None = None) -> History:
        """The history once training has ended; raises what it raised."""
        if self._future is None:
            raise ConfigError("Nothing was started. Press Train, or call start().")
        return self._future.result(timeout_s)

    def _ready(self) -> Trainer:
        if self.trainer is None:
            raise ConfigError(
                "There is nothing to train: give config_form a model's name and examples=data.split(...)."
            )
        if self.running:
            raise ConfigError("A run is under way. Stop it first.")
        return self.trainer

    def _begin(
        self, trainer: Trainer, config: TrainConfig, run: Run, message: str, ended: Callable[[History], str]
    ) -> None:
        self._stop.clear()
        self.points, self.total, self.error, self.run, self.message = [], config.max_steps, None, run, message
        # An executor keeps whatever the thread raises; a bare thread would print it into some cell.
        self._pool = self._pool or ThreadPoolExecutor(1, "ftkit-panel")
        self._future = self._pool.submit(self._work, trainer, config, run, ended)
        self._future.add_done_callback(self._close)

    def _work(self, trainer: Trainer, config: TrainConfig, run: Run, ended: Callable[[History], str]) -> History:
        history = trainer(config, run, self._stop, self._watch)
        self.points = list(history.points)
        self.message = ended(history)
        return history

    def _watch(self, points: Sequence[HistoryPoint], total: int) -> None:
        self.points, self.total = list(points), total
        if not threading.main_thread().is_alive():
            self._stop.set()  # the kernel shuts down: save now
        now = time.monotonic()
        self.message = f"Update {points[-1].step} of {total}{_loss(points)}{_left(points, total)}"
        if self._stop.is_set():
            self.message = "Stopping after this update …"
        elif now - self._drawn_at >= max(0.4, self._cost_s / _DRAWING_SHARE):
            self._told(False)
            self._drawn_at, self._cost_s = time.monotonic(), time.monotonic() - now

    def _ended(self, config: TrainConfig, run: Run, history: History) -> str:
        self.pace = StepTime.of_points(history.points, config, f"run {run.path.name}") or self.pace
        if history.stopped:
            return f"Stopped at update {history.steps}. Press Train with the same settings to go on."
        return (
            f"Finished: {history.steps} updates, training loss {history.final_loss:.3f}. Everything is in {run.path}."
        )

    def _close(self, future: "Future[History]") -> None:
        error = future.exception()
        if error is not None:
            self.error = error
            self.message = str(error) if isinstance(error, FtkitError) else f"{type(error).__name__}: {error}"
            traceback.clear_frames(error.__traceback__)  # they hold the model
        self._told(True)


def _loss(points: Sequence[HistoryPoint]) -> str:
    losses = [p.loss for p in points if p.loss is not None]
    return f" · training loss {losses[-1]:.3f}" if losses else ""


def _left(points: Sequence[HistoryPoint], total: int) -> str:
    done = points[-1].step - points[0].step
    if done < 2 or points[-1].seconds is None or points[0].seconds is None:
        return ""
    return f" · about {clock((points[-1].seconds - points[0].seconds) / done * (total - points[-1].step))} left"


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


_BUTTON_PX = 104


class Panel:
    """Widgets of one form. `act(what, argument)` is called when a person does something."""

    def __init__(self, targets: tuple[str, ...], act: Callable[[str, Any], None], trainable: bool) -> None:
        import ipywidgets

        self._w, self._act = ipywidgets, act
        self.rows = {n: KnobRow(n, targets, lambda name, value: act("set", (name, value))) for n in SPECS}
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
        grouped = groups()
        pages = [self._w.VBox([self.rows[spec.name].root for spec in specs]) for specs in grouped.values()]
        tabs = self._w.Tab(children=pages)
        self._groups = {name: [spec.name for spec in specs] for name, specs in grouped.items()}
        tabs.selected_index = list(grouped).index("adapter")
        return tabs

    def _presets(self) -> Any:
        def button(name: str) -> Any:
            """One preset."""
            made = self._w.Button(
                description=name,
                tooltip=config.describe_preset(name),
                layout=self._w.Layout(width="auto", flex="0 0 auto"),
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
            [label("How long"), *map(button, config.EFFORTS), label("Made for"), *map(button, config.MACHINES), back],
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
                self._w.HTML(consequences.STYLE),
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
        self._meaning.value = consequences.view(found)
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
            consequences.Line(trained, "each update", faint=True),
            consequences.Line(smoothed, "smoothed"),
            consequences.Line(measured, "validation", ORANGE, dash="5 4", marked=True),
        ]
        drawn = consequences.chart(
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

        picked = {
            row.name: row.history for row in chosen(self.table.rows, sorted(self._drawn)) if row.history is not None
        }
        if not picked:
            self._overlay.children = []
            return
        buffer = io.BytesIO()
        training.plot_runs(picked, figures.blank_axes(7.5, 3.2)).figure.savefig(buffer, format="png", dpi=96)
        self._overlay.children = [
            self._w.Image(value=buffer.getvalue(), format="png", layout=self._w.Layout(width="720px", max_width="100%"))
        ]


def _right_end(session: Session) -> float:
    """Of the live curve: room to grow into, without a long run's beginning looking like a dot."""
    reached = session.points[-1].step if session.points else 0
    return float(min(max(session.total, reached), max(2 * reached, 20)))


_SAMPLED_ROWS = 500


def config_form(
    config: TrainConfig | None = None,
    *,
    model: Any = None,
    examples: Any = None,
    tokenizer: Any = None,
    hardware: Hardware | None = None,
    run_root: str | Path | None = None,
    seconds_per_step: float | None = None,
    train: Trainer | None = None,
) -> "ConfigForm":
    """A panel whose `.value` is the `TrainConfig` that its sliders say.

    Args:
        config: where the sliders start; by default what suits the machine.
        model: a base model's name, a loaded model, its config, or a `memory.ModelShape`; by default what suits the machine.
        examples: `data.Splits`, a dataset, or just the number of rows. Splits are wanted for the Train button.
        tokenizer: with it, the lengths of the rows are known, and memory and minutes are those of these rows.
        hardware: the machine to plan for; by default this one. Planning for another one turns off Train and measured minutes.
        run_root: where runs go and where earlier ones are looked for; as in `Run.create`.
        seconds_per_step: of one weight update under `config`, where it is known; else an earlier run's, else measured.
        train: what the Train button does instead of loading `model`: `train(config, run, stop, watch) -> History`.

    Returns:
        The form. Shown as the last line of a cell it is the panel; without a front end it is a table of the settings.

    Raises:
        ConfigError: `seconds_per_step` is no positive number, or the model is of a kind that is not described.
        ModelError: no model of this name.
    """
    if config is not None and not isinstance(config, TrainConfig):
        raise ConfigError(
            f"config is {type(config).__name__}, wanted a TrainConfig: TrainConfig(**settings) makes one."
        )
    here = detect()
    machine = hardware or here
    config = config or TrainConfig.for_hardware(machine)
    root = Path(run_root) if run_root is not None else default_root()
    name, shape = _named_shape(model, here)
    pace = None
    if seconds_per_step is not None:
        pace = StepTime.of_step(seconds_per_step, config)
    elif machine == here and name is not None:
        pace = StepTime.of_runs(root, name, str(here))
    rows, lengths = _measured(examples, tokenizer)
    splits = examples if hasattr(examples, "train") and hasattr(examples, "val") else None
    if train is None and splits is not None and name is not None and machine == here:
        train = trainer_of(name, splits)
    return ConfigForm(config, Situation(machine, shape, rows, lengths, pace), root, train)


class ConfigForm:
    """A config that a person can move. Made by `config_form`."""

    def __init__(self, config: TrainConfig, situation: Situation, root: Path, trainer: Trainer | None) -> None:
        self._value = self._begin = config
        self._situation, self._root = situation, root
        self._panel: Panel | None = None
        self.session = Session(trainer, root, self._told)

    @property
    def value(self) -> TrainConfig:
        """The settings as they stand; assign a config to move the sliders.

        Raises:
            ConfigError: what is assigned is no TrainConfig.
        """
        return self._value

    @value.setter
    def value(self, config: TrainConfig) -> None:
        """Move every control to `config`."""
        if not isinstance(config, TrainConfig):
            raise ConfigError(
                f"form.value wants a TrainConfig, not {type(config).__name__}. Try form.value.replace(lora_r=8)."
            )
        self._value = config
        if self._panel is not None:
            self._panel.show(config)
            self._panel.refuse("", "")
        self._refresh()

    @property
    def consequences(self) -> Consequences:
        """What the settings mean now."""
        return work_out(self._value, self._situation)

    @property
    def runs(self) -> RunsTable:
        """The runs below the form's folder."""
        return RunsTable.of(self._root)

    @property
    def panel(self) -> Any:
        """The widgets, made on first use."""
        if self._panel is None:
            self._panel = Panel(
                _targets(self._situation.shape, self._value), self._act, self.session.trainer is not None
            )
            self._panel.show(self._value)
            self._refresh()
            self._panel.runs(self.runs)
        return self._panel.root

    def set(self, name: str, value: Any) -> None:
        """Move one setting; a value that is not allowed is refused, and its reason stands in the panel."""
        try:
            self._value = self._value.replace(**{name: value})
        except ConfigError as error:
            if self._panel is None:
                raise
            self._panel.refuse(name, str(error))
            self._panel.rows[name].show(getattr(self._value, name))
            return
        if self._panel is not None:
            self._panel.refuse("", "")
            self._panel.rows[name].show(value)
        self._refresh()

    def start(self) -> None:
        """What Train does: train these settings in a thread, or go on where they were stopped."""
        self.session.start(self._value)
        self._told(False)

    def stop(self) -> None:
        """What Stop does: finish the update in progress, save, and leave a run that can go on."""
        self.session.stop()
        self._told(False)

    def measure(self) -> None:
        """What Measure does: a few real updates under these settings, in a folder that is thrown away."""
        self.session.measure(self._value)
        self._told(False)

    def _act(self, what: str, argument: Any) -> None:
        """Do what a person asked for; a refusal becomes the panel's message."""
        try:
            if what == "set":
                self.set(*argument)
            elif what == "preset":
                self.value = config.preset_variant(self._value, argument)
            elif what == "reset":
                self.value = self._begin
            else:
                {"train": self.start, "stop": self.stop, "measure": self.measure}[what]()
        except FtkitError as error:
            self.session.message, self.session.error = str(error), error
            self._told(False)

    def _refresh(self) -> None:
        if self._panel is not None:
            self._panel.mean(self.consequences)

    def _told(self, ended: bool) -> None:
        if ended and self.session.pace is not None:
            self._situation = dataclasses.replace(self._situation, pace=self.session.pace)
        if self._panel is None:
            return
        self._panel.running(self.session.running and not ended)
        self._panel.progress(self.session)
        if ended:
            self._panel.runs(self.runs)
            self._refresh()

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(self.panel if figures.front_end() else HTML(self._repr_html_()))

    def __str__(self) -> str:
        return f"{self._value.changed()}\n{self.consequences}"

    def _repr_html_(self) -> str:
        parts = []
        for group, specs in groups().items():
            cells = "".join(
                f"<tr><td><code>{s.name}</code></td><td>{html.escape(str(getattr(self._value, s.name)))}</td>"
                f"<td>{html.escape(s.metadata['help'])}</td></tr>"
                for s in specs
            )
            parts.append(f'<tr><th colspan="3" style="text-align:left">{group}</th></tr>{cells}')
        return f"<table>{''.join(parts)}</table>{self.consequences._repr_html_()}"


def _named_shape(model: Any, here: Hardware) -> tuple[str | None, ModelShape]:
    """The model's name, where it has one that can be loaded, and its shape."""
    if isinstance(model, ModelShape):
        return None, model
    if model is None or isinstance(model, str | Path):
        name = models.default_model(here) if model is None else str(model)
        return name, memory.find(name)
    return None, ModelShape.from_config(getattr(model, "config", model))


def _measured(examples: Any, tokenizer: Any) -> tuple[int | None, tuple[int, ...]]:
    """How many rows there are to train on, and the lengths of a sample of them in tokens."""
    if examples is None or isinstance(examples, int):
        return examples, ()
    rows: Sequence[Any] = getattr(examples, "train", examples)
    if tokenizer is None:
        return len(rows), ()

    stride = max(1, len(rows) // _SAMPLED_ROWS)
    return len(rows), tuple(len(chat.tokenize(rows[i], tokenizer)["input_ids"]) for i in range(0, len(rows), stride))


def _targets(shape: ModelShape | None, config: TrainConfig) -> tuple[str, ...]:
    """Names of weight matrices to choose from: the model's, and those that the config names."""
    names = [matrix.name for matrix in shape.matrices] if shape is not None else []
    return tuple(dict.fromkeys((*names, *config.target_modules)))
