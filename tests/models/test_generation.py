"""Batching changes no answer, and an answer says whether it ended by itself."""

import torch

from ftkit.models import generate
from ftkit.models.generation import Answer


def test_batched_answers_equal_single_ones_in_the_order_given(model, tokenizer):
    """Padding on the left and sorting by length must not change an answer."""
    prompts = ["a", "a much longer question than the first", "mid-sized one", "b" * 60, "c"]
    together = generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=3)
    alone = [generate(model, tokenizer, [p], max_new_tokens=12)[0] for p in prompts]
    assert together == alone


def test_an_answer_says_whether_it_stopped(model, tokenizer):
    """A model that always writes the stop token stops after one token; one that never does is cut."""
    with torch.no_grad():
        model.model.norm.weight.zero_()  # hidden state 0: logits are all equal, so the lowest id wins
    never = generate(model, tokenizer, ["x"], max_new_tokens=5)[0]
    assert (never.tokens, never.stopped) == (5, False)
    model.generation_config.eos_token_id = 0
    assert generate(model, tokenizer, ["x"], max_new_tokens=5)[0] == Answer("", 1, True)


def test_generate_leaves_the_model_in_the_mode_it_found(model, tokenizer):
    model.train()
    padding = tokenizer.padding_side
    generate(model, tokenizer, ["x"], max_new_tokens=2)
    assert (model.training, tokenizer.padding_side) == (True, padding)


def test_drawn_answers_repeat_with_their_seed(model, tokenizer):
    draw = {"max_new_tokens": 8, "temperature": 1.0}
    assert generate(model, tokenizer, ["x"], seed=1, **draw) == generate(model, tokenizer, ["x"], seed=1, **draw)
    assert generate(model, tokenizer, ["x"], seed=1, **draw) != generate(model, tokenizer, ["x"], seed=2, **draw)


def test_no_prompts_no_answers(model, tokenizer):
    assert generate(model, tokenizer, []) == []


def test_a_prompt_is_a_question_messages_or_a_row_with_tools(model, tokenizer):
    """The schemas of a row stand in what the model reads."""
    question = [{"role": "user", "content": "High water?"}]
    tokenizer.chat_template = "{{ (tools or '') | string }}" + tokenizer.chat_template
    tools = [{"type": "function", "function": {"name": "tide", "parameters": {}}}]
    read = []
    model.generate = lambda input_ids, **_: read.append(tokenizer.decode(input_ids[0])) or input_ids
    generate(model, tokenizer, ["High water?"])
    generate(model, tokenizer, [question])
    generate(model, tokenizer, [{"messages": question, "tools": tools}])
    assert read[0] == read[1]
    assert read[2] == str(tools) + read[0]
