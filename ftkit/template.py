"""From `messages` to tokens with the tokenizer's own chat template, and which of the tokens are trained.

The mask is derived by rendering prefixes of the chat with that template: no marker of any model is written here.
Tools go through the template as well; for one that does not know them, `fold_tools` writes them into the text.
"""

import html
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit.errors import DataError
from ftkit.formats import as_json, from_json, items, parse_calls, plain

IGNORED = -100
Messages = Sequence[Mapping[str, Any]]
_Chat = list[dict[str, Any]]
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


@dataclass(frozen=True)
class Shown:
    """One example, token by token: what the model reads and which part the loss sees."""

    tokens: tuple[str, ...]
    trained: tuple[bool, ...]

    @property
    def share(self) -> float:
        """Share of the tokens that are trained, 0 to 1."""
        return sum(self.trained) / len(self.trained)

    def __str__(self) -> str:
        text = "".join(t if on else "·" for t, on in zip(self.tokens, self.trained, strict=True))
        return f"{text}\n{self._legend()}"

    def _legend(self) -> str:
        return (
            f"{sum(self.trained)} of {len(self.tokens)} tokens are trained ({self.share:.0%}); each · is a masked token"
        )

    def _repr_html_(self) -> str:
        spans = []
        for token, on in zip(self.tokens, self.trained, strict=True):
            label = html.escape(token).replace("\n", "⏎<br>" if on else "⏎")
            style = "background:#cfe8d5;color:#111;border-radius:3px;margin:1px" if on else "color:#999"
            spans.append(
                f'<span style="{style}" title="{label if not on else "trained"}">{label if on else "·"}</span>'
            )
        body = "".join(spans)
        return f'<div style="font-family:monospace;line-height:1.6;max-width:60em;overflow-wrap:anywhere">{body}</div><p>{self._legend()}. Hover a dot to read it.</p>'


def render(example: Mapping[str, Any] | Messages, tokenizer: Any, *, add_generation_prompt: bool = False) -> str:
    """The text that the model reads: the tokenizer's own template, with exactly one start token where the model has one.

    Args:
        example: a row with `messages` and perhaps `tools`, or the messages alone.
        tokenizer: with a chat template.
        add_generation_prompt: end where an answer would begin.

    Raises:
        DataError: no chat template, one that refuses these turns (says which), or one that leaves out calls or tools.
    """
    chat, tools = _parts(example)
    text = _render(chat, tools, tokenizer, add_generation_prompt)
    if _has_tools(chat, tools):
        _check_tools(chat, tools, tokenizer)
    return text


def _render(chat: _Chat, tools: _Chat, tokenizer: Any, add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "This tokenizer has no chat template: it belongs to a base model. Take the instruct variant, "
            "or set tokenizer.chat_template."
        )
    try:
        text = tokenizer.apply_chat_template(
            chat, tools=tools or None, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        roles = " → ".join(m["role"] for m in chat) or "a chat that begins with an answer"
        fold = "write tools into the text with fold_tools, " if _has_tools(chat, tools) else ""
        raise DataError(
            f"The chat template refuses {roles}: {error}. Fold a system turn into the first user turn (turns.fold_system), {fold}or mend the order."
        ) from error
    bos = tokenizer.bos_token
    if bos and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id] and not text.startswith(bos):
        text = bos + text
    return str(text)


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


def fold_tools(messages: Messages, tools: Any = None) -> list[dict[str, Any]]:
    """Write calls, results and schemas into the text, in the Hermes convention, for a template that knows no tools.

    Calls become `<tool_call>` JSON in the answer; the results after it become one user turn of `<tool_response>` parts, in
    the order of the calls (ids are then spent); schemas end the system turn. Folding twice changes nothing.

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
            said = [message["content"]] if message["content"] else []
            folded.append(message | {"content": "\n".join([*said, *map(_folded_call, calls)])})
    schemas = "\n".join(as_json(schema, "tools") for schema in parse_tools(tools))
    system = folded.pop(0) if folded and folded[0]["role"] == "system" else {"role": "system", "content": ""}
    if schemas and "<tools>" not in system["content"]:
        above = f"{system['content']}\n\n" if system["content"] else ""
        system = system | {"content": above + _HERMES.format(schemas)}
    return [system, *folded] if system["content"] else folded


def _folded_call(call: dict[str, Any]) -> str:
    return f"<tool_call>\n{as_json(call['function'], 'a tool call')}\n</tool_call>"


def _folded_result(message: Mapping[str, Any]) -> str:
    if message["content"].lstrip().startswith("<tool_response>"):
        return str(message["content"])
    named = {"name": message.get("name"), "content": message["content"]}
    return f"<tool_response>\n{as_json(named, 'a result') if named['name'] else message['content']}\n</tool_response>"


def tokenize(
    example: Mapping[str, Any] | Messages, tokenizer: Any, *, max_length: int | None = None
) -> dict[str, list[int]]:
    """Token ids and labels of one example; `labels` is -100 wherever the loss must not look.

    Trained are the assistant turns, each with its stop token and without the newline that templates put after it.
    A longer example is cut at `max_length` tokens.

    Raises:
        DataError: a template whose answers cannot be told from the rest.
    """
    text = render(example, tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, labels = list(encoded["input_ids"]), [IGNORED] * len(encoded["input_ids"])
    for start, end in answer_spans(example, tokenizer, text):
        inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start]
        for i in _up_to_stop(inside, ids, tokenizer):
            labels[i] = ids[i]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def answer_spans(example: Mapping[str, Any] | Messages, tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Character ranges of the assistant turns in the rendered `text`, found by rendering prefixes of the chat.

    Raises:
        DataError: an earlier turn is rendered differently once later turns follow (some reasoning templates).
    """
    spans = []
    chat, tools = _parts(example)
    for index, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        before = _render(chat[:index], tools, tokenizer, True)
        upto = _render(chat[: index + 1], tools, tokenizer)
        if not before or not upto.startswith(before):
            before = _render(chat[:index], tools, tokenizer)  # a template that ignores add_generation_prompt
        if not (text.startswith(upto) and upto.startswith(before)):
            raise DataError(
                f"The chat template rewrites turn {index + 1} once others follow, so its answer cannot be marked. "
                "Keep only the last answer of each chat, or use another template."
            )
        spans.append((len(before), len(upto)))
    return spans


def show_example(example: Mapping[str, Any] | Messages, tokenizer: Any, *, max_length: int | None = None) -> Shown:
    """Show token by token what is trained: masked tokens are dots, trained ones can be read."""
    row = tokenize(example, tokenizer, max_length=max_length)
    tokens = tuple(tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in row["input_ids"])
    return Shown(tokens, tuple(label != IGNORED for label in row["labels"]))


def trained_share(example: Mapping[str, Any] | Messages, tokenizer: Any) -> float:
    """Share of an example's tokens that the loss looks at, 0 to 1."""
    return show_example(example, tokenizer).share


def stop_ids(tokenizer: Any, model: Any = None) -> list[int]:
    """Ids that end an answer: the tokenizer's stop token and those that the model's generation config names."""
    ids = [tokenizer.eos_token_id]
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids += configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in ids if i is not None))


def _parts(example: Mapping[str, Any] | Messages) -> tuple[_Chat, _Chat]:
    """Messages and tools as a template wants them: objects in place of JSON text, and no empty keys."""
    chat = [plain(m) for m in (example["messages"] if isinstance(example, Mapping) else example)]
    for message in chat:
        if calls := parse_calls(message.pop("tool_calls", None)):
            message["tool_calls"] = calls
    return chat, parse_tools(example.get("tools")) if isinstance(example, Mapping) else []


def _up_to_stop(inside: list[int], ids: list[int], tokenizer: Any) -> list[int]:
    """Drop what a template puts after the stop token (a newline): the model never has to write it."""
    stops = [i for i in inside if ids[i] == tokenizer.eos_token_id]
    return [i for i in inside if i <= stops[-1]] if stops else inside
