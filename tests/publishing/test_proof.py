"""Parity: what is the same passes, and every kind of difference is found before anything is handed on."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import LLAMA3, dataset_of, order_chat

from ftkit import chat, data, files, publishing
from ftkit.errors import DataError, GateFailed, ModelError
from ftkit.publishing import places, proof

FEW = {"prompts": 5, "max_new_tokens": 8}


@pytest.fixture
def merged(run):
    return publishing.merge(run)


def reseal(folder):
    """What somebody does who changes a folder and hides it."""
    files.seal(folder, {}, files.HIDDEN)


def change(folder, name, **values):
    known = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(known | values))
    reseal(folder)


def failed(report):
    return [check.name for check in report.checks if check.passed is False]


def test_a_merge_passes(run, merged):
    report = publishing.parity(run, merged, **FEW).require()
    assert report.value("token ids") == 1.0 >= report.value("greedy tokens agree") > 0.9  # random weights nearly tie
    assert 0 < report.value("logit gap") < 0.5
    assert places.record(merged.parent)["merged"]["parity"]["passed"] is True


def test_a_merge_that_passed_is_not_asked_again(run, merged, monkeypatch):
    """With the same prompts; others are another question."""
    first = publishing.parity(run, merged, **FEW)
    monkeypatch.setattr(proof, "_merged", lambda *_: pytest.fail("asked again"))
    assert publishing.parity(run, merged, **FEW).checks == first.checks
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        publishing.parity(run, merged, prompts=4, max_new_tokens=8)


def test_weights_that_answer_otherwise_fail(run, merged):
    """A merge that lost the adapter is the base, and says something else."""
    weights = load_file(merged / "model.safetensors")
    for name, weight in weights.items():
        if "q_proj" in name or "down_proj" in name:
            weights[name] = torch.roll(weight, 1, 0)
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    reseal(merged)
    report = publishing.parity(run, merged, **FEW)
    assert "greedy tokens agree" in failed(report)
    with pytest.raises(GateFailed, match=r"greedy tokens agree.*The adapter is untouched"):
        report.require()
    assert places.record(merged.parent)["merged"]["parity"]["passed"] is False


def test_another_stop_token_fails(run, merged):
    """The answers would never end, or end at once."""
    change(merged, "generation_config.json", eos_token_id=5)
    assert "stop tokens" in failed(publishing.parity(run, merged, **FEW))


def test_another_generation_config_fails_and_says_which_setting(run, merged):
    change(merged, "generation_config.json", repetition_penalty=1.3)
    report = publishing.parity(run, merged, **FEW)
    assert "generation config" in failed(report)
    assert "repetition_penalty" in str(report)


def test_another_template_fails(run, merged):
    (merged / "chat_template.jinja").write_text(LLAMA3)
    reseal(merged)
    assert {"rendered prompts", "token ids"} <= set(failed(publishing.parity(run, merged, **FEW)))


def test_a_folder_that_was_changed_is_not_even_asked(run, merged):
    (merged / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config.json has 2 of"):
        publishing.parity(run, merged, **FEW)


class TestPrompts:
    """Fixed ones, some of them with tools."""

    def test_fifty_with_tools_and_the_task_first(self):
        task = dataset_of([order_chat(i) for i in range(40)])
        rows = proof.fixed_prompts(task)
        assert len(rows) == 50
        assert [row["messages"] for row in rows[:30]] == [task[i]["messages"] for i in range(30)]
        assert sum(bool(row.get("tools")) for row in rows) == 8

    def test_without_a_task_there_are_as_many(self):
        assert len(proof.fixed_prompts(None)) == 50

    def test_tools_are_written_into_the_text_where_the_template_knows_none(self, tokenizer):
        row = proof.fixed_prompts(None)[-1]
        asked = proof._as_asked(row, tokenizer)
        assert data.parse_tools(row["tools"])[0]["function"]["name"] in chat.render(asked, tokenizer)

    def test_none_is_refused(self):
        with pytest.raises(DataError, match="prompts=0"):
            proof.fixed_prompts(None, 0)


def test_log_probabilities_are_those_of_the_answers_places(model):
    """The first place is predicted by the last token of the prompt."""
    (found,) = proof._likeliest(model, [[3, 4, 5]], [[6, 7]])
    with torch.no_grad():
        wanted = torch.log_softmax(model(torch.tensor([[3, 4, 5, 6, 7]])).logits[0, 2:4], dim=-1)
    assert torch.allclose(wanted.gather(1, found.tokens), found.values, atol=1e-5)
    assert found.first.tolist() == wanted.argmax(-1).tolist()
    assert torch.allclose(wanted.max(-1).values, found.best, atol=1e-5)
