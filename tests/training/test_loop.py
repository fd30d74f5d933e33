"""One training run on the toy: what it trains, what it writes, how it goes on and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toys import LLAMA3, make_model, make_tokenizer

from ftkit import chat, data, models, training
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, FtkitWarning, MissingExtra, PreflightError, StorageError, TrainingError
from ftkit.runs import MARK, Run
from ftkit.training import History, train
from ftkit.training.checkpoints import newest
from ftkit.training.history import COLUMNS
from ftkit.training.loop import _complete, locked


@pytest.fixture
def run(tmp_path):
    return Run.create("toy", tmp_path)


def test_a_run_leaves_everything_that_a_later_step_needs(model, tokenizer, splits, toy_config, run):
    history = train(model, tokenizer, splits, toy_config, run)
    for name in (
        "run.json",
        "config.yaml",
        "data/train.jsonl",
        "data/val.jsonl",
        "data/test.jsonl",
        "history.csv",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/chat_template.jinja",
        "figures/loss.png",
    ):
        assert run.require(name).stat().st_size > 0, name
    facts = run.facts["train"]
    assert (facts["steps"], facts["seed"], facts["data_digest"]) == (4, 42, data.digest(splits.train, splits.val))
    assert facts["applied_updates"] == history.applied_updates == 4
    assert facts["peak_memory_gib"] > 0
    assert facts["tokens_per_s"] > 0
    assert [step for step, _ in history.losses] == [1, 2, 3, 4]
    assert [step for step, _ in history.val_losses] == [2, 4]


def test_a_run_knows_where_its_rows_come_from_and_under_which_licence(model, tokenizer, splits, toy_config, run):
    """As far as the loaded rows say so; a card needs it later."""
    splits.train.info.homepage, splits.train.info.license = "https://example.org/rows", "cc-by-4.0"
    train(model, tokenizer, splits, toy_config.replace(max_steps=2), run)
    facts = run.facts["train"]
    assert (facts["data_source"], facts["data_licence"]) == ("https://example.org/rows", "cc-by-4.0")


def test_it_learns(model, tokenizer, splits, toy_config, run):
    history = train(model, tokenizer, splits, toy_config.replace(max_steps=20, eval_steps=0, save_steps=0), run)
    assert history.losses[-1][1] < 0.95 * history.losses[0][1]
    assert len(history.val_losses) == 1


@pytest.mark.slow
def test_only_the_adapter_moves(model, tokenizer, splits, toy_config, run):
    before = {n: p.clone() for n, p in model.named_parameters()}
    train(model, tokenizer, splits, toy_config, run)
    after = {n: p.cpu() for n, p in model.named_parameters()}
    frozen = {n: p for n, p in after.items() if "lora_" not in n}
    assert all(torch.equal(before[n.replace(".base_layer", "")], p) for n, p in frozen.items())
    assert any(p.abs().max() > 0 for n, p in after.items() if "lora_B" in n)


@pytest.mark.slow
def test_the_first_loss_is_that_of_the_answer_tokens_alone(model, tokenizer, splits, toy_config, run):
    """With B = 0 the adapter changes nothing: the first loss is the base model's mean over answer tokens."""
    everything = toy_config.replace(
        per_device_train_batch_size=len(splits.train), gradient_accumulation_steps=1, max_steps=1
    )
    total = count = 0
    for messages in splits.train["messages"]:
        row = chat.tokenize(messages, tokenizer)
        labels = torch.tensor([row["labels"]])
        n = int((labels[:, 1:] != chat.IGNORED).sum())
        with torch.no_grad():
            total, count = (
                total + n * float(model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss),
                count + n,
            )
    history = train(model, tokenizer, splits, everything, run)
    assert history.losses[0][1] == pytest.approx(total / count, rel=1e-3)


@pytest.mark.slow
def test_accumulating_gradients_changes_nothing(tokenizer, rows, toy_config, tmp_path):
    """Four at once and two times two give the same loss on rows of uneven length."""
    uneven = [*rows, {"messages": [rows[0]["messages"][0], {"role": "assistant", "content": "long " * 20}]}]
    losses = []
    for size, accumulated in ((4, 1), (2, 2)):
        config = toy_config.replace(
            per_device_train_batch_size=size, gradient_accumulation_steps=accumulated, max_steps=3
        )
        parts = data.split(data.load_examples(uneven), val=0.2, test=0.2, seed=0)
        losses.append(train(make_model(), tokenizer, parts, config, Run.create(f"{size}", tmp_path)).losses)
    assert [loss for _, loss in losses[0]] == pytest.approx([loss for _, loss in losses[1]], rel=1e-3)


@pytest.mark.slow
def test_history_file_has_the_promised_columns(model, tokenizer, splits, toy_config, run):
    history = train(model, tokenizer, splits, toy_config, run)
    assert run.require("history.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    assert History.load(run / "history.csv").losses == history.losses


@pytest.mark.slow
def test_rows_whose_answer_is_cut_away_are_numbered(model, tokenizer, rows, toy_config, run):
    long = {"messages": [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]}
    parts = data.Splits(*(data.load_examples(part) for part in ([rows[0], long, rows[1]], rows[2:3], rows[3:4])))
    with pytest.warns(FtkitWarning, match=r"1 of 3 train rows .*train row 2; .*max_length=256") as told:
        train(model, tokenizer, parts, toy_config.replace(max_steps=1), run)
    assert len([warning for warning in told if warning.category is FtkitWarning]) == 1


@pytest.mark.parametrize(("preflight", "error"), [(True, PreflightError), (False, DataError)])
def test_a_run_that_would_train_nothing_is_refused(model, tokenizer, splits, toy_config, run, preflight, error):
    """With the check or without it: nothing trains in vain."""
    said = "no-trained-tokens" if preflight else r"All \d+ train rows have no trained token.*Raise max_length"
    with warnings.catch_warnings(), pytest.raises(error, match=said):
        warnings.simplefilter("ignore", FtkitWarning)
        train(model, tokenizer, splits, toy_config.replace(max_length=16), run, preflight=preflight)
    assert [path.name for path in run.path.iterdir()] == [MARK]


@pytest.mark.slow
def test_training_again_starts_afresh(model, tokenizer, splits, toy_config, run):
    adapted = models.add_lora(model, toy_config)
    train(adapted, tokenizer, splits, toy_config, run)
    history = train(adapted, tokenizer, splits, toy_config.replace(max_steps=2), run, resume=False)
    assert (history.steps, run.facts["train"]["steps"]) == (2, 2)


A_RUN = """
import sys; sys.path.insert(0, {tests!r})
from toys import make_model, make_tokenizer
from ftkit import data
from ftkit.config import TrainConfig
from ftkit.runs import Run
from ftkit.training import train
rows = [{{"prompt": f"What is {{i}}?", "completion": f"It is {{i}}."}} for i in range(20)]
config = TrainConfig(
    backend="transformers", load_in_4bit=False, dtype="fp32", gradient_checkpointing=False, optim="adamw_torch",
    max_steps={steps}, warmup_steps=0, learning_rate=1e-3, lora_r=4, eval_steps=0, save_steps=5, max_length=128,
)
parts = data.split(data.load_examples(rows))
history = train(make_model(), make_tokenizer(), parts, config, Run.create("killed", {root!r}))
print("STEPS", len(history.losses))
"""


@pytest.mark.slow
def test_a_base_model_that_already_carries_an_adapter_is_refused(model, tokenizer, splits, toy_config, run):
    """PEFT adds its layers in place: a second adapter on the same base object would be saved as a whole model."""
    train(model, tokenizer, splits, toy_config.replace(max_steps=1), run)
    run.reopen("train")
    with pytest.raises(ConfigError, match="already carries an adapter"):
        train(model, tokenizer, splits, toy_config, run)


def interrupted(run, model, tokenizer, splits, config):
    """A run with a complete checkpoint that never finished; gives back the adapted model."""
    adapted = models.add_lora(model, config)
    train(adapted, tokenizer, splits, config, run)
    run.reopen("train")
    return adapted


@pytest.mark.slow
def test_resume_refuses_other_settings_and_names_them(model, tokenizer, splits, toy_config, run):
    model = interrupted(run, model, tokenizer, splits, toy_config)
    with pytest.raises(ConfigError, match=r"learning_rate \(0\.01 then, 0\.005 now\)"):
        train(model, tokenizer, splits, toy_config.replace(learning_rate=5e-3), run)


@pytest.mark.slow
def test_resume_refuses_other_data(model, tokenizer, splits, toy_config, run):
    model = interrupted(run, model, tokenizer, splits, toy_config)
    with pytest.raises(ConfigError, match="other data"):
        train(model, tokenizer, data.Splits(splits.test, splits.val, splits.train), toy_config, run)


@pytest.mark.slow
def test_resume_false_starts_afresh(model, tokenizer, splits, toy_config, run):
    model = interrupted(run, model, tokenizer, splits, toy_config)
    assert train(model, tokenizer, splits, toy_config.replace(max_steps=1), run, resume=False).steps == 1


@pytest.mark.slow
def test_a_full_disk_is_explained_and_leaves_no_half_adapter(tokenizer, tmp_path):
    """A file size limit of 40 kB lets the small files through and stops the checkpoint."""
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
    )
    script += A_RUN.format(tests=str(Path(__file__).parents[1]), root=str(tmp_path), steps=6)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "StorageError: Cannot write" in done.stderr, done.stderr[-2000:]
    run = Run.open(tmp_path / "killed")
    assert not (run / "adapter").exists()
    assert not run.finished("train")
    assert list((run / "checkpoints").iterdir()) == []  # the half-written one does not go on filling the disk


@pytest.mark.slow
def test_adapter_reloads_to_the_same_answers(model, tokenizer, splits, toy_config, run, tmp_path):
    """A saved adapter on its base gives the logits of the model that was trained; merged, the same again."""
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = toy_config.replace(max_steps=3)
    base, tokenizer = models.load(tmp_path / "base", config)
    trained = models.add_lora(base, config)
    train(trained, tokenizer, splits, config, run)
    ids = torch.tensor([chat.tokenize(splits.test[0], tokenizer)["input_ids"]], device=trained.device)
    trained.eval()
    with torch.no_grad():
        expected = trained(ids).logits
        reloaded = models.load_adapter(run / "adapter", config)[0].eval()(ids).logits
        merged = models.load_adapter(run / "adapter", config, merge=True)[0].eval()(ids).logits
    assert torch.allclose(reloaded, expected, atol=1e-5)
    assert torch.allclose(merged, expected, atol=1e-4)


@pytest.mark.slow
def test_a_finished_run_is_not_overwritten_by_mistake(model, tokenizer, splits, toy_config, run):
    adapted = models.add_lora(model, toy_config)
    train(adapted, tokenizer, splits, toy_config, run)
    with pytest.raises(ConfigError, match="finished training"):
        train(adapted, tokenizer, splits, toy_config, run)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_run_whose_every_update_was_skipped_is_an_error(toy_config, run, dtype):
    """The scaler of fp16 skips what overflows: after too few steps the adapter is what it was."""
    recorder = SimpleNamespace(run=run, config=toy_config.replace(dtype=dtype), applied=0)
    loop = SimpleNamespace(state=SimpleNamespace(global_step=4))
    with pytest.raises(TrainingError, match=f"None of 4 weight updates was applied: in {dtype}"):
        _complete(loop, recorder)
    assert not (run / "adapter").exists()


def test_rows_that_lose_part_of_their_answer_are_numbered(model, tokenizer, splits, toy_config, run):
    """Someone who never called preflight hears it from `train`."""
    longest = max(len(chat.tokenize(m, tokenizer)["input_ids"]) for m in splits.train["messages"])
    with pytest.warns(FtkitWarning, match=r"cuts the answers of .*train rows? .* answer tokens are lost"):
        train(model, tokenizer, splits, toy_config.replace(max_length=longest - 4, max_steps=1), run)


def test_packing_is_refused_before_anything_is_touched(model, tokenizer, splits, toy_config, run):
    with pytest.raises(ConfigError, match="packing"):
        train(model, tokenizer, splits, toy_config.replace(packing=True), run)
    assert [path.name for path in run.path.iterdir()] == [MARK]


def weights(run):
    from safetensors.torch import load_file

    return load_file(run / "adapter/adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def ask(number):
    """A watcher that does as a person does with Ctrl+C at the step `number`."""
    return lambda points, total: (
        (points[-1].step, points[-1].val_loss) == (number, None) and os.kill(os.getpid(), signal.SIGINT)
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", ["signal", "event"])
def test_a_stop_loses_nothing(tokenizer, splits, toy_config, tmp_path, way):
    """Asked to stop, a run ends after the step with a checkpoint; the same call goes on to the same last bit."""
    whole, run = Run.create("whole", tmp_path), Run.create("stopped", tmp_path)
    config = toy_config.replace(save_steps=0, max_steps=5)
    train(make_model(), tokenizer, splits, config, whole)
    stop = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    watch = ask(2) if way == "signal" else lambda points, total: points[-1].step == 2 and stop.set()
    history = train(make_model(), tokenizer, splits, config, run, stop=stop, watch=watch)
    assert (history.stopped, history.steps, run.finished("train")) == (True, 3, False)
    assert "stopped on request, the same call goes on" in str(history)
    assert signal.getsignal(signal.SIGINT) is before
    history = train(make_model(), tokenizer, splits, config, run)
    assert (history.stopped, history.steps, run.finished("train")) == (False, 5, True)
    assert same(weights(run), weights(whole))


@pytest.mark.slow
def test_a_second_sigint_interrupts_and_the_run_goes_on_from_its_checkpoint(tokenizer, splits, toy_config, run):
    def impatient(points, total):
        if points[-1].step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    config = toy_config.replace(eval_steps=0)
    with pytest.raises(KeyboardInterrupt):
        train(make_model(), tokenizer, splits, config, run, watch=impatient)
    assert newest(run / "checkpoints").name == "checkpoint-2"
    assert train(make_model(), tokenizer, splits, config, run).steps == 4


@pytest.mark.slow
def test_a_watcher_gets_every_point_and_no_figure_is_drawn(model, tokenizer, splits, toy_config, run, monkeypatch):

    monkeypatch.setattr("ftkit.training.plots.LiveLoss.start", lambda *_: pytest.fail("a figure was drawn"))
    seen = []
    history = train(
        model, tokenizer, splits, toy_config, run, watch=lambda points, total: seen.append((len(points), total))
    )
    assert seen == [(n, 4) for n in range(1, len(history.points) + 1)]


@pytest.mark.slow
def test_early_stopping_keeps_the_adapter_of_the_best_validation_loss(tokenizer, rows, toy_config, run, tmp_path):
    """Trained on three rows at a high rate, validation turns upward; what is saved is the adapter from before."""
    parts = data.split(data.load_examples(rows), val=0.4, test=0.2, seed=0)
    config = toy_config.replace(
        max_steps=60, eval_steps=2, save_steps=0, early_stopping_patience=3, gradient_accumulation_steps=1
    )
    base = make_model()
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model, tokenizer = models.load(tmp_path / "base", config)
    history = train(model, tokenizer, parts, config, run)
    facts, (best_step, best) = run.facts["train"], min(history.val_losses, key=lambda pair: pair[1])
    assert (facts["stopped_early"], facts["best_step"], history.steps) == (True, best_step, best_step + 6)
    saved = models.load_adapter(run / "adapter", config)[0].eval()
    total = count = 0
    for row in parts.val:
        ids = chat.tokenize(row, tokenizer)
        labels = torch.tensor([ids["labels"]], device=saved.device)
        n = int((labels[:, 1:] != chat.IGNORED).sum())
        with torch.no_grad():
            total += n * float(saved(torch.tensor([ids["input_ids"]], device=saved.device), labels=labels).loss)
        count += n
    assert total / count == pytest.approx(best, rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ftkit.errors.FtkitWarning")
def test_a_damaged_newest_checkpoint_is_passed_over(tokenizer, splits, toy_config, tmp_path):
    """Training goes on from the one before it, to the same end; the number of checkpoints stays bounded."""
    whole, run = Run.create("whole", tmp_path), Run.create("cut", tmp_path)
    config = toy_config.replace(save_steps=1, eval_steps=0, max_steps=6)
    train(make_model(), tokenizer, splits, config, whole)
    train(make_model(), tokenizer, splits, config, run, watch=ask(3))
    path = run / "checkpoints/checkpoint-4/optimizer.pt"
    path.write_bytes(path.read_bytes()[:-1])
    train(make_model(), tokenizer, splits, config, run)
    assert same(weights(run), weights(whole))
    assert len(training.all_in(run / "checkpoints")) == config.save_total_limit


@pytest.mark.slow
def test_a_lost_run_starts_from_its_mirror(tokenizer, splits, toy_config, tmp_path):
    whole, run = Run.create("whole", tmp_path), Run.create("lost", tmp_path / "machine")
    train(make_model(), tokenizer, splits, toy_config, whole)
    assert train(make_model(), tokenizer, splits, toy_config, run, mirror=tmp_path / "drive", watch=ask(2)).stopped
    shutil.rmtree(run.path)
    run = Run.create("lost", tmp_path / "another machine")
    history = train(make_model(), tokenizer, splits, toy_config, run, mirror=tmp_path / "drive")
    assert [step for step, _ in history.losses] == [1, 2, 3, 4]
    assert same(weights(run), weights(whole))
    assert same(weights(Run(tmp_path / "drive/lost")), weights(whole))


@pytest.mark.slow
@pytest.mark.filterwarnings("default::ftkit.errors.FtkitWarning")
def test_a_mirror_that_vanishes_does_not_stop_the_training(tokenizer, splits, toy_config, run, tmp_path):
    drive = tmp_path / "drive"
    with pytest.warns(FtkitWarning, match="not up to date"):
        history = train(
            make_model(),
            tokenizer,
            splits,
            toy_config,
            run,
            mirror=drive,
            watch=lambda points, total: shutil.rmtree(drive, ignore_errors=True),
        )
    assert (history.steps, run.finished("train")) == (4, True)


HOLDER = """
import sys, time
from pathlib import Path
from ftkit.training.loop import _complete, locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused(holder, tmp_path):
    with pytest.raises(StorageError, match="in use: another process is training there"), locked(tmp_path):
        pass


def test_a_lock_dies_with_its_process(holder, tmp_path):
    """`kill -9` leaves no stale lock."""
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        pass


def test_the_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        pass


def test_a_second_thread_is_refused(tmp_path):
    caught = []

    def enter():
        try:
            with locked(tmp_path):
                pass
        except StorageError as error:
            caught.append(error)

    with locked(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(caught) == 1


def test_a_file_system_without_locks_is_served_from_elsewhere(tmp_path, monkeypatch):
    """Some mounted drives refuse flock; filelock then raises NotImplementedError."""
    import filelock

    acquire = filelock.FileLock.acquire

    def refuse(self, *arguments, **settings):
        if self.lock_file.startswith(str(tmp_path)):
            raise NotImplementedError("FileSystem does not appear to support flock")
        return acquire(self, *arguments, **settings)

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with locked(tmp_path), pytest.raises(StorageError, match="in use"), locked(tmp_path):
        pass


def test_a_second_training_in_one_folder_is_refused(model, tokenizer, splits, toy_config, run):
    with locked(run.path), pytest.raises(StorageError, match="in use"):
        train(model, tokenizer, splits, toy_config, run)


def test_the_check_refuses_before_anything_is_written(model, tokenizer, rows, toy_config, run):
    """Here a row of val stands in train as well."""
    leaky = data.Splits(*(data.load_examples(part) for part in (rows[:6], rows[5:7], rows[7:])))
    with pytest.raises(PreflightError, match="leak-exact"):
        train(model, tokenizer, leaky, toy_config, run)
    assert [path.name for path in run.path.iterdir()] == [MARK]


@pytest.mark.filterwarnings("default::ftkit.errors.FtkitWarning")
def test_without_the_check_training_goes_on_and_says_in_spite_of_what(model, tokenizer, rows, toy_config, run):
    leaky = data.Splits(*(data.load_examples(part) for part in (rows[:6], rows[5:7], rows[7:])))
    with pytest.warns(FtkitWarning, match=r"preflight=False: training goes on in spite of this: .*leak-exact"):
        assert train(model, tokenizer, leaky, toy_config.replace(max_steps=1), run, preflight=False).steps == 1


def test_a_reporter_that_is_not_installed_is_named(model, tokenizer, splits, toy_config, run):
    with pytest.raises(MissingExtra, match="pip install wandb, or set report_to='none'"):
        train(model, tokenizer, splits, toy_config.replace(report_to="wandb"), run)


@pytest.mark.slow
def test_tensorboard_gets_the_curve(model, tokenizer, splits, toy_config, run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = train(model, tokenizer, splits, toy_config.replace(report_to="tensorboard"), run)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [e.value for e in events.Scalars("eval/loss")] == pytest.approx([v for _, v in history.val_losses], rel=1e-4)


@pytest.mark.slow
def test_trackio_gets_the_curve(tokenizer, tmp_path):
    """In a process of its own: trackio keeps its folder for as long as it is loaded."""
    pytest.importorskip("trackio")
    script = A_RUN.format(tests=str(Path(__file__).parents[1]), root=str(tmp_path), steps=3).replace(
        "backend=", 'report_to="trackio", backend='
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    import sqlite3

    found = list((tmp_path / "trackio").glob("ftkit*.db"))
    assert [row[0] for row in sqlite3.connect(found[0]).execute("select distinct run_name from metrics")] == ["killed"]


@pytest.mark.parametrize("save_steps", [0, 1])
def test_a_run_whose_weights_are_no_numbers_is_not_finished(model, tokenizer, splits, toy_config, run, save_steps):
    """The curve shows the loss as it is; Transformers would log the mean of the losses before it."""
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    config = toy_config.replace(eval_steps=0, save_steps=save_steps)
    with pytest.raises(TrainingError, match=r"no numbers .*No checkpoint has been kept.*lower learning_rate"):
        train(model, tokenizer, splits, config, run)
    assert History.load(run / "history.csv").diagnosis.ids[0] == "nan"
    assert not run.finished("train")
    assert not (run / "adapter").exists()
    assert training.all_in(run / "checkpoints") == []


def test_the_last_good_checkpoint_stays_when_the_weights_are_spoiled_later(tokenizer, splits, toy_config, run):
    model = make_model()

    def spoil(points, total):
        if points[-1].step == 3:
            with torch.no_grad():
                model.lm_head.weight[0, 0] = float("inf")

    with pytest.raises(TrainingError, match=r"The last good checkpoint is .*checkpoint-2\. Start"):
        train(model, tokenizer, splits, toy_config.replace(eval_steps=0), run, watch=spoil)
    assert newest(run / "checkpoints").name == "checkpoint-2"


def test_a_run_that_leaves_the_adapter_as_it_was_is_not_finished(model, tokenizer, splits, toy_config, run):
    """The first update of a warm-up has a learning rate of zero."""
    config = toy_config.replace(max_steps=1, warmup_steps=5, eval_steps=0, save_steps=1)
    with pytest.raises(TrainingError, match="what it was at the start: nothing is trained"):
        train(model, tokenizer, splits, config, run)
    assert not run.finished("train")


@pytest.mark.slow
def test_a_checkpoint_within_the_warm_up_is_no_failure(model, tokenizer, splits, toy_config, run):
    config = toy_config.replace(warmup_steps=2, eval_steps=0, save_steps=1)
    assert train(model, tokenizer, splits, config, run).steps == 4


def test_a_folder_that_ftkit_did_not_make_is_left_alone(model, tokenizer, splits, toy_config, tmp_path):
    mine = tmp_path / "precious/eval/results.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(StorageError, match="ftkit did not make it"):
        train(model, tokenizer, splits, toy_config, Run.open(tmp_path / "precious"))
    assert [path for path in (tmp_path / "precious").rglob("*") if path.is_file()] == [mine]


STRANGERS = (
    "eval/notes.txt",
    "figures/paper.png",
    "tensorboard/mine",
    "checkpoints/.git/HEAD",
    "checkpoints/x/w",
    "rows.csv",
)


def test_training_afresh_leaves_what_a_reader_put_into_the_folder(tokenizer, splits, toy_config, run):
    """What the earlier training wrote is gone, and of a checkpoint without its seal nobody knows who wrote it."""
    config = toy_config.replace(eval_steps=0)
    train(make_model(), tokenizer, splits, config, run)
    (run / "eval").mkdir()
    (run / "eval/before.jsonl").write_text("{}")
    run.finish("evaluate", before=0.0)
    for name in STRANGERS:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    foreign = run / "checkpoints/checkpoint-7"
    foreign.mkdir()
    (foreign / "w").write_text("mine")
    (run / "checkpoints/checkpoint-4/ftkit.json").unlink()
    with pytest.warns(FtkitWarning) as told:
        train(make_model(), tokenizer, splits, config.replace(max_steps=1, save_steps=0), run, resume=False)
    assert len([w for w in told if "holds what ftkit did not write" in str(w.message)]) == 2
    assert [name for name in STRANGERS if (run / name).read_text() != "mine"] == []
    assert (run / "checkpoints/checkpoint-7.not-ours/w").read_text() == "mine"
    assert (run / "checkpoints/checkpoint-4.not-ours").is_dir()
    assert training.all_in(run / "checkpoints") == []
    assert not (run / "eval/before.jsonl").exists()


@pytest.mark.parametrize(("place", "said"), [("adapter/mine.bin", r"mine\.bin"), ("data/train.jsonl", r"train\.jsonl")])
def test_what_would_be_replaced_is_refused_before_anything_is_spent(
    model, tokenizer, splits, toy_config, run, place, said
):
    """Rows that lie in the run's own data folder may be the only copy: the source that they were read from."""
    (run / place).parent.mkdir()
    (run / place).write_text("mine")
    with pytest.raises(StorageError, match=said):
        train(model, tokenizer, splits, toy_config, run, watch=lambda points, total: pytest.fail("it trained"))
    assert (run / place).read_text() == "mine"


def test_rows_that_were_corrected_by_hand_are_not_replaced(model, tokenizer, splits, toy_config, run):
    data.save(splits, run)
    with (run / "data/train.jsonl").open("a") as file:
        file.write('{"prompt": "more", "completion": "rows"}\n')
    with pytest.raises(StorageError, match=r"train\.jsonl.*another folder or run name"):
        train(model, tokenizer, splits, toy_config, run)


def test_a_linked_checkpoint_folder_is_not_swept(model, tokenizer, splits, toy_config, run, tmp_path):
    big = tmp_path / "big"
    (big / ".ssh").mkdir(parents=True)
    (big / "checkpoint-7").mkdir()
    (run / "checkpoints").symlink_to(big)
    with pytest.raises(StorageError, match="checkpoints is a link"):
        train(model, tokenizer, splits, toy_config, run)
    assert sorted(path.name for path in big.iterdir()) == [".ssh", "checkpoint-7"]


def test_resume_refuses_another_template(tokenizer, splits, toy_config, run):
    assert train(make_model(), tokenizer, splits, toy_config, run, watch=ask(2)).stopped
    with pytest.raises(ConfigError, match="other tokens or labels, of another chat template"):
        train(make_model(), make_tokenizer(LLAMA3), splits, toy_config, run)


def test_resume_refuses_other_weights_under_the_same_name(tokenizer, splits, toy_config, run):
    assert train(make_model(), tokenizer, splits, toy_config, run, watch=ask(2)).stopped
    other = make_model()
    with torch.no_grad():
        other.model.layers[1].self_attn.q_proj.weight.mul_(1.01)
    with pytest.raises(ConfigError, match="other weights of the base model"):
        train(other, tokenizer, splits, toy_config, run)


def test_a_resumed_run_writes_again_what_was_lost_and_tells_of_a_hole(tokenizer, splits, toy_config, run):
    config = toy_config.replace(eval_steps=0, max_steps=6)
    assert train(make_model(), tokenizer, splits, config, run, watch=ask(4)).stopped
    (run / "config.yaml").unlink()
    (run / "data/val.jsonl").unlink()
    lines = (run / "history.csv").read_text().splitlines(keepends=True)
    (run / "history.csv").write_text("".join([*lines[:2], "gar,bled\n", *lines[4:]]))
    with pytest.warns(FtkitWarning, match=r"history\.csv has a hole: .*line 3: 'gar,bled' is no point"):
        train(make_model(), tokenizer, splits, config, run)
    assert TrainConfig.load(run / "config.yaml") == config
    assert len(data.load_splits(run).val) == len(splits.val)
    with pytest.warns(FtkitWarning, match="nothing between the steps 1 and 4"):
        History.load(run / "history.csv")


def test_sigterm_saves_as_ctrl_c_does(tokenizer, splits, toy_config, run):
    before = signal.getsignal(signal.SIGTERM)
    config = toy_config.replace(eval_steps=0, save_steps=0)
    history = train(
        make_model(),
        tokenizer,
        splits,
        config,
        run,
        watch=lambda points, total: points[-1].step == 2 and os.kill(os.getpid(), signal.SIGTERM),
    )
    assert history.stopped
    assert newest(run / "checkpoints").name == "checkpoint-3"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def command(tokenizer, rows, toy_config, tmp_path):
    """`python -m ftkit train` on the toy, with a mirror."""
    make_model().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    toy_config.replace(max_steps=40, eval_steps=0, save_steps=0).save(tmp_path / "config.yaml")
    return [
        sys.executable,
        "-m",
        "ftkit",
        "train",
        str(tmp_path / "config.yaml"),
        "--data",
        str(tmp_path / "rows.jsonl"),
        "--model",
        str(tmp_path / "base"),
        "--run",
        "typed",
        "--root",
        str(tmp_path),
        "--mirror",
        str(tmp_path / "drive"),
    ]


@pytest.mark.slow
def test_the_command_line_stops_on_sigint_and_goes_on(command, tmp_path):
    """Status 130 and a checkpoint, in the run and in its mirror; the same command then trains to the end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    history = tmp_path / "typed/history.csv"
    while process.poll() is None and (not history.exists() or history.read_text().count("\n") < 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate()
    assert process.returncode == 130, errors[-2000:]
    assert "stopped on request" in out
    assert newest(tmp_path / "typed/checkpoints") is not None
    assert newest(tmp_path / "drive/typed/checkpoints") is not None
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "reading" in done.stdout
    assert [step for step, _ in History.load(history).losses] == list(range(1, 41))
    assert "○ " in done.stdout + done.stderr  # what preflight warns of stands before the training
    again = subprocess.run([*command, "--model", "absent"], capture_output=True, text=True)  # refused before it is read
    assert (again.returncode, "--fresh" in again.stderr) == (1, True)
    assert subprocess.run([*command, "--fresh"], capture_output=True, text=True).returncode == 0


@pytest.mark.slow
def test_updates_are_counted_across_a_stop_that_falls_between_two_points(tokenizer, splits, toy_config, run):
    """The curve has a point every third update; the count stands in the checkpoint."""
    config = toy_config.replace(logging_steps=3, eval_steps=0, save_steps=0, max_steps=6)
    assert train(make_model(), tokenizer, splits, config, run, watch=ask(3)).stopped
    assert newest(run / "checkpoints").name == "checkpoint-4"
    train(make_model(), tokenizer, splits, config, run)
    assert run.facts["train"]["applied_updates"] == 6


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, too small for all checkpoints; `remount` makes room."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=360k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a disk wants root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_costs_nothing_but_the_steps_since_the_last_checkpoint(small_disk, tmp_path):
    """The error says what to do; with room made, the same call goes on to the end of a run that never saw one."""
    script = A_RUN.format(tests=str(Path(__file__).parents[1]), root=str(small_disk), steps=16)
    script = script.replace("Run.create(", "preflight=False, run=Run.create(")  # the check would see the small disk
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "StorageError: Cannot write" in done.stderr, done.stderr[-2000:]
    assert "Free some" in done.stderr
    run = Run.open(small_disk / "killed")
    assert newest(run / "checkpoints") is not None
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    whole = A_RUN.format(tests=str(Path(__file__).parents[1]), root=str(tmp_path), steps=16)
    subprocess.run([sys.executable, "-c", whole], capture_output=True, check=True)
    assert same(weights(run), weights(Run.open(tmp_path / "killed")))
