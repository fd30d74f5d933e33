"""What happens beside the training steps: the curve grows, checkpoints are published, a stop is heard.

The trainer calls back; nothing here changes what is trained, except that a run may end early.
"""

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftkit import files, models
from ftkit.config import TrainConfig
from ftkit.errors import FtkitWarning, TrainingError
from ftkit.hardware import detect, peak_memory_gib, process_memory_gib, release_memory
from ftkit.runs import Run
from ftkit.training import checkpoints, plots, processes
from ftkit.training.checkpoints import Mirror
from ftkit.training.history import HistoryPoint, as_line, holes, read_points, write_points

Watch = Callable[[Sequence[HistoryPoint], int], None]


class Recorder:
    """The record of one training, from the first step or from where `checkpoint` left off."""

    def __init__(
        self,
        run: Run,
        config: TrainConfig,
        facts: dict[str, Any],
        *,
        checkpoint: Path | None = None,
        stop: Callable[[], bool] = lambda: False,
        watch: Watch | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.run, self.config, self.facts, self.mirror = run, config, facts, mirror
        self.path, self.stop, self.watch = run / "history.csv", stop, watch
        self.drawing = plots.live_loss()  # stays silent where `watch` takes its place
        self.stopped = self.stopped_early = False
        self.on_cpu = detect().device == "cpu"
        self.points: list[HistoryPoint] = []
        self.applied = 0
        self.moved = False  # whether an update has been applied at a learning rate above zero
        self.start = ""  # digest of the adapter before the first update
        if checkpoint is not None:
            reached, noted = checkpoints.step_of(checkpoint), checkpoints.mark(checkpoint)
            lost: list[str] = []
            known = read_points(self.path, lost) if self.path.exists() else []
            self.points = [p for p in known if p.step <= reached]
            if lost or (lost := holes(self.points, config.logging_steps, reached)):
                warnings.warn(
                    f"{self.path} has a hole: {'; '.join(lost)}. Training goes on from step {reached}; the curve, and "
                    "the time and tokens that it sums up, lack these points.",
                    FtkitWarning,
                    stacklevel=2,
                )
            self.points = list({(p.step, p.loss is None): p for p in self.points}.values())  # each once
            if processes.is_first():
                write_points(self.path, self.points)
            self.applied, self.start = int(noted.get("applied", 0)), str(noted.get("start", ""))
        self.earlier_s = max((p.seconds or 0.0 for p in self.points), default=0.0)
        self.started = time.monotonic()
        self.best_step, self.best_loss, self.waited = 0, math.inf, 0
        for point in self.points:
            if point.val_loss is not None:
                self._compare(point.step, point.val_loss)

    def add(self, step: int, logs: dict[str, float], total: int) -> None:
        """Take in what the trainer logs: a training point, a validation point, or a closing summary (not kept)."""
        tokens = logs.get("num_input_tokens_seen")  # goes on counting from a checkpoint
        point = HistoryPoint(
            step=step,
            loss=logs.get("loss"),
            val_loss=logs.get("eval_loss"),
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            tokens=None if tokens is None else int(tokens),
            seconds=self.earlier_s + time.monotonic() - self.started,
            memory_gib=process_memory_gib() if self.on_cpu else peak_memory_gib(),
            applied=self.applied,
        )
        release_memory()
        if point.loss is None and point.val_loss is None:
            return
        self.points.append(point)
        if not processes.is_first():
            return
        with files.disk_errors_explained(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(as_line(point))
        if self.watch is not None:
            self.watch(tuple(self.points), total)
        self.drawing.update(self.points, total)

    def refuse_useless(self, model: Any, step: int, *, moved: bool = True) -> None:
        """Let no adapter be saved that is no numbers any more, or that training has left as it was.

        `moved` is false as long as no update was due to change it: while the learning rate is still zero.

        Raises:
            TrainingError: says which, and what to do.
        """
        now = models.adapter_digest(model)
        good = checkpoints.all_in(self.run / "checkpoints")
        stays = f"The last good checkpoint is {good[-1]}" if good else "No checkpoint has been kept"
        if not now:
            raise TrainingError(
                f"At step {step} the adapter holds values that are no numbers (NaN or infinite): the weights are "
                f"spoiled. {stays}. Start again with resume=False and a lower learning_rate, more warmup_steps or "
                "dtype='fp32'; a base model that is damaged does the same."
            )
        if moved and now == self.start:
            raise TrainingError(
                f"At step {step} the adapter is what it was at the start: nothing is trained. {stays}. Raise "
                "learning_rate, or lower warmup_steps below the number of updates."
            )

    def save(self, working: Path, model: Any) -> None:
        """Publish a checkpoint that the trainer has written, and bring the mirror up to date.

        Every process has written its random state into it before the first one seals it.
        """
        self.refuse_useless(model, checkpoints.step_of(working), moved=self.moved)
        processes.first_alone(lambda: self._publish(working))

    def _publish(self, working: Path) -> None:
        facts = {**self.facts, "applied": self.applied, "start": self.start, "settings": asdict(self.config)}
        checkpoints.publish(working, self.run / "checkpoints", facts, self.config.save_total_limit)
        if self.mirror is not None:
            self.mirror.push(self.run)

    def measured(self, step: int, val_loss: float, model: Any, tokenizer: Any) -> bool:
        """Keep the adapter of the best validation loss so far; True once patience is used up."""
        if not self.config.early_stopping_patience:
            return False
        if self._compare(step, val_loss):
            processes.first_alone(lambda: self._keep_best(step, val_loss, model, tokenizer))
        return self.waited >= self.config.early_stopping_patience

    def _keep_best(self, step: int, val_loss: float, model: Any, tokenizer: Any) -> None:
        place = self.run / "checkpoints" / "best"
        models.save_adapter(model, tokenizer, place)
        files.seal(place, {"step": step, "val_loss": val_loss})

    def _compare(self, step: int, val_loss: float) -> bool:
        """Note the loss if it is the best so far, and else how long the best has stood."""
        if val_loss >= self.best_loss or math.isnan(val_loss):
            self.waited += 1
            return False
        self.best_step, self.best_loss, self.waited = step, val_loss, 0
        return True

    def close(self) -> None:
        """Close the progress bar; also after an error, or the message would stand in the middle of it."""
        self.drawing.close()

    def callback(self) -> Any:
        """A `TrainerCallback` that calls back into this recorder."""
        from transformers import TrainerCallback

        recorder = self

        class Callback(TrainerCallback):  # type: ignore[misc]
            """One method for each moment at which the trainer calls back."""

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                """Start the clock, which leaves loading out."""
                recorder.started = time.monotonic()
                if recorder.watch is None and processes.is_first():
                    recorder.drawing.start(state.max_steps)

            def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
                """Count updates that changed the weights: in fp16 the scaler skips those whose gradient overflowed."""
                applied = not getattr(optimizer, "step_was_skipped", False)
                recorder.applied += applied
                recorder.moved |= applied and any(group["lr"] > 0 for group in optimizer.param_groups)

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                """End the loop, with a checkpoint, if that was asked for."""
                if processes.any_of_them(recorder.stop()) and state.global_step < state.max_steps:
                    recorder.stopped = control.should_training_stop = control.should_save = True

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                """A point of the curve."""
                recorder.add(state.global_step, logs or {}, state.max_steps)

            def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                """Early stopping."""
                loss, model, tokenizer = given["metrics"]["eval_loss"], given["model"], given["processing_class"]
                enough = recorder.measured(state.global_step, loss, model, tokenizer)
                if enough and state.global_step < state.max_steps and not recorder.stopped:
                    recorder.stopped_early = control.should_training_stop = True

            def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                """A checkpoint has been written, where nobody reads yet."""
                recorder.save(Path(args.output_dir) / f"checkpoint-{state.global_step}", given["model"])

            def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                """The last state of the figure."""
                recorder.drawing.finish(recorder.points, state.max_steps)

        return Callback()


@contextmanager
def interruptible(stop: threading.Event | None = None) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether to stop after the step that runs now.

    In the main thread the first SIGINT or SIGTERM asks for that, and a second one raises KeyboardInterrupt; elsewhere
    only `stop` counts. The handlers that were there before come back at the end.
    """
    asked = threading.Event()

    def wanted() -> bool:
        return asked.is_set() or (stop is not None and stop.is_set())

    def handle(number: int, frame: Any) -> None:
        """Ask once, then give up waiting."""
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if main}
    before = {number: known for number, known in before.items() if known not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield wanted
    finally:
        for number, known in before.items():
            signal.signal(number, known)
