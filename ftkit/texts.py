"""The plain text of examples: whole chats, prompts or answers, read when they are asked for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from ftkit.errors import ConfigError

PARTS = ("all", "prompt", "answer")
_BATCH = 1_000


class Texts(Sequence[str]):
    """The texts of a Dataset's rows, read when they are asked for; a million of them never stand in memory."""

    def __init__(self, examples: Any, part: str = "all") -> None:
        if part not in PARTS:
            raise ConfigError(f"on={part!r} is not one of {', '.join(PARTS)}.")
        self._examples, self._part = examples, part

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [text_of(m, self._part) for m in self._examples[i]["messages"]]
        return text_of(self._examples[i]["messages"], self._part)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BATCH):
            yield from self[start : start + _BATCH]


def text_of(messages: Sequence[Mapping[str, Any]], part: str = "all") -> str:
    """The text of a chat: all turns, those before the last answer ("prompt"), or the last answer ("answer")."""
    turns = {"all": messages, "prompt": messages[:-1], "answer": messages[-1:]}[part]
    return "\n\n".join("\n".join(str(m[k]) for k in ("content", "tool_calls") if m.get(k)) for m in turns)
