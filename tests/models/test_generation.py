"""Batching changes no answer, and an answer says whether it ended by itself."""

import pytest
import torch

from ftkit import chat, data, models
from ftkit.config import TrainConfig
from ftkit.models import generate
from ftkit.models.generation import Answer


def test_batched_answers_equal_single_ones_in_the_order_given(model, tokenizer):
    """Padding on the left and sorting by length must not change an answer."""
    prompts = ["a", "a much longer question than the first", "mid-sized one", "b" * 60, "c"]
    together = generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=3)
    alone = [generate(model, tokenizer, [p], max_new_tokens=12)[0] for p in prompts]
    assert together == alone


def with_instruction(*questions):
    """Prompts that begin alike, as those of one task do."""
    instruction = "Answer in one word, as the harbour office writes it."
    return [
        [{"role": "system", "content": instruction}, {"role": "user", "content": question}] for question in questions
    ]


@pytest.fixture
def sharp(model):
    """The toy with large weights, so that each token's place and every other token count in its answers."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers" in name and "norm" not in name:
                weight.mul_(50)
    return model


def tokens_read(model, tokenizer, prompts, **settings):
    """The answers, and how many tokens went into the model for them."""
    widths = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].numel()))
    answers = generate(model, tokenizer, prompts, **settings)
    hook.remove()
    return answers, sum(widths)


# Of the shared beginning the longest row uses every slot, the next a part, and those that are much shorter none.
LONG = "How deep is the water at the northern quay?"
ALIKE = with_instruction("When?", LONG, LONG * 2, "Who is it?", LONG * 3)


def test_a_common_beginning_is_read_once_and_changes_no_answer(sharp, tokenizer):
    alone = [tokens_read(sharp, tokenizer, [prompt], max_new_tokens=12) for prompt in ALIKE]
    together, read = tokens_read(sharp, tokenizer, ALIKE, max_new_tokens=12)
    assert together == [answer for answers, _ in alone for answer in answers]
    sharp.generation_config.num_beams = 1  # any value leaves the cache to `generate`
    plain, read_plainly = tokens_read(sharp, tokenizer, ALIKE, max_new_tokens=12)
    beginning = chat.render(ALIKE[0][:1], tokenizer) + "<|im_start|>user\n"
    saved = (len(ALIKE) - 1) * len(tokenizer(beginning, add_special_tokens=False)["input_ids"])
    assert (together, read) == (plain, read_plainly - saved)


def test_a_common_beginning_is_shared_below_an_adapter(sharp, tokenizer, toy_config):
    adapted = models.add_lora(sharp, toy_config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    alone = [generate(adapted, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in ALIKE]
    assert generate(adapted, tokenizer, ALIKE, max_new_tokens=8) == alone


def test_a_sliding_window_reads_every_beginning(tokenizer):
    """Its cache drops tokens, so nothing of it is shared."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = MistralForCausalLM(
        MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, sliding_window=16, **shape)
    )
    alone = [generate(model, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in ALIKE]
    assert generate(model, tokenizer, ALIKE, max_new_tokens=8) == alone


@pytest.mark.slow
def test_a_batch_answers_like_plain_generate_one_by_one():
    """In float32 token for token; in bfloat16 sums in another order may flip two likeliest tokens that nearly tie."""
    config = TrainConfig(load_in_4bit=False, backend="transformers", dtype="fp32")
    model, tokenizer = models.load(models.BUNDLED, config)
    prompts = [data.prompt(row) for row in data.load_examples("invoices", split="test").select(range(12))]
    single = []
    for prompt in prompts:
        ids = tokenizer.apply_chat_template(prompt["messages"], add_generation_prompt=True, return_tensors="pt")
        said = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
        single.append(tokenizer.decode(said, skip_special_tokens=True))
    assert [answer.text for answer in generate(model, tokenizer, prompts, max_new_tokens=12)] == single


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


def test_drawn_answers_to_a_common_beginning_repeat_with_their_seed(model, tokenizer):
    draw = {"max_new_tokens": 8, "temperature": 1.0}
    assert generate(model, tokenizer, ALIKE, seed=1, **draw) == generate(model, tokenizer, ALIKE, seed=1, **draw)


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
