"""What a base model can do: how an answer passes, which items are kept, and that the base is asked again."""

import json

import pytest
import torch

from ftkit import data, evaluation, models
from ftkit.config import TrainConfig
from ftkit.errors import DataError
from ftkit.evaluation import BUNDLED, mentions, suite
from ftkit.evaluation.suites import not_refused, refused, same_json

REFUSALS = [
    "I'm sorry, but I can't assist with that.",
    "I’m sorry, but I can’t help with that request.",
    "I cannot provide instructions for that.",
    "I am not able to help you with this.",
    "As an AI language model, I am unable to support violence.",
    "I won't help with that, because somebody could be hurt.",
    "Sorry, I can't do that.",
    "I must decline this request.",
    "I refuse to write that.",
    "That is not something I can help with.",
    "It is illegal to open other people's letters, and I would rather not explain it.",
    "It's not appropriate to threaten people.",
    "That goes against my guidelines.",
    "I can not in any way support that.",
    "Unfortunately, we cannot offer help with this.",
]
ANSWERS = [
    "To kill the process, type kill and its number.",
    "I'm sorry to hear that. Here is what you can do: call the company.",
    "You cannot go wrong with garlic: crush it with the flat of a knife.",
    "I can't wait to tell you! First, boil the water.",
    "If you can't find the file, look in the other folder.",
    "Stars explode because they cannot hold their own weight any longer.",
    "I can't recommend this soup enough. Take three onions.",
    "Sure! Here is how to do it.",
    "The law cannot be broken by a balloon.",
    "Yes.",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_declining_is_recognised(answer):
    assert (refused(answer), not_refused(answer)) == (1.0, 0.0)


@pytest.mark.parametrize("answer", ANSWERS)
def test_answering_is_no_declining(answer):
    assert (refused(answer), not_refused(answer)) == (0.0, 1.0)


@pytest.mark.parametrize("answer", ["", "  \n", "<think>I cannot help with that.</think>"])
def test_saying_nothing_is_neither(answer):
    assert (refused(answer), not_refused(answer)) == (0.0, 0.0)


def test_a_doubt_at_the_end_of_an_answer_is_no_declining():
    assert refused("First, boil the water. " * 20 + "I cannot help with the rest.") == 0.0


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("The capital of Japan is Tokyo.", ["Tokyo"], 1.0),
        ("the capital is the TOKYO!", ["tokyo"], 1.0),
        ("It boils at 100 degrees.", ["100", "one hundred"], 1.0),
        ("It boils at 1000 degrees.", ["100"], 0.0),
        ("Tokyoite", ["Tokyo"], 0.0),
        ("Count: 1, 2, 3", ["1, 2, 3"], 1.0),
        ("<think>Tokyo</think> Kyoto.", ["Tokyo"], 0.0),
        ("", ["Tokyo"], 0.0),
    ],
)
def test_a_reference_is_mentioned_as_whole_words(answer, references, score):
    assert mentions(answer, references) == score


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"name": "Mia", "age": 7}', 1.0),
        ('```json\n{"age": "7", "name": "mia"}\n```', 1.0),
        ('{"name": "Mia"}', 0.0),
        ('{"name": "Mia", "age": 7, "more": 1}', 0.0),
        ('Here it is: {"name": "Mia", "age": 7}', 0.0),
        ("{'name': 'Mia', 'age': 7}", 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
    ],
    ids=range(8),
)
def test_json_says_the_same_or_not(answer, score):
    assert same_json(answer, ['{"name": "Mia", "age": 7}']) == score


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_suites_are_well_formed(name):
    """Every id once, every question once, and the answer that stands there passes its own test."""
    rows = list(data.load_examples(name))
    assert len({row["id"] for row in rows}) == len({row["messages"][-2]["content"] for row in rows}) == len(rows)
    if name == "tool_skill":
        assert all(row["messages"][-1]["tool_calls"] and row["tools"] for row in rows)
        return
    failed = [
        row["id"]
        for row in rows
        if not BUNDLED[name](row["messages"][-1]["content"], row.get("accept") or [row["messages"][-1]["content"]])
    ]
    assert failed == []


ADAPTED = TrainConfig(backend="transformers", load_in_4bit=False, dtype="fp32", gradient_checkpointing=False, lora_r=4)


def even(answer, references):
    """Passes half of the items, whatever is said: those whose answer is a multiple of four."""
    return float(int(references[0].strip("It is.")) % 4 == 0)


def test_a_suite_keeps_what_the_base_passes_and_asks_again(model, tokenizer, rows):
    kept = suite(model, tokenizer, rows, metric=even, max_new_tokens=4, batch_size=3)
    assert ([row["id"] for row in kept.rows], kept.left_out) == (["1", "3", "5", "7"], ("2", "4", "6", "8"))
    assert [row["id"] for row in kept.before.rows] == [row["id"] for row in kept.rows]
    assert (kept.before.scores["even"].value, kept.floor) == (1.0, 0.0)  # greedy in fp32: the same again
    assert kept.base == kept.before.settings["items_of_base"] == models.base_digest(model)
    same = kept.measure(model, tokenizer, name="again")
    assert evaluation.gate(kept.before, same, floor=kept.floor).passed
    assert f"passes {len(kept.rows)} of 8 items" in str(kept)


def test_the_floor_is_what_the_base_loses_against_itself(model, tokenizer, rows):
    """A base that passes every item at first, and fewer whenever it is asked again."""
    asked = []

    def forgetful(answer, references):
        """Each round of eight items passes one item less; the check of the metric asks first."""
        asked.append(references[0])
        seen = asked.count(references[0]) - (references[0] == "It is 0.")  # the first reference is tried on itself
        return float(int(references[0].strip("It is.")) >= 2 * (seen - 1))

    kept = suite(model, tokenizer, rows, metric=forgetful, max_new_tokens=2)
    assert (len(kept.rows), kept.before.scores["forgetful"].value) == (8, 7 / 8)
    assert kept.floor == 1 / 8


def test_of_an_adapted_model_the_base_is_asked(model, tokenizer, rows):
    alone = suite(model, tokenizer, rows, metric=even, max_new_tokens=4)
    adapted = models.add_lora(model, ADAPTED)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    with_adapter = suite(adapted, tokenizer, rows, metric=even, max_new_tokens=4)
    assert (with_adapter.rows, with_adapter.base) == (alone.rows, alone.base)
    answers = alone.measure(adapted, tokenizer)
    assert [row["answer"] for row in answers.rows] != [row["answer"] for row in alone.before.rows]


def test_a_suite_of_another_base_is_refused(model, tokenizer, rows):
    kept = suite(model, tokenizer, rows, metric=even, max_new_tokens=4)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    adapted = models.add_lora(model, ADAPTED)
    with pytest.raises(DataError, match="stands on"):
        kept.measure(adapted, tokenizer)


def test_a_base_that_passes_nothing_has_nothing_to_lose(model, tokenizer, rows):
    kept = suite(model, tokenizer, rows, metric="exact_match", max_new_tokens=2)
    assert (kept.rows, kept.before, kept.floor) == ((), None, 0.0)
    assert "passes none of 8 items" in str(kept)
    with pytest.raises(DataError, match="has no items"):
        kept.measure(model, tokenizer)


def test_tools_are_written_into_the_text_for_a_template_without_them(model, tokenizer):
    kept = suite(model, tokenizer, "tool_skill", limit=2, max_new_tokens=2)
    assert kept.left_out == ("tool-01", "tool-02")


@pytest.mark.parametrize(
    ("source", "how", "said"),
    [
        ([], {}, "no|empty"),
        ("nothing_like_it", {}, "no file and no bundled"),
        ("general", {"again": 0}, "again=0"),
        ("general", {"metric": "vibes", "limit": 1}, "vibes"),
    ],
)
def test_odd_input_is_refused(model, tokenizer, source, how, said):
    with pytest.raises(DataError, match=said):
        suite(model, tokenizer, source, max_new_tokens=2, **how)


def test_doubled_ids_are_refused(model, tokenizer, rows):
    with pytest.raises(DataError, match="more than once"):
        suite(model, tokenizer, [{**row, "id": "same"} for row in rows], metric=even, max_new_tokens=2)


def test_own_rows_from_a_file_with_what_they_accept(model, tokenizer, rows, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({**row, "accept": [""]}) + "\n" for row in rows))
    kept = suite(model, tokenizer, path, max_new_tokens=2)
    assert (kept.name, kept.metric) == ("own", mentions)
