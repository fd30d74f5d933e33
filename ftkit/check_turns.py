"""Chats against the tokenizer's template: what it refuses, drops or has seen already, and which change mends it.

Whatever is proposed was tried on the row first: a fix is named only where the template then takes the row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ftkit import template, turns
from ftkit.check_rows import Part
from ftkit.errors import DataError
from ftkit.findings import Finding, listed, quoted
from ftkit.formats import order_problem, plain

CHECKS = {
    "no-chat-template": "the tokenizer has a chat template",
    "turns-malformed": "turns alternate, and each chat ends with an answer that says something",
    "template-refuses-system": "the template takes the system turns that there are",
    "template-refuses-turns": "the template takes the order of all turns",
    "template-loses-tools": "the template writes out tool calls, results and schemas",
    "template-rewrites-turns": "answers stay the same once later turns follow",
    "template-drops-turns": "what each turn says stands in the text that the model reads",
    "double-template": "no message holds the template's own markers already",
}
_RENDERED = 100  # rows whose text is searched for what their turns say
_ASKED, _ANSWERED = "probe-question", "probe-answer"
_Chat = list[dict[str, Any]]


def check_template(tokenizer: Any) -> Iterator[Finding]:
    """Whether there is a template at all; without one no row can be read."""
    if not getattr(tokenizer, "chat_template", None):
        yield Finding(
            "no-chat-template",
            "error",
            "The tokenizer has no chat template: it belongs to a base model.",
            "tokenizer.chat_template is empty",
            "Take the instruct variant of this model, or set tokenizer.chat_template.",
        )


def check(parts: Sequence[Part], tokenizer: Any) -> Iterator[Finding]:
    """All findings about the turns of these parts, the training part first."""
    markers = _markers(tokenizer)
    for part in parts:
        yield from _check_order(part)
        yield from _check_refusals(part, tokenizer)
        yield from _check_dropped(part, tokenizer)
        yield from _check_markers(part, markers)


def _check_order(part: Part) -> Iterator[Finding]:
    problems: dict[str, list[int]] = {}
    for n, example in zip(part.numbers, part.examples, strict=True):
        if n not in part.refusals and (problem := order_problem(example["messages"])):
            problems.setdefault(problem, []).append(n)
    if problems:
        rows = sorted(n for numbers in problems.values() for n in numbers)
        reasons = [f"{part.name} {listed(numbers)}: {problem}" for problem, numbers in list(problems.items())[:5]]
        yield Finding(
            "turns-malformed",
            "warning",
            f"{len(rows)} {part.name} rows are no chats that end with an answer.",
            "\n".join(reasons),
            "Leave them out: data.load_examples(..., on_error='skip') does; turns.merge_turns joins neighbours of one role.",
            rows=_rows(part, rows),
        )


def _check_refusals(part: Part, tokenizer: Any) -> Iterator[Finding]:
    """Sort the refused rows by the change that makes the template take them."""
    kinds: dict[str, list[int]] = {}
    for n, example in zip(part.numbers, part.examples, strict=True):
        if n in part.refusals:
            kinds.setdefault(_kind(example, tokenizer), []).append(n)
    for kind, rows in kinds.items():
        id, title, fix = _REFUSALS[kind]
        first = part.examples[part.numbers.index(rows[0])]["messages"]
        roles = " → ".join(m["role"] for m in first)
        cause = order_problem(first) if kind == "malformed" else _cause(part.refusals[rows[0]])
        yield Finding(
            id,
            "error",
            title,
            f"{part.name} {listed(rows)}; row {rows[0]} ({roles}): {cause}",
            fix,
            rows=_rows(part, rows),
        )


def _kind(example: Mapping[str, Any], tokenizer: Any) -> str:
    """Name of the first change under which the template takes the row."""
    chat, tools = [plain(message) for message in example["messages"]], example.get("tools")
    for name, change in _CHANGES:
        if change(chat) != chat and _works(template.tokenize, change(chat), tools, tokenizer):
            return name
    if _works(template.tokenize, template.fold_tools(chat, tools), None, tokenizer):
        return "tools"
    if order_problem(chat):
        return "malformed"
    if _works(template.render, chat, tools, tokenizer):
        return "rewrites"
    answers = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    alone = len(answers) > 1 and _works(template.tokenize, chat[: answers[0] + 1], tools, tokenizer)
    return "several" if alone else "other"


def _works(step: Callable[[Any, Any], Any], chat: _Chat, tools: Any, tokenizer: Any) -> bool:
    try:
        return bool(step({"messages": chat, "tools": tools}, tokenizer))
    except ValueError:  # DataError among them
        return False


_CHANGES: tuple[tuple[str, Callable[[_Chat], _Chat]], ...] = (
    ("system", turns.fold_system),
    ("order", turns.merge_turns),
    ("system and order", lambda chat: turns.merge_turns(turns.fold_system(chat))),
)
_MAP = "examples.map(lambda row: {{'messages': {}(row['messages'])}})"
_REFUSALS = {
    "system": (
        "template-refuses-system",
        "The template refuses a system turn.",
        f"Fold it into the first user turn: {_MAP.format('turns.fold_system')}. Ask the trained model in the same way.",
    ),
    "order": (
        "template-refuses-turns",
        "The template wants turns to alternate.",
        f"Join neighbours of one role: {_MAP.format('turns.merge_turns')}.",
    ),
    "system and order": (
        "template-refuses-system",
        "The template refuses a system turn, and wants turns to alternate.",
        "Mend both: examples.map(lambda row: {'messages': turns.merge_turns(turns.fold_system(row['messages']))}).",
    ),
    "tools": (
        "template-loses-tools",
        "The template leaves out tool calls, results or schemas.",
        "Write them into the text with template.fold_tools(messages, tools), or take a model whose template knows them.",
    ),
    "rewrites": (
        "template-rewrites-turns",
        "The template writes an earlier answer differently once later turns follow.",
        "Keep the first question and answer of these chats, or use another template.",
    ),
    "several": (
        "template-refuses-turns",
        "The template takes one question and answer, not several.",
        "Keep the first question and answer of these chats, or use another template.",
    ),
    "malformed": (
        "turns-malformed",
        "The turns of some chats are out of order, and the template refuses them.",
        "Leave these rows out: data.load_examples(..., on_error='skip') does.",
    ),
    "other": (
        "template-refuses-turns",
        "The template refuses these turns.",
        "Change the turns to what the template takes, leave these rows out, or use another template.",
    ),
}


def _cause(message: str) -> str:
    return message.split(": ", 1)[-1].split(". ", 1)[0].rstrip(".")


def _check_dropped(part: Part, tokenizer: Any) -> Iterator[Finding]:
    """Search the rendered text for what system and user turns say; some templates skip a role without a word."""
    dropped: dict[str, list[int]] = {}
    rows = part.readable
    for n, example, ids, _ in rows[:: max(1, len(rows) // _RENDERED)]:
        text = _flat(tokenizer.decode(ids))
        for role in {
            m["role"]
            for m in map(plain, example["messages"])
            if m["role"] in ("system", "user") and _flat(m["content"]) not in text
        }:
            dropped.setdefault(role, []).append(n)
    for role, numbers in dropped.items():
        yield Finding(
            "template-drops-turns",
            "warning",
            f"What the {role} turn says does not stand in the text that the model reads.",
            f"{part.name} {listed(numbers)}",
            "Fold it into the first user turn with turns.fold_system, or use another template."
            if role == "system"
            else "Print template.render of such a row; the template may rewrite the turn.",
            rows=_rows(part, numbers),
        )


def _markers(tokenizer: Any) -> tuple[str, ...]:
    """What the template writes around turns, found by rendering a probe: its special tokens, and the bridge to an answer."""
    chat = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}]
    try:
        text = template.render(chat, tokenizer)
    except DataError:
        return ()
    bridge = text.partition(_ASKED)[2].partition(_ANSWERED)[0].strip()
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if str(token) in text]
    return tuple(dict.fromkeys([*special, *([bridge] if len(bridge) > 3 else [])]))


def _check_markers(part: Part, markers: Sequence[str]) -> Iterator[Finding]:
    rows, seen = [], ""
    for n, example in zip(part.numbers, part.examples, strict=True):
        text = "\n".join(m["content"] for m in map(plain, example["messages"]))
        if found := [marker for marker in markers if marker in text]:
            rows.append(n)
            seen = seen or found[0]
    if rows:
        most = len(rows) > len(part.examples) / 2
        yield Finding(
            "double-template",
            "error" if most else "warning",
            "The messages are in a chat format already: the template would be applied twice."
            if most
            else "Some messages hold the template's own markers: they would be read as the end of a turn.",
            f"{part.name} {listed(rows)}: {quoted(seen)}",
            "Load the raw turns: data.load_examples takes a `text` column in ChatML apart."
            if most
            else "Take the markers out of the text, or leave these rows out.",
            rows=_rows(part, rows),
        )


def _rows(part: Part, numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(numbers) if part.name == "train" else ()


def _flat(text: str) -> str:
    return "".join(text.split())
