"""One training run: answer tokens only, through TRL's SFTTrainer, with a record that survives a kill.

Adds to TRL what a learner and a practitioner miss: a mask that comes from the tokenizer, checks before anything is
spent, a live curve, a stop that loses nothing, and a run folder from which the same call goes on.
"""

import hashlib
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftkit import data, figures, files, models
from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.errors import ConfigError, FtkitWarning, StorageError, TrainingError
from ftkit.hardware import detect, peak_memory_gib
from ftkit.models import no_datasets_bars
from ftkit.preflight import PreflightReport, check
from ftkit.runs import Run
from ftkit.training import checkpoints, plots, trainer
from ftkit.training.checkpoints import Mirror
from ftkit.training.history import History, read_points, write_points
from ftkit.training.recorder import Recorder, Watch, interruptible
from ftkit.training.trainer import cut, length_batches, read


def train(
    model: Any,
    tokenizer: Any,
    splits: Splits,
    config: TrainConfig,
    run: Run,
    resume: bool = True,
    *,
    preflight: bool = True,
    mirror: str | Path | None = None,
    stop: threading.Event | None = None,
    watch: Watch | None = None,
) -> History:
    """Train `model` on the answers in `splits.train` and leave adapter, curve, config and data in `run`.

    A model without an adapter gets one (`models.add_lora`). While it runs, `history.csv` grows and a figure is drawn;
    `run.json` names the step "train" only when all is written. Ctrl+C (or the notebook's stop button) finishes the
    step, saves a checkpoint and gives back a history whose `stopped` is true: the same call goes on from there.

    Args:
        model: from `models.load`.
        tokenizer: its tokenizer.
        splits: from `data.split`; `splits.val` is measured every `config.eval_steps` updates and at the end.
        config: the settings.
        run: where everything goes; one process at a time may train in it.
        resume: go on from the newest complete checkpoint of an interrupted run with the same model, settings and data;
            False starts afresh and replaces what an earlier training left.
        preflight: refuse a run that cannot work (`preflight.check`); False goes on, and warns of what it passed over.
        mirror: a folder that gets a verified copy of every checkpoint, and from which a lost run folder is restored.
        stop: when set by another thread, the same happens as after Ctrl+C.
        watch: called as `watch(points, total_steps)` after each new point, in place of the figure.

    Raises:
        DataError: no row has a trained token.
        PreflightError: an error in the check, or out of memory on the longest micro-batch.
        ConfigError: the run is finished already, or was interrupted with other settings or data (names them).
        StorageError: the disk is full, the folder cannot be written, or another process trains in it.
        TrainingError: the loop ended and no weight was changed.
    """
    _refuse(run, config, resume)
    whole = {name: read(name, part, tokenizer) for name, part in _parts(splits, config).items()}
    rows = {name: cut(name, part, config.max_length) for name, part in whole.items()}
    report = check(model, tokenizer, splits, config, run=run, tokenized={"train": whole["train"]})
    _obey(report, refuse=preflight)
    with locked(run.path), interruptible(stop) as asked:
        _refuse(run, config, resume)  # another process may have finished it while this one read the rows
        _sweep(run)
        copy = Mirror.open(mirror, run) if mirror is not None else None
        if copy is not None and resume and copy.restore(run):
            _refuse(run, config, resume)
        model, lengths = _adapted(model, rows, config)
        facts = {
            "data_digest": data.digest(splits.train, splits.val),
            "config_digest": config.digest(),
            "base_model": _base_name(model),
            "backend": models.backend_of(model),
        }
        checkpoint = _to_resume(run, config, facts) if resume else None
        recorder = Recorder(run, config, facts, checkpoint=checkpoint, stop=asked, watch=watch, mirror=copy)
        with files.disk_errors_explained(run.path), no_datasets_bars():
            loop = trainer.build(model, tokenizer, rows, config, run, [recorder.callback()])
            if checkpoint is None:
                trainer.probe(loop, config, lengths)
                _start_afresh(run, splits, config, copy)
            try:
                _train(loop, checkpoint, recorder, max(lengths))
            finally:
                recorder.close()
                trainer.forget_embeddings()
                checkpoints.remove_leftovers(run / "checkpoints")  # on a full disk half a checkpoint is in the way
        return _finish(recorder, loop, {**facts, "preflight": [finding.id for finding in report.findings]})


def _sweep(run: Run) -> None:
    """Remove what a kill left half-written."""
    checkpoints.remove_leftovers(run / "checkpoints")
    files.remove_leftovers(run.path, ("adapter", "history.csv", "config.yaml"))


def _refuse(run: Run, config: TrainConfig, resume: bool) -> None:
    """What can be said before anything is loaded or tokenised."""
    if resume and run.finished("train"):
        raise ConfigError(
            f"{run.path} holds a finished training. Choose another run name, or pass resume=False (--fresh on the command line) to replace it."
        )
    trainer.check_reporter(config)
    if config.packing:
        raise ConfigError(
            "packing=True is not supported yet: packed examples would see each other. Use group_by_length=True."
        )


def _parts(splits: Splits, config: TrainConfig) -> dict[str, Any]:
    val = splits.val.shuffle(seed=config.seed).select(range(min(len(splits.val), config.max_eval_examples)))
    return {"train": splits.train, "val": val}


def _obey(report: PreflightReport, *, refuse: bool) -> None:
    """Errors end the run here, or are named in one warning where they are passed over."""
    if refuse:
        report.refuse()
    elif report.errors:
        passed = " ".join(f"{finding.title} ({finding.id})" for finding in report.errors)
        warnings.warn(f"preflight=False: training goes on in spite of this: {passed}", FtkitWarning, stacklevel=3)


def _adapted(model: Any, rows: dict[str, Any], config: TrainConfig) -> tuple[Any, list[int]]:
    """The model with an adapter and the rows' lengths, after putting the training rows into the order in which they will be read."""
    model = models.add_lora(model, config)
    lengths = [len(ids) for ids in rows["train"]["input_ids"]]
    models.choose_attention(model, max(lengths))
    if config.group_by_length:
        order = length_batches(lengths, config.per_device_train_batch_size, config.seed)
        rows["train"], lengths = rows["train"].select(order), [lengths[i] for i in order]
    return model, lengths


def _to_resume(run: Run, config: TrainConfig, facts: dict[str, str]) -> Path | None:
    """The newest whole checkpoint, after a look at whether it belongs to this run; what lies beyond it is removed."""
    folder = run / "checkpoints"
    checkpoint = checkpoints.newest(folder)
    if checkpoint is not None:
        checkpoints.refuse_other(checkpoint, config, facts, run / "config.yaml")
        for damaged in checkpoints.all_in(folder):
            if checkpoints.step_of(damaged) > checkpoints.step_of(checkpoint):
                checkpoints.remove(damaged)
    return checkpoint


def _start_afresh(run: Run, splits: Splits, config: TrainConfig, mirror: Mirror | None) -> None:
    """Empty what an earlier training left, so that nothing of two runs is mixed, and note what this one starts from."""
    for step in ("train", "evaluate"):
        run.reopen(step)
    for place in checkpoints.all_in(run / "checkpoints"):
        checkpoints.remove(place)
    for name in ("checkpoints/best", "adapter", "eval", "figures", "tensorboard"):
        shutil.rmtree(run / name, ignore_errors=True)
    write_points(run / "history.csv", [])
    config.save(run / "config.yaml")
    data.save(splits, run)
    if mirror is not None:
        mirror.clear()


def _train(loop: Any, checkpoint: Path | None, recorder: Recorder, longest: int) -> None:
    from safetensors import SafetensorError

    run, config = recorder.run, recorder.config
    try:
        with trainer.out_of_memory_explained(config, longest, loop.model):
            loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not recorder.stopped:
            _refuse_unmoved(recorder, loop.state.global_step)
            if config.early_stopping_patience:
                _measure(loop)
                _take_best(loop, recorder)
            models.save_adapter(loop.model, loop.processing_class, run / "adapter")  # before anything else can fail
            _measure(loop)
    except (SafetensorError, RuntimeError) as error:
        # torch and safetensors raise their own classes when a checkpoint does not fit on the disk
        if shutil.disk_usage(run.path).free < 2**20 or any(sign in str(error) for sign in files.WRITE_FAILED):
            raise StorageError(
                f"Cannot write {run.path}: the disk is full or refuses a file of this size. Free some space and call train "
                "again: it resumes from the last complete checkpoint."
            ) from error
        raise


def _refuse_unmoved(recorder: Recorder, steps: int) -> None:
    if recorder.applied == 0:
        raise TrainingError(
            f"None of {steps} weight updates was applied: in {recorder.config.dtype} every gradient overflowed, so the adapter "
            "is what it was at the start. Use dtype='bf16' or 'fp32', a lower learning_rate, or more steps: "
            "fp16 needs the first few to find its scale."
        )


def _measure(loop: Any) -> None:
    """Validation loss at the last step, where it has not been measured there."""
    if loop.state.global_step not in [entry["step"] for entry in loop.state.log_history if "eval_loss" in entry]:
        loop.evaluate()


def _take_best(loop: Any, recorder: Recorder) -> None:
    """Put the adapter with the lowest validation loss back into the model, where that was not the last one."""
    place = recorder.run / "checkpoints" / "best"
    if recorder.best_step == loop.state.global_step:
        return
    if (why := checkpoints.problem(place)) is None and checkpoints.mark(place)["step"] == recorder.best_step:
        trainer.put_back(loop.model, place)
    else:
        warnings.warn(
            f"The adapter of step {recorder.best_step}, the best on validation, is lost ({why or 'another one is there'}): "
            f"that of step {loop.state.global_step} is kept.",
            FtkitWarning,
            stacklevel=2,
        )


def _finish(recorder: Recorder, loop: Any, facts: dict[str, Any]) -> History:
    """Sum up; a run that was not stopped is marked as done, and copied to its mirror once more."""
    run, config = recorder.run, recorder.config
    history = History.of(read_points(run / "history.csv"), peak_memory_gib(), stopped=recorder.stopped)
    figures.save(plots.plot_loss(history, ax=figures.blank_axes()), run / "figures/loss.png")
    if not recorder.stopped:
        if config.early_stopping_patience:
            facts |= {"best_step": recorder.best_step, "stopped_early": recorder.stopped_early}
        run.finish(
            "train",
            **facts,
            device=str(detect()),
            seed=config.seed,
            steps=history.steps,
            applied_updates=recorder.applied,
            seconds=round(history.seconds, 1),
            tokens=history.tokens,
            tokens_per_s=round(history.tokens_per_s, 1),
            peak_memory_gib=round(history.peak_memory_gib, 3),
            trainable_parameters=models.parameters(loop.model)[0],
        )
    if recorder.mirror is not None:
        recorder.mirror.push(run)
    return history


def _base_name(model: Any) -> str:

    name = str(model.config._name_or_path)
    return models.BUNDLED if Path(name) == models.bundled_location() else name


_NAME = ".lock"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the run folder `path` for as long as the block runs.

    Raises:
        StorageError: another process, or another thread of this one, holds it.
    """
    from filelock import Timeout

    if os.environ.get("RANK", "0") != "0":  # torchrun: the first process holds the folder for all
        yield
        return
    try:
        lock = _acquired(path)
    except Timeout as error:
        raise StorageError(
            f"{path} is in use: another process is training there. Wait for it, stop it, or choose another run name."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _acquired(path: Path) -> Any:
    """The lock, in the folder itself or, where its file system knows no locks (some mounted drives), in this machine's temporary folder."""
    from filelock import FileLock

    with files.disk_errors_explained(path):
        try:
            return _taken(FileLock(path / _NAME, timeout=0))
        except NotImplementedError:
            name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
            return _taken(FileLock(Path(tempfile.gettempdir()) / f"ftkit-{name}.lock", timeout=0))


def _taken(lock: Any) -> Any:
    lock.acquire()
    return lock
