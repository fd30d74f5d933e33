"""The rows before training, as tokens: which of them the loss sees, where an answer ends, and what the model knows.

The mask is judged by what it trains, decoded, against the messages. Knows no settings but the length of a row.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ftkit import chat, data, models
from ftkit.preflight.report import Finding, finding, quoted
from ftkit.preflight.rows import TokenisedPart, squeezed

_DECODED = 2_000  # rows whose mask is read as text
_LOW_SHARE = 0.02
_TELLING = 8  # characters of a prompt that cannot stand in an answer by chance
_LAST = 3  # tokens of an answer among which its stop token is looked for
_ORDINARY = 1_000  # ordinary tokens that the special ones are held against
_SMALL = 0.05  # of the ordinary norm: as good as zero
_SAME = 0.01  # of the ordinary norm: as good as equal


def trained_share(part: TokenisedPart, max_length: int) -> float:
    """Share of a part's tokens that the loss sees after the cut, 0 to 1."""
    cut = [row.labels[:max_length] for row in part.readable]
    return sum(map(_trained, cut)) / max(1, sum(map(len, cut)))


def check_masks(
    parts: Sequence[TokenisedPart], tokenizer: Any, model: Any, max_length: int, *, reasoning: bool = True
) -> Iterator[Finding]:
    """All findings about what is trained in these parts; `model` may be None, and may know more stop tokens.

    `reasoning` says whether it should be trained.
    """
    stops = set(chat.stop_ids(tokenizer, model))
    for part in parts:
        yield from _check_trained(part, max_length)
        yield from _check_cut(part, max_length)
        yield from _check_text(part, tokenizer, reasoning)
        yield from _check_stop(part, tokenizer, stops)
        yield from _check_start(part, tokenizer)


def _trained(labels: Sequence[int]) -> int:
    """How many tokens the loss sees."""
    return sum(label != chat.IGNORED for label in labels)


def _check_trained(part: TokenisedPart, max_length: int) -> Iterator[Finding]:
    empty = [row for row in part.readable if not _trained(row.labels[:max_length])]
    numbers = [row.number for row in empty]
    cut = sum(_trained(row.labels) > 0 for row in empty)
    if numbers:
        id = "no-trained-tokens" if len(empty) == len(part.readable) else "rows-without-trained-tokens"
        yield part.finding(id, numbers, "cut" if cut else "", cut=cut, limit=max_length)
    share = trained_share(part, max_length)
    if part.name == "train" and 0 < share < _LOW_SHARE:
        yield finding("low-trained-share", share=share)


def _check_cut(part: TokenisedPart, max_length: int) -> Iterator[Finding]:
    """Answers that lose their ends; those that are lost as a whole are a finding of their own."""
    lost = {row.number: _trained(row.labels[max_length:]) for row in part.readable if _trained(row.labels[:max_length])}
    if cut := [number for number, tokens in lost.items() if tokens]:
        yield part.finding("answers-cut", cut, limit=max_length, lost=sum(lost.values()))


def _check_text(part: TokenisedPart, tokenizer: Any, reasoning: bool) -> Iterator[Finding]:
    """Read the mask as text, on a sample: it must hold what the answers say, and nothing of what others say."""
    asked: dict[int, str] = {}
    lost: dict[str, list[int]] = {}
    for row in part.chats[:: max(1, len(part.chats) // _DECODED)]:
        if not _trained(row.labels):
            continue
        trained = squeezed(tokenizer.decode([label for label in row.labels if label != chat.IGNORED]))
        turns = [data.plain(message) for message in row.example["messages"]]
        answers = [turn for turn in turns if turn["role"] == "assistant" and turn.get("train") is not False]
        for turn in turns:
            prompt = squeezed(turn["content"])
            said = turn["role"] in ("user", "system") and len(prompt) >= _TELLING and prompt in trained
            if said and not any(prompt in squeezed(str(answer)) for answer in answers):
                asked.setdefault(row.number, turn["content"])
        for kind in set(itertools.chain.from_iterable(_missing(answer, trained) for answer in answers)):
            lost.setdefault(kind, []).append(row.number)
    if asked:
        yield part.finding("prompt-trained", asked, shown=quoted(next(iter(asked.values()))))
    if not reasoning:
        lost.pop("reasoning", None)
    for kind, numbers in lost.items():
        yield part.finding(f"{kind}-untrained", numbers)


def _missing(answer: Mapping[str, Any], trained: str) -> Iterator[str]:
    """Which of answer, reasoning and call of a turn does not stand in the trained text."""
    inline = re.match(r"\s*<think>(.*?)</think>(.*)", answer["content"], re.DOTALL)
    reasoning, said = inline.groups() if inline else ("", answer["content"])
    if squeezed(said) not in trained:
        yield "answer"
    if any(squeezed(text) not in trained for text in (reasoning, answer.get("reasoning_content", ""))):
        yield "reasoning"
    for call in data.parse_calls(answer.get("tool_calls")):
        for text in _texts(call["function"]["arguments"]):
            spellings = (text, data.as_json(text, "a call")[1:-1], repr(text)[1:-1])
            if not any(squeezed(spelling) in trained for spelling in spellings):
                yield "call"


def _texts(value: Any) -> Iterator[str]:
    """All texts inside of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _check_stop(part: TokenisedPart, tokenizer: Any, stops: set[int]) -> Iterator[Finding]:
    ends = {row.number: _ends(row.labels) for row in part.chats}
    markers = stops | {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    endless: dict[int, list[int]] = {}
    for number, answers in ends.items():
        for place, last in enumerate(answers, 1):  # inside of a chat a template may end answers in another way
            if not (stops if place == len(answers) else markers).intersection(last):
                endless.setdefault(number, last)
    if not endless:
        return
    some = any(stops.intersection(answers[-1]) for answers in ends.values() if answers)
    names = ", ".join(tokenizer.decode([i]) for i in sorted(stops)) or "none"
    shown = quoted(tokenizer.decode(next(iter(endless.values()))))
    yield part.finding("stop-token-untrained", endless, "some" if some else "", stops=names, shown=shown)


def _ends(labels: Sequence[int]) -> list[list[int]]:
    """The last tokens of each stretch of trained tokens."""
    stretches = itertools.groupby(labels, key=lambda label: label != chat.IGNORED)
    return [list(stretch)[-_LAST:] for trained, stretch in stretches if trained]


def _check_start(part: TokenisedPart, tokenizer: Any) -> Iterator[Finding]:
    start = tokenizer.bos_token_id
    if start is None:
        return
    expected = tokenizer("")["input_ids"][:1] == [start]
    twice = [row.number for row in part.readable if list(row.ids[:2]) == [start, start]]
    never = [row.number for row in part.readable if expected and list(row.ids[:1]) != [start]]
    if twice:
        yield part.finding("double-bos", twice, token=tokenizer.bos_token)
    if never:
        yield part.finding("missing-bos", never, token=tokenizer.bos_token)


def check_special_tokens(tokenizer: Any) -> Iterator[Finding]:
    """Whether an answer can end, and a row be padded."""
    stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if stop is None:
        yield finding("no-stop-token")
    if pad is None:
        yield finding("no-pad-token")
    elif pad == stop:
        yield finding("pad-is-stop", tokenizer=tokenizer)


def check_known_tokens(
    parts: Sequence[TokenisedPart], tokenizer: Any, model: Any, max_length: int
) -> Iterator[Finding]:
    """Tokens that this model cannot read, does not know, or does not stop at."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(configured if isinstance(configured, list) else [configured]) - {None}
    if ids and tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        names = ", ".join(tokenizer.decode([i]) for i in sorted(ids))
        yield finding("stop-token-differs", names=names, tokenizer=tokenizer)
    for part in parts:
        yield from _check_context(part, models.context_tokens(model), max_length)
    weight = getattr(model.get_input_embeddings(), "weight", None)
    if weight is not None and weight.ndim == 2 and weight.is_floating_point():  # else it is packed in some other way
        for part in parts:
            yield from _check_range(part, len(weight))
        if weight.device.type != "meta":
            yield from _check_embeddings(parts, tokenizer, weight.detach())


def _check_context(part: TokenisedPart, context: int | None, max_length: int) -> Iterator[Finding]:
    if context is None or max_length <= context:
        return
    if over := [row.number for row in part.readable if len(row.ids) > context]:
        yield part.finding("longer-than-context", over, context=context)


def _check_range(part: TokenisedPart, size: int) -> Iterator[Finding]:
    highest = {row.number: max(row.ids, default=0) for row in part.readable}
    if over := {number: token for number, token in highest.items() if token >= size}:
        yield part.finding("token-outside-embeddings", over, highest=max(over.values()), size=size)


def _check_embeddings(parts: Sequence[TokenisedPart], tokenizer: Any, weight: Any) -> Iterator[Finding]:
    """Special tokens whose embeddings are about zero, or equal one another: nobody ever trained them."""
    import torch

    special, seen = set(tokenizer.added_tokens_decoder), set()
    for part in parts:
        for row in part.readable:
            seen |= special.intersection(row.ids)
    used = sorted(token for token in seen if token < len(weight))
    ordinary = [i for i in range(0, len(weight), max(1, len(weight) // _ORDINARY)) if i not in special]
    if not used or not ordinary:
        return
    usual = float(weight[torch.tensor(ordinary, device=weight.device)].float().norm(dim=1).median())
    vectors = weight[torch.tensor(used, device=weight.device)].float()
    small = vectors.norm(dim=1) < _SMALL * usual
    same = (torch.cdist(vectors, vectors).fill_diagonal_(float("inf")) < _SAME * usual).any(dim=1)
    if untrained := [used[i] for i in (small | same).nonzero().flatten().tolist()]:
        names = ", ".join(tokenizer.decode([i]) for i in untrained)
        why = "equal to one another" if bool((same & ~small).any()) else "about zero"
        yield finding("template-tokens-untrained", names=names, why=why)
