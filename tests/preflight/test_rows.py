"""Rows that no training can read, each on a real template that refuses them; rows that stand twice."""

import dataclasses
import json

import pytest
from toys import CHATML, GEMMA, LLAMA3, dataset_of, finding, make_tokenizer, order_chat

from ftkit import data, preflight
from ftkit.chat import fold_system, render, tokenize
from ftkit.data import leakage, merge_turns
from ftkit.errors import DataError


def test_no_rows(look):
    assert finding(look(chats=[]), "no-rows").severity == "error"


def test_val_empty(look, good):
    report = look(examples=data.Splits(good.train, good.val.select([]), good.test))
    assert finding(report, "val-empty").severity == "error"


def test_no_chat_template(look):
    """Row checks are skipped then, and say why."""
    report = look(tokenizer=make_tokenizer(None))
    assert finding(report, "no-chat-template").severity == "error"
    assert report.skipped["answers-cut"] == "needs a chat template"


MALFORMED = [
    ([{"role": "user", "content": "Who?"}], "no answer"),
    ([{"role": "user", "content": "Who?"}, {"role": "assistant", "content": " "}], "empty answer"),
    (
        [
            {"role": "assistant", "content": "Me."},
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "I."},
        ],
        "starts with assistant",
    ),
]


@pytest.mark.parametrize(("turns_", "reason"), MALFORMED)
def test_turns_malformed(look, turns_, reason):
    found = finding(look(chats=[order_chat(0), turns_, *map(order_chat, range(1, 20))]), "turns-malformed")
    assert found.rows == (2,)
    assert reason in found.evidence


def test_template_refuses_system_and_folding_mends_it(look):
    """The fix that is named was tried: with it the finding is gone."""
    chats = [order_chat(i, system="Be brief." if i in (1, 4) else None) for i in range(20)]
    found = finding(look(chats=chats, tokenizer=make_tokenizer(GEMMA)), "template-refuses-system")
    assert (found.severity, found.rows) == ("error", (2, 5))
    assert "System role not supported" in found.evidence
    assert "chat.fold_system" in found.fix
    folded = look(chats=[fold_system(c) for c in chats], tokenizer=make_tokenizer(GEMMA))
    assert folded.errors == ()


STRICT = CHATML.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}",
)
TWICE = [
    {"role": "user", "content": "First."},
    {"role": "user", "content": "Second."},
    {"role": "assistant", "content": "Both."},
]


def test_template_refuses_turns_and_merging_mends_it(look):
    chats = [order_chat(0), TWICE, *map(order_chat, range(1, 20))]
    found = finding(look(chats=chats, tokenizer=make_tokenizer(STRICT)), "template-refuses-turns")
    assert (found.severity, found.rows) == ("error", (2,))
    assert "data.merge_turns" in found.fix
    assert look(chats=[merge_turns(c) for c in chats], tokenizer=make_tokenizer(STRICT)).errors == ()


def test_what_the_template_says_of_turns_that_it_refuses_is_quoted(look):
    short = CHATML + "{% if messages | length > 2 %}{{ raise_exception('One question at a time') }}{% endif %}"
    chats = [*map(order_chat, range(20)), order_chat(20) + order_chat(21)]
    found = finding(look(chats=chats, tokenizer=make_tokenizer(short)), "template-refuses-turns")
    assert "Keep the first question" in found.fix
    assert "user → assistant → user → assistant): One question at a time" in found.evidence


def test_a_system_turn_and_neighbours_of_one_role_are_mended_together(look):
    chats = [[{"role": "system", "content": "Be brief."}, *TWICE], *map(order_chat, range(20))]
    found = finding(look(chats=chats, tokenizer=make_tokenizer(STRICT)), "template-refuses-system")
    assert "merge_turns(chat.fold_system" in found.fix


def test_template_loses_tools(look):
    call = json.dumps([{"type": "function", "function": {"name": "weather", "arguments": {}}}])
    tooled = [
        {"role": "user", "content": "Weather?", "tool_calls": None},
        {"role": "assistant", "content": "", "tool_calls": call},
    ]
    found = finding(look(chats=[tooled, *map(order_chat, range(20))]), "template-loses-tools")
    assert (found.severity, found.rows) == ("error", (1,))
    assert "fold_tools" in found.fix


REWRITES = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}"
    "<|im_start|>assistant\n(dropped)<|im_end|>\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_template_rewrites_turns(look):
    chats = [*map(order_chat, range(20)), order_chat(20) + order_chat(21)]
    found = finding(look(chats=chats, tokenizer=make_tokenizer(REWRITES)), "template-rewrites-turns")
    assert (found.severity, found.rows) == ("error", (21,))


def test_template_drops_turns(look):
    """A template that skips the system role without a word: the model never reads it."""
    deaf = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    chats = [order_chat(i, system="Answer in verse." if i == 3 else None) for i in range(20)]
    found = finding(look(chats=chats, tokenizer=make_tokenizer(deaf)), "template-drops-turns")
    assert (found.severity, found.rows) == ("warning", (4,))


@pytest.mark.parametrize(("formatted", "severity"), [(20, "error"), (1, "warning")])
@pytest.mark.parametrize("source", [CHATML, LLAMA3, GEMMA])
def test_double_template(look, formatted, severity, source):
    """The markers are those that the template itself writes, whatever they are."""
    tokenizer = make_tokenizer(source)
    ready = [
        {"role": "user", "content": render(order_chat(0)[:1], tokenizer, add_generation_prompt=True)},
        order_chat(0)[1],
    ]
    found = finding(
        look(chats=[*[ready] * formatted, *map(order_chat, range(1, 19))], tokenizer=tokenizer), "double-template"
    )
    assert (found.severity, len(found.rows)) == (severity, formatted)


def test_a_template_that_no_row_survives_still_gives_a_report(look):
    """What train would raise row by row is one finding."""
    always = "{{ raise_exception('No') }}"
    with pytest.raises(DataError):
        tokenize(order_chat(0), make_tokenizer(always))
    assert not look(tokenizer=make_tokenizer(always)).ok


def numbers(part):
    return tuple(row.number for row in part.readable)


def test_tokenised_rows_are_used_as_they_are(look, good, tokenizer, config, monkeypatch):
    """A training has read its rows already: the check finds the same in them and tokenises nothing."""
    rows = preflight.tokenize_splits(good, tokenizer, config)
    assert (numbers(rows.train), sorted(numbers(rows.val))) == (tuple(range(1, 33)), [1, 2, 3, 4])
    found = look().findings
    monkeypatch.setattr("ftkit.chat.tokenize", lambda *_: pytest.fail("rows were tokenised again"))
    assert look(examples=rows).findings == found


def test_validation_rows_keep_their_numbers(good, tokenizer, config):
    """As many as the settings ask for, drawn as `Dataset.shuffle` draws them."""
    rows = preflight.tokenize_splits(good, tokenizer, config.replace(max_eval_examples=2))
    drawn = good.val.shuffle(seed=config.seed).select(range(2))
    assert [row.example["messages"] for row in rows.val.readable] == drawn["messages"]
    assert [good.val[number - 1]["messages"] for number in numbers(rows.val)] == drawn["messages"]


def test_leak_exact(look, good):
    leaked = data.Splits(good.train, good.val, dataset_of([*map(order_chat, (3, 38))]))
    found = finding(look(examples=leaked), "leak-exact")
    assert (found.severity, found.rows) == ("error", (4,))
    assert "test row 1 ~ train row 4" in found.evidence
    mended = leakage(leaked.train, leaked.test).without_leaks(leaked.test)
    assert look(examples=data.Splits(good.train, good.val, mended)).ok


LONG = "The quick brown fox jumps over the lazy dog while the cat sleeps by the warm fire and the clock strikes "


def test_leak_near(look, good):
    near = [
        [{"role": "user", "content": f"{LONG}{hour}"}, {"role": "assistant", "content": LONG}]
        for hour in ("five", "six")
    ]
    parts = data.Splits(dataset_of([*map(order_chat, range(20)), near[0]]), good.val, dataset_of([near[1]]))
    found = finding(look(examples=parts), "leak-near")
    assert (found.severity, found.rows) == ("warning", (21,))


def test_near_duplicates(look):
    found = finding(look(chats=[*map(order_chat, range(20)), order_chat(3), order_chat(3)]), "near-duplicates")
    assert (found.severity, found.rows) == ("warning", (21, 22))
    assert "rows 4, 21, 22" in found.evidence


def test_what_split_has_searched_is_not_searched_again(look, monkeypatch):
    """One search for near-duplicates in all, in `data.split`; equal rows are still compared."""
    from ftkit.data import leaks, similarity, splits

    real, calls = similarity.near_pairs, []

    def counted(*given, **named):
        calls.append(given)
        return real(*given, **named)

    for module in (similarity, splits, data):
        monkeypatch.setattr(module, "near_pairs", counted, raising=False)
    parts = data.split(dataset_of([*map(order_chat, range(60)), order_chat(3)]), seed=0)
    assert len(calls) == 1
    report = look(examples=parts)
    assert len(calls) == 1
    assert {"leak-near", "leak-exact"} <= set(report.passed)
    assert leaks.similarity is similarity


def test_many_rows_skip_the_search_for_twins_and_say_so(look, monkeypatch):
    monkeypatch.setattr("ftkit.preflight.rows.MOST_ROWS", 10)
    assert "data.leakage" in look().skipped["near-duplicates"]


def test_leaks_are_numbered_in_their_own_part(look, good):
    """Val and test are searched together; each row keeps the number that it has in its part."""
    both = data.Splits(good.train, dataset_of(map(order_chat, (33, 5))), dataset_of(map(order_chat, (6, 37, 7))))
    errors = [f for f in look(examples=both).errors if f.id == "leak-exact"]
    assert [(f.title.split(" rows")[0], f.rows) for f in errors] == [("1 val", (6,)), ("2 test", (7, 8))]
    assert "val row 2 ~ train row 6" in errors[0].evidence
    assert "test row 3 ~ train row 8" in errors[1].evidence


def test_repeats_that_split_has_found_are_told(look):
    """They stay in one part, and weigh more there than other rows."""
    parts = data.split(dataset_of([*map(order_chat, range(60)), *[order_chat(3)] * 9]), seed=0)
    found = finding(look(examples=parts), "near-duplicates")
    assert found.title.startswith("9 of ")
    assert len(found.rows) == 9


def test_parts_that_are_put_together_anew_are_searched(look, good):
    """What `data.split` said of its own parts does not hold for others."""
    parts = data.split(dataset_of(map(order_chat, range(60))), seed=0)
    assert parts.searched is not None
    leaked = look(examples=parts, test=dataset_of([order_chat(i) for i in range(60)]))
    assert finding(leaked, "leak-exact").severity == "error"


@pytest.mark.parametrize(("part", "id"), [("train", "no-rows"), ("val", "val-empty")])
def test_rows_of_an_empty_part_are_a_finding(look, good, tokenizer, config, part, id):
    parts = dataclasses.replace(good, **{part: getattr(good, part).select([])})
    assert finding(look(examples=preflight.tokenize_splits(parts, tokenizer, config)), id).severity == "error"


def test_empty_answer(look):
    silent = [*order_chat(0)[:1], {"role": "assistant", "content": " "}, *order_chat(1)]
    found = finding(look(chats=[order_chat(2), silent, *map(order_chat, range(3, 20))]), "empty-answer")
    assert (found.severity, found.rows) == ("warning", (2,))


SCHEMA = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object", "properties": {}}}}
TELLS = CHATML.replace(
    "{% for m in messages %}", "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}", 1
)


def tool_rows(system, result):
    from datasets import Dataset

    told = [{"role": "system", "content": system}] if system else []
    chat = [*told, *order_chat(0), {"role": "tool", "content": result}, order_chat(0)[1]]
    rows = [{"messages": order_chat(i), "tools": None} for i in range(1, 20)]
    return Dataset.from_list([{"messages": chat, "tools": json.dumps([SCHEMA])}, *rows])


@pytest.mark.parametrize(
    ("system", "result", "rows"),
    [
        (f"<tools>{json.dumps(SCHEMA)}</tools>", "06:10", (1,)),
        ("Ask tide where it helps.", "06:10", ()),
        ("", "<tool_response>\n06:10\n</tool_response>", (1,)),
        ("", "06:10", ()),
    ],
)
def test_tools_told_twice(look, good, system, result, rows):
    """By the text of the row, and by the template once more."""
    wraps = TELLS.replace(
        "{{ m['content'] }}",
        "{% set tag = 'tool_response>' if m.role == 'tool' %}{{ '<' + tag if tag }}{{ m['content'] }}"
        "{{ '</' + tag if tag }}",
    )
    parts = data.Splits(tool_rows(system, result), good.val, good.test)
    report = look(examples=parts, tokenizer=make_tokenizer(wraps))
    assert [found.rows for found in report.findings if found.id == "tools-told-twice"] == ([rows] if rows else [])


@pytest.mark.parametrize("opened", ["<think>\n</think>", "<think>\n", "<think>\nA plan.\n</think>\n"])
def test_double_reasoning(look, opened):
    opens = CHATML.replace(
        "{{ m['content'] }}", f"{{% if m.role == 'assistant' %}}{opened}{{% endif %}}{{{{ m['content'] }}}}"
    )
    thought = [order_chat(0)[0], {"role": "assistant", "content": "<think>Hm.</think>Six."}]
    chats = [order_chat(1), thought, *map(order_chat, range(2, 20))]
    found = finding(look(chats=chats, tokenizer=make_tokenizer(opens)), "double-reasoning")
    assert (found.severity, found.rows) == ("warning", (2,))


def test_prompt_differs(look):
    """A template that asks with a think block which it never trains."""
    asks = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    found = [f for f in look(tokenizer=make_tokenizer(asks)).warnings if f.id == "prompt-differs"]
    assert found[0].rows == tuple(range(1, 33))
    assert "<think>" in found[0].evidence


@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>"])
def test_control_token(look, role, token):
    """An error in an answer, where the model would learn to write it; a warning where it is only read."""
    held = [turn | {"content": f"One {token} two."} if turn["role"] == role else turn for turn in order_chat(0)]
    report = look(chats=[order_chat(1), held, *map(order_chat, range(2, 20))])
    found = finding(report, "control-token" if role == "assistant" else "double-template")
    assert (found.severity, found.rows) == ("error" if role == "assistant" else "warning", (2,))
    assert token in found.evidence


def test_tags_of_reasoning_and_tools_may_stand_in_a_text(look):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<tool_call>"]})
    thought = [order_chat(0)[0], {"role": "assistant", "content": "<think>Hm.</think>Six."}]
    found = look(chats=[thought, *map(order_chat, range(1, 20))], tokenizer=tokenizer, model=None)
    assert not {"control-token", "double-template"}.intersection(f.id for f in found.findings)


def test_documents_split(tokenizer, config):
    """Into pieces of max_length tokens, each with the start token; nothing is lost."""
    from datasets import Dataset

    texts = ["The mill stands by the river. " * n for n in (1, 60)]
    documents = Dataset.from_list([{"messages": [], "text": text} for text in texts])
    parts = data.Splits(documents, documents, documents)
    starting = make_tokenizer(adds_bos=True)
    rows = preflight.tokenize_splits(parts, starting, config)
    assert [row.number for row in rows.train.readable] == [1, 2, 2, 2, 2]
    assert {row.ids[0] for row in rows.train.readable} == {starting.bos_token_id}
    assert max(len(row.ids) for row in rows.train.readable) == 512
    assert starting.decode([i for row in rows.train.readable[1:] for i in row.ids[1:]]) == texts[1] + "<|im_end|>"
    report = preflight.check(None, starting, rows, config)
    found = finding([f for f in report.findings if "train" in f.title], "documents-split")
    assert (found.severity, found.rows) == ("note", (2,))
    assert not {"answers-cut", "turns-malformed", "missing-bos"}.intersection(f.id for f in report.findings)


def test_a_template_that_does_not_end_is_tried_once(good, tokenizer, config, monkeypatch):
    from ftkit.chat import templates

    monkeypatch.setattr(templates, "_SECONDS", 0.2)
    tokenizer.chat_template = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
    with pytest.raises(DataError, match="did not end"):
        preflight.tokenize_splits(good, tokenizer, config)


def test_a_marker_in_a_single_prompt_is_no_chat_format(look):
    asked = [{"role": "user", "content": "What is <|im_end|> for?"}, order_chat(0)[1]]
    assert finding(look(chats=[asked]), "double-template").severity == "warning"
