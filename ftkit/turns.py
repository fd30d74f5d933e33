"""Turns in a shape that a strict chat template takes: a system turn folded away, neighbours of one role joined."""

from collections.abc import Mapping, Sequence
from typing import Any

from ftkit.formats import plain

_Chat = list[dict[str, Any]]


def fold_system(messages: Sequence[Mapping[str, Any]]) -> _Chat:
    """Put what the system turn says at the head of the first user turn, for a template that refuses a system role.

    Folding twice changes nothing. Ask the trained model in the same way: `fold_system` its prompts too.

    Example:
        examples.map(lambda row: {"messages": fold_system(row["messages"])})
    """
    chat = [plain(message) for message in messages]
    if not chat or chat[0]["role"] != "system":
        return chat
    said, rest = chat[0]["content"], chat[1:]
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": said}, *rest] if said else rest
    return [rest[0] | {"content": _joined(said, rest[0]["content"])}, *rest[1:]]


def merge_turns(messages: Sequence[Mapping[str, Any]]) -> _Chat:
    """Join neighbouring turns of one role, with a blank line between, for a template that wants roles to alternate.

    Turns with tool calls and tool results stay apart: each call belongs to its own turn.

    Example:
        examples.map(lambda row: {"messages": merge_turns(row["messages"])})
    """
    merged: _Chat = []
    for message in map(plain, messages):
        last = merged[-1] if merged else {}
        if last.get("role") == message["role"] and _is_plain_text(last) and _is_plain_text(message):
            merged[-1] = last | {"content": _joined(last["content"], message["content"])}
        else:
            merged.append(message)
    return merged


def _is_plain_text(message: Mapping[str, Any]) -> bool:
    return message["role"] != "tool" and not message.get("tool_calls")


def _joined(first: str, second: str) -> str:
    return "\n\n".join(part for part in (first, second) if part)
