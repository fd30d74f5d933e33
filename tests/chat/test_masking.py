"""Which tokens are trained, under the templates of many families: those that the installed TRL carries."""

import importlib.util
import itertools
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import CHATML, make_tokenizer

from ftkit import chat
from ftkit.chat import IGNORED, tokenize
from ftkit.errors import DataError

TEMPLATES = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
STOPS = {
    "phi3": "<|end|>",
    "gptoss": "<|return|>",
    "glm4moe": "<|user|>",
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "deepseekv3": "<｜end▁of▁sentence｜>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "gemma4": "<turn|>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_OF_TURN_TOKEN|>",
    "muse_glimmer": "<|eot|>",
}
MISTRAL = (  # schemas stand before the last question alone, and a space after each [/INST]
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and loop.index0 == (messages | selectattr('role', 'equalto', 'user') | list | length - 1) * 2 %}"
    "[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def family(name, source=None):
    """The toy tokenizer with the template of a family, whose markers are single tokens."""
    source = source or (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    stop = STOPS.get(name, "<|im_end|>")
    marks = set(re.findall(r"<[|｜][^|｜<>\n]{1,40}[|｜]>|<\|\w+>|<\w+\|>|</?think>", source)) | {stop}
    tokenizer = make_tokenizer(source)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(marks)})
    tokenizer.eos_token = stop
    return tokenizer


def stretches(ids, on, tokenizer):
    """The texts of neighbouring tokens that are on."""
    groups = itertools.groupby(zip(ids, on, strict=True), key=lambda pair: bool(pair[1]))
    return [tokenizer.decode([token for token, _ in group]) for key, group in groups if key]


def trained(row, tokenizer, **settings):
    tokens = tokenize(row, tokenizer, **settings)
    return stretches(tokens["input_ids"], [label != IGNORED for label in tokens["labels"]], tokenizer)


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def calls(port):
    called = {"type": "function", "function": {"name": "tide", "arguments": {"port": port}}}
    return json.dumps([called | {"id": "abcdefgh1"}])


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "tide",
            "description": "Times of high water",
            "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
        },
    }
]
ONE = [user("Which pier?"), assistant("Pier six.")]
THREE = [*ONE, user("Since when?"), assistant("Since May."), user("Pier six."), assistant("Pier six.")]
RESULT = {"role": "tool", "content": "06:10", "name": "tide", "tool_call_id": "abcdefgh1"}
CALLED = [
    user("High water at Brest?"),
    assistant("", tool_calls=calls("Brest")),
    RESULT,
    assistant("At ten past six."),
    user("And at Calais?"),
    assistant("", tool_calls=calls("Calais")),
    RESULT,
    assistant("At the same time."),
]
THOUGHT = [user("3+4?"), assistant("Seven.", reasoning_content="Three and four.")]
FAMILIES = [
    "qwen2_5",
    "qwen3",
    "qwen3_instruct_2507",
    "qwen3_5_think",
    "qwen3_5_nothink",
    "qwen3_6",
    "qwen3_8",
    "qwen3_vl",
    "glm4moe",
    "gptoss",
    "phi3",
    "llama3",
    "llama3_1",
    "gemma",
    "gemma3",
    "gemma4",
    "cohere",
    "cohere2",
    "deepseekv3",
    "deepseek_r1_distill",
    "lfm2",
    "lfm2_2_5",
    "muse_glimmer",
    "nemotron_3_nano",
    "nemotron_3_super",
    "nemotron_3_ultra",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_all_three_answers_are_trained_each_with_an_end_and_nothing_of_the_questions(name):
    tokenizer = family(name)
    got = trained(THREE, tokenizer)
    assert len(got) == 3
    for said, answer in zip(got, ("Pier six.", "Since May.", "Pier six."), strict=True):
        assert answer in said
        assert re.search(r"[>\]]\s*$", said), said
    assert "Since when?" not in "".join(got)
    assert "<|im_start|>" not in "".join(got)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_5_think", "qwen3_8", "glm4moe", "gptoss", "llama3_1"])
def test_calls_and_answers_of_a_tool_chat_are_trained_and_results_are_not(name):
    got = trained({"messages": CALLED, "tools": TOOLS}, family(name))
    assert len(got) == 4
    assert ["Brest" in said for said in got] == [True, False, False, False]
    assert ["Calais" in said for said in got] == [False, False, True, False]
    assert "At ten past six." in got[1]
    assert "06:10" not in "".join(got)


def test_a_result_inside_of_a_turn_is_refused_and_the_advice_works():
    """Gemma 4 writes what a turn says beside its call behind the call's result."""
    spoken = [turn | {"content": "Let me look."} if "tool_calls" in turn else turn for turn in CALLED]
    tokenizer = family("gemma4")
    with pytest.raises(DataError, match=r"another turn inside of turn 2, .*Take out"):
        tokenize({"messages": spoken, "tools": TOOLS}, tokenizer)
    assert "06:10" not in "".join(trained({"messages": CALLED, "tools": TOOLS}, tokenizer))


def test_a_template_that_joins_arguments_to_text_gets_json_text():
    tokenizer = family("deepseekv3")
    first, second = trained(CALLED[:4], tokenizer)
    assert '"port": "Brest"' in first
    assert second == f"At ten past six.{tokenizer.eos_token}"


def test_a_template_that_would_spell_arguments_as_python_does_gets_json_text():
    joined = CHATML.replace(
        "{{ m['content'] }}",
        "{{ m['content'] }}{% for c in m.tool_calls %}{{ c.function.name ~ c.function.arguments }}{% endfor %}",
    ).replace("m['role'] }}\n", "m['role'] }}\n{% if m.role == 'tool' %}.{% endif %}")
    called = json.dumps([{"type": "function", "function": {"name": "tide", "arguments": {"now": True, "zone": None}}}])
    assert '{"now": true, "zone": null}' in chat.render(
        [user("?"), assistant("", tool_calls=called)], make_tokenizer(joined)
    )


def test_the_marker_of_the_next_role_ends_an_answer_where_it_is_the_stop_token():
    """GLM ends an answer with it; behind the last one, where nobody follows, it is added."""
    got = trained({"messages": CALLED[:4], "tools": TOOLS}, family("glm4moe"))
    assert got[0].endswith("</tool_call><|observation|>")
    assert got[1].endswith("At ten past six.<|user|>")


def test_an_inner_answer_ends_with_the_marker_that_the_template_has_for_it():
    ends = [said.rpartition("<")[2] for said in trained(THREE, family("gptoss"))]
    assert ends == ["|end|>", "|end|>", "|return|>"]


def test_an_end_token_that_stands_behind_all_is_not_needed_twice():
    """Phi-3 writes one more behind the chat: an answer has ended by then."""
    assert trained(THREE, family("phi3")) == ["Pier six.<|end|>", "Since May.<|end|>", "Pier six.<|end|>"]


def test_a_template_that_moves_schemas_to_the_last_question_is_followed():
    tokenizer = make_tokenizer(MISTRAL)
    assert trained({"messages": THREE, "tools": TOOLS}, tokenizer) == [
        " Pier six.<|im_end|>",
        " Since May.<|im_end|>",
        " Pier six.<|im_end|>",
    ]


def test_a_header_that_no_question_ends_with_is_not_trained():
    """A template that ignores add_generation_prompt, and one that asks in another way than it trains."""
    silent = CHATML.replace("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "")
    assert silent != CHATML
    assert trained(THREE, make_tokenizer(silent))[0] == "Pier six.<|im_end|>"
    assert trained(ONE, family("nemotron_3_nano")) == ["<think></think>Pier six.<|im_end|>"]


@pytest.mark.parametrize("said", ["d", "im", "end", "<|im_end|>", "_", "n"])
def test_an_answer_that_stands_in_the_stop_token_ends_with_it(said):
    tokenizer = family("chatml", CHATML)
    assert trained([{"role": "user", "content": "Q"}, {"role": "assistant", "content": said}], tokenizer) == [
        f"{said}<|im_end|>"
    ]


def test_turns_that_may_not_be_trained_and_turns_that_say_nothing_are_masked(tokenizer):
    rejected = [*ONE[:1], ONE[1] | {"train": False}, *THREE[2:4]]
    assert trained(rejected, tokenizer) == ["Since May.<|im_end|>"]
    assert trained([*ONE[:1], assistant(" "), *THREE[2:4]], tokenizer) == ["Since May.<|im_end|>"]
    assert "train" not in str(trained(rejected, family("qwen3")))


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_5_think", "qwen3_8", "glm4moe", "gptoss", "gemma4", "nemotron_3_nano"]
)
def test_the_reasoning_of_the_last_answer_is_trained_once_or_masked_as_asked(name):
    """Given apart or inside of the text; gemma4 keeps it for calls alone."""
    tokenizer = family(name)
    inline = [THOUGHT[0], assistant("<think>\nThree and four.\n</think>\n\nSeven.")]
    for messages in (THOUGHT, inline):
        said = "".join(trained(messages, tokenizer))
        assert said.count("Three and four.") == (name != "gemma4")
        assert said.count("<think>") <= 1
        alone = "".join(trained(messages, tokenizer, train_on="answers"))
        assert "Three and four." not in alone
        assert "think>" not in alone
        assert "Seven." in alone


def test_reasoning_before_a_call_is_masked_and_the_call_is_not():
    row = {"messages": [user("?"), assistant("", reasoning_content="Ask.", tool_calls=calls("Brest"))], "tools": TOOLS}
    (alone,) = trained(row, family("qwen3"), train_on="answers")
    assert alone.startswith('<tool_call>\n{"name": "tide"')


def test_inline_reasoning_is_masked_under_a_template_that_knows_none(tokenizer):
    messages = [user("3+4?"), assistant("<think>\nThree.\n</think>\n\nSeven.")]
    assert trained(messages, tokenizer) == ["<think>\nThree.\n</think>\n\nSeven.<|im_end|>"]
    assert trained(messages, tokenizer, train_on="answers") == ["Seven.<|im_end|>"]


def test_folded_reasoning_is_trained_under_a_template_that_knows_none(tokenizer):
    folded = chat.fold_reasoning(THOUGHT)
    assert trained(folded, tokenizer) == ["<think>\nThree and four.\n</think>\n\nSeven.<|im_end|>"]
    assert chat.fold_reasoning(folded) == folded
    assert chat.fold_reasoning(ONE) == ONE


@pytest.mark.parametrize("adds_bos", [False, True])
def test_all_tokens_of_a_document_are_trained_between_start_and_stop(adds_bos):
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    whole = ("<bos>" if adds_bos else "") + "The mill stands by the river.<|im_end|>"
    row = {"messages": [], "text": "The mill stands by the river."}
    assert trained(row, tokenizer) == [whole]
    assert trained({"messages": [], "text": whole}, tokenizer) == [whole]
    assert chat.show_example(row, tokenizer).share == 1


# What TRL's training templates train beyond ours, where both write the same text: the newline behind a stop token, and
# what a model is asked with (its own header, or the think block that the question opens).
BEYOND = {
    "gptoss": r"<\|start\|>assistant",
    "muse_glimmer": r"<\|start\|>assistant",
    "deepseekv3": r"<｜Assistant｜>|<｜tool▁outputs▁end｜>",
    "deepseek_r1_distill": r"<｜Assistant｜>",
    "phi3": r"\n<\|end\|>",
    **dict.fromkeys(("qwen3_5_think", "qwen3_6", "qwen3_8"), r"<think>\n"),
    **dict.fromkeys(("nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"), r"<think>\n"),
    "qwen3_5_nothink": r"<think>\n(?:\n</think>\n\n)?",
}
TRAINING = [name for name in FAMILIES if (TEMPLATES / f"{name}_training.jinja").exists()]


@pytest.mark.parametrize("name", TRAINING)
def test_masks_are_those_of_trl_but_for_what_no_model_has_to_write(name):
    tokenizer, other = family(name), family(name)
    other.chat_template = (TEMPLATES / f"{name}_training.jinja").read_text(encoding="utf-8")
    compared = 0
    system = {"role": "system", "content": "Be brief."}
    for messages in (ONE, THREE, [system, *THREE], THOUGHT, THOUGHT * 2):
        try:
            row = tokenize(messages, tokenizer)
            given = [turn | {"thinking": turn.get("reasoning_content", "")} for turn in messages]
            read = other.apply_chat_template(
                given if name == "gptoss" else messages, return_dict=True, return_assistant_tokens_mask=True
            )
        except DataError:  # Gemma knows no system turn
            continue
        ids = list(read["input_ids"])
        if row["input_ids"][: len(ids)] != ids[: len(row["input_ids"])]:
            continue  # Qwen3's training template keeps think blocks that its own drops
        compared += 1
        ours = [label != IGNORED for label in row["labels"]][: len(ids)]
        theirs = list(map(bool, read["assistant_masks"]))[: len(ours)]
        more = [both == (False, True) for both in zip(ours, theirs, strict=True)]
        assert (True, False) not in set(zip(ours, theirs, strict=True))
        for beyond in stretches(ids, more, tokenizer):
            assert re.fullmatch(rf"\s*(?:{BEYOND.get(name, '')})?\s*", beyond), beyond
    assert compared


words = st.text(alphabet="ab <>[]|\n.é", min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["qwen3", "gptoss", "glm4moe", "phi3"]), st.lists(st.tuples(words, words), min_size=2, max_size=3)
)
def test_whatever_is_said_each_answer_is_one_trained_stretch(name, pairs):
    """Brackets and tags in texts are no markers."""
    tokenizer = TOKENIZERS.setdefault(name, family(name))
    messages = [turn for asked, said in pairs for turn in (user(asked), assistant(said))]
    got = trained(messages, tokenizer)
    assert len(got) == len(pairs)
    for said, (_, answer) in zip(got, pairs, strict=True):
        assert answer.strip() in said


TOKENIZERS = {}
LOOPS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("{{ 1 // 0 }}", "refuses user → assistant: integer division"),
        ("{{ messages[7].content }}", "refuses"),
        ("{{ 2 ** 70000 % 0 }}", "refuses"),
        ("{{ 'x' * 3000000 }}", "makes 3,000,0"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "refuses.*recursion"),
        (LOOPS, "did not end"),
        ("{{ messages.x.y }}", "refuses"),
        ("{{ messages | sum }}", "refuses"),
        ("{{ 'x' | int(none) + 'y' }}", "refuses"),
    ],
)
def test_a_broken_template_is_refused_in_words(broken, reason, monkeypatch):
    monkeypatch.setattr(chat.templates, "_SECONDS", 0.2)
    with pytest.raises(DataError, match=reason):
        tokenize(ONE, make_tokenizer(CHATML + broken))
