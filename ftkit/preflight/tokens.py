"""The rows before training, as tokens: which of them the loss sees, where an answer ends, and what the model knows.

The mask is judged by what it trains, decoded, against the messages. Knows no settings but the length of a row.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ftkit import chat, data, models
from ftkit.preflight.report import Finding, quoted
from ftkit.preflight.rows import TokenisedPart, squeezed

MASK_CHECKS = {
    "no-trained-tokens": "rows have tokens that the loss sees",
    "rows-without-trained-tokens": "every row has a token that the loss sees",
    "low-trained-share": "the loss sees a fair share of the tokens",
    "prompt-trained": "the prompts are masked",
    "answer-untrained": "the answers are trained",
    "reasoning-untrained": "the reasoning is trained, where it should be",
    "call-untrained": "the calls are trained as they are",
    "answers-cut": "max_length cuts no answer",
    "stop-token-untrained": "each answer ends in a stop token that is trained",
    "double-bos": "no row begins with two start tokens",
    "missing-bos": "each row has the start token that the model expects",
}

SPECIAL_TOKEN_CHECKS = {
    "no-stop-token": "the tokenizer has a stop token",
    "no-pad-token": "the tokenizer has a pad token",
    "pad-is-stop": "pad and stop are two tokens",
}

KNOWN_TOKEN_CHECKS = {
    "longer-than-context": "every row fits into the model's context",
    "stop-token-differs": "the model's generation config stops at the tokenizer's stop token",
    "token-outside-embeddings": "every token has a row in the model's embedding",
    "template-tokens-untrained": "the template's special tokens were trained with the base model",
}

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
    numbers, seen = [row.number for row in empty], len(part.readable)
    reason = "their labels are all masked"
    fix = "Derive the labels with chat.tokenize; show_example shows a row token by token."
    if cut := sum(_trained(row.labels) > 0 for row in empty):
        reason = f"the answers of {cut} lie beyond max_length={max_length}"
        fix = f"Raise max_length to {part.longest}."
    if empty and len(empty) == seen:
        yield Finding(
            id="no-trained-tokens",
            severity="error",
            title=f"No {part.name} row has a token that the loss sees: it would be 0 or not a number.",
            evidence=f"{seen} {part.name} rows; {reason}",
            fix=fix,
            field="max_length",
            rows=part.if_train(numbers),
        )
    elif empty:
        yield Finding(
            id="rows-without-trained-tokens",
            severity="warning",
            title=f"{len(empty)} of {seen} {part.name} rows have no token that the loss sees.",
            evidence=f"{part.listed(numbers)}; {reason}",
            fix=f"{fix} As they are, these rows teach nothing.",
            field="max_length",
            rows=part.if_train(numbers),
        )
    share = trained_share(part, max_length)
    if part.name == "train" and 0 < share < _LOW_SHARE:
        yield Finding(
            id="low-trained-share",
            severity="note",
            title="The loss sees few of the tokens: most of the time goes into reading prompts.",
            evidence=f"{share:.1%} of the tokens are trained",
            fix="Shorten prompts where they repeat themselves; else this is the task.",
        )


def _check_cut(part: TokenisedPart, max_length: int) -> Iterator[Finding]:
    """Answers that lose their ends; those that are lost as a whole are a finding of their own."""
    lost = {row.number: _trained(row.labels[max_length:]) for row in part.readable if _trained(row.labels[:max_length])}
    if cut := [number for number, tokens in lost.items() if tokens]:
        yield Finding(
            id="answers-cut",
            severity="warning",
            title=f"max_length={max_length} cuts the answers of {len(cut)} of {len(part.readable)} {part.name} rows, "
            "and with them the stop token: such answers teach the model not to end.",
            evidence=f"{part.listed(cut)}; {sum(lost.values()):,} answer tokens are lost",
            fix=f"Set max_length={part.longest}, or leave these rows out.",
            field="max_length",
            rows=part.if_train(cut),
        )


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
        for kind in {kind for answer in answers for kind in _missing(answer, trained)}:
            lost.setdefault(kind, []).append(row.number)
    if asked:
        yield Finding(
            id="prompt-trained",
            severity="error",
            title="The loss sees prompts: the model would learn to ask, not to answer.",
            evidence=f"{part.listed(asked)}, such as {quoted(next(iter(asked.values())))}",
            fix="Mask all but the answers: chat.tokenize does.",
            rows=part.if_train(asked),
        )
    if not reasoning:
        lost.pop("reasoning", None)
    for kind, numbers in lost.items():
        title, fix = _LOST[kind]
        yield Finding(
            id=f"{kind}-untrained",
            severity="warning",
            title=title,
            evidence=part.listed(numbers),
            fix=fix,
            rows=part.if_train(numbers),
        )


_LOST = {
    "answer": (
        "What an answer says is not, or not wholly, among the trained tokens of some rows.",
        "Look at one with chat.show_example; the template may rewrite or leave out answers.",
    ),
    "reasoning": (
        "The reasoning of some answers is left out by the template: it is not trained.",
        "Write it into the text with chat.fold_reasoning where the template knows none; "
        "where it keeps that of the last answer alone, give each answer a row of its own.",
    ),
    "call": (
        "The arguments of some calls are not among the trained tokens as they stand in the row.",
        "Look at one with chat.show_example; the template may rewrite or leave out arguments.",
    ),
}


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
    severity, which = "warning", f"The answers of {len(endless)} {part.name} rows do not end"
    fix = "Look at one of these rows with chat.show_example."
    if not any(stops.intersection(answers[-1]) for answers in ends.values() if answers):
        severity, which = "error", "No answer ends"
        fix = "Set tokenizer.eos_token to the token with which the template ends an answer."
    names = ", ".join(tokenizer.decode([i]) for i in sorted(stops)) or "none"
    shown = quoted(tokenizer.decode(next(iter(endless.values()))))
    yield Finding(
        id="stop-token-untrained",
        severity=severity,
        title=f"{which} in a stop token: the model would not learn to stop.",
        evidence=f"{part.listed(endless)}; stop tokens: {names}; an answer ends with {shown}",
        fix=fix,
        rows=part.if_train(endless),
    )


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
        yield Finding(
            id="double-bos",
            severity="error",
            title=f"Rows begin with two start tokens ({tokenizer.bos_token}): the model has never seen that.",
            evidence=part.listed(twice),
            fix="Tokenise rendered text with add_special_tokens=False, and let the template write one.",
            rows=part.if_train(twice),
        )
    if never:
        yield Finding(
            id="missing-bos",
            severity="warning",
            title=f"Rows lack the start token ({tokenizer.bos_token}) that this tokenizer puts before plain text.",
            evidence=part.listed(never),
            fix="Tokenise with chat.tokenize, which puts it there.",
            rows=part.if_train(never),
        )


def check_special_tokens(tokenizer: Any) -> Iterator[Finding]:
    """Whether an answer can end, and a row be padded."""
    stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if stop is None:
        yield Finding(
            id="no-stop-token",
            severity="error",
            title="The tokenizer has no stop token: answers would never end.",
            evidence="tokenizer.eos_token is None",
            fix="Set tokenizer.eos_token to the token with which the template ends an answer.",
        )
    if pad is None:
        yield Finding(
            id="no-pad-token",
            severity="error",
            title="The tokenizer has no pad token: rows of unlike length cannot share a batch.",
            evidence="tokenizer.pad_token is None",
            fix="Load with models.load, which picks one, or set tokenizer.pad_token to a token that no text holds.",
        )
    elif pad == stop:
        yield Finding(
            id="pad-is-stop",
            severity="warning",
            title=f"{tokenizer.pad_token} is both pad and stop token: "
            "whoever masks padding by token id masks the stop as well.",
            evidence=f"pad_token_id = eos_token_id = {pad}; training.train masks by position, so this run is safe",
            fix="Set tokenizer.pad_token to another token of the vocabulary.",
        )


def check_known_tokens(
    parts: Sequence[TokenisedPart], tokenizer: Any, model: Any, max_length: int
) -> Iterator[Finding]:
    """Tokens that this model cannot read, does not know, or does not stop at."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(configured if isinstance(configured, list) else [configured]) - {None}
    if ids and tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        names = ", ".join(tokenizer.decode([i]) for i in sorted(ids))
        yield Finding(
            id="stop-token-differs",
            severity="warning",
            title="The model's generation config stops at another token than the tokenizer: "
            "other engines would not stop.",
            evidence=f"generation_config: {names}; tokenizer: {tokenizer.eos_token}",
            fix="Set model.generation_config.eos_token_id = tokenizer.eos_token_id.",
        )
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
        yield Finding(
            id="longer-than-context",
            severity="warning",
            title=f"Rows are longer than the {context:,} tokens that this model can read.",
            evidence=f"{part.listed(over)}; the longest has {part.longest:,} tokens",
            fix=f"Set max_length={context}, or leave these rows out.",
            field="max_length",
            rows=part.if_train(over),
        )


def _check_range(part: TokenisedPart, size: int) -> Iterator[Finding]:
    highest = {row.number: max(row.ids, default=0) for row in part.readable}
    if over := {number: token for number, token in highest.items() if token >= size}:
        yield Finding(
            id="token-outside-embeddings",
            severity="error",
            title="Rows hold tokens for which the model has no embedding: tokenizer and model do not belong together.",
            evidence=f"{part.listed(over)}; token {max(over.values())}, the embedding has {size:,} rows",
            fix="Load both with one call of models.load, "
            "or model.resize_token_embeddings(len(tokenizer)) and train the new rows.",
        )


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
        yield Finding(
            id="template-tokens-untrained",
            severity="warning",
            title="The template uses tokens that the base model was never trained on; "
            "an adapter does not train them either.",
            evidence=f"embeddings of {names} are {why}",
            fix="Take the instruct variant of this model, or a template of ordinary words.",
        )
