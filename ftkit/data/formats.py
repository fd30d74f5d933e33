"""One row of any known format to `messages`, and `messages` to a row of another format.

A format is told by its columns; a row that does not fit raises with what is wrong with it. A message is text by text:
`role`, `content` and, where there are any, `tool_calls` (JSON text in OpenAI's shape), `name` and `tool_call_id`.
Knows single rows, no files.
"""

import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ftkit.errors import DataError

Messages = list[dict[str, str]]
Row = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
_NEXT = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}
_OPENAI_ROLES = {"function": "tool"}
_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
    "system": "system",
    "function_call": "function_call",
}
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}

_CHATML_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_CHATML_BETWEEN = re.compile(r"<s>|</s>|<\|endoftext\|>|<\|begin_of_text\|>")

# Names of columns, the likeliest first, for the mapping that an error suggests.
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


def detect_format(columns: Iterable[str], *, chatml: bool = True) -> str:
    """Name the format of these columns: messages, sharegpt, alpaca, prompt-completion or (if allowed) chatml.

    Raises:
        DataError: none of them; says which columns exist, which were wanted, and suggests a mapping.
    """
    there = set(columns)
    for name, wanted in _COLUMNS.items():
        if wanted <= there and (chatml or name != "chatml"):
            return name
    formats = "; ".join(f"{name}: {' + '.join(sorted(wanted))}" for name, wanted in _COLUMNS.items())
    raise DataError(
        f"Unknown format. Columns: {', '.join(sorted(there)) or 'none'}. Wanted one of: {formats}. "
        f"For other columns give a mapping, such as mapping={_suggested(there)}."
    )


def used_columns(format: str) -> set[str]:
    """The columns that a format turns into `messages`; any other column is the caller's own."""
    return _COLUMNS[format] | _OPTIONAL.get(format, set())


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


def from_messages(messages: Sequence[Mapping[str, Any]], format: str, *, tools: Any = None) -> dict[str, Any]:
    """One row of `format`, from which `data.to_messages` makes the same messages again.

    Args:
        messages: turns as `to_messages` gives them; tool calls as JSON text or as a list.
        format: alpaca, sharegpt, chatml, messages or prompt-completion.
        tools: schemas of the functions that the answers may call: a list or JSON text.

    Raises:
        DataError: turns that are in no order, or that this format cannot hold.
    """
    if format not in _WRITERS:
        raise DataError(f"format={format!r} is not one of {', '.join(_WRITERS)}.")
    turns = to_messages({"messages": messages}, "messages")
    schemas = parse_tools(tools)
    if format in ("alpaca", "chatml"):
        more = set().union(*turns) - {"role", "content"}
        if schemas:
            more.add("tools")
        if more:
            fold = "" if more == {"name"} else "; write tools into the text first, with chat.fold_tools"
            raise DataError(f"has {', '.join(sorted(more))}, which {format} cannot hold{fold}")
    row = _WRITERS[format](turns)
    if schemas:
        row["tools"] = as_json(schemas, "tools") if format == "sharegpt" else schemas
    return row


def order_problem(messages: Sequence[Mapping[str, str | None]]) -> str | None:
    """What is wrong with the order of the turns, or None; tool results stand between two assistant turns."""
    roles = [m["role"] or "" for m in messages]
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
    if any(after not in _NEXT[before] for before, after in itertools.pairwise(body)):
        return f"has roles out of order: {' → '.join(roles)}"
    if body[-1] != "assistant":
        return f"has no answer: ends with a {body[-1]} turn"
    if not (messages[-1].get("content") or "").strip() and not messages[-1].get("tool_calls"):
        return "has an empty answer"
    return None


def plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """One message without the keys that Arrow filled with None; `content` is always there."""
    return {
        "role": message["role"],
        "content": message.get("content") or "",
        **{k: v for k, v in message.items() if k not in ("role", "content") and v is not None},
    }


def parse_calls(value: Any, where: str = "a turn") -> list[dict[str, Any]]:
    """Tool calls as a list in OpenAI's shape, each call's arguments as an object; raises DataError for anything else.

    `value` is a list of calls in that shape or as bare `{"name", "arguments"}`, one such call, or JSON text of either.
    """
    calls = []
    for given in items(value, f"tool calls in {where}"):
        call = given if isinstance(given, Mapping) else {}
        function = call["function"] if isinstance(call.get("function"), Mapping) else call
        arguments = function.get("arguments")
        arguments = {} if arguments in (None, "") else from_json(arguments, f"arguments of a tool call in {where}")
        if not isinstance(function.get("name"), str) or not isinstance(arguments, Mapping):
            wanted = '{"name": text, "arguments": object}'
            raise DataError(f"has a tool call in {where} that is not {wanted}: {str(given)[:60]}")
        own = {k: v for k, v in call.items() if k not in ("type", "function", "name", "arguments") and v is not None}
        calls.append({**own, "type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}})
    return calls


def parse_tools(value: Any) -> list[dict[str, Any]]:
    """Function schemas in OpenAI's shape from a list of schemas, bare or in that shape, or JSON text of one.

    Raises:
        DataError: a schema without a name, or text that is not JSON.
    """
    schemas = []
    for given in items(value, "tools"):
        schema = from_json(given, "tools")
        function = schema.get("function") or schema if isinstance(schema, Mapping) else {}
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(
                f"has tools that are no function schemas: {str(given)[:60]}. Wanted a list, each with a name."
            )
        schemas.append({"type": "function", "function": dict(schema)} if function is schema else dict(schema))
    return schemas


def tools_text(value: Any) -> str | None:
    """What `parse_tools` takes, as the JSON text that a `tools` column holds; None where there are no tools."""
    schemas = parse_tools(value)
    return as_json(schemas, "tools") if schemas else None


def check_mapping(mapping: Mapping[str, str]) -> None:
    """Refuse a mapping that lacks the prompt or the answer, or names something else, with a DataError."""
    if unknown := set(mapping) - {"prompt", "answer", "system"} or {"prompt", "answer"} - set(mapping):
        wrong = ", ".join(sorted(unknown))
        raise DataError(f"mapping wants 'prompt' and 'answer', optionally 'system'; {wrong} is wrong.")


def as_json(value: Any, what: str) -> str:
    """JSON text with characters as they are; raises DataError for a value that JSON does not know."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"has {what} that JSON cannot hold ({error})") from error
    return as_text(text, what)


def from_json(value: Any, what: str) -> Any:
    """What JSON text says, and any other value as it is; raises DataError for text that is not JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"has {what} that are not JSON ({error}): {value[:60]!r}") from error


def items(value: Any, what: str) -> list[Any]:
    """A list, given as such or as JSON text; one item alone is a list of one, and None or no text an empty one."""
    found = from_json(value, what) if value else []
    if isinstance(found, list | tuple):
        return list(found)
    return [] if found is None else [found]


def as_text(value: Any, what: str) -> str:
    """The value, if it is whole text; a DataError names `what` it is."""
    if not isinstance(value, str):
        raise DataError(f"has {what} of type {type(value).__name__} ({str(value)[:40]!r}), wanted text: use str()")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"has {what} with half a character (a lone surrogate at {error.start + 1})") from error
    return value


def _suggested(columns: Iterable[str]) -> dict[str, str]:
    """A guess which column holds the prompt and which the answer; the caller decides."""
    there = sorted(columns)
    prompt = _closest(_PROMPT_NAMES, there) or (there[0] if there else "question")
    rest = [name for name in there if name != prompt]
    return {"prompt": prompt, "answer": _closest(_ANSWER_NAMES, rest) or (rest[-1] if rest else "answer")}


def _closest(known: Sequence[str], there: Sequence[str]) -> str | None:
    for name in known:
        if found := [column for column in there if name in column.lower()]:
            return found[0]
    for name in known:
        if found := difflib.get_close_matches(name, there, n=1, cutoff=0.7):
            return found[0]
    return None


def _turns(value: Any, role_key: str, content_key: str, roles: Mapping[str, str]) -> Messages:
    value = _opened(value)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(f"has turns of type {type(value).__name__}, wanted a list of {{{role_key}, {content_key}}}")
    turns = []
    for number, turn in enumerate(value, 1):
        calls = (turn.get("tool_calls") or turn.get("function_call")) if isinstance(turn, Mapping) else None
        if not isinstance(turn, Mapping) or role_key not in turn or (content_key not in turn and not calls):
            raise DataError(f"has a turn {number} without {role_key} and {content_key}: {str(turn)[:60]}")
        role = as_text(turn[role_key], f"a role in turn {number}")
        turns.append(_turn(turn, f"turn {number}", roles.get(role, role), turn.get(content_key), calls))
    return turns


def _turn(turn: Mapping[str, Any], where: str, role: str, content: Any, raw_calls: Any) -> dict[str, str]:
    """One message: what a turn says, calls, and answers to; its other keys are left out."""
    if role == "function_call":
        role, content, raw_calls = "assistant", "", as_text(content, where) or '""'
    calls = parse_calls(raw_calls, where)
    if calls and role != "assistant":
        raise DataError(f"has tool calls in {where}, a {role} turn; only an assistant turn calls tools")
    message = {"role": role, "content": as_text("" if content is None and calls else content, where)}
    if calls:
        message["tool_calls"] = as_json(calls, f"tool calls in {where}")
    return message | {k: as_text(turn[k], f"{k} in {where}") for k in ("name", "tool_call_id") if turn.get(k)}


def _opened(value: Any) -> Any:
    """JSON text of a list of turns, as a cell of a CSV file holds it, becomes that list."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return turns if turns and all(isinstance(turn, dict) and {"role", "from"} & set(turn) for turn in turns) else value


def _from_messages(row: Mapping[str, Any]) -> Messages:
    return _turns(row["messages"], "role", "content", _OPENAI_ROLES)


def _from_sharegpt(row: Mapping[str, Any]) -> Messages:
    system, turns = row.get("system"), Messages()
    for turn in _turns(row["conversations"], "from", "value", _SHAREGPT_ROLES):
        if "tool_calls" in turn and not turn["content"] and turns and turns[-1]["role"] == "assistant":
            calls = [*parse_calls(turns[-1].get("tool_calls")), *parse_calls(turn["tool_calls"])]
            turns[-1] |= {"tool_calls": as_json(calls, "tool calls")}  # what it says and all that it calls are one turn
        else:
            turns.append(turn)
    return [{"role": "system", "content": as_text(system, "a system prompt")}, *turns] if system else turns


def _from_alpaca(row: Mapping[str, Any]) -> Messages:
    prompt, extra = as_text(row["instruction"], "an instruction"), row.get("input")
    if extra is not None and as_text(extra, "an input").strip():
        prompt = f"{prompt}\n\n{extra}"
    return _pair(prompt, row["output"], row.get("system"))


def _from_prompt_completion(row: Mapping[str, Any]) -> Messages:
    prompt, completion = _opened(row["prompt"]), _opened(row["completion"])
    if isinstance(prompt, str) or (isinstance(row["prompt"], str) and isinstance(completion, str)):
        return _pair(as_text(row["prompt"], "a prompt"), row["completion"], row.get("system"))
    parts = (_turns(part, "role", "content", _OPENAI_ROLES) for part in (prompt, completion))
    return list(itertools.chain(*parts))


def _from_chatml(row: Mapping[str, Any]) -> Messages:
    text = as_text(row["text"], "a text")
    turns = _CHATML_TURN.findall(text)
    if not turns:
        raise DataError("has a text without <|im_start|>role … <|im_end|> turns, so no answer can be told from it")
    if outside := _CHATML_BETWEEN.sub("", _CHATML_TURN.sub("", text)).strip():
        raise DataError(f"has text outside of its <|im_start|>role … <|im_end|> turns: {outside[:60]!r}")
    if broken := [content for _, content in turns if "<|im_start|>" in content]:
        raise DataError(f"has a turn that another starts in, so an <|im_end|> is missing: {broken[0][:60]!r}")
    return [{"role": role, "content": content} for role, content in turns]


def _from_mapping(row: Mapping[str, Any], mapping: Mapping[str, str]) -> Messages:
    check_mapping(mapping)
    if missing := [column for column in mapping.values() if column not in row]:
        raise DataError(f"lacks {', '.join(missing)}; its columns are {', '.join(row)}")
    return _pair(
        as_text(row[mapping["prompt"]], "a prompt"), row[mapping["answer"]], row.get(mapping.get("system", ""))
    )


def _pair(prompt: str, answer: Any, system: Any = None) -> Messages:
    if answer is None:
        raise DataError("has no answer")
    head = [{"role": "system", "content": as_text(system, "a system prompt")}] if system else []
    return [*head, {"role": "user", "content": prompt}, {"role": "assistant", "content": as_text(answer, "an answer")}]


def _to_turns(turns: Messages) -> Row:
    return {"messages": [_with_calls(turn) for turn in turns]}


def _to_sharegpt(turns: Messages) -> Row:
    return {"conversations": list(itertools.chain.from_iterable(map(_spoken, turns)))}


def _spoken(turn: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """One turn of ShareGPT, or two where an assistant says something and calls tools."""
    more = {key: turn[key] for key in ("name", "tool_call_id") if key in turn}
    calls = [
        {k: v for k, v in call.items() if k not in ("type", "function")} | call["function"]
        for call in parse_calls(turn.get("tool_calls"))
    ]
    if turn["content"] or not calls:
        yield {"from": _SPEAKERS[turn["role"]], "value": turn["content"], **more}
        more = {}
    if calls:
        yield {"from": "function_call", "value": as_json(calls if len(calls) > 1 else calls[0], "a tool call"), **more}


def _to_alpaca(turns: Messages) -> Row:
    system = {m["role"]: m["content"] for m in turns if m["role"] == "system"}
    body = [m["content"] for m in turns if m["role"] != "system"]
    if len(body) != 2:
        raise DataError(f"has {len(body)} turns; alpaca holds one question and one answer")
    return {"instruction": body[0], "input": "", "output": body[1], **system}


def _to_chatml(turns: Messages) -> Row:
    for turn in turns:
        if found := [mark for mark in ("<|im_start|>", "<|im_end|>") if mark in turn["content"]]:
            raise DataError(f"has {found[0]} inside of a {turn['role']} turn, where chatml would end that turn")
    return {"text": "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in turns)}


def _to_prompt_completion(turns: Messages) -> Row:
    return {"prompt": [_with_calls(turn) for turn in turns[:-1]], "completion": [_with_calls(turns[-1])]}


def _with_calls(turn: Mapping[str, str]) -> Row:
    return {key: parse_calls(value) if key == "tool_calls" else value for key, value in turn.items()}


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


_WRITERS: dict[str, Callable[[Messages], Row]] = {
    "alpaca": _to_alpaca,
    "sharegpt": _to_sharegpt,
    "chatml": _to_chatml,
    "messages": _to_turns,
    "prompt-completion": _to_prompt_completion,
}
