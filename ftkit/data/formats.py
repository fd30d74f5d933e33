"""One row of any known format to `messages`, and `messages` to a row of another format.

A format is told by its columns; a row that does not fit raises with what is wrong with it. What one turn may look like
is `turns`' business. Knows single rows, no files.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from ftkit.data import turns
from ftkit.data.turns import (
    MEDIA,
    Messages,
    as_json,
    as_text,
    blank,
    is_yes,
    items,
    listed,
    opened,
    order_problem,
    parse_calls,
    parse_tools,
    read_turns,
    refuse_media,
    spoken,
    untrained,
)
from ftkit.errors import DataError

Row = dict[str, Any]
Converter = Callable[[Mapping[str, Any], set[str]], Messages]

_TURN_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat", "data")
_SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
_REASONING_COLUMNS = ("reasoning_content", "reasoning", "thinking", "thought")
_ROW_MARKS = ("train", "trainable", "loss", "loss_mask", "weight", "loss_weight", "desirable")
_MARK_COLUMNS = ("label", "kto_tag", *_ROW_MARKS)
_BESIDE = frozenset((*_SYSTEM_COLUMNS, *_REASONING_COLUMNS, *_MARK_COLUMNS))
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}

_CHATML_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_CHATML_BETWEEN = re.compile(r"<s>|</s>|<\|endoftext\|>|<\|begin_of_text\|>")

# Names of columns, the likeliest first, for the mapping that an error suggests: whole names, never parts of one.
_PROMPT_NAMES = ("question", "query", "prompt", "instruction", "input", "user", "request", "problem", "text", "article")
_ANSWER_NAMES = (
    *("answer", "response", "output", "completion", "reply", "target", "assistant", "chosen"),
    *("summary", "solution", "translation", "label"),
)
_REASONING_NAMES = (*_REASONING_COLUMNS, "cot", "complex_cot", "chain_of_thought", "rationale")
_CONTEXT_NAMES = ("context", "passage", "document", "input")
_METADATA = {
    *("id", "url", "source", "meta", "metadata", "date", "timestamp", "title", "language", "lang", "split", "domain"),
    *("subset", "dump", "file_path", "path", "language_score", "token_count", "score", "license", "added", "created"),
}
_CHAT_LIKE = re.compile(
    r"^(?!.*(?:ids?|hash|count|tokens|length|type|score|name)$).*(?:system|reason|think|thought|rationale"
    r"|(?<![a-z])cot(?![a-z])|history|context|function|tools|image|picture|video|audio|chosen|rejected|messages"
    r"|conversation|dialog|instruction|turns$|document|suffix$)"
    r"|^(?:question|query|prompt|input|answer|response|output|completion|weight|train|loss|loss_weight|chat)$"
)


def detect_format(columns: Iterable[str], samples: Sequence[Mapping[str, Any]] = ()) -> str:
    """Name the format of these columns.

    It is `messages`, `sharegpt`, `alpaca`, `dolly`, `squad`, `sql`, `prompt-completion`, `prompt-answer`, `chatml` or
    `text`. Some rows as `samples` tell chats from documents, and turns from other lists.

    Raises:
        DataError: none of them; says which columns exist, which were wanted, and suggests a mapping.
    """
    there = set(columns)
    for name, (wanted, _) in _FORMATS.items():
        if name not in ("chatml", "text") and wanted <= there:
            return name
    for column in _TURN_COLUMNS:
        if column in there and any(isinstance(opened(listed(row.get(column))), list) for row in samples):
            return "messages"
    texts = [text for row in samples if isinstance(text := row.get("text"), str)]
    if any("<|im_start|>" in text for text in texts):
        return "chatml"
    if "text" in there and there <= {"text", *_METADATA}:
        return "text"
    raise DataError(_unknown(there))


def used_columns(format: str, mapping: Mapping[str, str] | None = None) -> set[str]:
    """The columns that become `messages` and `tools`; any other column is the caller's own."""
    if mapping is not None:
        return set(mapping.values())
    if format == "text":
        return set()
    more = {"messages": _TURN_COLUMNS, "alpaca": ("input",)}
    more |= dict.fromkeys(("prompt-completion", "prompt-answer"), ("context",))
    return {*_FORMATS[format][0], *more.get(format, ()), *_SYSTEM_COLUMNS, "history", "functions"}


def to_messages(
    row: Mapping[str, Any],
    format: str | None = None,
    mapping: Mapping[str, str] | None = None,
    *,
    merge_turns: bool = False,
    left: set[str] | None = None,
) -> Messages:
    """Convert one row; the messages end with an assistant's answer, and a document, whose text is trained, has none.

    Without a `format`, as `detect_format` names it, the row's own columns tell it; `mapping` and `merge_turns` are as
    in `load_examples`. `left` receives the names of what is not read.

    Raises:
        DataError: says what is wrong with this row.
    """
    if mapping is not None:
        check_mapping(mapping)
        if missing := [column for column in mapping.values() if column not in row]:
            raise DataError(f"lacks {', '.join(missing)}; its columns are {', '.join(row)}")
        names = {"prompt": "prompt", "answer": "completion", "reasoning": "reasoning_content"}
        kept = {k: v for k, v in row.items() if k in (*_MARK_COLUMNS, *MEDIA) and k not in mapping.values()}
        row = kept | {names.get(key, key): row[column] for key, column in mapping.items()}
        format = "messages" if "messages" in mapping else "text" if "text" in mapping else "prompt-completion"
    name = format or detect_format(row, [row])
    if name not in _FORMATS:
        raise DataError(f"format={name!r} is not one of {', '.join(_FORMATS)}.")
    wanted, converter = _FORMATS[name]
    if (lacking := wanted - row.keys()) and name != "messages":
        raise DataError(f"lacks {', '.join(sorted(lacking))}, which {name} rows have")
    left = set() if left is None else left
    if seen := sorted(column for column in MEDIA & row.keys() if not blank(row[column])):
        raise DataError(f"has {seen[0]}, and ftkit trains text alone: take the column out where the text is enough")
    if name == "text":
        refuse_media(as_text(row["text"], "a text"), "a text")
        return []
    messages = converter(row, left)
    if history := items(row.get("history"), "a history"):  # Alpaca's: pairs of question and answer
        messages = [*read_turns(history, left), *messages]
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        del messages[0]
    beside = _BESIDE & row.keys()  # most rows have nothing there
    messages = _with_system(row, messages) if beside else messages
    messages = turns.merge_turns(messages) if merge_turns else messages
    if problem := order_problem(messages):
        raise DataError(problem)
    if beside:
        _reason(row, messages)
        messages = messages if _is_wanted(row) else untrained(messages)
    return messages


def from_messages(messages: Sequence[Mapping[str, Any]], format: str, *, tools: Any = None) -> dict[str, Any]:
    """One row of `format`, from which `data.to_messages` makes the same messages again.

    The format is alpaca, sharegpt, chatml, messages or prompt-completion; tool calls, and `tools` (schemas of
    functions), are lists or JSON text.

    Raises:
        DataError: turns that are in no order, or that this format cannot hold.
    """
    if format not in _WRITERS:
        raise DataError(f"format={format!r} is not one of {', '.join(_WRITERS)}.")
    chat = to_messages({"messages": messages}, "messages")
    schemas = parse_tools(tools)
    more = set().union(*chat, {"tools"} if schemas else ()) - {"role", "content"}
    if more and format in ("alpaca", "chatml"):
        fold = "; write tools into the text first, with chat.fold_tools" if more & {"tools", "tool_calls"} else ""
        raise DataError(f"has {', '.join(sorted(more))}, which {format} cannot hold{fold}")
    row = _WRITERS[format](chat)
    if schemas:
        row["tools"] = as_json(schemas, "tools") if format == "sharegpt" else schemas
    return row


def chat_like(row: Mapping[str, Any], used: set[str], messages: Messages) -> set[str]:
    """Columns that look like a part of the chat, hold a value, and are in none of its turns."""
    said = {message["content"] for message in messages} | {message.get("reasoning_content") for message in messages}
    return {
        name
        for name, value in row.items()
        if name not in used and _is_chat_like(name) and not blank(value)
        if not ((isinstance(value, str) and value in said) or (isinstance(value, int | float) and value in (0, 1)))
    }


@cache
def _is_chat_like(column: str) -> bool:
    return bool(_CHAT_LIKE.search(column.lower()))


def check_mapping(mapping: Mapping[str, str]) -> None:
    """Refuse a mapping that lacks the prompt or the answer, or names something else, with a DataError."""
    if set(mapping) in ({"messages"}, {"text"}):
        return
    unknown = sorted(set(mapping) - {"prompt", "answer", *_MORE})
    missing = sorted({"prompt", "answer"} - set(mapping))
    if unknown or missing:
        told = f"{', '.join(unknown)} is none of these" if unknown else f"{', '.join(missing)} is missing"
        raise DataError(
            f"mapping wants 'prompt' and 'answer', optionally {', '.join(map(repr, _MORE))}; or 'messages' alone, "
            f"or 'text' alone, each with the name of its column. {told}."
        )


def _unknown(there: set[str]) -> str:
    """What to say of columns of no known format: what they are, or which mapping reads them."""
    shown = ", ".join(sorted(there)) or "none"
    if {"message_id", "parent_id", "text", "role"} <= there:
        return (
            f"Columns: {shown}. These are OASST's trees: each row is one message. Follow parent_id from each last "
            "answer up to its root, and write every such thread as one row with a column messages."
        )
    formats = "; ".join(f"{name}: {' + '.join(sorted(wanted))}" for name, (wanted, _) in _FORMATS.items())
    text = f"Unknown format. Columns: {shown}. Wanted one of: {formats}. "
    preference = {"chosen", "rejected"} <= there
    if preference:
        text = f"Columns: {shown}. This is preference data: of each question a chosen and a rejected answer. "
    mapping = _suggested(there)
    if mapping is None:
        return f"{text}For other columns give a mapping of yours: mapping={{'prompt': column, 'answer': column}}."
    left = sorted(there - set(mapping.values()))
    rest = f" That leaves out: {', '.join(left)}." if left else ""
    aim = "To train the chosen ones" if preference else "For other columns"
    return f"{text}{aim} give a mapping, such as mapping={mapping}.{rest}"


def _suggested(there: set[str]) -> dict[str, str] | None:
    """Which columns hold the prompt, the answer and what belongs to them, by their whole names; the caller decides."""
    by_name = {name.lower(): name for name in sorted(there)}

    def likeliest(names: Iterable[str], but: str | None = None) -> str | None:
        return next((by_name[name] for name in names if name in by_name and by_name[name] != but), None)

    prompt = likeliest(_PROMPT_NAMES)
    answer = likeliest(("chosen",) if "rejected" in by_name else _ANSWER_NAMES, but=prompt)
    if answer == "chosen" and not prompt:
        return {"messages": answer}
    if not (prompt and answer):
        return None
    found = {
        "prompt": prompt,
        "context": likeliest(_CONTEXT_NAMES, but=prompt),
        "answer": answer,
        "system": likeliest(_SYSTEM_COLUMNS),
        "reasoning": likeliest(_REASONING_NAMES, but=answer),
    }
    return {key: column for key, column in found.items() if column}


def _with_system(row: Mapping[str, Any], messages: Messages) -> Messages:
    """The chat with the system turn that a column holds."""
    for column in _SYSTEM_COLUMNS:
        if not blank(row.get(column)):
            said = as_text(row[column], "a system prompt")
            if not messages or messages[0]["role"] != "system":
                return [{"role": "system", "content": said}, *messages]
            if messages[0]["content"].strip() != said.strip():
                raise DataError(f"has a column {column} and a system turn that say different things")
    return messages


def _reason(row: Mapping[str, Any], messages: Messages) -> None:
    """Give the one answer of a row the reasoning that a column holds."""
    answers = [m for m in messages if m["role"] == "assistant"]
    thought = next((row[column] for column in _REASONING_COLUMNS if not blank(row.get(column))), None)
    if thought is not None and len(answers) == 1:
        answers[0].setdefault("reasoning_content", spoken(thought, "reasoning"))


def _is_wanted(row: Mapping[str, Any]) -> bool:
    """Whether no mark of the row says that its answer is unwanted (KTO's `label` and `kto_tag`, a weight of 0)."""
    label = row.get("label")
    marked = isinstance(label, bool) or (isinstance(label, str) and label.strip().lower() in ("true", "false"))
    tag = row.get("kto_tag")
    if any(str(row[mark]).strip().lower() in ("false", "0", "0.0") for mark in _ROW_MARKS if mark in row):
        return False
    return not (marked and not is_yes(label, "a label")) and (blank(tag) or is_yes(tag, "a kto_tag"))


def _from_turns(row: Mapping[str, Any], left: set[str]) -> Messages:
    column = next((name for name in _TURN_COLUMNS if name in row), "messages")
    return read_turns(row.get(column), left)


def _from_pair(prompt: str, answer: str, more: str) -> Converter:
    """Columns of one question, one answer and what belongs to the question; a file may lack the last."""
    return lambda row, left: _pair(row[prompt], row[answer], row.get(more))


def _from_squad(row: Mapping[str, Any], left: set[str]) -> Messages:
    answers = listed(row["answers"])
    texts = listed(answers.get("text") if isinstance(answers, Mapping) else answers)
    return _pair(row["question"], texts[0] if isinstance(texts, list | tuple) and texts else None, row["context"])


def _from_prompt_completion(row: Mapping[str, Any], left: set[str]) -> Messages:
    """Turns or text; answers among the turns of a prompt are context, as TRL trains the completion alone."""
    prompt, completion = (listed(opened(listed(row[name]))) for name in ("prompt", "completion"))
    if not isinstance(prompt, list | tuple) or (isinstance(row["prompt"], str) and not isinstance(completion, list)):
        if not isinstance(completion, list | tuple) or (completion and isinstance(completion[0], str)):
            return _pair(row["prompt"], completion if completion is not None else row["completion"], row.get("context"))
        prompt = [] if blank(row["prompt"]) else [{"role": "user", "content": row["prompt"]}]
    answer = read_turns(completion, left) if isinstance(completion, list | tuple) else _pair("x", completion)[1:]
    asked = untrained(read_turns(prompt, left))
    again = asked and asked[-1] in answer  # the answer is the whole chat, as preference files hold it
    return answer if again else [*asked, *answer]


def _from_prompt_answer(row: Mapping[str, Any], left: set[str]) -> Messages:
    return _from_prompt_completion({**row, "completion": row["answer"]}, left)


def _from_chatml(row: Mapping[str, Any], left: set[str]) -> Messages:
    text = as_text(row["text"], "a text")
    found = _CHATML_TURN.findall(text)
    if not found:
        raise DataError("has a text without <|im_start|>role … <|im_end|> turns, so no answer can be told from it")
    if outside := _CHATML_BETWEEN.sub("", _CHATML_TURN.sub("", text)).strip():
        raise DataError(f"has text outside of its <|im_start|>role … <|im_end|> turns: {outside[:60]!r}")
    if broken := [content for _, content in found if "<|im_start|>" in content]:
        raise DataError(f"has a turn that another starts in, so an <|im_end|> is missing: {broken[0][:60]!r}")
    return read_turns([{"role": role, "content": content} for role, content in found], left)


def _pair(prompt: Any, answer: Any, more: Any = None) -> Messages:
    """One question, with what belongs to it below, and its answer; blank parts leave no blank lines."""
    parts = [(prompt, "a prompt"), (more, "an input")]
    asked = "\n\n".join(text for part, what in parts if not blank(part) and (text := spoken(part, what)).strip())
    if not asked:
        asked = spoken(prompt, "a prompt")  # blank text stays as it is; no prompt at all is refused
    if answer is None or (blank(answer) and not isinstance(answer, str)):
        raise DataError("has no answer")
    refuse_media(asked, "a prompt")
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": spoken(answer, "an answer")}]


def _spoken(turn: Mapping[str, Any]) -> Iterator[Row]:
    """One turn of ShareGPT, or two where an assistant says something and calls tools."""
    more = {k: v for k, v in turn.items() if k not in ("role", "content", "tool_calls")}
    calls = [
        {k: v for k, v in call.items() if k not in ("type", "function")} | call["function"]
        for call in parse_calls(turn.get("tool_calls"))
    ]
    if turn["content"] or not calls:
        yield {"from": _SPEAKERS[turn["role"]], "value": turn["content"], **more}
        more = {}
    if calls:
        yield {"from": "function_call", "value": as_json(calls if len(calls) > 1 else calls[0], "a tool call"), **more}


def _to_alpaca(chat: Messages) -> Row:
    system = {m["role"]: m["content"] for m in chat if m["role"] == "system"}
    body = [m["content"] for m in chat if m["role"] != "system"]
    if len(body) != 2:
        raise DataError(f"has {len(body)} turns; alpaca holds one question and one answer")
    return {"instruction": body[0], "input": "", "output": body[1], **system}


def _to_chatml(chat: Messages) -> Row:
    for turn in chat:
        if found := [mark for mark in ("<|im_start|>", "<|im_end|>") if mark in turn["content"]]:
            raise DataError(f"has {found[0]} inside of a {turn['role']} turn, where chatml would end that turn")
    return {"text": "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat)}


def _to_prompt_completion(chat: Messages) -> Row:
    """The answers that are trained, and what stands between them, are the completion; answers before it are context."""
    trained = [i for i, turn in enumerate(chat) if turn["role"] == "assistant" and turn.get("train") is not False]
    first = trained[0] if trained else len(chat) - 1
    if any(turn["role"] == "user" for turn in chat[first:]):
        raise DataError("has several answers that are trained; prompt-completion holds those after the last question")
    prompt = [{k: v for k, v in _with_calls(turn).items() if k != "train"} for turn in chat[:first]]
    return {"prompt": prompt, "completion": [_with_calls(turn) for turn in chat[first:]]}


def _with_calls(turn: Mapping[str, Any]) -> Row:
    return {key: parse_calls(value) if key == "tool_calls" else value for key, value in turn.items()}


_FORMATS: dict[str, tuple[set[str], Converter]] = {
    "messages": ({"messages"}, _from_turns),
    "sharegpt": ({"conversations"}, _from_turns),
    "alpaca": ({"instruction", "output"}, _from_pair("instruction", "output", "input")),
    "dolly": ({"instruction", "context", "response"}, _from_pair("instruction", "response", "context")),
    "squad": ({"question", "context", "answers"}, _from_squad),
    "sql": ({"question", "context", "answer"}, _from_pair("question", "answer", "context")),
    "prompt-completion": ({"prompt", "completion"}, _from_prompt_completion),
    "prompt-answer": ({"prompt", "answer"}, _from_prompt_answer),
    "chatml": ({"text"}, _from_chatml),
    "text": ({"text"}, _from_chatml),
}

_MORE = ("system", "context", "reasoning")

_WRITERS: dict[str, Callable[[Messages], Row]] = {
    "alpaca": _to_alpaca,
    "sharegpt": lambda chat: {"conversations": list(itertools.chain.from_iterable(map(_spoken, chat)))},
    "chatml": _to_chatml,
    "messages": lambda chat: {"messages": list(map(_with_calls, chat))},
    "prompt-completion": _to_prompt_completion,
}
