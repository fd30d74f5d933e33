"""One training run: answer tokens only, through TRL's SFTTrainer, with a record that survives a kill.

Adds to TRL what a learner and a practitioner miss: a mask that comes from the tokenizer, checks before anything is
spent, a live curve, a stop that loses nothing, and a run folder from which the same call goes on. What is wrong with
rows and settings is said by `preflight` alone; here it is obeyed.
"""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftkit import data, figures, files, models
from ftkit.config import TrainConfig
from ftkit.data import Splits, no_datasets_bars
from ftkit.errors import ConfigError, FtkitWarning, MissingExtra, StorageError, TrainingError, without_secrets
from ftkit.hardware import detect, launch, peak_memory_gib
from ftkit.preflight import PreflightReport, check, tokenize_splits
from ftkit.runs import Run
from ftkit.training import checkpoints, plots, processes, trainer
from ftkit.training.checkpoints import Mirror
from ftkit.training.history import History, read_points, write_points
from ftkit.training.recorder import Recorder, Watch, interruptible
from ftkit.training.start import FRESH, Start


def train(
    model: Any,
    tokenizer: Any,
    splits: Splits,
    config: TrainConfig,
    run: Run,
    resume: bool = True,
    *,
    init_from: str | Path | Run | None = None,
    preflight: bool = True,
    mirror: str | Path | None = None,
    stop: threading.Event | None = None,
    watch: Watch | None = None,
) -> History:
    """Train `model` on the answers in `splits.train` and leave adapter, curve, config and data in `run`.

    A model without an adapter gets one (`models.add_lora`). While it runs, `history.csv` grows and a figure is drawn;
    `run.json` names the step "train" only when all is written. Ctrl+C (or the notebook's stop button) finishes the
    step, saves a checkpoint and gives back a history whose `stopped` is true: the same call goes on from there. So does
    SIGTERM, which a machine sends that is taken away.
    One warning tells what preflight warns of in rows, model and machine, such as answers that are cut.

    Under torchrun or accelerate each process takes its share of every batch, and the first alone writes: N processes
    train what one trains with N times the accumulation.

    Args:
        model: from `models.load`.
        tokenizer: its tokenizer.
        splits: from `data.split`; `splits.val` is measured every `config.eval_steps` updates and at the end.
        config: the settings.
        run: where everything goes; one process at a time may train in it.
        resume: go on from the newest complete checkpoint of an interrupted run with the same weights, settings, data,
            tokens and labels; False starts afresh and replaces what an earlier training left.
        init_from: a run or an adapter's folder to begin with, in place of a fresh adapter; the folder stays as it is.
            Its base model is the one given, its rank, alpha and target modules are those of `config`.
        preflight: refuse a run that cannot work (`preflight.check`); False goes on, and warns of what it passed over.
        mirror: a folder that gets a verified copy of every checkpoint, and from which a lost run folder is restored.
        stop: when set by another thread, the same happens as after Ctrl+C.
        watch: called as `watch(points, total_steps)` after each new point, in place of the figure.

    Raises:
        PreflightError: an error in the check, or out of memory on the longest micro-batch.
        DataError: no row has a trained token, where `preflight` is False.
        ConfigError: the run is finished already, or was interrupted with other settings, data, tokens or weights, or
            `init_from` does not fit (names what differs).
        MissingArtifact: `init_from` holds no adapter.
        StorageError: the disk is full, the folder cannot be written or holds what ftkit did not write, or another
            process trains in it.
        TrainingError: at a checkpoint or at the end the adapter is what it was at the start, or no numbers; or one of
            several processes ended. The last good checkpoint stays.
    """
    refuse(run, config, resume=resume)
    start = None if init_from is None else Start.find(init_from)
    rows = tokenize_splits(splits, tokenizer, config)
    report = check(model, tokenizer, rows, config, run=run)
    _obey(report, refuse=preflight)
    parts = trainer.cut(rows, config)
    del rows  # lists of numbers, several times as large as the datasets cut from them
    lengths = [len(ids) for ids in parts["train"]["input_ids"]]
    processes.connect()

    with (
        processes.speaking_once(),
        processes.losses_explained(),
        locked(run.path),
        interruptible(stop) as asked,
        files.weight_errors_explained(run.path),
        no_datasets_bars(),
    ):
        copy = processes.first_alone(partial(_recovered, run, config, mirror, resume))
        if start is not None:
            start.refuse_unfit(model, _base_name(model), config, run)
        model = models.add_lora(model, config)
        models.choose_attention(model, max(lengths))
        if start is not None:
            trainer.put_back(model, start.folder)
        facts = _facts(model, splits, config, trainer.digest(parts), start)
        checkpoint = processes.first_alone(partial(_to_resume, run, config, facts)) if resume else None
        recorder = Recorder(run, config, facts, checkpoint=checkpoint, stop=asked, watch=watch, mirror=copy)
        loop = trainer.build(model, tokenizer, parts, config, run, [recorder.callback()])
        recorder.start = recorder.start or models.adapter_digest(loop.model)
        if checkpoint is None:
            trainer.probe(loop, config, lengths)  # before anything of an earlier training is removed
            processes.first_alone(partial(_start_afresh, run, splits, config, copy))
        else:
            processes.first_alone(partial(_write_what_was_lost, run, splits, config))
        try:
            with trainer.out_of_memory_explained(config, max(lengths), loop.model):
                loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if not recorder.stopped:
                _complete(loop, recorder)
        finally:
            recorder.close()
            trainer.forget_embeddings()
            if processes.is_first():
                files.remove_leftovers(run / "checkpoints")  # on a full disk half a checkpoint is in the way
        found = [finding.id for finding in report.findings]
        return processes.first_alone(partial(_finish, loop, recorder, preflight=found, **_origin(splits)))


def refuse(run: Run, config: TrainConfig, *, resume: bool = True) -> None:
    """Raise what `train` would raise before it looks at model or rows; asked first, nothing is loaded in vain.

    Raises:
        ConfigError: the training there is finished and `resume` is true, or a setting cannot be followed here.
        MissingExtra: the package that `config.report_to` names is not installed.
        StorageError: the folder holds what ftkit did not write, or a link.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ConfigError(
            "train keeps the whole model in every process, and FSDP shards it. Launch with torchrun, or with a config "
            "of training.accelerate_config without shard=True. A model that does not fit one GPU is trained by TRL's "
            "own script: training.fsdp_qlora writes all that it wants."
        )
    run.refuse_foreign()
    files.refuse_foreign(run / "adapter")
    files.refuse_foreign(run / "data", edited=True, names=data.FILES)
    if resume and run.finished("train"):
        raise ConfigError(
            f"{run.path} holds a finished training. Choose another run name, or pass resume=False "
            "(--fresh on the command line) to replace it."
        )
    if config.report_to != "none" and find_spec(config.report_to) is None:
        raise MissingExtra(
            f"report_to={config.report_to!r} needs a package that is not installed. Run: pip install "
            f"{config.report_to}, or set report_to='none': the run folder keeps every metric anyway."
        )
    if config.packing:
        raise ConfigError(
            "packing=True is not supported yet: packed examples would see each other. Use group_by_length=True."
        )


def _obey(report: PreflightReport, *, refuse: bool) -> None:
    """Errors end the run here, or are named in one warning where they are passed over.

    Its warnings of rows, model and machine are told as well, since a caller may never have asked it. What follows from
    the settings alone is somebody's choice: `preflight.check`, the panel and the command line show it.
    """
    if refuse:
        report.refuse()
    elif report.errors:
        passed = " ".join(f"{finding.title} ({finding.id})" for finding in report.errors)
        warnings.warn(f"preflight=False: training goes on in spite of this: {passed}", FtkitWarning, stacklevel=3)
    if report.unforeseen:
        told = [f"○ {finding.title} {finding.evidence}" for finding in report.unforeseen]
        said = "\n".join(["Preflight warns, and preflight.check says what to do:", *told])
        warnings.warn(said, FtkitWarning, stacklevel=3)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the run folder `path` for as long as the block runs; the lock ends with its process.

    Raises:
        StorageError: another process, or another thread of this one, holds it.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    lock: Any = FileLock(path / ".lock", timeout=0)

    def acquire() -> None:
        """The first of several processes holds the folder for all."""
        nonlocal lock
        try:
            with files.disk_errors_explained(path):
                try:
                    lock.acquire()
                except NotImplementedError:  # some mounted drives know no locks
                    lock = SoftFileLock(path / ".soft-lock", timeout=0)
                    lock.acquire()
        except Timeout as error:
            raise StorageError(
                f"{path} is in use: another process is training there. Wait for it, stop it, or choose another run "
                "name."
            ) from error

    processes.first_alone(acquire)
    try:
        yield
    finally:
        lock.release()  # nothing in a process that does not hold it


def _recovered(run: Run, config: TrainConfig, folder: str | Path | None, resume: bool) -> Mirror | None:
    """Clear what a kill left half-written, and take back from the mirror in `folder` what the run has lost."""
    refuse(run, config, resume=resume)  # another process may have finished it while this one read the rows
    files.remove_leftovers(run / "checkpoints")
    files.remove_leftovers(run.path)
    if folder is None:
        return None
    mirror = Mirror.open(folder, run)
    if resume and mirror.restore(run):
        refuse(run, config, resume=resume)
    return mirror


def _facts(model: Any, splits: Splits, config: TrainConfig, tokens: str, start: Start | None) -> dict[str, Any]:
    """What a checkpoint of this run must have in common with the run that goes on from it."""
    return {
        "data_digest": data.digest(splits.train, splits.val),
        "config_digest": config.digest(),
        "base_model": _base_name(model),
        "backend": models.backend_of(model),
        "base_weights": models.base_digest(model),
        "token_digest": tokens,
        "init_from": start.digest if start else FRESH,
        "processes": launch().processes,
    }


def _base_name(model: Any) -> str:
    """As an adapter's folder names it: the bundled model by its short name."""
    name = str(model.config._name_or_path)
    return models.BUNDLED if Path(name) == models.bundled_location() else without_secrets(name)


def _to_resume(run: Run, config: TrainConfig, facts: dict[str, Any]) -> Path | None:
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
    """Remove what an earlier training left, so that nothing of two runs is mixed, and note what this one starts from.

    What a reader has put beside it stays.
    """
    evaluated = [f"{name}.jsonl" for name in run.facts.get("evaluate", {}) if Path(name).name == name]
    for step in ("train", "evaluate", "merge", "gguf"):
        run.reopen(step)
    for place in (*checkpoints.all_in(run / "checkpoints"), run / "checkpoints/best", run / "adapter"):
        if place.exists():
            checkpoints.remove(place)
    old = [run / "eval" / name for name in (*evaluated, "summary.json")]
    old += [run / "figures/loss.png", run / "figures/scores.png", *(run / "tensorboard").glob("events.out.tfevents.*")]
    for path in old:
        path.unlink(missing_ok=True)
    write_points(run / "history.csv", [])
    config.save(run / "config.yaml")
    data.save(splits, run)
    if mirror is not None:
        mirror.clear()


def _write_what_was_lost(run: Run, splits: Splits, config: TrainConfig) -> None:
    """What a run notes at its start and a later step needs, for one that goes on without it."""
    if not (run / "config.yaml").exists():
        config.save(run / "config.yaml")
    if not all((run / f"data/{part}.jsonl").exists() for part in ("train", "val", "test")):
        data.save(splits, run)


def _complete(loop: Any, recorder: Recorder) -> None:
    """Measure once more, and save the adapter that the run was for: the last one, or the best on validation."""
    run, config, steps = recorder.run, recorder.config, loop.state.global_step
    if recorder.applied == 0:
        raise TrainingError(
            f"None of {steps} weight updates was applied: in {config.dtype} every gradient overflowed, so the adapter "
            "is what it was at the start. Use dtype='bf16' or 'fp32', a lower learning_rate, or more steps: "
            "fp16 needs the first few to find its scale."
        )
    if config.early_stopping_patience:
        _measure(loop)
        _take_best(loop, recorder)
    recorder.refuse_useless(loop.model, steps)
    saved = partial(models.save_adapter, loop.model, loop.processing_class, run / "adapter")
    processes.first_alone(saved)  # before anything else can fail
    _measure(loop)


def _measure(loop: Any) -> None:
    """Validation loss at the last step, where it has not been measured there."""
    if loop.state.global_step not in [entry["step"] for entry in loop.state.log_history if "eval_loss" in entry]:
        loop.evaluate()


def _take_best(loop: Any, recorder: Recorder) -> None:
    """Put the adapter with the lowest validation loss back into the model, where that was not the last one."""
    place, best, last = recorder.run / "checkpoints" / "best", recorder.best_step, loop.state.global_step
    if best == last:
        return
    if (why := files.problem(place)) is None and checkpoints.mark(place)["step"] == best:
        trainer.put_back(loop.model, place)
        return
    warnings.warn(
        f"The adapter of step {best}, the best on validation, is lost ({why or 'another one is there'}): "
        f"that of step {last} is kept.",
        FtkitWarning,
        stacklevel=2,
    )


def _origin(splits: Splits) -> dict[str, str]:
    """Where the rows come from and under which licence, where `data.load_examples` could tell."""
    info = getattr(splits.train, "info", None)
    told = {"data_source": getattr(info, "homepage", None), "data_licence": getattr(info, "license", None)}
    return {name: value for name, value in told.items() if value}


def _finish(loop: Any, recorder: Recorder, *, preflight: list[str], **origin: str) -> History:
    """Sum up; a run that was not stopped is marked as done, and copied to its mirror once more."""
    run, config = recorder.run, recorder.config
    history = History.of(read_points(run / "history.csv"), peak_memory_gib(), stopped=recorder.stopped)
    figures.save(plots.plot_loss(history, ax=figures.blank_axes()), run / "figures/loss.png")
    if not recorder.stopped:
        facts: dict[str, Any] = {**recorder.facts, **origin, "preflight": preflight}
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
