"""One turn of any dialect to a message: who speaks, what is said, thought and called, and whether it is trained.

A message has `role` and `content` and, where there are any, `reasoning_content`, `tool_calls` (JSON text in OpenAI's
shape), `name`, `tool_call_id`, and `train` (False alone: the loss must not see this answer). Knows turns and chats, no
columns and no files.
"""

import ast
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ftkit.errors import DataError

Messages = list[dict[str, Any]]

ROLES = ("system", "user", "assistant", "tool")
_NEXT = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}
_SAID_AS = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "chatgpt", "bing", "bard", "ai", "bot"),
    "tool": ("tool", "function", "observation", "function_response", "tool_response", "tool_result", "ipython"),
    "call": ("function_call", "tool_call"),
}
_ROLES: dict[str, str] = {}
for _role, _words in _SAID_AS.items():
    _ROLES |= dict.fromkeys(_words, _role)

_ROLE_KEYS, _CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
_MARKS = {
    **dict.fromkeys(("train", "trainable", "loss", "loss_mask", "weight", "loss_weight"), False),
    "masked": True,
}
_LIKE_A_MARK = re.compile(r"(?:^|_)(?:train|trained|trainable|learn|loss|mask|masked|ignore|weight)(?:_|$)")
_DETAILS = ("train_detail", "training_detail")
_READ = {
    *(*_ROLE_KEYS, *_CONTENT_KEYS, *_REASONING_KEYS, *_MARKS, *_DETAILS),
    *("tool_calls", "function_call", "name", "tool_call_id"),
}
MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})
_EMPTY = {"", "nan", "none", "null", "na", "n/a", "#n/a", "<na>", "\\n", "<noinput>", "<nooutput>"}

_TEXT_PARTS = (None, "text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")
_PLACEHOLDER = re.compile(
    r"^[ \t]*<(?P<first>image|video|audio)(?:[_ ]?\d+)?>|<(?P<last>image|video|audio)(?:[_ ]?\d+)?>[ \t]*$"
    r"|<img>[^<\n]*</img>|<\|(?:image|video|audio|vision)(?:_\w+)?\|>|<start_of_image>|<image_soft_token>"
    r"|\[IMG\](?![^\[]*\[/IMG\])",
    re.IGNORECASE | re.MULTILINE,
)


def read_turns(value: Any, left: set[str] | None = None) -> Messages:
    """The messages of a list of turns, given as such, as a NumPy array, or as text (JSON, or a list as Python prints).

    A turn is an object with `role` and `content` or `from` and `value`, plain text (the user begins), or a pair of
    question and answer; an answer and the calls right after it become one message. `left` receives the names of what
    is not read, for one warning a file.

    Raises:
        DataError: says which turn is wrong, and how.
    """
    value = listed(_transcript(value) or opened(value))
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(f"has turns of type {type(value).__name__}, wanted a list of {{role, content}}")
    messages: Messages = []
    for number, turn in enumerate(itertools.chain.from_iterable(map(_halves, value, itertools.count(1))), 1):
        role, message = _message(turn, f"turn {number}", set() if left is None else left)
        last = messages[-1] if messages else {}
        if role == "call" and last.get("role") == "assistant":
            calls = [*parse_calls(last.get("tool_calls")), *parse_calls(message["tool_calls"])]
            messages[-1] = last | message | {"content": last["content"], "tool_calls": as_json(calls, "tool calls")}
        else:
            messages.append(message)
    return messages


def order_problem(messages: Sequence[Mapping[str, Any]]) -> str | None:
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
    if wrong := [(before, after) for before, after in itertools.pairwise(body) if after not in _NEXT[before]]:
        same = all(before == after for before, after in wrong)
        join = ". Neighbours of one role are joined by load_examples(…, merge_turns=True)" if same else ""
        return f"has roles out of order: {' → '.join(roles)}{join}"
    if body[-1] != "assistant":
        return f"has no answer: ends with a {body[-1]} turn"
    if not (messages[-1].get("content") or "").strip() and not messages[-1].get("tool_calls"):
        return "has an empty answer"
    return None


def merge_turns(messages: Sequence[Mapping[str, Any]]) -> Messages:
    """Join neighbouring turns of one role, with a blank line between, for a template that wants roles to alternate.

    Turns with tool calls and tool results stay apart (each call belongs to its own turn), and so do an answer that is
    trained and one that is not.

    Example:
        examples.map(lambda row: {"messages": merge_turns(row["messages"])})
    """
    merged: Messages = []
    for message in map(plain, messages):
        last = merged[-1] if merged else {}
        alike = last.get("role") == message["role"] and last.get("train") == message.get("train")
        if alike and message["role"] != "tool" and not (last.get("tool_calls") or message.get("tool_calls")):
            for key in ("content", "reasoning_content"):
                if said := [part[key] for part in (last, message) if part.get(key)]:
                    last[key] = "\n\n".join(said)
        else:
            merged.append(message)
    return merged


def plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """One message without the keys that Arrow filled with None; `content` is always there."""
    return {
        "role": message["role"],
        "content": message.get("content") or "",
        **{k: v for k, v in message.items() if k not in ("role", "content") and v is not None},
    }


def untrained(messages: Iterable[Mapping[str, Any]]) -> Messages:
    """The same turns as context: no answer among them is trained."""
    return [{**m, "train": False} if m["role"] == "assistant" else dict(m) for m in messages]


def is_yes(value: Any, what: str) -> bool:
    """What a mark says: true, false, 1 or 0, or one of these as text; raises DataError for anything else."""
    word = str(value).strip().lower()
    if word not in ("true", "1", "1.0", "false", "0", "0.0"):
        shown = f"{what}: {str(value)[:40]!r}"
        raise DataError(f"has {shown}, a mark that is not understood; known are true and false, 1 and 0")
    return word in ("true", "1", "1.0")


def blank(value: Any) -> bool:
    """Whether an optional cell holds nothing: None, NaN, no text, or what exports write for it (nan, None, N/A)."""
    if value is None:
        return True
    if isinstance(value, str):
        return value.strip().lower() in _EMPTY
    if isinstance(value, float):
        return value != value
    return type(value).__name__ in ("NAType", "NaTType") or (hasattr(value, "__len__") and not len(value))


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


def as_json(value: Any, what: str) -> str:
    """JSON text with characters as they are; raises DataError for a value that JSON does not know."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=listed)
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
    found = listed(from_json(None if blank(value) else value, what))
    if isinstance(found, list | tuple):
        return list(found)
    return [] if found is None else [found]


def listed(value: Any) -> Any:
    """Lists and numbers in place of NumPy's (`frame.to_dict('records')` gives them); any other value as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def as_text(value: Any, what: str) -> str:
    """The value, if it is whole text; a DataError names `what` it is."""
    if not isinstance(value, str):
        way = "put it in quotes" if isinstance(value, int | float) else "write it as JSON text, with json.dumps"
        wanted = "wanted text" if value is None else f"wanted text: {way}"
        raise DataError(f"has {what} of type {type(value).__name__} ({str(value)[:40]!r}), {wanted}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"has {what} with half a character (a lone surrogate at {error.start + 1})") from error
    return value


def spoken(value: Any, what: str) -> str:
    """What is said in a cell: text, text parts, or an object, which becomes JSON text."""
    value = listed(value)
    if isinstance(value, list | tuple) and all(isinstance(part, str) or _is_part(part) for part in value):
        return _parts(value, what)[0]
    return as_json(value, what) if isinstance(value, Mapping | list) else as_text(value, what)


def refuse_media(text: str, where: str) -> None:
    """Raise for a placeholder of a picture, film or sound.

    HTML's `<video>` with its end and a lone `<img>` are none, nor is a forum's `[IMG]` with its end.
    """
    for found in _PLACEHOLDER.finditer(text) if "<" in text or "[IMG]" in text else ():
        tag = found["first"] or found["last"]
        if not (tag and f"</{tag.lower()}" in text.lower()):
            raise DataError(f"has {found[0].strip()!r} in {where}, which stands for media; ftkit trains text alone")


def opened(value: Any) -> Any:
    """Text of a list of turns, as a cell of a CSV file holds it, becomes that list; any other value stays."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError):
        turns = _as_python(value)
    keys = {*_ROLE_KEYS, "input", "output"}
    return turns if turns and all(isinstance(turn, dict) and keys & set(turn) for turn in turns) else value


def _transcript(value: Any) -> list[dict[str, str]]:
    """The turns of text such as HH-RLHF's, with a blank line and `Human:` or `Assistant:` before each."""
    if not isinstance(value, str) or not value.lstrip().startswith("Human:"):
        return []
    texts = re.split(r"(?:^|\n\n)(Human|Assistant):", f"\n\n{value.lstrip()}")[1:]
    return [
        {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
        for who, said in zip(texts[::2], texts[1::2], strict=True)
    ]


def _as_python(text: str) -> Any:
    """A list as `str()` prints it, which is how a table of a DataFrame writes turns; None for other text."""
    if not re.search(r"""\{\s*'(?:role|from)'\s*:""", text):
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise DataError("has turns written as Python prints them; write JSON text, with json.dumps(turns)") from error


def _halves(turn: Any, number: int) -> list[Any]:
    """A turn, or the two of a pair of question and answer; plain text by turns is the user's and the assistant's."""
    if isinstance(turn, dict) and "role" in turn:
        return [turn]
    if isinstance(turn, str):
        return [{"role": ("assistant", "user")[number % 2], "content": turn}]
    if isinstance(turn, Mapping) and {"input", "output"} <= turn.keys() and not set(_ROLE_KEYS) & turn.keys():
        more = {k: v for k, v in turn.items() if k not in ("input", "output")}
        return [{"role": "user", "content": turn["input"]}, {"role": "assistant", "content": turn["output"], **more}]
    if isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(text, str) for text in turn):
        return [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return [turn]


def _message(turn: Any, where: str, left: set[str]) -> tuple[str, dict[str, Any]]:
    """The role as the file says it ("call" for a turn of calls alone) and the message of one turn."""
    if not isinstance(turn, Mapping):
        raise DataError(f"has a {where} without role and content: {str(turn)[:60]}")
    if len(turn) == 2 and turn.get("role") in ROLES and isinstance(turn.get("content"), str):  # most turns
        refuse_media(as_text(turn["content"], where), where)
        return turn["role"], dict(turn)
    role_key, content_key = _first(turn, _ROLE_KEYS), _first(turn, _CONTENT_KEYS)
    calls = turn.get("tool_calls") or turn.get("function_call")
    thought = spoken(next((turn[k] for k in _REASONING_KEYS if not blank(turn.get(k))), ""), f"reasoning in {where}")
    if role_key is None or (content_key is None and not calls and not thought):
        raise DataError(f"has a {where} without role and content: {str(turn)[:60]}")
    word = as_text(turn[role_key], f"a role in {where}")
    role, content = _ROLES.get(word.strip().lower(), word), listed(turn.get(content_key or ""))
    if role == "call":
        content, calls = "", content if content not in (None, "") else '""'
    calls = parse_calls(calls, where)
    message: dict[str, Any] = {"role": "assistant" if role == "call" else role}
    if calls and message["role"] != "assistant":
        raise DataError(f"has tool calls in {where}, a {role} turn; only an assistant turn calls tools")
    if content is None and (calls or thought):
        content = ""
    if isinstance(content, list) or _is_part(content):
        content, inner = _parts(content if isinstance(content, list) else [content], where)
        thought = thought or inner
    elif isinstance(content, Mapping) and message["role"] in ("assistant", "tool"):
        content = as_json(content, where)
    message["content"] = as_text(content, where)
    refuse_media(message["content"], where)
    trained = _is_trained(turn, where, message["content"])
    if message["role"] == "assistant":
        message |= {"reasoning_content": thought} if thought else {}
        message |= {"train": False} if trained is False else {}
    elif thought or trained:
        left.add(f"{'reasoning' if thought else 'a mark to train'} in {role} turns")
    if calls:
        message["tool_calls"] = as_json(calls, f"tool calls in {where}")
    for key in turn.keys() - _READ:
        if not blank(turn[key]):
            if key in MEDIA:
                raise DataError(f"has {key} in {where}; ftkit trains text alone")
            if _LIKE_A_MARK.search(key.lower()) and turn[key] in (True, False):
                raise DataError(
                    f"has {key} in {where}, a mark that is not understood; write it as train: true or false"
                )
            left.add(f"{key} in turns")
    named = {k: as_text(turn[k], f"{k} in {where}") for k in ("name", "tool_call_id") if turn.get(k)}
    return role, message | named


def _first(turn: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """The key that holds a value; else one that is there at all."""
    there = [key for key in keys if key in turn]
    return next((key for key in there if turn[key] is not None), there[0] if there else None)


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) and ("type" in value or set(value) == {"text"})


def _parts(parts: Iterable[Any], where: str) -> tuple[str, str]:
    """What text parts say and think, each part on its own lines; a part of any other kind is refused by name."""
    said: list[str] = []
    thought: list[str] = []
    for part in parts:
        kind, value = None, part
        if isinstance(part, Mapping):
            kind = part.get("type")
            keys = (*(_REASONING_KEYS if kind in _THOUGHT_PARTS else ()), *_CONTENT_KEYS)
            known = kind in (*_TEXT_PARTS, *_THOUGHT_PARTS)
            value = next((part[key] for key in keys if part.get(key) is not None), None) if known else None
        if value is None:
            raise DataError(f"has a part of type {str(kind)[:40]!r} in {where}; ftkit trains text alone")
        (thought if kind in _THOUGHT_PARTS else said).append(as_text(value, f"a text part in {where}"))
    return "\n".join(said), "\n".join(thought)


def _is_trained(turn: Mapping[str, Any], where: str, content: str) -> bool | None:
    """What the marks of a turn say about training; None where there are none."""
    marks = {key: turn[key] for key in _MARKS if turn.get(key) is not None}
    found = {key: is_yes(value, f"{key} in {where}") is not _MARKS[key] for key, value in marks.items()}
    for key in _DETAILS:
        if details := turn.get(key):
            found[key] = _whole_turn(details, f"{key} in {where}", content)
    if len(set(found.values())) > 1:
        raise DataError(f"has marks that contradict each other in {where}: {', '.join(found)}")
    return next(iter(found.values()), None)


def _whole_turn(details: Any, what: str, content: str) -> bool:
    """What Axolotl's list of ranges says, if it says one thing about the whole turn; offsets include both ends."""
    ranges = [part for part in items(details, what) if isinstance(part, Mapping)]
    trained = {is_yes(part.get("train"), what) for part in ranges}
    covered: set[int] = set()
    for part in ranges:
        begin, end = part.get("begin_offset"), part.get("end_offset")
        if isinstance(begin, int) and isinstance(end, int):
            covered.update(range(max(begin, 0), min(end, len(content)) + 1))
    if trained == {False}:
        return False
    if trained == {True} and covered >= set(range(len(content))):
        return True
    raise DataError(f"has {what} for parts of a turn; ftkit trains a turn whole or not at all")
