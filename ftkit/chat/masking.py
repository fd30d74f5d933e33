"""Which tokens of a chat the loss looks at, and how to see it.

The mask is derived by rendering the chat with its own template: no marker of any model is written here, and nothing of
models or training is known. Where a template writes a turn differently once others follow, each answer is found in the
rendering of the whole chat by marks in its text.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftkit.chat.templates import _THINK, Messages, _Chat, _parts, _render, render
from ftkit.errors import DataError
from ftkit.tables import escaped, visible

IGNORED = -100
TRAIN_ON = "answers+reasoning"
_CONTENT, _REASONING, _CALL = range(3)  # what of a turn a mark stands in
_MARK = re.compile(r"qzmark(\d+)qz")


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
        text = visible("".join(t if on else "·" for t, on in zip(self.tokens, self.trained, strict=True)))
        return f"{text}\n{self._legend()}"

    def _legend(self) -> str:
        on, tokens = sum(self.trained), len(self.tokens)
        return f"{on} of {tokens} tokens are trained ({self.share:.0%}); each · is a masked token"

    def _repr_html_(self) -> str:
        spans = []
        for token, on in zip(self.tokens, self.trained, strict=True):
            label = escaped(token).replace("\n", "⏎<br>" if on else "⏎")
            style = "background:#cfe8d5;color:#111;border-radius:3px;margin:1px" if on else "color:#999"
            title, shown = ("trained", label) if on else (label, "·")
            spans.append(f'<span style="{style}" title="{title}">{shown}</span>')
        body = "".join(spans)
        style = "font-family:monospace;line-height:1.6;max-width:60em;overflow-wrap:anywhere"
        return f'<div style="{style}">{body}</div><p>{self._legend()}. Hover a dot to read it.</p>'


def tokenize(
    example: Mapping[str, Any] | Messages, tokenizer: Any, *, max_length: int | None = None, train_on: str = TRAIN_ON
) -> dict[str, list[int]]:
    """Token ids and labels of one example; `labels` is -100 wherever the loss must not look.

    Trained are the assistant turns, each with its stop token and without the newline that templates put after it; not
    those that say nothing or have `train` False. Of a row without messages, all of its `text` is trained. With
    `train_on="answers"` what a turn reasons before it answers is masked. A longer row is cut at `max_length` tokens.

    Raises:
        DataError: a template whose answers cannot be told from the rest.
    """
    text = render(example, tokenizer)
    document = isinstance(example, Mapping) and not example["messages"]
    spans = [(0, len(text))] if document else answer_spans(example, tokenizer, text, train_on)
    if spans and spans[-1][1] > len(text):
        text += tokenizer.eos_token
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, labels = list(encoded["input_ids"]), [IGNORED] * len(encoded["input_ids"])
    for start, end in spans:
        for i, (a, b) in enumerate(encoded["offset_mapping"]):
            if a < end and b > start:
                labels[i] = ids[i]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def answer_spans(
    example: Mapping[str, Any] | Messages, tokenizer: Any, text: str, train_on: str = TRAIN_ON
) -> list[tuple[int, int]]:
    """Character ranges of the trained assistant turns in the rendered `text`.

    The last one ends one stop token behind the text where the template writes none after a last answer.

    Raises:
        DataError: an answer that the template leaves out of the text, or writes in a way that cannot be followed.
    """
    chat, tools = _parts(example, tokenizer)
    given = example["messages"] if isinstance(example, Mapping) else example
    marked: _Marked | None = None
    spans = []
    for index, turn in enumerate(chat):
        reasoning = turn.get("reasoning_content") or _THINK.match(turn["content"])
        says = turn["content"].strip() or reasoning or "tool_calls" in turn
        if turn["role"] != "assistant" or not says or given[index].get("train") is False:
            continue
        if marked is None and not (reasoning and train_on == "answers"):
            before = _render(chat[:index], tools, tokenizer, True)
            upto = text if index == len(chat) - 1 else _render(chat[: index + 1], tools, tokenizer)
            if before and text.startswith(upto) and upto.startswith(before):
                start, end = len(before), len(upto)
                if turn["content"] and text.startswith(("<", "["), start):  # perhaps a header that nobody asks with
                    ignored = before == _render(chat[:index], tools, tokenizer)
                    start = max(start, text.find(turn["content"].strip(), start, end)) if ignored else start
                spans.append((start, _stopped(text, start, end, turn, tokenizer)))
                continue
        marked = marked or _Marked(chat, tools, tokenizer, text)
        start, end = marked.span(index, with_reasoning=train_on != "answers")
        spans.append((start, _stopped(text, start, end, turn, tokenizer)))
    return spans


def _stopped(text: str, start: int, end: int, turn: Mapping[str, Any], tokenizer: Any) -> int:
    """Where an answer ends: with its stop token, or with the marker of the next role where a template has no other.

    What a template puts after a stop token (a newline) the model never has to write.
    """
    stop, said = tokenizer.eos_token, turn["content"].strip()
    last = text.rfind(stop, start, end) if stop else -1
    found = text.rfind(said, start, last if last > start else end) if said else start  # "d" is in <|im_end|> too
    found = text.rfind(said, start, end) if found < 0 else found
    if stop and (at := last if found < 0 else text.find(stop, found + len(said), end)) >= 0:
        return at + len(stop)
    specials = tuple(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    if stop and end == len(text) and text.rstrip().endswith(tuple(filter(None, (said, "</tool_call>")))):
        return end + len(stop)
    if specials and not text[start:end].rstrip().endswith(specials):
        behind = text[end:].lstrip()
        if following := max((token for token in specials if behind.startswith(token)), key=len, default=""):
            return text.index(following, end) + len(following)
    return end


class _Marked:
    """A chat with a mark inside of all that its turns say, and where these marks stand in the rendered text.

    A mark stands in the middle of a text, so that what a template asks of its ends stays as it is.
    """

    def __init__(self, chat: _Chat, tools: _Chat, tokenizer: Any, text: str) -> None:
        self.chat, self.tools, self.tokenizer, self.text = chat, tools, tokenizer, text
        self.turns = [_with_marks(turn, 3 * index) for index, turn in enumerate(chat)]
        rendered, self.places = self.rendered(len(chat))
        self.followed = rendered == text

    def rendered(self, turns: int, ask: bool = False) -> tuple[str, dict[int, int]]:
        """The text of so many turns without their marks, and where each mark stood first."""
        text, places, at = "", dict[int, int](), 0
        marked = _render(self.turns[:turns], self.tools, self.tokenizer, ask)
        for found in _MARK.finditer(marked):
            text += marked[at : found.start()]
            places.setdefault(int(found[1]), len(text))
            at = found.end()
        return text + marked[at:], places

    def span(self, index: int, with_reasoning: bool) -> tuple[int, int]:
        """From where the model would be asked for this turn to where the turn's own rendering ends."""
        own = {mark: place for mark, place in self.places.items() if mark // 3 == index}
        if not own or not self.followed:
            raise DataError(
                f"The chat template rewrites turn {index + 1} once others follow, so its answer cannot be marked. "
                "Keep only the last answer of each chat, or use another template."
            )
        before, asked = self.rendered(index, ask=True)
        anchor = max((mark for mark in asked if mark in self.places), key=lambda mark: asked[mark], default=None)
        here, there = (0, 0) if anchor is None else (self.places[anchor], asked[anchor])
        start = here + len(_shared(self.text[here : min(own.values())], before[there:]))
        upto, told = self.rendered(index + 1)
        last = max((mark for mark in own if mark in told), key=lambda mark: own[mark])
        end = own[last] + len(_shared(self.text[own[last] :], upto[told[last] :]))
        if any(start <= place < end for mark, place in self.places.items() if mark // 3 != index):
            raise DataError(
                f"The chat template writes another turn inside of turn {index + 1}, so its answer cannot be marked. "
                "Take out what that turn says beside its calls, or use another template."
            )
        if not with_reasoning and 3 * index + _REASONING in own:
            start = self._behind_reasoning(index, own[3 * index + _REASONING])
        return start, end

    def _behind_reasoning(self, index: int, place: int) -> int:
        """Behind the tag that closes a turn's reasoning, in the middle of which `place` is."""
        turn = self.chat[index]
        inline = _THINK.match(turn["content"])
        said = (turn.get("reasoning_content") or (inline[1] if inline else "")).strip()
        closing = re.compile(r"\s*<[^<>]*>\s*").match(self.text, place + len(said) - len(said) // 2)
        return closing.end() if closing else place + len(said) - len(said) // 2


def _with_marks(turn: dict[str, Any], first: int) -> dict[str, Any]:
    def marked(text: str, kind: int) -> str:
        middle = len(text) - len(text.lstrip()) + len(text.strip()) // 2
        return f"{text[:middle]}qzmark{first + kind}qz{text[middle:]}" if text.strip() else text

    inline = _THINK.match(turn["content"]) if turn["role"] == "assistant" else None
    body = turn["content"][inline.end() :] if inline else turn["content"]
    head = turn["content"][: inline.end()].replace(inline[1], marked(inline[1], _REASONING)) if inline else ""
    result = turn | {"content": head + marked(body, _CONTENT)}
    for key in ("reasoning_content", "thinking", "reasoning"):
        if key in turn:
            result[key] = marked(turn[key], _REASONING)
    if "tool_calls" in turn:
        result["tool_calls"] = []
        for call in turn["tool_calls"]:
            name = marked(call["function"]["name"], _CALL)
            result["tool_calls"].append(call | {"function": call["function"] | {"name": name}})
    return result


def _shared(text: str, other: str) -> str:
    """What both begin with; where they part inside of a tag or of a think block, without its beginning."""
    shared = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))
    return shared if shared == other else re.sub(r"(?:<think>|[<\[][^<>\[\]\s]*)\Z", "", shared)


def show_example(
    example: Mapping[str, Any] | Messages, tokenizer: Any, *, max_length: int | None = None, train_on: str = TRAIN_ON
) -> Shown:
    """Show token by token what is trained: masked tokens are dots, trained ones can be read."""
    row = tokenize(example, tokenizer, max_length=max_length, train_on=train_on)
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
