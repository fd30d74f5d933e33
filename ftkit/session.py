"""Training started by a button: one run at a time in a thread, watched, stopped, and picked up again.

A run is named after its settings, so that the same settings go on where they stopped, even in a new kernel.
"""

import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ftkit.config import TrainConfig
from ftkit.consequences import clock
from ftkit.errors import ConfigError, FtkitError
from ftkit.history import History, Point
from ftkit.pace import Pace
from ftkit.runs import Run
from ftkit.runs_table import resumable_step

Watch = Callable[[Sequence[Point], int], None]
Trainer = Callable[[TrainConfig, Run, threading.Event, Watch], History]
_MEASURED_STEPS = 4
_DRAWING_SHARE = 0.02


def trainer_of(base_model: str, splits: Any) -> Trainer:
    """How a button trains: load the base model anew, since an adapter of other settings may hang on the last one."""

    def work(config: TrainConfig, run: Run, stop: threading.Event, watch: Watch) -> History:
        """One run on a fresh copy of the base model."""
        import gc

        from ftkit import models
        from ftkit.train import train

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
        self.points: list[Point] = []
        self.total, self.message = 0, ""
        self.error: BaseException | None = None
        self.run: Run | None = None
        self.pace: Pace | None = None
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
            self.pace = Pace.of_points(history.points, config, "measured now") or self.pace
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

    def _watch(self, points: Sequence[Point], total: int) -> None:
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
        self.pace = Pace.of_points(history.points, config, f"run {run.path.name}") or self.pace
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


def _loss(points: Sequence[Point]) -> str:
    losses = [p.loss for p in points if p.loss is not None]
    return f" · training loss {losses[-1]:.3f}" if losses else ""


def _left(points: Sequence[Point], total: int) -> str:
    done = points[-1].step - points[0].step
    if done < 2 or points[-1].seconds is None or points[0].seconds is None:
        return ""
    return f" · about {clock((points[-1].seconds - points[0].seconds) / done * (total - points[-1].step))} left"
