"""All checks together: silence on a healthy run, and a reason for each check that was not made."""

from pathlib import Path

import pytest
from toys import CHATML, GEMMA, LLAMA3, make_tokenizer, order_chat

from ftkit import data, models, preflight
from ftkit.config import TrainConfig
from ftkit.errors import DataError
from ftkit.hardware import detect
from ftkit.preflight import CHECKS
from ftkit.preflight.report import GROUPS, SEVERITIES
from ftkit.runs import Run


@pytest.mark.parametrize(("source", "adds_bos"), [(CHATML, False), (LLAMA3, True), (GEMMA, True)])
def test_a_healthy_run_has_no_error_and_no_warning(look, tmp_path, source, adds_bos):
    report = look(tokenizer=make_tokenizer(source, adds_bos=adds_bos), run=Run.create("fine", tmp_path), probe=True)
    assert (report.errors, report.warnings) == ((), ()), str(report)
    assert report.ok
    assert set(report.passed) | {f.id for f in report.notes} == set(CHECKS)
    assert report.refuse() is report


def test_a_thousand_rows_take_seconds(look):
    report = look(chats=[order_chat(i) for i in range(100, 1100)])
    assert report.seconds < 20  # about two on an idle machine; a busy one must not fail this
    assert report.facts["train rows"].startswith("1,000 · ")


def test_a_large_part_is_sampled_evenly_and_says_so(look):
    report = look(chats=[order_chat(i) for i in range(100, 500)], max_rows=50)
    assert report.facts["train rows"].startswith("400 (a sample of 50)")


def test_what_is_no_dataset_of_messages_is_refused(look, good):
    """A list is not read row by row: `load_examples` says what is wrong with each."""
    with pytest.raises(DataError, match="The train part is no Dataset with `messages`"):
        look(examples=[{"messages": order_chat(0)}])
    with pytest.raises(DataError, match="The test part"):
        look(examples=good.train, test=good.test.rename_column("messages", "chat"))


def test_without_a_model_the_rest_is_looked_at(look):
    report = look(model=None, settings={"max_length": 90})
    assert report.skipped["target-modules-missing"] == "no model given"
    assert {f.id for f in report.findings} >= {"answers-cut"}
    assert not set(report.checked) & set(report.skipped)


def test_every_check_says_what_passing_means_and_has_a_test():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py")).replace("_", "-")
    assert [id for id in CHECKS if f'"{id}"' not in tests] == []
    assert all(CHECKS.values())


def test_the_words_of_every_check_are_used_and_whole():
    """Each variant of a text is named where a check speaks, and none has a word that nobody reads."""
    code = "".join(path.read_text() for path in Path(preflight.__file__).parent.glob("*.py"))
    told_elsewhere = {"cpu", "fp16", "does not fit"}  # names of devices, number formats and verdicts
    for group in GROUPS.values():
        for texts in group.values():
            variants = {name: text for name, text in texts.items() if isinstance(text, dict)}
            assert all(f'"{name}"' in code or name in told_elsewhere for name in variants)
            for words in (texts, *variants.values()):
                assert set(words) - set(variants) <= {"passed", "severity", "title", "evidence", "fix", "field"}
                assert words.get("severity", "error") in SEVERITIES


def test_every_check_is_either_made_or_skipped_with_a_reason(look):
    report = look()
    assert set(report.checked) | set(report.skipped) == set(CHECKS)
    assert not set(report.checked) & set(report.skipped)


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
