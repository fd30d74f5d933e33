"""Tokens and masks: derived from the template, whatever the template is."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toys import CHATML, GEMMA, LLAMA3, make_tokenizer

from ftkit import chat
from ftkit.chat import fold_tools, render, tokenize
from ftkit.data import order_problem, to_messages
from ftkit.data.turns import tools_text
from ftkit.errors import DataError

CHAT = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
]
REWRITES = (  # drops earlier answers once another turn follows, as some reasoning templates do
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}"
    "<|im_start|>assistant\n(dropped)<|im_end|>\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (  # the shape of Qwen2.5's: schemas in the system turn, calls as XML, results of one round in one user turn
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<tools>"
    "{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    '{% for c in m.tool_calls %}{{ \'\n<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{{ c.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}{% if messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
WRITTEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
TOOL_CHAT = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL], ensure_ascii=False)},
    {"role": "tool", "content": "clear"},
    {"role": "assistant", "content": "Sunny."},
]


def trained_text(row, tokenizer):
    return tokenizer.decode([label for label in row["labels"] if label != chat.IGNORED])


@pytest.mark.parametrize("source", [CHATML, LLAMA3, GEMMA])
def test_every_answer_with_its_stop_token_is_trained_and_nothing_else(source):
    tokenizer = make_tokenizer(source)
    row = chat.tokenize(CHAT, tokenizer)
    assert trained_text(row, tokenizer) == "First.<|im_end|>Second.<|im_end|>"


@pytest.mark.parametrize("source", [CHATML, LLAMA3, GEMMA])
def test_masked_and_trained_tokens_together_are_the_text(source):
    tokenizer = make_tokenizer(source)
    row = chat.tokenize(CHAT, tokenizer)
    assert tokenizer.decode(row["input_ids"]) == chat.render(CHAT, tokenizer)
    assert all(label in (chat.IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))


@pytest.mark.parametrize(
    ("source", "adds_bos", "expected"), [(LLAMA3, True, 1), (LLAMA3, False, 1), (CHATML, True, 1), (CHATML, False, 0)]
)
def test_exactly_one_start_token_where_the_model_has_one(source, adds_bos, expected):
    tokenizer = make_tokenizer(source, adds_bos=adds_bos)
    assert chat.tokenize(CHAT, tokenizer)["input_ids"].count(tokenizer.bos_token_id) == expected


def test_generation_prompt_is_a_prefix_of_the_trained_row(tokenizer):
    """What a model is asked is, token for token, what it was trained on."""
    prompt = chat.render(CHAT[:1], tokenizer, add_generation_prompt=True)
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert chat.tokenize(CHAT[:2], tokenizer)["input_ids"][: len(asked)] == asked


def test_truncation_cuts_ids_and_labels_alike(tokenizer):
    row = chat.tokenize(CHAT, tokenizer, max_length=20)
    assert (len(row["input_ids"]), len(row["labels"])) == (20, 20)


def test_template_that_refuses_a_system_turn_is_explained():
    with pytest.raises(DataError, match=r"refuses system → user.*System role not supported.*Fold"):
        chat.render([{"role": "system", "content": "x"}, CHAT[0]], make_tokenizer(GEMMA))


def test_template_that_rewrites_earlier_turns_is_refused():
    with pytest.raises(DataError, match="rewrites turn 2"):
        chat.tokenize(CHAT, make_tokenizer(REWRITES))


def test_template_that_rewrites_still_works_on_single_answers():
    tokenizer = make_tokenizer(REWRITES)
    assert trained_text(chat.tokenize(CHAT[:2], tokenizer), tokenizer) == "First.<|im_end|>"


def test_base_model_without_template_is_refused():
    with pytest.raises(DataError, match="no chat template"):
        chat.render(CHAT, make_tokenizer(None))


def test_show_example_hides_what_is_masked(tokenizer):
    shown = chat.show_example(CHAT[:2], tokenizer)
    assert "First." in str(shown)
    assert "One?" not in str(shown)
    assert 0 < shown.share < 1
    visible = re.sub(r"<[^>]*>", "", shown._repr_html_())
    assert "First." in visible
    assert "One?" not in visible


def test_show_example_escapes_html(tokenizer):
    page = chat.show_example([CHAT[0], {"role": "assistant", "content": "<b>"}], tokenizer)._repr_html_()
    assert "<b>" not in page


text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=3))
@example([("Which letter?", "d")])  # it stands in <|im_end|> too
def test_mask_is_right_for_any_text(pairs):
    """Emoji, right-to-left, newlines: the trained tokens are the answers, each with its stop token."""
    tokenizer = make_tokenizer()
    chat = [{"role": role, "content": c} for pair in pairs for role, c in zip(("user", "assistant"), pair, strict=True)]
    row = tokenize(chat, tokenizer)
    assert trained_text(row, tokenizer) == "".join(f"{answer}<|im_end|>" for _, answer in pairs)


def test_stop_ids_join_tokenizer_and_generation_config(tokenizer, model):
    model.generation_config.eos_token_id = [0, 2]
    assert chat.stop_ids(tokenizer, model) == [2, 0]


def test_calls_results_and_schemas_go_through_a_template_that_knows_them():
    """Arguments reach the template as objects: JSON text would come out with escaped quotes."""
    text = chat.render({"messages": TOOL_CHAT, "tools": json.dumps(TOOLS)}, make_tokenizer(QWEN))
    assert WRITTEN in text
    assert "<tool_response>\nclear\n</tool_response>" in text
    assert text.index('"parameters"') < text.index("Weather?")


@pytest.mark.parametrize("chat", [TOOL_CHAT, TOOL_CHAT[:2]])
def test_calls_are_trained_and_results_are_not(chat):
    tokenizer = make_tokenizer(QWEN)
    row = tokenize({"messages": chat, "tools": TOOLS}, tokenizer)
    assert trained_text(row, tokenizer) == f"{WRITTEN}<|im_end|>" + ("Sunny.<|im_end|>" if chat[2:] else "")
    assert tokenizer.decode(row["input_ids"]) == render({"messages": chat, "tools": TOOLS}, tokenizer)


def test_keys_that_arrow_filled_with_none_change_nothing():
    """In a Dataset one struct type holds all turns, so plain turns come back with `tool_calls` None."""
    from datasets import Dataset

    examples = Dataset.from_list(
        [{"messages": TOOL_CHAT, "tools": json.dumps(TOOLS)}, {"messages": CHAT, "tools": None}]
    )
    assert examples[1]["messages"][0]["tool_calls"] is None
    tokenizer = make_tokenizer(QWEN)
    assert chat.tokenize(examples[0], tokenizer) == chat.tokenize({"messages": TOOL_CHAT, "tools": TOOLS}, tokenizer)
    assert chat.tokenize(examples[1], tokenizer) == chat.tokenize(CHAT, tokenizer)


NO_SCHEMAS = QWEN.replace("{% if tools %}", "{% if false %}")
NO_RESULTS = QWEN.replace("'\n<tool_response>\n' + m.content +", "'\n<tool_response>' +")
FIRST_CALL = QWEN.replace("for c in m.tool_calls", "for c in (m.tool_calls or [])[:1]")


@pytest.mark.parametrize(
    ("source", "chat", "tools", "lost"),
    [
        (CHATML, TOOL_CHAT, None, "the call of weather"),
        (CHATML, [{"role": "system", "content": "Call weather."}, *TOOL_CHAT], None, "the call of weather"),
        (CHATML, CHAT, TOOLS, "the schema of weather"),
        (CHATML, [{"role": "system", "content": "You know the weather."}, *CHAT], TOOLS, "the schema of weather"),
        (NO_SCHEMAS, TOOL_CHAT, TOOLS, "the schema of weather"),
        (NO_RESULTS, TOOL_CHAT, TOOLS, "a tool's result"),
        (
            FIRST_CALL,
            [TOOL_CHAT[0], {**TOOL_CHAT[1], "tool_calls": [CALL, {"name": "zoo", "arguments": {}}]}],
            None,
            "the call of zoo",
        ),
    ],
)
def test_a_template_that_leaves_out_tools_is_refused_with_the_way_out(source, chat, tools, lost):
    """Also where the name of the function stands elsewhere in the text."""
    with pytest.raises(DataError, match=rf"leaves out {lost}.*does not know tool calls.*fold_tools"):
        tokenize({"messages": chat, "tools": tools}, make_tokenizer(source))


def test_schemas_that_the_system_turn_spells_out_may_be_left_out():
    """Hermes' own sets hold their schemas twice: in the text and in a column."""
    chat = [{"role": "system", "content": f"<tools>{json.dumps(TOOLS)}</tools>"}, *CHAT]
    assert render({"messages": chat, "tools": TOOLS}, make_tokenizer()) == render(chat, make_tokenizer())


def test_a_template_that_refuses_calls_is_explained():
    strict = CHATML.replace(
        "<|im_start|>", "{% if m.tool_calls %}{{ raise_exception('No tools') }}{% endif %}<|im_start|>", 1
    )
    with pytest.raises(DataError, match=r"refuses user → assistant → tool.*No tools.*fold_tools"):
        chat.render(TOOL_CHAT, make_tokenizer(strict))


@pytest.mark.parametrize("source", [CHATML, LLAMA3, QWEN])
def test_folded_tools_train_the_same_answers_under_any_template(source):
    tokenizer = make_tokenizer(source)
    row = chat.tokenize(chat.fold_tools(TOOL_CHAT, TOOLS), tokenizer)
    assert trained_text(row, tokenizer) == f"{WRITTEN}<|im_end|>Sunny.<|im_end|>"
    assert '"parameters"' in tokenizer.decode(row["input_ids"])


def test_folding_keeps_what_was_said_before_a_call_and_the_system_turn():
    chat = [
        {"role": "system", "content": "Be brief."},
        TOOL_CHAT[0],
        {**TOOL_CHAT[1], "content": "I look."},
        *TOOL_CHAT[2:],
    ]
    folded = fold_tools(chat, json.dumps(TOOLS))
    assert [m["role"] for m in folded] == ["system", "user", "assistant", "user", "assistant"]
    assert folded[0]["content"].startswith("Be brief.\n\n# Tools")
    assert folded[2]["content"] == f"I look.\n{WRITTEN}"
    assert to_messages({"messages": folded}) == folded


def test_folded_results_stand_in_the_order_of_the_calls_with_their_names():
    calls = [{"id": name, "name": name, "arguments": {}} for name in ("first", "second")]
    results = [{"role": "tool", "content": c["id"], "tool_call_id": c["id"], "name": c["id"]} for c in reversed(calls)]
    folded = chat.fold_tools(
        [TOOL_CHAT[0], {"role": "assistant", "content": None, "tool_calls": calls}, *results, TOOL_CHAT[3]]
    )
    assert [
        json.loads(part)["name"]
        for part in re.findall(r"<tool_response>\n(.*)\n</tool_response>", folded[2]["content"])
    ] == ["first", "second"]


def test_folding_in_a_dataset_is_one_line(tokenizer):
    """The recipe of the docstring, on rows with and without tools."""
    from datasets import Dataset

    examples = Dataset.from_list(
        [{"messages": TOOL_CHAT, "tools": json.dumps(TOOLS)}, {"messages": CHAT, "tools": None}]
    )
    folded = examples.map(lambda row: {"messages": chat.fold_tools(row["messages"], row["tools"]), "tools": None})
    assert trained_text(chat.tokenize(folded[0], tokenizer), tokenizer) == f"{WRITTEN}<|im_end|>Sunny.<|im_end|>"
    assert chat.tokenize(folded[1], tokenizer) == chat.tokenize(CHAT, tokenizer)


@pytest.mark.parametrize("value", ["no JSON", "[1]", [{"description": "no name"}], 7, [["weather"]]])
def test_tools_that_are_no_schemas_are_refused(value):
    with pytest.raises(DataError, match="tools"):
        chat.render({"messages": CHAT, "tools": value}, make_tokenizer(QWEN))


@pytest.mark.parametrize(
    "value", [TOOLS, json.dumps(TOOLS), [TOOLS[0]["function"]], [json.dumps(TOOLS[0])], tuple(TOOLS)]
)
def test_tools_of_every_shape_become_the_same_text(value):
    assert tools_text(value) == json.dumps(TOOLS)


@pytest.mark.parametrize("value", [None, "", [], "[]", "null"])
def test_no_tools_are_no_text(value):
    assert tools_text(value) is None


arguments = st.dictionaries(text, st.one_of(text, st.integers(), st.booleans(), st.none()), max_size=2)
calls = st.lists(
    st.fixed_dictionaries({"name": st.text("abc_", min_size=1), "arguments": arguments}), min_size=1, max_size=2
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(text, calls, text, text), min_size=1, max_size=2))
def test_folded_calls_can_be_read_back_and_masks_stay_right(rounds):
    """Any text in arguments and results: folding gives a valid chat whose trained part is calls and answers."""
    tokenizer = make_tokenizer()
    chat = []
    for question, called, result, answer in rounds:
        chat += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "", "tool_calls": called},
            *({"role": "tool", "content": result} for _ in called),
            {"role": "assistant", "content": answer},
        ]
    folded = fold_tools(chat, TOOLS)
    assert order_problem(folded) is None
    assert fold_tools(folded, TOOLS) == folded
    answers = [m["content"] for m in folded if m["role"] == "assistant"]
    found = [json.loads(part) for part in re.findall(r"<tool_call>\n(.*)\n</tool_call>", "\n".join(answers[::2]))]
    assert found == [call for _, called, _, _ in rounds for call in called]
    row = tokenize(folded, tokenizer)
    assert trained_text(row, tokenizer) == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_a_chat_that_begins_with_its_answer_is_refused_in_words(tokenizer):
    """There is nothing to render before the answer; transformers alone would raise a bare ValueError."""
    with pytest.raises(DataError, match="begins with an answer"):
        tokenize([{"role": "assistant", "content": "Hello."}], tokenizer)


WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *CHAT[:2]]


def test_a_system_turn_goes_to_the_head_of_the_first_question():
    folded = [{"role": "user", "content": f"Be brief.\n\n{CHAT[0]['content']}"}, CHAT[1]]
    assert chat.fold_system(WITH_SYSTEM) == folded
    assert chat.fold_system(folded) == folded, "folding twice changes nothing"


def test_a_system_turn_before_an_answer_becomes_a_question():
    assert chat.fold_system([WITH_SYSTEM[0], CHAT[1]]) == [{"role": "user", "content": "Be brief."}, CHAT[1]]
