"""Which tokens of a chat the loss looks at, and how to see it.

The mask is derived by rendering prefixes of the chat with its own template: no marker of any model is written here,
and nothing of models or training is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftkit.chat.templates import Messages, _parts, _render, render
from ftkit.errors import DataError
from ftkit.tables import escaped, visible

IGNORED = -100


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
        return (
            f"{sum(self.trained)} of {len(self.tokens)} tokens are trained ({self.share:.0%}); each · is a masked token"
        )

    def _repr_html_(self) -> str:
        spans = []
        for token, on in zip(self.tokens, self.trained, strict=True):
            label = escaped(token).replace("\n", "⏎<br>" if on else "⏎")
            style = "background:#cfe8d5;color:#111;border-radius:3px;margin:1px" if on else "color:#999"
            spans.append(
                f'<span style="{style}" title="{label if not on else "trained"}">{label if on else "·"}</span>'
            )
        body = "".join(spans)
        style = "font-family:monospace;line-height:1.6;max-width:60em;overflow-wrap:anywhere"
        return f'<div style="{style}">{body}</div><p>{self._legend()}. Hover a dot to read it.</p>'


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


def _up_to_stop(inside: list[int], ids: list[int], tokenizer: Any) -> list[int]:
    """Drop what a template puts after the stop token (a newline): the model never has to write it."""
    stops = [i for i in inside if ids[i] == tokenizer.eos_token_id]
    return [i for i in inside if i <= stops[-1]] if stops else inside
