"""Tokens and masks: derived from the template, whatever the template is."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import CHATML, GEMMA, LLAMA3, make_tokenizer

from ftkit import template
from ftkit.errors import DataError

CHAT = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
]
REWRITES = (  # drops earlier answers once another turn follows, as some reasoning templates do
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}<|im_start|>assistant\n(dropped)<|im_end|>\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trained_text(row, tokenizer):
    return tokenizer.decode([label for label in row["labels"] if label != template.IGNORED])


@pytest.mark.parametrize("source", [CHATML, LLAMA3, GEMMA])
def test_every_answer_with_its_stop_token_is_trained_and_nothing_else(source):
    tokenizer = make_tokenizer(source)
    row = template.tokenize(CHAT, tokenizer)
    assert trained_text(row, tokenizer) == "First.<|im_end|>Second.<|im_end|>"


@pytest.mark.parametrize("source", [CHATML, LLAMA3, GEMMA])
def test_masked_and_trained_tokens_together_are_the_text(source):
    tokenizer = make_tokenizer(source)
    row = template.tokenize(CHAT, tokenizer)
    assert tokenizer.decode(row["input_ids"]) == template.render(CHAT, tokenizer)
    assert all(label in (template.IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))


@pytest.mark.parametrize(
    ("source", "adds_bos", "expected"), [(LLAMA3, True, 1), (LLAMA3, False, 1), (CHATML, True, 1), (CHATML, False, 0)]
)
def test_exactly_one_start_token_where_the_model_has_one(source, adds_bos, expected):
    tokenizer = make_tokenizer(source, adds_bos=adds_bos)
    assert template.tokenize(CHAT, tokenizer)["input_ids"].count(tokenizer.bos_token_id) == expected


def test_generation_prompt_is_a_prefix_of_the_trained_row(tokenizer):
    """What a model is asked is, token for token, what it was trained on."""
    prompt = template.render(CHAT[:1], tokenizer, add_generation_prompt=True)
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert template.tokenize(CHAT[:2], tokenizer)["input_ids"][: len(asked)] == asked


def test_truncation_cuts_ids_and_labels_alike(tokenizer):
    row = template.tokenize(CHAT, tokenizer, max_length=20)
    assert (len(row["input_ids"]), len(row["labels"])) == (20, 20)


def test_template_that_refuses_a_system_turn_is_explained():
    with pytest.raises(DataError, match=r"refuses system → user.*System role not supported.*Fold"):
        template.render([{"role": "system", "content": "x"}, CHAT[0]], make_tokenizer(GEMMA))


def test_template_that_rewrites_earlier_turns_is_refused():
    with pytest.raises(DataError, match="rewrites turn 2"):
        template.tokenize(CHAT, make_tokenizer(REWRITES))


def test_template_that_rewrites_still_works_on_single_answers():
    tokenizer = make_tokenizer(REWRITES)
    assert trained_text(template.tokenize(CHAT[:2], tokenizer), tokenizer) == "First.<|im_end|>"


def test_base_model_without_template_is_refused():
    with pytest.raises(DataError, match="no chat template"):
        template.render(CHAT, make_tokenizer(None))


def test_show_example_hides_what_is_masked(tokenizer):
    shown = template.show_example(CHAT[:2], tokenizer)
    assert "First." in str(shown)
    assert "One?" not in str(shown)
    assert 0 < shown.share < 1
    visible = re.sub(r"<[^>]*>", "", shown._repr_html_())
    assert "First." in visible
    assert "One?" not in visible


def test_show_example_escapes_html(tokenizer):
    page = template.show_example([CHAT[0], {"role": "assistant", "content": "<b>"}], tokenizer)._repr_html_()
    assert "<b>" not in page


text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=3))
def test_mask_is_right_for_any_text(pairs):
    """Emoji, right-to-left, newlines: the trained tokens are the answers, each with its stop token."""
    tokenizer = make_tokenizer()
    chat = [{"role": role, "content": c} for pair in pairs for role, c in zip(("user", "assistant"), pair, strict=True)]
    row = template.tokenize(chat, tokenizer)
    assert trained_text(row, tokenizer) == "".join(f"{answer}<|im_end|>" for _, answer in pairs)


def test_stop_ids_join_tokenizer_and_generation_config(tokenizer, model):
    model.generation_config.eos_token_id = [0, 2]
    assert template.stop_ids(tokenizer, model) == [2, 0]
