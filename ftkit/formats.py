"""One row of any known format to `messages`.

A format is told by its columns. Nothing is guessed: a row that does not fit raises with what is wrong with it.
"""

import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ftkit.errors import DataError

Messages = list[dict[str, str]]
ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "system": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
_CHATML_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_PROMPT_NAMES = (
    "question",
    "prompt",
    "query",
    "instruction",
    "input",
    "user",
    "request",
    "source",
    "text",
    "context",
    "article",
)
_ANSWER_NAMES = (
    "answer",
    "response",
    "output",
    "completion",
    "reply",
    "target",
    "assistant",
    "label",
    "summary",
    "solution",
)


def detect_format(columns: Iterable[str]) -> str:
    """Name the format that these columns belong to: messages, sharegpt, alpaca, prompt-completion or chatml.

    Raises:
        DataError: none of them; says which columns exist, which were wanted, and suggests a mapping.
    """
    there = set(columns)
    for name, wanted in _COLUMNS.items():
        if wanted <= there:
            return name
    formats = "; ".join(f"{name}: {' + '.join(sorted(wanted))}" for name, wanted in _COLUMNS.items())
    raise DataError(f"Unknown format. Columns: {', '.join(sorted(there)) or 'none'}. Wanted one of: {formats}. "
                    f"For other columns give a mapping, such as mapping={suggest_mapping(there)}.")  # fmt: skip


def used_columns(format: str) -> set[str]:
    """The columns that a format turns into `messages`; any other column is the caller's own."""
    return _COLUMNS[format] | _OPTIONAL.get(format, set())


def suggest_mapping(columns: Iterable[str]) -> dict[str, str]:
    """Guess which column holds the prompt and which the answer, for an error message; the caller decides."""
    there = sorted(columns)
    prompt = _closest(_PROMPT_NAMES, there) or (there[0] if there else "question")
    rest = [name for name in there if name != prompt]
    return {"prompt": prompt, "answer": _closest(_ANSWER_NAMES, rest) or (rest[-1] if rest else "answer")}


def to_messages(
    row: Mapping[str, Any], format: str | None = None, mapping: Mapping[str, str] | None = None
) -> Messages:
    """Convert one row; the result starts with an optional system turn and ends with an assistant's answer.

    Args:
        row: column name to value.
        format: as `detect_format` names it; found from the row's own columns when None.
        mapping: for other columns: `{"prompt": column, "answer": column}` and optionally `"system"`.

    Raises:
        DataError: says what is wrong with this row.
    """
    if mapping is not None:
        turns = _from_mapping(row, mapping)
    else:
        name = format or detect_format(row)
        if name not in _CONVERTERS:
            raise DataError(f"format={name!r} is not one of {', '.join(_CONVERTERS)}.")
        if missing := _COLUMNS[name] - set(row):
            raise DataError(f"lacks {', '.join(sorted(missing))}, which {name} rows have")
        turns = _CONVERTERS[name](row)
    messages = [m for m in turns if not (m["role"] == "system" and not m["content"].strip())]
    if problem := order_problem(messages):
        raise DataError(problem)
    return messages


def order_problem(messages: Sequence[Mapping[str, str]]) -> str | None:
    """What is wrong with the order of the turns, or None."""
    roles = [m["role"] for m in messages]
    if not roles:
        return "has no turns"
    if unknown := [r for r in roles if r not in ROLES]:
        return f"has the role {unknown[0]!r}; known are {', '.join(ROLES)}"
    body = roles[1:] if roles[0] == "system" else roles
    if "system" in body:
        return "has a system turn that is not the first"
    if "assistant" not in body:
        return "has no answer: no assistant turn"
    if body[0] != "user":
        return f"has roles out of order: starts with {body[0]}, wanted user"
    if any(a == b == "user" or a == b == "assistant" for a, b in itertools.pairwise(body)):
        return f"has roles out of order: {' → '.join(roles)}"
    if body[-1] != "assistant":
        return f"has no answer: ends with a {body[-1]} turn"
    if not messages[-1]["content"].strip():
        return "has an empty answer"
    return None


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"has {what} of type {type(value).__name__} ({str(value)[:40]!r}), wanted text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"has {what} with half a character (a lone surrogate at {error.start + 1})") from error
    return value


def _turns(value: Any, role_key: str, content_key: str, roles: Mapping[str, str]) -> Messages:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(f"has turns of type {type(value).__name__}, wanted a list of {{{role_key}, {content_key}}}")
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, Mapping) or role_key not in turn or content_key not in turn:
            raise DataError(f"has a turn {number} without {role_key} and {content_key}: {str(turn)[:60]}")
        role = _text(turn[role_key], f"a role in turn {number}")
        turns.append({"role": roles.get(role, role), "content": _text(turn[content_key], f"turn {number}")})
    return turns


def _from_messages(row: Mapping[str, Any]) -> Messages:
    return _turns(row["messages"], "role", "content", {})


def _from_sharegpt(row: Mapping[str, Any]) -> Messages:
    turns = _turns(row["conversations"], "from", "value", _SHAREGPT_ROLES)
    system = row.get("system")
    return [{"role": "system", "content": _text(system, "a system prompt")}, *turns] if system else turns


def _from_alpaca(row: Mapping[str, Any]) -> Messages:
    prompt, extra = _text(row["instruction"], "an instruction"), row.get("input")
    if extra is not None and _text(extra, "an input").strip():
        prompt = f"{prompt}\n\n{extra}"
    return _pair(prompt, row["output"], row.get("system"))


def _from_prompt_completion(row: Mapping[str, Any]) -> Messages:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        return _pair(prompt, completion, row.get("system"))
    return _turns(prompt, "role", "content", {}) + _turns(completion, "role", "content", {})


def _from_chatml(row: Mapping[str, Any]) -> Messages:
    turns = _CHATML_TURN.findall(_text(row["text"], "a text"))
    if not turns:
        raise DataError("has a text without <|im_start|>role … <|im_end|> turns, so no answer can be told from it")
    return [{"role": role, "content": content} for role, content in turns]


def _from_mapping(row: Mapping[str, Any], mapping: Mapping[str, str]) -> Messages:
    if unknown := set(mapping) - {"prompt", "answer", "system"} or {"prompt", "answer"} - set(mapping):
        raise DataError(
            f"mapping wants 'prompt' and 'answer', optionally 'system'; {', '.join(sorted(unknown))} is wrong."
        )
    if missing := [column for column in mapping.values() if column not in row]:
        raise DataError(f"lacks {', '.join(missing)}; its columns are {', '.join(row)}")
    return _pair(_text(row[mapping["prompt"]], "a prompt"), row[mapping["answer"]], row.get(mapping.get("system", "")))


def _pair(prompt: str, answer: Any, system: Any = None) -> Messages:
    if answer is None:
        raise DataError("has no answer")
    head = [{"role": "system", "content": _text(system, "a system prompt")}] if system else []
    return [*head, {"role": "user", "content": prompt}, {"role": "assistant", "content": _text(answer, "an answer")}]


def _closest(known: Sequence[str], there: Sequence[str]) -> str | None:
    for name in known:
        if found := [column for column in there if name in column.lower()]:
            return found[0]
    for name in known:
        if found := difflib.get_close_matches(name, there, n=1, cutoff=0.7):
            return found[0]
    return None


_COLUMNS = {
    "messages": {"messages"},
    "sharegpt": {"conversations"},
    "alpaca": {"instruction", "output"},
    "prompt-completion": {"prompt", "completion"},
    "chatml": {"text"},
}
_OPTIONAL = {"sharegpt": {"system"}, "alpaca": {"input", "system"}, "prompt-completion": {"system"}}
_CONVERTERS: dict[str, Callable[[Mapping[str, Any]], Messages]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
    "prompt-completion": _from_prompt_completion,
    "chatml": _from_chatml,
}
