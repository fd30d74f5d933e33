"""A form for a config: sliders made from `TrainConfig`'s own fields, what they mean shown as they move, and Train.

The form holds the config that its sliders say; a session trains it in a thread. What settings mean is the business of
`consequences`, what a person sees that of `panel`. Without a front end the form is a table.
"""

import dataclasses
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ftkit import chat, figures, memory, models, tables, training
from ftkit.config import TrainConfig, preset
from ftkit.errors import ConfigError, FtkitError
from ftkit.hardware import Hardware, detect
from ftkit.memory import ModelShape
from ftkit.runs import Run, default_root
from ftkit.training import History, HistoryPoint, RunsTable, resumable_step
from ftkit.tuning.consequences import Consequences, Situation, StepTime, duration, work_out
from ftkit.tuning.panel import GROUPS, SPECS, Panel, in_group

Watch = Callable[[Sequence[HistoryPoint], int], None]
Trainer = Callable[[TrainConfig, Run, threading.Event, Watch], History]

_SAMPLED_ROWS = 500
_MEASURED_STEPS = 4
_DRAWING_SHARE, _DRAWING_S = 0.02, 0.4  # of a run's time at most, and seconds between two drawings at least
_STOPPING = "Stopping after this update …"


def config_form(
    config: TrainConfig | None = None,
    *,
    model: Any = None,
    examples: Any = None,
    tokenizer: Any = None,
    hardware: Hardware | None = None,
    run_root: str | Path | None = None,
    train: Trainer | None = None,
) -> "ConfigForm":
    """A panel whose `.value` is the `TrainConfig` that its sliders say.

    The sliders start at `config`, by default what suits the machine. `model` is a base model's name, a loaded model,
    its config, or a `memory.ModelShape`; `examples` are `data.Splits` (wanted for the Train button), a dataset, or the
    number of rows. With `tokenizer` memory and minutes are those of these rows. `hardware` is the machine to plan for;
    for another one than this, Train and measured minutes are off. Runs go to `run_root`, as in `Run.create`, where
    earlier ones are looked for: the newest of this model says how long an update takes.
    `train(config, run, stop, watch) -> History` is what Train does instead of loading `model`. The form as the last
    line of a cell is the panel; without a front end it is a table of the settings.

    Raises:
        ConfigError: the model is of a kind that is not described.
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
    name, shape = None, model
    if model is None or isinstance(model, str | Path):
        name = models.default_model(here) if model is None else str(model)
        shape = memory.find(name)
    elif not isinstance(model, ModelShape):
        shape = ModelShape.from_config(getattr(model, "config", model))
    step_time = None
    if machine == here and name is not None:
        step_time = StepTime.of_runs(root, name, str(here))
    rows, lengths = _counted(examples, tokenizer)
    are_splits = hasattr(examples, "train") and hasattr(examples, "val")
    if train is None and are_splits and name is not None and machine == here:
        train = _trainer_of(name, examples)
    return ConfigForm(config, Situation(machine, shape, rows, lengths, step_time), root, train)


def _counted(examples: Any, tokenizer: Any) -> tuple[int | None, tuple[int, ...]]:
    """How many rows there are to train on, and the lengths of a sample of them in tokens."""
    if examples is None or isinstance(examples, int):
        return examples, ()
    rows: Sequence[Any] = getattr(examples, "train", examples)
    if tokenizer is None:
        return len(rows), ()
    stride = max(1, len(rows) // _SAMPLED_ROWS)
    return len(rows), tuple(len(chat.tokenize(rows[i], tokenizer)["input_ids"]) for i in range(0, len(rows), stride))


def _trainer_of(base_model: str, splits: Any) -> Trainer:
    """How a button trains: load the base model anew, since an adapter of other settings may hang on the last one."""

    def work(config: TrainConfig, run: Run, stop: threading.Event, watch: Watch) -> History:
        """One run on a fresh copy of the base model."""
        import gc

        gc.collect()  # a trainer is a ring of references: the last run's model may still be there
        model, tokenizer = models.load(base_model, config)
        return training.train(model, tokenizer, splits, config, run, stop=stop, watch=watch)

    return work


@tables.shown
class ConfigForm:
    """A config that a person can move. Made by `config_form`."""

    def __init__(self, config: TrainConfig, situation: Situation, root: Path, trainer: Trainer | None) -> None:
        self._value = self._began_with = config
        self._situation, self._root = situation, root
        self._refused: dict[str, str] = {}
        self._panel: Panel | None = None
        self.session = Session(trainer, root, self._heard)

    @property
    def value(self) -> TrainConfig:
        """The settings as they stand; assign a config to move the sliders, nothing else (ConfigError)."""
        return self._value

    @value.setter
    def value(self, config: TrainConfig) -> None:
        """Show these settings."""
        if not isinstance(config, TrainConfig):
            raise ConfigError(
                f"form.value wants a TrainConfig, not {type(config).__name__}. Try form.value.replace(lora_r=8)."
            )
        self._value, self._refused = config, {}
        if self._panel is not None:
            self._panel.show(config)
        self._refresh()

    def set(self, name: str, value: Any) -> None:
        """Move one setting; a value that is not allowed is refused, and its reason stands in the panel."""
        try:
            self._value, self._refused = self._value.replace(**{name: value}), {}
        except ConfigError as error:
            if self._panel is None:
                raise
            self._refused = {name: str(error)}
        if self._panel is not None:
            self._panel.rows[name].show(getattr(self._value, name))
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
            shape = self._situation.shape
            theirs = [matrix.name for matrix in shape.matrices] if shape is not None else []
            targets = tuple(dict.fromkeys((*theirs, *self._value.target_modules)))
            self._panel = Panel(targets, self.session.trainer is not None, self._act)
            self._panel.show(self._value)
            self._panel.runs(self.runs)
            self._refresh()
        return self._panel.root

    def start(self) -> None:
        """What Train does: train these settings in a thread, or go on where they were stopped."""
        self.session.start(self._value)
        self._heard(False)

    def stop(self) -> None:
        """What Stop does: finish the update in progress, save, and leave a run that can go on."""
        self.session.stop()
        self._heard(False)

    def measure(self) -> None:
        """What Measure does: a few real updates under these settings, in a folder that is thrown away."""
        self.session.measure(self._value)
        self._heard(False)

    def _act(self, what: str, *given: Any) -> None:
        """Do what a person asked for; a refusal becomes the panel's message."""
        try:
            match what:
                case "set":
                    self.set(*given)
                case "preset":
                    self.value = self._value.replace(**preset(*given)["settings"])
                case "start again":
                    self.value = self._began_with
                case _:
                    {"Train": self.start, "Stop": self.stop, "Measure": self.measure}[what]()
        except FtkitError as error:
            self.session.message, self.session.error = str(error), error
            self._heard(False)

    def _refresh(self) -> None:
        if self._panel is not None:
            self._panel.explain(self.consequences, self._refused)

    def _heard(self, ended: bool) -> None:
        """Show what the session has to say; comes from its thread too."""
        session = self.session
        if ended and session.step_time is not None:
            self._situation = dataclasses.replace(self._situation, step_time=session.step_time)
        if self._panel is None:
            return
        running = session.running and not ended
        self._panel.running(running)
        failed = session.error is not None
        self._panel.progress(session.points, session.total, session.message, running=running, failed=failed)
        if ended:
            self._panel.runs(self.runs)
            self._refresh()

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(self.panel if figures.front_end() else HTML(self._repr_html_()))  # type: ignore[attr-defined]

    def _parts(self) -> list[Any]:
        found: list[Any] = []
        for group in GROUPS:
            rows = [(n, getattr(self._value, n), SPECS[n].metadata["help"]) for n in in_group(group)]
            found.append(tables.Table((group, "value", "what it does"), rows))
        return [*found, self.consequences]


class Session:
    """One training at a time, in a thread, and what it has reported so far.

    `heard(ended)` is called from that thread at a bounded rate while it trains, and once with True when it has ended.
    """

    def __init__(self, trainer: Trainer | None, root: Path, heard: Callable[[bool], None]) -> None:
        self.trainer, self._root, self._heard = trainer, root, heard
        self.points: list[HistoryPoint] = []
        self.total, self.message = 0, ""
        self.error: BaseException | None = None
        self.step_time: StepTime | None = None
        self._stop, self._over = threading.Event(), threading.Event()
        # An executor keeps whatever the thread raises; a bare thread would print it into some cell.
        self._pool: ThreadPoolExecutor | None = None
        self._future: Future[History] | None = None
        self._drawn_at = self._cost_s = 0.0

    @property
    def running(self) -> bool:
        """Whether a training or a measurement is under way."""
        return self._future is not None and not self._future.done()

    def start(self, config: TrainConfig) -> None:
        """Train `config`, or go on with it where it was stopped; a ConfigError says why that cannot be."""
        trainer = self._ready()
        run = Run.create(f"panel-{config.digest()[:6]}", self._root)
        if run.finished("train"):
            done = f"{run.path} holds a finished training with these settings"
            raise ConfigError(f"{done}. Change one, such as seed, to train again.")
        step = resumable_step(run)

        def work() -> History:
            """The run, and what is said at its end."""
            history = trainer(config, run, self._stop, self._watch)
            self._keep(history, config, f"run {run.path.name}")
            if history.stopped:
                self.message = f"Stopped at update {history.steps}. Press Train with the same settings to go on."
            else:
                loss = f"training loss {history.final_loss:.3f}"
                self.message = f"Finished: {history.steps} updates, {loss}. Everything is in {run.path}."
            return history

        goes_on = f"Goes on at update {step}: loading" if step else "Loading"
        self._begin(work, config.max_steps, f"{goes_on} the model …")

    def measure(self, config: TrainConfig) -> None:
        """Make a few real updates in a folder that is thrown away, and note how long one takes."""
        trainer = self._ready()
        folder = tempfile.TemporaryDirectory(prefix="ftkit-measure-")
        run = Run.create("measure", folder.name)
        nothing_else = dict.fromkeys(("early_stopping_patience", "eval_steps", "save_steps"), 0)
        short = config.replace(max_steps=_MEASURED_STEPS, logging_steps=1, report_to="none", **nothing_else)

        def work() -> History:
            """The same training; nothing of it stays but the time of a step."""
            with folder:
                history = trainer(short, run, self._stop, self._watch)
            self._keep(history, short, "measured now")
            self.message = f"Measured {history.steps} updates, and one validation."
            return history

        self._begin(work, short.max_steps, f"Measuring {_MEASURED_STEPS} updates: loading the model …")

    def stop(self) -> None:
        """Ask for the end: the update in progress is finished and a checkpoint saved."""
        if self.running:
            self._stop.set()
            self.message = _STOPPING

    def wait(self, timeout_s: float | None = None) -> History:
        """The history once training has ended and was shown; raises what it raised, or TimeoutError."""
        if self._future is None:
            raise ConfigError("Nothing was started. Press Train, or call start().")
        if not self._over.wait(timeout_s):
            raise TimeoutError(f"Still running after {timeout_s} s: {self.message}")
        return self._future.result()

    def _ready(self) -> Trainer:
        if self.trainer is None:
            wanted = "give config_form a model's name and examples=data.split(...)"
            raise ConfigError(f"There is nothing to train: {wanted}.")
        if self.running:
            raise ConfigError("A run is under way. Stop it first.")
        return self.trainer

    def _begin(self, work: Callable[[], History], total: int, message: str) -> None:
        self.points, self.total, self.message, self.error = [], total, message, None
        self._stop.clear()
        self._over.clear()
        self._pool = self._pool or ThreadPoolExecutor(1, "ftkit-panel")
        self._future = self._pool.submit(work)
        self._future.add_done_callback(self._end)

    def _keep(self, history: History, config: TrainConfig, source: str) -> None:
        self.points = list(history.points)
        self.step_time = StepTime.of_points(history.points, config, source) or self.step_time

    def _watch(self, points: Sequence[HistoryPoint], total: int) -> None:
        """Note an update, and have it drawn unless that was done a moment ago."""
        self.points, self.total = list(points), total
        if not threading.main_thread().is_alive():
            self._stop.set()  # the kernel shuts down: save now
        now = time.monotonic()
        self.message = _STOPPING if self._stop.is_set() else _progress(points, total)
        if not self._stop.is_set() and now - self._drawn_at >= max(_DRAWING_S, self._cost_s / _DRAWING_SHARE):
            self._heard(False)
            self._drawn_at, self._cost_s = time.monotonic(), time.monotonic() - now

    def _end(self, future: "Future[History]") -> None:
        self.error = future.exception()
        if self.error is not None:
            name = "" if isinstance(self.error, FtkitError) else f"{type(self.error).__name__}: "
            self.message = f"{name}{self.error}"
            traceback.clear_frames(self.error.__traceback__)  # they hold the model
        try:
            self._heard(True)
        finally:
            self._over.set()


def _progress(points: Sequence[HistoryPoint], total: int) -> str:
    """Where a run is, its loss, and the time it has left, in words."""
    first, last = points[0], points[-1]
    losses = [point.loss for point in points if point.loss is not None]
    text = f"Update {last.step} of {total}"
    if losses:
        text += f" · training loss {losses[-1]:.3f}"
    done = last.step - first.step
    if done >= 2 and first.seconds is not None and last.seconds is not None:
        left = (last.seconds - first.seconds) / done * (total - last.step)
        text += f" · about {duration(left)} left"
    return text
