"""What the loss sees of the rows, and special tokens that tokenizer and model see differently."""

import json

import pytest
from toys import CHATML, CUSTOMERS, LLAMA3, finding, make_tokenizer, order_chat

from ftkit.chat import IGNORED, fold_reasoning, tokenize


def test_no_trained_tokens(look):
    errors = look(settings={"max_length": 16}).errors
    assert [(e.id, e.field) for e in errors] == [("no-trained-tokens", "max_length")] * 2
    assert "beyond max_length=16" in errors[0].evidence


def test_labels_that_are_all_masked_are_told_from_answers_that_are_cut(look, good, tokenizer):
    masked = [row | {"labels": [IGNORED] * len(row["labels"])} for row in tokens(good.train, tokenizer)]
    assert "labels are all masked" in finding(look(tokenized=masked), "no-trained-tokens").evidence


def test_rows_without_trained_tokens(look):
    long = [{"role": "user", "content": "x" * 600}, {"role": "assistant", "content": "y"}]
    found = finding(look(chats=[order_chat(0), long, *map(order_chat, range(1, 20))]), "rows-without-trained-tokens")
    assert (found.severity, found.rows, found.field) == ("warning", (2,), "max_length")


def test_low_trained_share(look):
    chats = [
        [{"role": "user", "content": f"{CUSTOMERS[i % 10]} {i} " * 30}, {"role": "assistant", "content": f"{i}"}]
        for i in range(40)
    ]
    assert finding(look(chats=chats), "low-trained-share").severity == "note"


def tokens(examples, tokenizer):
    return [tokenize(row, tokenizer) for row in examples]


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
    found = finding(look(chats=[*map(order_chat, range(20)), long]), "answers-cut")
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
    found = finding(
        look(chats=[*map(order_chat, range(20)), long], settings={"max_length": 1024}), "longer-than-context"
    )
    assert found.rows == (21,)
    assert "512 tokens" in found.title


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


def test_answer_untrained_looks_at_every_answer(look):
    """Llama's own template leaves out what an answer says beside its call."""
    mute = CHATML.replace("{{ m['content'] }}", "{{ m['content'] if 'aside' not in m['content'] else '...' }}")
    aside = [*order_chat(0)[:1], {"role": "assistant", "content": "An aside."}, *order_chat(1)]
    found = finding(look(chats=[order_chat(2), aside], tokenizer=make_tokenizer(mute)), "answer-untrained")
    assert found.rows == (2,)


THOUGHT = [order_chat(0)[0], order_chat(0)[1] | {"reasoning_content": "Look it up first."}]


def test_reasoning_untrained(look):
    """The fix that is named was tried: with it the finding is gone; and nobody misses what should not be trained."""
    chats = [order_chat(1), THOUGHT, *map(order_chat, range(2, 20))]
    found = finding(look(chats=chats), "reasoning-untrained")
    assert (found.severity, found.rows) == ("warning", (2,))
    ids = {f.id for f in look(chats=list(map(fold_reasoning, chats))).findings}
    assert "reasoning-untrained" not in ids | {
        f.id for f in look(chats=chats, settings={"train_on": "answers"}).findings
    }


def test_call_untrained(look):
    """A template that writes the name of a call and not all of its arguments."""
    names = CHATML.replace(
        "{{ m['content'] }}", "{{ m['content'] }}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}"
    )
    call = json.dumps([{"type": "function", "function": {"name": "tide", "arguments": {"ports": ["Brest"]}}}])
    called = [order_chat(0)[0], {"role": "assistant", "content": "", "tool_calls": call}]
    rows = [called, *([turn | {"tool_calls": None} for turn in order_chat(i)] for i in range(1, 20))]
    assert finding(look(chats=rows, tokenizer=make_tokenizer(names)), "call-untrained").rows == (1,)
    whole = names.replace("c.function.name }}", "c.function.name }}{{ c.function.arguments | tojson }}")
    assert look(chats=rows, tokenizer=make_tokenizer(whole)).errors == ()


def test_an_inner_answer_may_end_with_another_marker_of_the_template(look):
    """As gpt-oss does; only the last one must end in a stop token."""
    inner = CHATML.replace(
        "<|im_end|>\n{% endfor %}", "{{ '<|im_end|>' if loop.last else '<|end_header_id|>' }}\n{% endfor %}"
    )
    assert inner != CHATML
    report = look(chats=[order_chat(i) + order_chat(i + 20) for i in range(20)], tokenizer=make_tokenizer(inner))
    assert "stop-token-untrained" not in {f.id for f in report.findings}
