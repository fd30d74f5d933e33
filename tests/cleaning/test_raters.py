"""Models that judge: an LLM behind a real HTTP server on loopback, and a reward model with two layers."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import chat, chat_server

from ftkit import cleaning, data
from ftkit.cleaning.raters import RUBRIC, rating, rewards
from ftkit.errors import ModelError

pytest.importorskip("openai")


def turns(prompt, answer):
    return chat(prompt, answer)["messages"]


SHORT_RUBRIC = """Rate how good the last answer is, from 1 (useless) to 5 (very good). Reply with the rating alone.

<example>
[user]
What is the capital of France?
[assistant]
Paris is the capital of France.
</example>
Rating: 5

<example>
[user]
Name a colour.
[assistant]
Seven.
</example>
Rating: 1"""  # two examples graded: a model of 135 M parameters copies a form better than it follows one


ROWS = [chat(f"Add {i} and 1.", f"{i + 1}.")["messages"] for i in range(4)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Clear and right.\nRating: 4", 4),
        ("Rating: 2, no: better.\nRating: 5.", 5),
        ("**Rating:** 4", 4),
        ("**Rating**: [3]", 3),
        ("_rating_ = 2", 2),
        ('{"reason": "short", "rating": 3}', 3),
        ("Rating (1 to 5): 4/5", 4),
        ("Rating:\n 1", 1),
        ("Rating: 4.0 out of 5", 4),
        ("Rating: 4\nRating: N", None),
        ("Rating: 4/10", None),
        ("Rating: 4.5", None),
        ("Rating: 45", None),
        ("Rating: 0", None),
        ("Rating: 6", None),
        ("Rating: -3", None),
        ("Rating: 1-5", None),
        ("Rating: 1 to 5", None),
        ("A rating of 4 seems fair.", None),
        ("", None),
    ],
)
def test_the_last_rating_counts_when_it_is_one_to_five(text, wanted):
    assert rating(text) == wanted


@given(
    st.lists(st.sampled_from(["Rating", ":", " ", "\n", "4", "5", "0", "/", ".", "-", "*", "(", "to", "９"]))
    | st.text()
)
def test_any_reply_gives_a_rating_or_none(pieces):
    assert rating("".join(pieces)) in (None, 1, 2, 3, 4, 5)


@given(st.text(), st.integers(1, 5))
def test_what_stands_before_the_last_line_does_not_matter(reason, wanted):
    assert rating(f"{reason}\nRating: {wanted}") == wanted


@pytest.fixture
def judge():
    with chat_server() as server:
        yield server


def sent(body):
    return body["messages"][-1]["content"]


def by_number(body):
    """Rate a row by the number in its question, so that the order of the answers shows."""
    return 200, f"Rating: {int(sent(body).split('Add ')[1][0]) + 1}"


def test_every_row_is_rated_in_order_at_temperature_0(judge):
    judge.reply = by_number
    assert cleaning.rate(judge.url, "tiny")(ROWS) == [1, 2, 3, 4]
    assert {(body["model"], body["temperature"], len(body["messages"])) for body in judge.asked} == {("tiny", 0, 1)}
    assert all(sent(body).startswith(RUBRIC) for body in judge.asked)
    assert all(row[1]["content"] in sent(body) for row, body in zip(ROWS, judge.asked, strict=True))


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"rubric": "Grade. End with Rating: N"}, {"rows": [turns("Add 0 and 1.", "2.")]}]
)
def test_another_model_rubric_or_answer_is_asked_anew(judge, tmp_path, change):
    cache = tmp_path / "ratings.jsonl"
    cleaning.rate(judge.url, "tiny", cache=cache)(ROWS[:1])
    cleaning.rate(judge.url, change.get("model", "tiny"), rubric=change.get("rubric", RUBRIC), cache=cache)(
        change.get("rows", ROWS[:1])
    )
    assert len(judge.asked) == 2


def test_a_reply_without_a_rating_is_none_kept_and_asked_again_on_request(judge, tmp_path):
    cache = tmp_path / "ratings.jsonl"
    judge.reply = lambda body: (200, "I cannot say.") if "Add 2" in sent(body) else by_number(body)
    assert cleaning.rate(judge.url, "tiny", cache=cache)(ROWS) == [1, 2, None, 4]
    assert "I cannot say." in [json.loads(line)["reply"] for line in cache.read_text().splitlines()]
    assert cleaning.rate(judge.url, "tiny", cache=cache)(ROWS) == [1, 2, None, 4]
    assert len(judge.asked) == 4
    judge.reply = by_number
    assert cleaning.rate(judge.url, "tiny", cache=cache, retry_failed=True)(ROWS) == [1, 2, 3, 4]
    assert len(judge.asked) == 5
    assert cleaning.rate(judge.url, "tiny", cache=cache)(ROWS) == [1, 2, 3, 4]


@pytest.mark.parametrize("content", [None, "", [{"type": "text", "text": "Rating: 4"}]])
def test_a_reply_without_text_is_none(judge, content):
    judge.reply = lambda body: (200, content)
    assert cleaning.rate(judge.url, "tiny")(ROWS[:1]) == [None]


def test_a_row_without_an_answer_is_not_asked(judge):
    assert cleaning.rate(judge.url, "tiny")([ROWS[0][:1], turns("x", " "), ROWS[1]]) == [None, None, 4]
    assert len(judge.asked) == 1


def toy_reward(tokenizer, **settings):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    return LlamaForSequenceClassification(
        LlamaConfig(
            **{
                "vocab_size": len(tokenizer),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 256,
                "num_labels": 1,
                "pad_token_id": 0,
                **settings,
            }
        )
    ).eval()


def rewards_by_hand(model, tokenizer, rows):
    """One row at a time, read at its last token: no padding is involved."""
    rewards = []
    for row in rows:
        ids = torch.tensor(
            [tokenizer(tokenizer.apply_chat_template(row, tokenize=False), add_special_tokens=False)["input_ids"]]
        )
        with torch.no_grad():
            rewards.append(float(model.score(model.model(input_ids=ids).last_hidden_state[0, -1])))
    return rewards


@pytest.mark.parametrize("pad", ["<|endoftext|>", "<|im_end|>", "\u010a", None])
def test_rewards_equal_single_ones_whatever_pads(tokenizer, pad):
    """Also where the pad token is the stop token, or the newline that ends each chat: the head would read too early."""
    model = toy_reward(tokenizer)
    rows = [turns("?" * n, "answer " * (1 + n % 3)) for n in (20, 1, 9, 33, 4)]
    expected = rewards_by_hand(model, tokenizer, rows)
    tokenizer.pad_token, model.config.pad_token_id = pad, None
    assert rewards(model, tokenizer, batch_size=3)(rows) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert model.config.pad_token_id is None


def test_rows_that_no_reward_can_be_had_for_are_none(tokenizer):
    rows = [ROWS[0][:1], turns("x", "y" * 300), ROWS[1], turns("x", "")]
    assert [s is not None for s in rewards(toy_reward(tokenizer), tokenizer)(rows)] == [
        False,
        False,
        True,
        False,
    ]


def test_a_saved_reward_model_scores_the_same_and_selects(tokenizer, tmp_path):

    model = toy_reward(tokenizer)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    score = cleaning.reward_model(tmp_path)
    assert score(ROWS) == pytest.approx(rewards_by_hand(model, tokenizer, ROWS), rel=0.1, abs=0.02)  # 16-bit
    selection = cleaning.select(data.load_examples([{"messages": row} for row in ROWS]), score, 0.5)
    assert len(selection.chosen) == 2


def test_several_outputs_are_refused(tokenizer, tmp_path):
    model = toy_reward(tokenizer, num_labels=3)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has 3 outputs; a reward model has one"):
        rewards(model, tokenizer)
    with pytest.raises(ModelError, match=r"has 3 outputs; a reward model has one"):
        cleaning.reward_model(tmp_path)


def test_a_chat_model_is_no_reward_model(model, tokenizer, tmp_path):
    """Transformers would put a random head on it and say so in a log line."""
    model.config.num_labels = 1
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no weights for score.weight, so its rewards would be random"):
        cleaning.reward_model(tmp_path)


def test_pickled_weights_and_remote_code_are_refused(tokenizer, tmp_path):
    model = toy_reward(tokenizer)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="it brings custom code"):
        cleaning.reward_model(tmp_path)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="Pickled weights are not loaded"):
        cleaning.reward_model(tmp_path)


@pytest.mark.slow
def test_the_bundled_model_rates_behind_a_real_server(served, tmp_path):
    """A small model is a poor judge, but a real one: it answers, what it says is kept, and nothing is asked twice."""
    rows = [
        turns("What is the capital of Japan? Answer in one sentence.", "The capital of Japan is Tokyo."),
        turns("What is two plus two?", "A green boat."),
    ]
    cache = tmp_path / "ratings.jsonl"
    settings = {"rubric": SHORT_RUBRIC, "cache": cache, "timeout_s": 300}
    ratings = cleaning.rate(served.url, served.model, **settings)(rows)
    texts = [json.loads(line)["reply"] for line in cache.read_text().splitlines()]
    assert ratings == [rating(text) for text in texts]
    assert all(rating in (1, 2, 3, 4, 5) for rating in ratings), texts
    assert served.requests() == 2
    assert cleaning.rate(served.url, served.model, **settings)(rows) == ratings
    assert served.requests() == 2


@pytest.mark.slow
def test_a_real_server_without_the_model_is_explained(served):
    with pytest.raises(ModelError, match=rf"(?s)Row 1 .*{served.url}.*'nobody/nothing'"):
        cleaning.rate(served.url, "nobody/nothing")(ROWS[:1])
