"""The card says what the run knows, and nothing that is nobody's business."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ftkit import evaluation, publishing
from ftkit.data import FILES
from ftkit.errors import ConfigError, DataError, FtkitWarning, MissingArtifact
from ftkit.evaluation import score_answers
from ftkit.runs import Run


@pytest.fixture
def run(small_sample):
    """The sample run, in a folder of its own."""
    return small_sample


def summary(run):
    return json.loads((run / "eval/summary.json").read_text())


def written(run, **terms):
    """The text of the card, and its metadata as the Hub reads them."""
    path = publishing.model_card(run, publishing.licence(run, **({"data_licence": "mit"} | terms)))
    text = path.read_text()
    return text, ModelCard(text).data


def test_the_metadata_are_what_the_hub_reads(run):
    """Base, licence, library and the tuned model's scores, each with its interval."""
    _, data = written(run)
    assert (data.base_model, data.license) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert (data.library_name, data.pipeline_tag) == ("peft", "text-generation")
    scores = {(result.dataset_config, result.metric_type): result for result in data.eval_results}
    found = scores["after", "exact_match"]
    wanted = summary(run)["after"]["exact_match"]
    assert found.metric_value == round(wanted["value"], 4)
    assert found.metric_args["interval_95"] == [round(wanted["low"], 4), round(wanted["high"], 4)]
    assert not [key for key, _ in scores if key == "before"]  # the base's scores are not this model's


def test_every_evaluation_stands_in_the_table(run):
    text, _ = written(run)
    for key, report in summary(run).items():
        assert f"| {report['name']} | {key} | {evaluation.Score(**report['exact_match'])} |" in text


def test_settings_and_measurements_stand_in_the_card(run):
    text, _ = written(run)
    for row in (
        "| lora_r | 16 |",
        "| load_in_4bit | yes |",
        "| weight updates | 36 |",
        "| digest | 593f946478ca |",
        "| source | invoices (bundled with ftkit) |",
    ):
        assert row in text


def test_rows_are_counted_and_never_shown(run):
    (run / "data").mkdir()
    for count, name in enumerate(FILES, 2):
        (run / f"data/{name}").write_text('{"messages": [{"content": "a trade secret"}]}\n' * count)
    text, _ = written(run)
    assert "2 to train, 3 for validation, 4 held out" in text
    asked = json.loads((run / "eval/after.jsonl").read_text().splitlines()[0])
    assert not [words for words in ("trade secret", asked["prompt"][:60], asked["answer"][:30]) if words in text]


def test_a_verdict_on_pairs_of_answers(run):
    """Where the run holds both sides, the comparison of `evaluation` speaks."""
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "yes"}]} for i in range(30)
    ]
    before = score_answers(["no"] * 30, rows, name="base")
    after = score_answers(["yes"] * 30, rows, name="tuned")
    evaluation.save_reports(run, before=before, after=after)
    text, _ = written(run)
    assert evaluation.compare(before, after).verdict() in text


def test_what_the_gate_found_stands_in_the_card(run):
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "yes"}]} for i in range(30)
    ]
    before, after = (score_answers([said] * 30, rows, name=name) for said, name in (("yes", "base"), ("no", "tuned")))
    verdict = evaluation.gate({"general": before}, {"general": after}, run=run)
    verdict.save(run)
    text, _ = written(run)
    assert "The gate was NOT passed." in text
    assert verdict.reasons[0] in text


def test_what_was_not_measured_is_said(run):
    """No evaluation, no gate, no rows, no settings: the card is shorter, and honest."""
    (run / "eval/summary.json").unlink()
    (run / "config.yaml").unlink()
    text, data = written(run)
    assert "Nobody has measured this model." in text
    assert "was not measured" in text
    assert not data.eval_results


def test_neither_paths_nor_accounts_nor_tokens_reach_the_card(set_facts, tmp_path):
    """Whatever part of the run they stand in."""
    base = tmp_path / "zoe-private" / "tiny-base"
    base.mkdir(parents=True)
    run = set_facts(
        base=str(base),
        base_model=str(base),
        data_source="/home/zoe/secret-project/rows.jsonl",
        data_licence="mit",
        device="hf_" + "abcdefghijKLMNOP of /home/zoe",
    )
    told = summary(run)
    told["after"]["name"] = "/home/zoe/runs/tuned"
    told["C:\\Users\\zoe\\after"] = told.pop("after_unseen") | {"name": "~/zoe/x | y"}
    (run / "eval/summary.json").write_text(json.dumps(told))
    text, data = written(run)
    for private in (str(tmp_path), "zoe", str(Path.home()) + "/", "hf_" + "abc", "secret-project", "Users"):
        assert private not in text
    assert "tiny-base" in text and "rows.jsonl" in text and "tuned" in text
    assert data.base_model is None  # no Hub has it


def test_a_card_that_was_edited_stays(run):
    first = publishing.model_card(run)
    publishing.model_card(run)  # its own one is replaced without a word
    first.write_text(first.read_text() + "Mind the gap.\n")
    with pytest.warns(FtkitWarning, match="was edited"):
        second = publishing.model_card(run)
    assert second.name == "MODEL_CARD.new.md"
    assert first.read_text().endswith("Mind the gap.\n")


def test_duties_and_open_questions_stand_in_the_card(set_facts):
    run = set_facts(base="meta-llama/Llama-3.2-1B")
    terms = publishing.licence(run, base_licence="llama3.2", data_licence="house-rules")
    text = publishing.model_card(run, terms).read_text()
    assert "**Built with Llama**" in text
    for sentence in (*terms.duties, *terms.open_questions):
        assert sentence in text


def test_the_installed_sample_is_not_written_to():
    with pytest.raises(ConfigError, match="Copy it first"):
        publishing.model_card(Run.sample())


def test_a_run_without_an_adapter_has_no_card(tmp_path):
    with pytest.raises(MissingArtifact, match="no adapter"):
        publishing.model_card(Run.create("new", tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", '{"after": 1}', '{"after": {}}', "\xff"])
def test_a_damaged_summary_is_named(run, content):
    (run / "eval/summary.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"summary\.json is damaged"):
        publishing.model_card(run)
