"""Tokenised rows before training: what the loss sees of them, what is cut, and where an answer ends.

The mask is judged by what it trains, decoded, against the messages: no marker of any model is written here.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ftkit import template
from ftkit.errors import ConfigError
from ftkit.findings import Finding, listed, quoted
from ftkit.formats import plain

CHECKS = {
    "no-trained-tokens": "rows have tokens that the loss sees",
    "rows-without-trained-tokens": "every row has a token that the loss sees",
    "low-trained-share": "the loss sees a fair share of the tokens",
    "prompt-trained": "the prompts are masked",
    "answer-untrained": "the answers are trained",
    "answers-cut": "max_length cuts no answer",
    "stop-token-untrained": "each answer ends in a stop token that is trained",
    "double-bos": "no row begins with two start tokens",
    "missing-bos": "each row has the start token that the model expects",
    "longer-than-context": "every row fits into the model's context",
}
_DECODED = 100  # rows whose mask is read as text
_LOW_SHARE = 0.02
_TELLING = 8  # characters of a prompt that cannot stand in an answer by chance


@dataclass(frozen=True)
class Part:
    """Rows of one part of the data, as looked at: `numbers` count from 1, `tokens` is None where the template refuses."""

    name: str
    total: int
    numbers: tuple[int, ...]
    examples: tuple[Mapping[str, Any], ...] = field(repr=False)
    tokens: tuple[Mapping[str, Any] | None, ...] = field(repr=False)
    refusals: Mapping[int, str] = field(default_factory=dict, repr=False)  # row number to what the template says

    @property
    def readable(self) -> list[tuple[int, Mapping[str, Any], list[int], list[int]]]:
        """Number, example, ids and labels of each row that the template takes."""
        rows = zip(self.numbers, self.examples, self.tokens, strict=True)
        return [(n, example, t["input_ids"], t["labels"]) for n, example, t in rows if t is not None]

    @property
    def longest(self) -> int:
        """Tokens of the longest row, uncut."""
        return max((len(ids) for _, _, ids, _ in self.readable), default=0)


def look(
    name: str,
    examples: Any,
    tokenizer: Any,
    *,
    tokenized: Sequence[Mapping[str, Any]] | None = None,
    limit: int = 2_000,
) -> Part:
    """Tokenise a part, or take what is tokenised already; past `limit` rows an even sample stands for all.

    Raises:
        ConfigError: `tokenized` has another number of rows than `examples`.
    """
    total = len(examples)
    if tokenized is not None and len(tokenized) != total:
        raise ConfigError(
            f"tokenized holds {len(tokenized)} rows, the {name} part {total}: give template.tokenize of each row, uncut."
        )
    picked = range(total) if tokenized is not None or total <= limit else [i * total // limit for i in range(limit)]
    rows = [examples[i] for i in picked]
    tokens: list[Mapping[str, Any] | None] = []
    refusals: dict[int, str] = {}
    for i, row in zip(picked, rows, strict=True):
        try:
            tokens.append(template.tokenize(row, tokenizer) if tokenized is None else tokenized[i])
        except ValueError as error:  # DataError, and what transformers says of chats without turns
            tokens.append(None)
            refusals[i + 1] = str(error)
    return Part(name, total, tuple(i + 1 for i in picked), tuple(rows), tuple(tokens), refusals)


def trained_share(parts: Sequence[Part], max_length: int) -> float:
    """Share of the tokens that the loss sees after the cut, over all rows looked at, 0 to 1."""
    labels = [labels[:max_length] for part in parts for _, _, _, labels in part.readable]
    total = sum(map(len, labels))
    return sum(label != template.IGNORED for row in labels for label in row) / total if total else 0.0


def check(parts: Sequence[Part], tokenizer: Any, model: Any, max_length: int) -> Iterator[Finding]:
    """All findings about tokens and masks of these parts, the training part first."""
    yield from _check_trained(parts, max_length)
    yield from _check_cut(parts, max_length)
    yield from _check_text(parts, tokenizer)
    yield from _check_stop(parts, tokenizer, model)
    yield from _check_start(parts, tokenizer)
    if model is not None:
        yield from _check_context(parts, model, max_length)


def _check_trained(parts: Sequence[Part], max_length: int) -> Iterator[Finding]:
    for part in parts:
        rows = part.readable
        empty = [n for n, _, _, labels in rows if _trains_nothing(labels[:max_length])]
        if not empty:
            continue
        cut = sum(not _trains_nothing(labels) for n, _, _, labels in rows if n in set(empty))
        reason = f"the answers of {cut} lie beyond max_length={max_length}" if cut else "their labels are all masked"
        fix = (
            f"Raise max_length to {part.longest}."
            if cut
            else "Derive the labels with template.tokenize; show_example shows a row token by token."
        )
        if len(empty) == len(rows):
            yield Finding(
                "no-trained-tokens",
                "error",
                f"No {part.name} row has a token that the loss sees: it would be 0 or not a number.",
                f"{len(rows)} {part.name} rows; {reason}",
                fix,
                "max_length",
                _train_rows(part, empty),
            )
        else:
            yield Finding(
                "rows-without-trained-tokens",
                "warning",
                f"{len(empty)} of {len(rows)} {part.name} rows have no token that the loss sees.",
                f"{part.name} {listed(empty)}; {reason}",
                f"{fix} As they are, these rows teach nothing.",
                "max_length",
                _train_rows(part, empty),
            )
    share = trained_share(parts[:1], max_length)
    if 0 < share < _LOW_SHARE:
        yield Finding(
            "low-trained-share",
            "note",
            "The loss sees few of the tokens: most of the time goes into reading prompts.",
            f"{share:.1%} of the tokens are trained",
            "Shorten prompts where they repeat themselves; else this is the task.",
        )


def _trains_nothing(labels: Sequence[int]) -> bool:
    return all(label == template.IGNORED for label in labels)


def _check_cut(parts: Sequence[Part], max_length: int) -> Iterator[Finding]:
    for part in parts:
        lost = {
            n: sum(label != template.IGNORED for label in labels[max_length:])
            for n, _, ids, labels in part.readable
            if len(ids) > max_length and not _trains_nothing(labels[:max_length])
        }
        if cut := [n for n, tokens in lost.items() if tokens]:
            yield Finding(
                "answers-cut",
                "warning",
                f"max_length={max_length} cuts the answers of {len(cut)} of {len(part.readable)} {part.name} rows, "
                "and with them the stop token: such answers teach the model not to end.",
                f"{part.name} {listed(cut)}; {sum(lost.values()):,} answer tokens are lost",
                f"Set max_length={part.longest}, or leave these rows out.",
                "max_length",
                _train_rows(part, cut),
            )


def _check_text(parts: Sequence[Part], tokenizer: Any) -> Iterator[Finding]:
    """Read the mask as text, on a sample: it must hold the answers, and nothing of what others say."""
    for part in parts:
        asked: list[int] = []
        unanswered: list[int] = []
        shown = ""
        for n, example, _, labels in part.readable[:: max(1, len(part.readable) // _DECODED)]:
            if _trains_nothing(labels):
                continue
            trained = _flat(tokenizer.decode([label for label in labels if label != template.IGNORED]))
            turns = [plain(message) for message in example["messages"]]
            answers = [_flat(m["content"]) for m in turns if m["role"] == "assistant"]
            prompts = [
                m["content"] for m in turns if m["role"] in ("user", "system") and len(_flat(m["content"])) >= _TELLING
            ]
            leaked = [p for p in prompts if _flat(p) in trained and not any(_flat(p) in answer for answer in answers)]
            if leaked:
                asked.append(n)
                shown = shown or leaked[0]
            if answers and answers[-1] not in trained:
                unanswered.append(n)
        if asked:
            yield Finding(
                "prompt-trained",
                "error",
                "The loss sees prompts: the model would learn to ask, not to answer.",
                f"{part.name} {listed(asked)}, such as {quoted(shown)}",
                "Mask all but the answers: template.tokenize does.",
                rows=_train_rows(part, asked),
            )
        if unanswered:
            yield Finding(
                "answer-untrained",
                "warning",
                "The last answer of some rows is not, or not wholly, among the trained tokens.",
                f"{part.name} {listed(unanswered)}",
                "Look at one with data.show_example; the template may rewrite answers.",
                rows=_train_rows(part, unanswered),
            )


def _check_stop(parts: Sequence[Part], tokenizer: Any, model: Any) -> Iterator[Finding]:
    stops = set(template.stop_ids(tokenizer, model))
    for part in parts:
        without, last, answers = [], "", 0
        for n, _, _, labels in part.readable:
            ends = _ends(labels)
            answers += len(ends)
            if open_ones := [end for end in ends if not stops & set(end)]:
                without.append(n)
                last = last or tokenizer.decode(open_ones[0])
        if not without:
            continue
        names = ", ".join(tokenizer.decode([i]) for i in sorted(stops)) or "none"
        every = len(without) == sum(bool(_ends(labels)) for _, _, _, labels in part.readable)
        yield Finding(
            "stop-token-untrained",
            "error" if every else "warning",
            f"{'No answer ends' if every else f'The answers of {len(without)} {part.name} rows do not end'} in a stop token: the model would not learn to stop.",
            f"{part.name} {listed(without)}; stop tokens: {names}; an answer ends with {quoted(last)}",
            "Set tokenizer.eos_token to the token with which the template ends an answer."
            if every
            else "Look at one of these rows with data.show_example.",
            rows=_train_rows(part, without),
        )


def _ends(labels: Sequence[int]) -> list[list[int]]:
    """The last three tokens of each stretch of trained tokens."""
    runs: list[list[int]] = []
    before = template.IGNORED
    for label in labels:
        if label != template.IGNORED:
            if before == template.IGNORED:
                runs.append([])
            runs[-1].append(label)
        before = label
    return [run[-3:] for run in runs]


def _check_start(parts: Sequence[Part], tokenizer: Any) -> Iterator[Finding]:
    start = tokenizer.bos_token_id
    if start is None:
        return
    expected = tokenizer("")["input_ids"][:1] == [start]
    for part in parts:
        twice = [n for n, _, ids, _ in part.readable if list(ids[:2]) == [start, start]]
        never = [n for n, _, ids, _ in part.readable if expected and list(ids[:1]) != [start]]
        if twice:
            yield Finding(
                "double-bos",
                "error",
                f"Rows begin with two start tokens ({tokenizer.bos_token}): the model has never seen that.",
                f"{part.name} {listed(twice)}",
                "Tokenise rendered text with add_special_tokens=False, and let the template write one.",
                rows=_train_rows(part, twice),
            )
        if never:
            yield Finding(
                "missing-bos",
                "warning",
                f"Rows lack the start token ({tokenizer.bos_token}) that this tokenizer puts before plain text.",
                f"{part.name} {listed(never)}",
                "Tokenise with template.tokenize, which puts it there.",
                rows=_train_rows(part, never),
            )


def _check_context(parts: Sequence[Part], model: Any, max_length: int) -> Iterator[Finding]:
    from ftkit.likelihood import context_tokens

    context = context_tokens(model)
    if context is None or max_length <= context:
        return
    for part in parts:
        if over := [n for n, _, ids, _ in part.readable if len(ids) > context]:
            yield Finding(
                "longer-than-context",
                "warning",
                f"Rows are longer than the {context:,} tokens that this model can read.",
                f"{part.name} {listed(over)}; the longest has {part.longest:,} tokens",
                f"Set max_length={context}, or leave these rows out.",
                "max_length",
                _train_rows(part, over),
            )


def _train_rows(part: Part, numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(numbers) if part.name == "train" else ()


def _flat(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
