"""Each finding on a run that is really broken in that way, and silence on a healthy one."""

import dataclasses
import errno
import json
import os
import re
import sys
import types
from pathlib import Path

import pytest
from toys import CHATML, GEMMA, LLAMA3, make_tokenizer

from ftkit import data, memory, models, preflight
from ftkit.chat import IGNORED, fold_system, merge_turns, render, tokenize
from ftkit.config import TrainConfig
from ftkit.data import leakage
from ftkit.errors import DataError, PreflightError
from ftkit.hardware import Hardware, detect
from ftkit.preflight import Finding, PreflightReport, machine
from ftkit.preflight.checks import CHECKS
from ftkit.preflight.machine import check_imports
from ftkit.preflight.report import SEVERITIES
from ftkit.runs import Run

CPU = Hardware("cpu", "a CPU", 16.0, None, True, 2)
T4 = Hardware("cuda", "Tesla T4", 14.56, (7, 5), False, 2)
A100 = Hardware("cuda", "A100", 40.0, (8, 0), True, 8)
NAMES = ("Ada", "Bo", "Cleo", "Dov", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jun")
THINGS = ("copper lamps", "oak tables", "red kites", "old maps", "tin boats", "wool socks")


def chat(i, *, system=None):
    """A short chat that is unlike the others."""
    name, thing = NAMES[i % 10], THINGS[(i // 10) % 6]
    head = [{"role": "system", "content": system}] if system else []
    return [
        *head,
        {"role": "user", "content": f"{name} wants {i + 2} {thing}; what does order {17 * i} say?"},
        {"role": "assistant", "content": f"Order {17 * i}: {i + 2} {thing} for {name}."},
    ]


def table(chats):
    """A Dataset of these chats, taken as they are."""
    from datasets import Dataset

    return Dataset.from_list([{"messages": messages} for messages in chats])


@pytest.fixture
def config():
    return TrainConfig(
        backend="transformers",
        load_in_4bit=False,
        dtype="fp32",
        gradient_checkpointing=False,
        optim="adamw_torch",
        lora_r=8,
        lora_alpha=16,
        max_steps=12,
        warmup_steps=2,
        eval_steps=4,
        save_steps=4,
        max_length=512,
    )


@pytest.fixture
def good():
    """Thirty-two training chats, four for validation, four for the test."""
    return data.Splits(*(table(map(chat, part)) for part in (range(32), range(32, 36), range(36, 40))))


@pytest.fixture
def look(model, tokenizer, config, good):
    """`preflight.check` on the healthy set-up, with whatever a test breaks."""

    def checked(*, chats=None, settings=None, tokenized=None, **broken):
        examples = good if chats is None else data.Splits(table(chats), good.val, good.test)
        changed = config.replace(**(settings or {}))
        arguments = {"model": model, "tokenizer": tokenizer, "examples": examples, "hardware": CPU, **broken}
        if tokenized is not None:
            rows = preflight.tokenize_splits(examples, arguments["tokenizer"], changed)
            train = dataclasses.replace(rows.train, tokens=tuple(tokenized))
            arguments["examples"] = dataclasses.replace(rows, train=train)
        return preflight.check(config=changed, **arguments)

    return checked


def finding(report, id):
    """The one finding of this id."""
    found = [f for f in (report.findings if isinstance(report, PreflightReport) else report) if f.id == id]
    assert len(found) == 1, f"{id}: {report}"
    return found[0]


def settings_finding(id, hardware=CPU, *, rows=None, **settings):
    return finding(preflight.check_settings(TrainConfig(**settings), hardware, rows=rows), id)


# A healthy run


@pytest.mark.parametrize(("source", "adds_bos"), [(CHATML, False), (LLAMA3, True), (GEMMA, True)])
def test_a_healthy_run_has_no_error_and_no_warning(look, tmp_path, source, adds_bos):
    report = look(tokenizer=make_tokenizer(source, adds_bos=adds_bos), run=Run.create("fine", tmp_path), probe=True)
    assert (report.errors, report.warnings) == ((), ()), str(report)
    assert report.ok
    assert set(report.passed) | {f.id for f in report.notes} == set(CHECKS)
    assert report.refuse() is report


def test_a_thousand_rows_take_seconds(look):
    report = look(chats=[chat(i) for i in range(100, 1100)])
    assert report.seconds < 20  # about two on an idle machine; a busy one must not fail this
    assert report.facts["train rows"].startswith("1,000 · ")


def test_a_large_part_is_sampled_evenly_and_says_so(look):
    report = look(chats=[chat(i) for i in range(100, 500)], max_rows=50)
    assert report.facts["train rows"].startswith("400 (a sample of 50)")


def test_what_is_no_dataset_of_messages_is_refused(look, good):
    """A list is not read row by row: `load_examples` says what is wrong with each."""
    with pytest.raises(DataError, match="The train part is no Dataset with `messages`"):
        look(examples=[{"messages": chat(0)}])
    with pytest.raises(DataError, match="The test part"):
        look(examples=good.train, test=good.test.rename_column("messages", "chat"))


# Rows, masks and the template


def test_no_rows(look):
    assert finding(look(chats=[]), "no-rows").severity == "error"


def test_val_empty(look, good):
    report = look(examples=data.Splits(good.train, good.val.select([]), good.test))
    assert finding(report, "val-empty").severity == "error"


def test_no_chat_template(look):
    """Row checks are skipped then, and say why."""
    report = look(tokenizer=make_tokenizer(None))
    assert finding(report, "no-chat-template").severity == "error"
    assert report.skipped["answers-cut"] == "needs a chat template"


MALFORMED = [
    ([{"role": "user", "content": "Who?"}], "no answer"),
    ([{"role": "user", "content": "Who?"}, {"role": "assistant", "content": " "}], "empty answer"),
    (
        [
            {"role": "assistant", "content": "Me."},
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "I."},
        ],
        "starts with assistant",
    ),
]


@pytest.mark.parametrize(("turns_", "reason"), MALFORMED)
def test_turns_malformed(look, turns_, reason):
    found = finding(look(chats=[chat(0), turns_, *map(chat, range(1, 20))]), "turns-malformed")
    assert found.rows == (2,)
    assert reason in found.evidence


def test_template_refuses_system_and_folding_mends_it(look):
    """The fix that is named was tried: with it the finding is gone."""
    chats = [chat(i, system="Be brief." if i in (1, 4) else None) for i in range(20)]
    found = finding(look(chats=chats, tokenizer=make_tokenizer(GEMMA)), "template-refuses-system")
    assert (found.severity, found.rows) == ("error", (2, 5))
    assert "System role not supported" in found.evidence
    assert "chat.fold_system" in found.fix
    folded = look(chats=[fold_system(c) for c in chats], tokenizer=make_tokenizer(GEMMA))
    assert folded.errors == ()


STRICT = CHATML.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}",
)
TWICE = [
    {"role": "user", "content": "First."},
    {"role": "user", "content": "Second."},
    {"role": "assistant", "content": "Both."},
]


def test_template_refuses_turns_and_merging_mends_it(look):
    chats = [chat(0), TWICE, *map(chat, range(1, 20))]
    found = finding(look(chats=chats, tokenizer=make_tokenizer(STRICT)), "template-refuses-turns")
    assert (found.severity, found.rows) == ("error", (2,))
    assert "chat.merge_turns" in found.fix
    assert look(chats=[merge_turns(c) for c in chats], tokenizer=make_tokenizer(STRICT)).errors == ()


def test_what_the_template_says_of_turns_that_it_refuses_is_quoted(look):
    short = CHATML + "{% if messages | length > 2 %}{{ raise_exception('One question at a time') }}{% endif %}"
    chats = [*map(chat, range(20)), chat(20) + chat(21)]
    found = finding(look(chats=chats, tokenizer=make_tokenizer(short)), "template-refuses-turns")
    assert "Keep the first question" in found.fix
    assert "user → assistant → user → assistant): One question at a time" in found.evidence


def test_a_system_turn_and_neighbours_of_one_role_are_mended_together(look):
    chats = [[{"role": "system", "content": "Be brief."}, *TWICE], *map(chat, range(20))]
    found = finding(look(chats=chats, tokenizer=make_tokenizer(STRICT)), "template-refuses-system")
    assert "merge_turns(chat.fold_system" in found.fix


def test_template_loses_tools(look):
    call = json.dumps([{"type": "function", "function": {"name": "weather", "arguments": {}}}])
    tooled = [
        {"role": "user", "content": "Weather?", "tool_calls": None},
        {"role": "assistant", "content": "", "tool_calls": call},
    ]
    found = finding(look(chats=[tooled, *map(chat, range(20))]), "template-loses-tools")
    assert (found.severity, found.rows) == ("error", (1,))
    assert "fold_tools" in found.fix


REWRITES = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}"
    "<|im_start|>assistant\n(dropped)<|im_end|>\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_template_rewrites_turns(look):
    chats = [*map(chat, range(20)), chat(20) + chat(21)]
    found = finding(look(chats=chats, tokenizer=make_tokenizer(REWRITES)), "template-rewrites-turns")
    assert (found.severity, found.rows) == ("error", (21,))


def test_template_drops_turns(look):
    """A template that skips the system role without a word: the model never reads it."""
    deaf = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    chats = [chat(i, system="Answer in verse." if i == 3 else None) for i in range(20)]
    found = finding(look(chats=chats, tokenizer=make_tokenizer(deaf)), "template-drops-turns")
    assert (found.severity, found.rows) == ("warning", (4,))


@pytest.mark.parametrize(("formatted", "severity"), [(20, "error"), (1, "warning")])
@pytest.mark.parametrize("source", [CHATML, LLAMA3, GEMMA])
def test_double_template(look, formatted, severity, source):
    """The markers are those that the template itself writes, whatever they are."""
    tokenizer = make_tokenizer(source)
    ready = [
        {"role": "user", "content": render(chat(0)[:1], tokenizer, add_generation_prompt=True)},
        chat(0)[1],
    ]
    found = finding(
        look(chats=[*[ready] * formatted, *map(chat, range(1, 19))], tokenizer=tokenizer), "double-template"
    )
    assert (found.severity, len(found.rows)) == (severity, formatted)


def test_no_trained_tokens(look):
    errors = look(settings={"max_length": 16}).errors
    assert [(e.id, e.field) for e in errors] == [("no-trained-tokens", "max_length")] * 2
    assert "beyond max_length=16" in errors[0].evidence


def test_labels_that_are_all_masked_are_told_from_answers_that_are_cut(look, good, tokenizer):
    masked = [row | {"labels": [IGNORED] * len(row["labels"])} for row in tokens(good.train, tokenizer)]
    assert "labels are all masked" in finding(look(tokenized=masked), "no-trained-tokens").evidence


def test_rows_without_trained_tokens(look):
    long = [{"role": "user", "content": "x" * 600}, {"role": "assistant", "content": "y"}]
    found = finding(look(chats=[chat(0), long, *map(chat, range(1, 20))]), "rows-without-trained-tokens")
    assert (found.severity, found.rows, found.field) == ("warning", (2,), "max_length")


def test_low_trained_share(look):
    chats = [
        [{"role": "user", "content": f"{NAMES[i % 10]} {i} " * 30}, {"role": "assistant", "content": f"{i}"}]
        for i in range(40)
    ]
    assert finding(look(chats=chats), "low-trained-share").severity == "note"


def tokens(examples, tokenizer):
    return [tokenize(row, tokenizer) for row in examples]


def test_tokenised_rows_are_used_as_they_are(look, good, tokenizer, config, monkeypatch):
    """A training has read its rows already: the check finds the same in them and tokenises nothing."""
    rows = preflight.tokenize_splits(good, tokenizer, config)
    assert (rows.train.numbers, sorted(rows.val.numbers)) == (tuple(range(1, 33)), [1, 2, 3, 4])
    found = look().findings
    monkeypatch.setattr("ftkit.chat.tokenize", lambda *_: pytest.fail("rows were tokenised again"))
    assert look(examples=rows).findings == found


def test_validation_rows_keep_their_numbers(good, tokenizer, config):
    """As many as the settings ask for, drawn as `Dataset.shuffle` draws them."""
    rows = preflight.tokenize_splits(good, tokenizer, config.replace(max_eval_examples=2))
    drawn = good.val.shuffle(seed=config.seed).select(range(2))
    assert [row["messages"] for row in rows.val.examples] == drawn["messages"]
    assert [good.val[number - 1]["messages"] for number in rows.val.numbers] == drawn["messages"]


def test_what_split_has_searched_is_not_searched_again(look, monkeypatch):
    """One search for near-duplicates in all, in `data.split`; equal rows are still compared."""
    from ftkit.data import leaks, similarity, splits

    real, calls = similarity.near_pairs, []

    def counted(*given, **named):
        calls.append(given)
        return real(*given, **named)

    for module in (similarity, splits, data):
        monkeypatch.setattr(module, "near_pairs", counted, raising=False)
    parts = data.split(table([*map(chat, range(60)), chat(3)]), seed=0)
    assert len(calls) == 1
    report = look(examples=parts)
    assert len(calls) == 1
    assert {"leak-near", "leak-exact"} <= set(report.passed)
    assert leaks.similarity is similarity


def test_prompt_trained(look, good, tokenizer):
    """Labels that are a copy of the ids: what a collator without a mask makes."""
    copied = [row | {"labels": list(row["input_ids"])} for row in tokens(good.train, tokenizer)]
    found = finding(look(tokenized=copied), "prompt-trained")
    assert found.severity == "error"
    assert "what does order" in found.evidence


def test_answer_untrained(look):
    """A template that shortens answers: what is trained is not what stands in the data."""
    short = CHATML.replace("{{ m['content'] }}", "{{ m['content'] if m['role'] == 'user' else m['content'][:7] }}")
    assert finding(look(tokenizer=make_tokenizer(short)), "answer-untrained").severity == "warning"


def test_answers_cut(look, tokenizer):
    long = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one " * 200}]
    found = finding(look(chats=[*map(chat, range(20)), long]), "answers-cut")
    lost = sum(label != IGNORED for label in tokenize(long, tokenizer)["labels"][512:])
    assert (found.rows, found.field) == ((21,), "max_length")
    assert f"{lost} answer tokens are lost" in found.evidence


def test_stop_token_untrained(look, model):
    """What the bundled model's GGUF does: the tokenizer calls the start of a turn its stop token."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<|im_start|>"
    model.generation_config.eos_token_id = 1
    errors = [f for f in look(tokenizer=tokenizer).errors if f.id == "stop-token-untrained"]
    assert "stop tokens: <|im_start|>" in errors[0].evidence
    assert "<|im_end|>⏎" in errors[0].evidence


def test_a_stop_token_that_only_some_answers_have(look, good, tokenizer):
    ready = tokens(good.train, tokenizer)
    ready[4] = {name: values[:-2] for name, values in ready[4].items()}
    found = finding(look(tokenized=ready), "stop-token-untrained")
    assert (found.severity, found.rows) == ("warning", (5,))


def test_double_bos(look, good):
    """Rendered text that is tokenised with special tokens once more."""
    tokenizer = make_tokenizer(LLAMA3, adds_bos=True)
    doubled = [
        {name: [6 if name == "input_ids" else -100, *values] for name, values in row.items()}
        for row in tokens(good.train, tokenizer)
    ]
    found = finding(look(tokenizer=tokenizer, tokenized=doubled), "double-bos")
    assert (found.severity, len(found.rows)) == ("error", 32)


def test_a_template_that_writes_two_start_tokens(look):
    found = look(tokenizer=make_tokenizer("{{ bos_token }}" + LLAMA3))
    assert {f.id for f in found.errors} == {"double-bos"}


def test_missing_bos(look, good):
    tokenizer = make_tokenizer(LLAMA3, adds_bos=True)
    bare = [{name: values[1:] for name, values in row.items()} for row in tokens(good.train, tokenizer)]
    assert finding(look(tokenizer=tokenizer, tokenized=bare), "missing-bos").severity == "warning"


def test_longer_than_context(look):
    long = [{"role": "user", "content": "x" * 600}, {"role": "assistant", "content": "y"}]
    found = finding(look(chats=[*map(chat, range(20)), long], settings={"max_length": 1024}), "longer-than-context")
    assert found.rows == (21,)
    assert "512 tokens" in found.title


# The tokenizer


def test_no_stop_token(look):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    assert finding(look(tokenizer=tokenizer), "no-stop-token").severity == "error"


def test_stop_token_differs(look, model):
    model.generation_config.eos_token_id = 0
    assert "<|endoftext|>; tokenizer: <|im_end|>" in finding(look(), "stop-token-differs").evidence


def test_no_pad_token(look):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    assert finding(look(tokenizer=tokenizer), "no-pad-token").severity == "error"


def test_pad_is_stop(look):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    assert finding(look(tokenizer=tokenizer), "pad-is-stop").severity == "warning"


def test_token_outside_embeddings(look, model):
    """A token was added to the tokenizer, and the model was not told."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|order|>"])
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "<|im_start|><|order|>")
    errors = [f for f in look(tokenizer=tokenizer, probe=True).errors if f.id == "token-outside-embeddings"]
    assert f"token {len(tokenizer) - 1}, the embedding has {len(tokenizer) - 1} rows" in errors[0].evidence


@pytest.mark.parametrize("value", ["zero", "equal"])
def test_template_tokens_untrained(look, model, value):
    """As in base models that bring an instruct template: its tokens have rows that nobody ever trained."""
    import torch

    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[1:3] = 0.0 if value == "zero" else weight[1]
    found = finding(look(), "template-tokens-untrained")
    assert "<|im_start|>, <|im_end|>" in found.evidence
    assert found.severity == "warning"


# Rows that stand twice


def test_leak_exact(look, good):
    leaked = data.Splits(good.train, good.val, table([*map(chat, (3, 38))]))
    found = finding(look(examples=leaked), "leak-exact")
    assert (found.severity, found.rows) == ("error", (4,))
    assert "test row 1 ~ train row 4" in found.evidence
    mended = leakage(leaked.train, leaked.test).without_leaks(leaked.test)
    assert look(examples=data.Splits(good.train, good.val, mended)).ok


LONG = "The quick brown fox jumps over the lazy dog while the cat sleeps by the warm fire and the clock strikes "


def test_leak_near(look, good):
    near = [
        [{"role": "user", "content": f"{LONG}{hour}"}, {"role": "assistant", "content": LONG}]
        for hour in ("five", "six")
    ]
    parts = data.Splits(table([*map(chat, range(20)), near[0]]), good.val, table([near[1]]))
    found = finding(look(examples=parts), "leak-near")
    assert (found.severity, found.rows) == ("warning", (21,))


def test_near_duplicates(look):
    found = finding(look(chats=[*map(chat, range(20)), chat(3), chat(3)]), "near-duplicates")
    assert (found.severity, found.rows) == ("warning", (21, 22))
    assert "rows 4, 21, 22" in found.evidence


def test_many_rows_skip_the_search_for_twins_and_say_so(look, monkeypatch):
    monkeypatch.setattr("ftkit.preflight.checks.MOST_ROWS", 10)
    assert "data.leakage" in look().skipped["near-duplicates"]


# Settings


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("lora_r", 2, "little room"),
        ("lora_dropout", 0.5, "Unsloth"),
        ("learning_rate", 2e-5, "learns little"),
        ("learning_rate", 3e-3, "diverge"),
        ("num_train_epochs", 9.0, "by heart"),
        ("weight_decay", 0.5, "nothing"),
        ("max_grad_norm", 0.05, "cut short"),
        ("max_length", 64, "lose their ends"),
        ("warmup_steps", 0, "first updates"),
    ],
)
def test_unusual_setting(setting, value, reason):
    """Outside the usual range of its knob: the reason, the help text and a value to try."""
    found = settings_finding("unusual-setting", **{setting: value})
    assert (found.severity, found.field) == ("warning", setting)
    assert reason in found.title
    assert f"Try {setting}=" in found.fix


def test_a_small_max_length_is_fine_where_nothing_is_cut(config):
    found = preflight.check_settings(config.replace(max_length=256), CPU, longest=200)
    assert [f for f in found if f.field == "max_length"] == []


@pytest.mark.parametrize(("size", "summed"), [(1, 2), (16, 8)])
def test_effective_batch(size, summed):
    found = settings_finding("effective-batch", per_device_train_batch_size=size, gradient_accumulation_steps=summed)
    assert found.title.startswith(f"{size * summed} examples stand behind each update")


def test_alpha_ratio():
    assert settings_finding("alpha-ratio", lora_r=64, lora_alpha=8).field == "lora_alpha"


def test_bf16_unsupported():
    """By compute capability: a T4 has none, although torch emulates it."""
    found = settings_finding("bf16-unsupported", T4, dtype="bf16")
    assert (found.severity, found.field) == ("error", "dtype")
    assert "7.5" in found.evidence
    assert "dtype='fp16'" in found.fix
    old_cpu = Hardware("cpu", "an old CPU", 16.0, None, False, 2)
    assert settings_finding("bf16-unsupported", old_cpu, dtype="bf16").severity == "warning"


def test_fp16_on_cpu():
    assert settings_finding("fp16-on-cpu", dtype="fp16").severity == "error"


def test_fp32_on_gpu():
    assert "dtype='fp16'" in settings_finding("fp32-on-gpu", T4, dtype="fp32").fix


def test_optimizer_replaced():
    assert settings_finding("optimizer-replaced", optim="adamw_8bit").severity == "note"


def test_packing_leaks():
    assert settings_finding("packing-leaks", packing=True).severity == "error"


@pytest.mark.parametrize("settings", [{"load_in_4bit": True}, {"backend": "unsloth"}, {"report_to": "wandb"}])
def test_package_missing(settings, monkeypatch):
    monkeypatch.setattr("ftkit.preflight.settings.find_spec", lambda name: None)
    found = settings_finding("package-missing", **{"load_in_4bit": False, **settings})
    assert (found.severity, found.field) == ("error", next(iter(settings)))
    assert "pip install" in found.fix


def test_settings_that_suit_a_machine_have_no_error():
    for hardware in (CPU, T4, A100):
        errors = [
            f for f in preflight.check_settings(TrainConfig.for_hardware(hardware), hardware) if f.severity == "error"
        ]
        assert errors == []


# The length of the run


@pytest.mark.parametrize(("warmup", "severity"), [(50, "warning"), (30, "note")])
def test_warmup_too_long(warmup, severity):
    found = settings_finding("warmup-too-long", max_steps=40, warmup_steps=warmup)
    assert (found.severity, found.field) == (severity, "warmup_steps")


def test_save_never():
    assert settings_finding("save-never", max_steps=40, save_steps=50).severity == "note"


def test_eval_never():
    assert settings_finding("eval-never", max_steps=10, eval_steps=20).severity == "note"


def test_early_stopping_idle():
    found = settings_finding("early-stopping-idle", max_steps=40, eval_steps=20, early_stopping_patience=3)
    assert "2 validation losses in 40 updates" in found.evidence


@pytest.mark.parametrize(("dtype", "severity"), [("bf16", "note"), ("fp16", "warning")])
def test_few_updates(dtype, severity):
    assert settings_finding("few-updates", T4, max_steps=4, dtype=dtype).severity == severity


def test_fewer_rows_than_batch():
    assert settings_finding("fewer-rows-than-batch", rows=5).severity == "warning"


def test_too_many_epochs():
    found = settings_finding("too-many-epochs", rows=100, max_steps=130)
    assert "10.0 times" in found.title
    assert found.field == "max_steps"


# Memory


def test_memory_too_small():
    """70 billion parameters on a T4: refused before a byte of them is loaded, with what to change, in order."""
    shape = memory.find("NousResearch/Llama-2-70b-hf")
    found = finding(
        preflight.check_settings(TrainConfig(dtype="fp16", load_in_4bit=False), T4, shape), "memory-too-small"
    )
    assert found.severity == "error"
    assert "Tesla T4 has 14.6 GiB; most is weights" in found.evidence
    assert "load_in_4bit=True (saves " in found.fix
    assert found.field in TrainConfig.__dataclass_fields__


def test_memory_that_is_tight_is_a_warning_or_a_note():

    shape, config = memory.find("meta-llama/Llama-3.1-8B"), TrainConfig(dtype="fp16", backend="transformers")
    estimate = memory.estimate(shape, config, loss_path=memory.TRL_LOSS_PATH)
    for there, severity in (
        (estimate.high_gib - 0.05, "note"),
        (estimate.likely_gib - 0.05, "warning"),
        (estimate.low_gib - 0.1, "error"),
    ):
        card = Hardware("cuda", "a card", there, (7, 5), False, 2)
        assert finding(preflight.check_settings(config, card, shape), "memory-too-small").severity == severity


def test_memory_unknown(look, model):
    """An architecture that the estimate does not describe is said, not guessed."""
    model.config.num_local_experts = 8
    report = look()
    assert finding(report, "memory-unknown").severity == "note"
    assert "memory-too-small" in report.skipped


# The model


def test_target_modules_missing(look):
    found = finding(look(settings={"target_modules": ("q_proj", "c_attn")}), "target-modules-missing")
    assert (found.severity, found.field) == ("error", "target_modules")
    assert "c_attn" in found.title
    assert "gate_proj" in found.evidence


def test_model_differs(look, model, config):
    """An adapter that is there already stays as it is, whatever the settings say now."""
    adapted = models.add_lora(model.bfloat16(), config.replace(lora_r=4, target_modules=("q_proj",)))
    found = finding(look(model=adapted, settings={"load_in_4bit": True, "backend": "unsloth"}), "model-differs")
    for seen in (
        "not in 4-bit",
        "weights are bfloat16",
        "loaded by transformers",
        "lora_r=8, the adapter has 4",
        "sits on q_proj",
    ):
        assert seen in found.evidence
    assert found.severity == "warning"


def test_fp16_trainable(look, model, config):
    adapted = models.add_lora(model, config).half()
    found = finding(look(model=adapted, settings={"dtype": "fp16"}, hardware=T4), "fp16-trainable")
    assert "float16" in found.evidence


def test_accumulation_loss(look, model, config):
    model.accepts_loss_kwargs = False
    assert finding(look(), "accumulation-loss").field == "gradient_accumulation_steps"
    alone = look(settings={"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8})
    assert "accumulation-loss" in alone.passed


def test_model_split(look, model):
    assert "unused" in finding(look(hardware=A100), "model-split").evidence
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    assert "on 0, 1" in finding(look(hardware=A100), "model-split").evidence


# A first batch


def test_probe_loss_not_finite(look, model):
    import torch

    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    assert finding(look(probe=True), "probe-loss-not-finite").severity == "error"


def test_probe_loss_high(look, model):
    """A head whose rows belong to other tokens: sure of itself and wrong."""
    import torch

    with torch.no_grad():
        model.lm_head.weight.mul_(1_000)
    found = finding(look(probe=True), "probe-loss-high")
    assert "guessing gives 5.6" in found.evidence


def test_probe_loss_zero_and_probe_loss_differs(look, model):
    """A loss function that was replaced by one that sees nothing."""
    import torch

    model.loss_function = lambda **_: torch.tensor(0.0)
    report = look(probe=True)
    assert finding(report, "probe-loss-zero").severity == "error"
    assert finding(report, "probe-loss-differs").severity == "error"


def test_the_probe_changes_nothing(look, model):
    model.train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    look(probe=True)
    assert model.training
    assert all(p.grad is None and bool((p == before[name]).all()) for name, p in model.named_parameters())


# The surroundings


def test_several_gpus(look, monkeypatch):
    """One process with two GPUs would split batches; one of several launched processes is fine."""
    monkeypatch.setattr(machine, "visible_gpus", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert finding(look(), "several-gpus").severity == "error"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "several-gpus" in look().passed


def test_unsloth_late(look, model, monkeypatch):
    """Modules stand in the order of their import: what stands before Unsloth was not patched by it."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("unsloth", "unsloth_zoo")]:
        monkeypatch.delitem(sys.modules, name)  # where an earlier test loaded it
    monkeypatch.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
    model.for_training = lambda: None
    assert "transformers" in finding(look(), "unsloth-late").evidence
    assert list(check_imports("unsloth", ["unsloth_zoo.x", "torch", "transformers", "unsloth"])) == []


def test_versions_differ(look, tmp_path):
    run = Run.create("old", tmp_path)
    run.finish("train")
    facts = json.loads((run / "run.json").read_text())
    facts["versions"]["trl"] = "0.9.0"
    (run / "run.json").write_text(json.dumps(facts))
    found = finding(look(run=run), "versions-differ")
    assert "trl 0.9.0 then" in found.evidence


@pytest.mark.parametrize(("free_mib", "severity"), [(10, "error"), (100, "warning")])
def test_disk_low(look, tmp_path, monkeypatch, free_mib, severity):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free_mib * 2**20))
    found = finding(look(run=Run.create("full", tmp_path)), "disk-low")
    assert (found.severity, found.field) == (severity, "save_total_limit")


def test_run_not_writable(look, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert os.strerror(errno.ENOTDIR) in finding(look(run=Run(tmp_path / "file/run")), "run-not-writable").evidence


def test_without_a_model_the_rest_is_looked_at(look):
    report = look(model=None, settings={"max_length": 90})
    assert report.skipped["target-modules-missing"] == "no model given"
    assert {f.id for f in report.findings} >= {"answers-cut"}
    assert not set(report.checked) & set(report.skipped)


# The report


def test_every_check_says_what_passing_means_and_has_a_test_here():
    tests = Path(__file__).read_text().replace("_", "-")
    assert all(meaning for meaning in CHECKS.values())
    assert [id for id in CHECKS if f'"{id}"' not in tests] == []


def test_every_check_is_either_made_or_skipped_with_a_reason(look):
    report = look()
    assert set(report.checked) | set(report.skipped) == set(CHECKS)
    assert not set(report.checked) & set(report.skipped)


def broken(look):
    return look(chats=[*map(chat, range(20)), chat(3)], settings={"max_length": 16, "packing": True, "save_steps": 50})


def test_refuse_names_all_errors_at_once(look):
    with pytest.raises(PreflightError, match=r"(?s)3 errors would.*No train row.*No val row.*Packed examples"):
        broken(look).refuse()


def test_errors_come_first_in_every_form(look):
    report = broken(look)
    severities = [SEVERITIES.index(f.severity) for f in report.findings]
    assert severities == sorted(severities)
    assert set(severities) == {0, 1, 2}
    page, text = report._repr_html_(), str(report)
    for shown in (page, text):
        places = [shown.index(f.title[:30]) for f in report.findings]
        assert places == sorted(places)
    assert text.startswith("✗ Not ready to train: 3 errors, ")


def test_a_report_says_what_was_checked(look):
    report = look()
    for shown in (str(report), report._repr_html_()):
        assert "✓ Ready to train" in shown
        assert "✓ stop-token-untrained" in shown
        assert "probe=True" in shown


def test_evidence_is_escaped_in_html():
    report = PreflightReport((Finding("x", "note", "<b>", "<i>", "<u>", "<s>"),))
    assert not re.search(r"<(b|i|u|s)>(?!·|[✓✗○])", report._repr_html_().replace("<b style", "<q style"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ftkit.errors.FtkitWarning")  # other tests of this process came before Unsloth
def test_the_bundled_model_on_the_invoices_is_ready(tmp_path):
    """The quickstart's set-up: nothing is found, and the check takes seconds."""
    machine = detect()
    config = TrainConfig.for_hardware(machine, max_steps=40, warmup_steps=3, eval_steps=12, save_steps=20)
    splits = data.split(data.load_examples("invoices"), seed=42)
    model, tokenizer = models.load(models.BUNDLED, config)
    report = preflight.check(
        models.add_lora(model, config), tokenizer, splits, config, run=Run.create("ready", tmp_path), probe=True
    )
    assert [f.id for f in (*report.errors, *report.warnings) if f.id != "unsloth-late"] == [], str(report)
    assert report.seconds < 15


def test_a_template_that_no_row_survives_still_gives_a_report(look):
    """What train would raise row by row is one finding."""
    always = "{{ raise_exception('No') }}"
    with pytest.raises(DataError):
        tokenize(chat(0), make_tokenizer(always))
    assert not look(tokenizer=make_tokenizer(always)).ok
