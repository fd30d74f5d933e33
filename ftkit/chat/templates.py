"""From `messages` to the text that a model reads, by the tokenizer's own chat template.

Tools go through the template as well. For a template that refuses a system turn, neighbours of one role or tools, the
`fold_` functions and `data.merge_turns` bring a chat into the shape that it takes. Knows nothing of tokens and masks.
"""

import itertools
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ftkit.data import as_json, parse_calls, parse_tools, plain
from ftkit.errors import DataError

Messages = Sequence[Mapping[str, Any]]

_Chat = list[dict[str, Any]]
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names under which templates look for it
_READS_REASONING = re.compile(r"reasoning_content|[.'\"](?:thinking|reasoning)\b")
_THINK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_BROKEN = "it is broken. Take the template that the model's authors publish."
_SECONDS = 10  # of computing that one rendering may take
# what a template raises beside jinja2's own: it is a small program, so anything that a program may get wrong
_OF_PROGRAMS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError, MemoryError)
_LARGEST = 1_000_000  # characters that a template may add of its own

_HERMES = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def render(example: Mapping[str, Any] | Messages, tokenizer: Any, *, add_generation_prompt: bool = False) -> str:
    """The text that the model reads, with exactly one start token where the model has one.

    `example` is a row with `messages` and perhaps `tools`, or the messages alone; a row without messages is the
    document in its `text`, between start and stop token. `add_generation_prompt` ends it where an answer would begin.

    Raises:
        DataError: no chat template, one that refuses these turns (says which), or one that leaves out calls or tools.
    """
    if isinstance(example, Mapping) and not example["messages"]:
        end = "" if add_generation_prompt else tokenizer.eos_token or ""
        text = example.get("text") or ""
        return _with_start(text if text.endswith(end) else text + end, tokenizer)
    chat, tools = _parts(example, tokenizer)
    text = _render(chat, tools, tokenizer, add_generation_prompt)
    if _has_tools(chat, tools):
        _check_tools(chat, tools, tokenizer)
    return text


def _with_start(text: str, tokenizer: Any) -> str:
    bos = tokenizer.bos_token
    wanted = bos and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id] and not text.startswith(bos)
    return f"{bos}{text}" if wanted else text


def _render(chat: _Chat, tools: _Chat, tokenizer: Any, ask: bool = False) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "This tokenizer has no chat template: it belongs to a base model. Take the instruct variant, "
            "or set tokenizer.chat_template."
        )
    from jinja2 import TemplateError

    calls = itertools.chain.from_iterable(turn.get("tool_calls", ()) for turn in chat)
    arguments = [call["function"]["arguments"] for call in calls]
    try:
        try:
            text = _applied(chat, tools, tokenizer, ask)
            joined = any(given and str(given) in text for given in arguments)  # Python's spelling, as in {'a': None}
        except TypeError:  # objects cannot be joined to text
            if not arguments:
                raise
            joined = True
        if joined:
            text = _applied(_arguments_as_text(chat), tools, tokenizer, ask)
    except TimeoutError as error:
        raise DataError(f"The chat template did not end within {_SECONDS} seconds of computing: {_BROKEN}") from error
    except (TemplateError, *_OF_PROGRAMS) as error:
        roles = " → ".join(m["role"] for m in chat) or "a chat that begins with an answer"
        fold = "write tools into the text with fold_tools, " if _has_tools(chat, tools) else ""
        reason = str(error)[:300] or type(error).__name__
        raise DataError(
            f"The chat template refuses {roles}: {reason}. Fold a system turn into the first user turn "
            f"(chat.fold_system), {fold}or mend the order."
        ) from error
    if len(text) > _LARGEST and len(text) > _LARGEST + 20 * len(str(chat)) + 20 * len(str(tools)):
        raise DataError(f"The chat template makes {len(text):,} characters of a chat of {len(str(chat)):,}: {_BROKEN}")
    return _with_start(text, tokenizer)


def _applied(chat: _Chat, tools: _Chat, tokenizer: Any, ask: bool) -> str:
    with _bounded():
        return str(tokenizer.apply_chat_template(chat, tools=tools or None, tokenize=False, add_generation_prompt=ask))


@contextmanager
def _bounded() -> Iterator[None]:
    """Raise TimeoutError in a template that loops without end: in the main thread, and where there are signals."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError

    handler, timer = signal.signal(signal.SIGVTALRM, stop), signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, *timer)
        signal.signal(signal.SIGVTALRM, handler or signal.SIG_DFL)


def _arguments_as_text(chat: _Chat) -> _Chat:
    """The arguments of calls as JSON text, for a template that joins them to other text."""

    def spelt(call: dict[str, Any]) -> dict[str, Any]:
        return call | {"function": call["function"] | {"arguments": as_json(call["function"]["arguments"], "a call")}}

    return [m | {"tool_calls": list(map(spelt, m["tool_calls"]))} if "tool_calls" in m else m for m in chat]


def _has_tools(chat: _Chat, tools: _Chat) -> bool:
    return bool(tools) or any(m["role"] == "tool" or "tool_calls" in m for m in chat)


def _check_tools(chat: _Chat, tools: _Chat, tokenizer: Any) -> None:
    """Raise for calls, results and schemas that the template leaves out: each gets a mark, which must be in the text.

    Schemas that a system turn spells out already may be left out.
    """
    marks: dict[str, str] = {}

    def mark(what: str) -> str:
        marks[f"mark{len(marks)}mark"] = what
        return list(marks)[-1]

    def renamed(item: dict[str, Any], what: str) -> dict[str, Any]:
        return item | {"function": item["function"] | {"name": mark(f"the {what} of {item['function']['name']}")}}

    spelt_out = "".join(m["content"] for m in chat[:1] if m["role"] == "system")
    quoted = set(re.findall(r"""["'](\w[\w.-]*)["']""", spelt_out))
    schemas = [t if t["function"]["name"] in quoted else renamed(t, "schema") for t in tools]
    marked = []
    for message in chat:
        if "tool_calls" in message:
            message = message | {"tool_calls": [renamed(call, "call") for call in message["tool_calls"]]}
        elif message["role"] == "tool":
            message = message | {"content": mark("a tool's result")}
        marked.append(message)
    text = _render(marked, schemas, tokenizer)
    if lost := list(dict.fromkeys(what for key, what in marks.items() if key not in text)):
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise DataError(
            f"The chat template leaves out {', '.join(lost[:3])}{more}: it does not know tool calls. Write them into "
            "the text with fold_tools(messages, tools), or take a model whose template knows them."
        )


def fold_tools(messages: Messages, tools: Any = None) -> list[dict[str, Any]]:
    """Write calls, results and schemas into the text, in the Hermes convention, for a template that knows no tools.

    Calls become `<tool_call>` JSON in the answer; the results after it become one user turn of `<tool_response>` parts,
    in the order of the calls (ids are then spent); schemas end the system turn. Folding twice changes nothing.

    Example:
        examples.map(lambda row: {"messages": fold_tools(row["messages"], row["tools"]), "tools": None})
    """
    folded: _Chat = []
    order: dict[str, int] = {}
    for is_result, run in itertools.groupby(_parts(messages)[0], key=lambda m: m["role"] == "tool"):
        if is_result:
            results = sorted(run, key=lambda m: order.get(str(m.get("tool_call_id")), len(order)))
            folded.append({"role": "user", "content": "\n".join(map(_folded_result, results))})
            continue
        for message in run:
            calls = message.pop("tool_calls", [])
            order = {str(call.get("id")): number for number, call in enumerate(calls)}
            told = [f"<tool_call>\n{as_json(call['function'], 'a tool call')}\n</tool_call>" for call in calls]
            folded.append(message | {"content": "\n".join(filter(None, (message["content"], *told)))})
    schemas = "\n".join(as_json(schema, "tools") for schema in parse_tools(tools))
    system = folded.pop(0) if folded and folded[0]["role"] == "system" else {"role": "system", "content": ""}
    if schemas and "<tools>" not in system["content"]:
        above = f"{system['content']}\n\n" if system["content"] else ""
        system = system | {"content": above + _HERMES.format(schemas)}
    return [system, *folded] if system["content"] else folded


def _folded_result(message: Mapping[str, Any]) -> str:
    if message["content"].lstrip().startswith("<tool_response>"):
        return str(message["content"])
    named = {"name": message.get("name"), "content": message["content"]}
    return f"<tool_response>\n{as_json(named, 'a result') if named['name'] else message['content']}\n</tool_response>"


def _parts(example: Mapping[str, Any] | Messages, tokenizer: Any = None) -> tuple[_Chat, _Chat]:
    """Messages and tools as a template wants them: objects in place of JSON text, and no empty keys.

    For a template that writes out reasoning itself, `<think>` at the head of an answer becomes that reasoning.
    """
    chat = [plain(m) for m in (example["messages"] if isinstance(example, Mapping) else example)]
    for message in chat:
        if tokenizer is not None:
            message.pop("train", None)
        if calls := parse_calls(message.pop("tool_calls", None)):
            message["tool_calls"] = calls
        thinks = message["role"] == "assistant" and ("reasoning_content" in message or "<think>" in message["content"])
        if thinks and _READS_REASONING.search(str(getattr(tokenizer, "chat_template", ""))):
            inline = _THINK.match(message["content"])
            reasoning = message.get("reasoning_content") or (inline[1].strip("\n") if inline else "")
            if inline and inline[1].strip() == reasoning.strip():
                message["content"] = message["content"][inline.end() :]
            message |= dict.fromkeys(_REASONING, reasoning) if reasoning else {}
    return chat, parse_tools(example.get("tools")) if isinstance(example, Mapping) else []


def fold_reasoning(messages: Messages) -> list[dict[str, Any]]:
    """Write what an assistant turn reasons into its text, as a `<think>` block, for a template that leaves it out.

    Folding twice changes nothing.

    Example:
        examples.map(lambda row: {"messages": fold_reasoning(row["messages"])})
    """
    folded = []
    for message in map(plain, messages):
        if reasoning := message.pop("reasoning_content", ""):
            message["content"] = f"<think>\n{reasoning}\n</think>\n\n{message['content']}"
        folded.append(message)
    return folded


def fold_system(messages: Messages) -> _Chat:
    """Put what the system turn says at the head of the first user turn, for a template that refuses a system role.

    Folding twice changes nothing. Ask the trained model in the same way: `fold_system` its prompts too.

    Example:
        examples.map(lambda row: {"messages": fold_system(row["messages"])})
    """
    chat = list(map(plain, messages))
    if not chat or chat[0]["role"] != "system":
        return chat
    said, rest = chat[0]["content"], chat[1:]
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": said}, *rest] if said else rest
    asked = "\n\n".join(filter(None, (said, rest[0]["content"])))
    return [rest[0] | {"content": asked}, *rest[1:]]
