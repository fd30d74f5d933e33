"""The rows before training, as text: are there any, does the template take them, and does one stand twice?

Rows are tokenised here, once, for the checks and for the training. What their tokens are worth is `tokens`' subject; no
marker of any model is written here: what a template writes is found by rendering.
"""

import itertools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ftkit import chat, data
from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.errors import DataError
from ftkit.preflight.report import Finding, listed, quoted

SIZE_CHECKS = {
    "no-rows": "the training part has rows",
    "val-empty": "the validation part has rows",
}

TURN_CHECKS = {
    "no-chat-template": "the tokenizer has a chat template",
    "turns-malformed": "turns alternate, and each chat ends with an answer that says something",
    "template-refuses-system": "the template takes the system turns that there are",
    "template-refuses-turns": "the template takes the order of all turns",
    "template-loses-tools": "the template writes out tool calls, results and schemas",
    "template-rewrites-turns": "answers stay the same once later turns follow",
    "template-drops-turns": "what each turn says stands in the text that the model reads",
    "double-template": "no message holds the template's own markers already",
}

TWIN_CHECKS = {
    "leak-exact": "no val or test row stands in train",
    "leak-near": "no val or test row is nearly the same as one in train",
    "near-duplicates": "no two training rows are nearly the same",
}

MOST_ROWS = 20_000  # more would take more than a few seconds: `data.leakage` and `cleaning.clean` look at them all
_RENDERED = 100  # rows whose text is searched for what their turns say
_REASONS = 5
_SHOWN = 5
_ASKED, _ANSWERED = "probe-question", "probe-answer"
_Chat = list[dict[str, Any]]


class TokenisedRow(NamedTuple):
    """An example as the model would read it, uncut; `number` is its place in its part, from 1."""

    number: int
    example: Mapping[str, Any]
    ids: Sequence[int]
    labels: Sequence[int]


class RefusedRow(NamedTuple):
    """An example that the template does not take, and what it says of it."""

    number: int
    example: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class TokenisedPart:
    """One part of the data: of its `total` rows, those that were looked at."""

    name: str
    total: int
    readable: tuple[TokenisedRow, ...] = field(repr=False)
    refused: tuple[RefusedRow, ...] = field(default=(), repr=False)

    @property
    def seen(self) -> int:
        """How many rows were looked at."""
        return len(self.readable) + len(self.refused)

    @property
    def longest(self) -> int:
        """Tokens of the longest row, uncut."""
        return max((len(row.ids) for row in self.readable), default=0)

    def listed(self, numbers: Iterable[int]) -> str:
        """Such as "val rows 2, 7"."""
        return f"{self.name} {listed(numbers)}"

    def if_train(self, numbers: Iterable[int]) -> tuple[int, ...]:
        """For `Finding.rows`, which holds training rows alone."""
        return tuple(numbers) if self.name == "train" else ()


@dataclass(frozen=True)
class Rows:
    """Splits whose train and val parts are tokenised, for the check and the training alike.

    `val` holds the rows that the training measures: `config.max_eval_examples` of them, drawn and in drawn order.
    """

    splits: Splits
    train: TokenisedPart
    val: TokenisedPart


def tokenize_splits(splits: Splits, tokenizer: Any, config: TrainConfig) -> Rows:
    """Tokenise what a training reads, uncut; a row that the template refuses is noted, not raised."""
    import numpy as np

    drawn = np.random.default_rng(config.seed).permutation(len(splits.val))  # as `Dataset.shuffle` draws
    train = _tokenised("train", splits.train, tokenizer, range(len(splits.train)))
    val = _tokenised("val", splits.val, tokenizer, drawn[: config.max_eval_examples].tolist())
    return Rows(splits, train, val)


def read_part(name: str, examples: Any, tokenizer: Any, limit: int) -> TokenisedPart:
    """Tokenise a part; past `limit` rows an even sample stands for all."""
    total = len(examples)
    picked = range(total) if total <= limit else [i * total // limit for i in range(limit)]
    return _tokenised(name, examples, tokenizer, picked)


def _tokenised(name: str, examples: Any, tokenizer: Any, picked: Sequence[int]) -> TokenisedPart:
    readable, refused = [], []
    for number, example in ((i + 1, examples[i]) for i in picked):
        try:
            tokens = chat.tokenize(example, tokenizer)
            readable.append(TokenisedRow(number, example, tokens["input_ids"], tokens["labels"]))
        except ValueError as error:  # DataError, and what transformers says of chats without turns
            refused.append(RefusedRow(number, example, str(error)))
    return TokenisedPart(name, len(examples), tuple(readable), tuple(refused))


def check_sizes(splits: Splits) -> Iterator[Finding]:
    """Whether there are rows at all."""
    if not len(splits.train):
        yield Finding(
            id="no-rows",
            severity="error",
            title="The training part has no rows.",
            evidence="0 rows",
            fix="Load examples: data.load_examples.",
        )
    if splits.val is not None and not len(splits.val):
        yield Finding(
            id="val-empty",
            severity="error",
            title="The validation part has no rows: overfitting could not be seen.",
            evidence="0 rows",
            fix="Split with data.split(examples, val=0.1, test=0.1).",
        )


def check_template(tokenizer: Any) -> Iterator[Finding]:
    """Whether there is a template at all; without one no row can be read."""
    if not getattr(tokenizer, "chat_template", None):
        yield Finding(
            id="no-chat-template",
            severity="error",
            title="The tokenizer has no chat template: it belongs to a base model.",
            evidence="tokenizer.chat_template is empty",
            fix="Take the instruct variant of this model, or set tokenizer.chat_template.",
        )


def check_turns(parts: Sequence[TokenisedPart], tokenizer: Any) -> Iterator[Finding]:
    """All findings about the turns of these parts, the training part first."""
    markers = _markers(tokenizer)
    for part in parts:
        yield from _check_order(part)
        yield from _check_refusals(part, tokenizer)
        yield from _check_dropped(part, tokenizer)
        yield from _check_markers(part, markers)


def _check_order(part: TokenisedPart) -> Iterator[Finding]:
    problems: dict[str, list[int]] = {}
    for row in part.readable:
        if problem := data.order_problem(row.example["messages"]):
            problems.setdefault(problem, []).append(row.number)
    if problems:
        malformed = sorted(itertools.chain.from_iterable(problems.values()))
        reasons = [f"{part.listed(numbers)}: {problem}" for problem, numbers in problems.items()]
        yield Finding(
            id="turns-malformed",
            severity="warning",
            title=f"{len(malformed)} {part.name} rows are no chats that end with an answer.",
            evidence="\n".join(reasons[:_REASONS]),
            fix="Leave them out: data.load_examples(..., on_error='skip') does; "
            "chat.merge_turns joins neighbours of one role.",
            rows=part.if_train(malformed),
        )


def _check_refusals(part: TokenisedPart, tokenizer: Any) -> Iterator[Finding]:
    """Sort the refused rows by the change that makes the template take them."""
    kinds: dict[str, list[RefusedRow]] = {}
    for row in part.refused:
        kinds.setdefault(_kind(row.example, tokenizer), []).append(row)
    for kind, rows in kinds.items():
        first, numbers = rows[0], [row.number for row in rows]
        turns = first.example["messages"]
        roles = " → ".join(message["role"] for message in turns)
        said = first.reason.split(": ", 1)[-1].split(". ", 1)[0].rstrip(".")
        cause = data.order_problem(turns) if kind == "malformed" else said
        yield replace(
            _REFUSALS[kind],
            evidence=f"{part.listed(numbers)}; row {first.number} ({roles}): {cause}",
            rows=part.if_train(numbers),
        )


def _kind(example: Mapping[str, Any], tokenizer: Any) -> str:
    """Name of the first change under which the template takes the row."""
    turns, tools = [data.plain(message) for message in example["messages"]], example.get("tools")
    for name, change in _CHANGES.items():
        if change(turns) != turns and _works(chat.tokenize, change(turns), tools, tokenizer):
            return name
    if _works(chat.tokenize, chat.fold_tools(turns, tools), None, tokenizer):
        return "tools"
    if data.order_problem(turns):
        return "malformed"
    if _works(chat.render, turns, tools, tokenizer):
        return "rewrites"
    answers = [i for i, message in enumerate(turns) if message["role"] == "assistant"]
    alone = len(answers) > 1 and _works(chat.tokenize, turns[: answers[0] + 1], tools, tokenizer)
    return "several" if alone else "other"


def _works(step: Callable[[Any, Any], Any], turns: _Chat, tools: Any, tokenizer: Any) -> bool:
    try:
        return bool(step({"messages": turns, "tools": tools}, tokenizer))
    except ValueError:  # DataError among them
        return False


_CHANGES: dict[str, Callable[[_Chat], _Chat]] = {
    "system": chat.fold_system,
    "order": chat.merge_turns,
    "system and order": lambda turns: chat.merge_turns(chat.fold_system(turns)),
}


def _refusal(id: str, title: str, fix: str) -> Finding:
    return Finding(id=id, severity="error", title=title, evidence="", fix=fix)


_REFUSALS = {
    "system": _refusal(
        id="template-refuses-system",
        title="The template refuses a system turn.",
        fix="Fold it into the first user turn: examples.map(lambda row: {'messages': "
        "chat.fold_system(row['messages'])}). Ask the trained model in the same way.",
    ),
    "order": _refusal(
        id="template-refuses-turns",
        title="The template wants turns to alternate.",
        fix="Join neighbours of one role: examples.map(lambda row: {'messages': chat.merge_turns(row['messages'])}).",
    ),
    "system and order": _refusal(
        id="template-refuses-system",
        title="The template refuses a system turn, and wants turns to alternate.",
        fix="Mend both: examples.map(lambda row: {'messages': chat.merge_turns(chat.fold_system(row['messages']))}).",
    ),
    "tools": _refusal(
        id="template-loses-tools",
        title="The template leaves out tool calls, results or schemas.",
        fix="Write them into the text with chat.fold_tools(messages, tools), "
        "or take a model whose template knows them.",
    ),
    "rewrites": _refusal(
        id="template-rewrites-turns",
        title="The template writes an earlier answer differently once later turns follow.",
        fix="Keep the first question and answer of these chats, or use another template.",
    ),
    "several": _refusal(
        id="template-refuses-turns",
        title="The template takes one question and answer, not several.",
        fix="Keep the first question and answer of these chats, or use another template.",
    ),
    "malformed": _refusal(
        id="turns-malformed",
        title="The turns of some chats are out of order, and the template refuses them.",
        fix="Leave these rows out: data.load_examples(..., on_error='skip') does.",
    ),
    "other": _refusal(
        id="template-refuses-turns",
        title="The template refuses these turns.",
        fix="Change the turns to what the template takes, leave these rows out, or use another template.",
    ),
}


def _check_dropped(part: TokenisedPart, tokenizer: Any) -> Iterator[Finding]:
    """Search the rendered text for what system and user turns say; some templates skip a role without a word."""
    dropped: dict[str, list[int]] = {}
    for row in part.readable[:: max(1, len(part.readable) // _RENDERED)]:
        text = squeezed(tokenizer.decode(row.ids))
        turns = [data.plain(message) for message in row.example["messages"]]
        for role in ("system", "user"):
            if any(turn["role"] == role and squeezed(turn["content"]) not in text for turn in turns):
                dropped.setdefault(role, []).append(row.number)
    fixes = {
        "system": "Fold it into the first user turn with chat.fold_system, or use another template.",
        "user": "Print chat.render of such a row; the template may rewrite the turn.",
    }
    for role, numbers in dropped.items():
        yield Finding(
            id="template-drops-turns",
            severity="warning",
            title=f"What the {role} turn says does not stand in the text that the model reads.",
            evidence=part.listed(numbers),
            fix=fixes[role],
            rows=part.if_train(numbers),
        )


def _markers(tokenizer: Any) -> tuple[str, ...]:
    """What the template writes around turns, found by rendering a probe: special tokens, the bridge to an answer."""
    probe = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}]
    try:
        text = chat.render(probe, tokenizer)
    except DataError:
        return ()
    markers = [str(token) for token in tokenizer.added_tokens_decoder.values() if str(token) in text]
    bridge = text.partition(_ASKED)[2].partition(_ANSWERED)[0].strip()
    if len(bridge) > 3:
        markers.append(bridge)
    return tuple(markers)


def _check_markers(part: TokenisedPart, markers: Sequence[str]) -> Iterator[Finding]:
    seen: dict[int, str] = {}
    examples = {row.number: row.example for row in part.readable} | {row.number: row.example for row in part.refused}
    for number, example in examples.items():
        text = "\n".join(data.plain(message)["content"] for message in example["messages"])
        if marker := next((marker for marker in markers if marker in text), ""):
            seen[number] = marker
    if not seen:
        return
    numbers = sorted(seen)
    found = Finding(
        id="double-template",
        severity="warning",
        title="Some messages hold the template's own markers: they would be read as the end of a turn.",
        evidence=f"{part.listed(numbers)}: {quoted(seen[numbers[0]])}",
        fix="Take the markers out of the text, or leave these rows out.",
        rows=part.if_train(numbers),
    )
    if len(seen) > part.seen / 2:
        found = replace(
            found,
            severity="error",
            title="The messages are in a chat format already: the template would be applied twice.",
            fix="Load the raw turns: data.load_examples takes a `text` column in ChatML apart.",
        )
    yield found


def check_twins(splits: Splits) -> Iterator[Finding]:
    """Compare val and test with train, and train with itself; what `data.split` has searched is not searched again."""
    yield from _check_leaks(splits)
    groups = splits.repeats if splits.searched is not None else _repeats(splits.train)
    if groups:
        extra = sum(len(rows) - 1 for rows in groups)
        shown = "; ".join(listed(rows) for rows in groups[:_SHOWN])
        yield Finding(
            id="near-duplicates",
            severity="warning",
            title=f"{extra} of {len(splits.train)} training rows repeat another one: they weigh more than the rest.",
            evidence=shown if len(groups) <= _SHOWN else f"{len(groups)} groups, such as {shown}",
            fix="Drop them: cleaning.clean with cleaning.near_duplicates(); keep them if repetition is meant.",
            rows=tuple(itertools.chain.from_iterable(rows[1:] for rows in groups)),
        )


def _repeats(train: Any) -> list[list[int]]:
    """Groups of training rows that are the same, or nearly."""
    groups: dict[int, list[int]] = {}
    for row, first in enumerate(data.near_pairs(data.Texts(train)).clusters(), 1):
        groups.setdefault(first, []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def _check_leaks(splits: Splits) -> Iterator[Finding]:
    """Search val and test together, on prompts and on whole chats."""
    others = {name: part for name in ("val", "test") if (part := getattr(splits, name))}
    if not others:
        return
    both = data.combined([part.select_columns(["messages"]) for part in others.values()])
    report = data.leakage(splits.train, both, threshold=data.THRESHOLD if splits.searched is None else None)
    before = 0
    for name, part in others.items():
        inside = range(before + 1, before + len(part) + 1)
        exact = [replace(found, test=found.test - before) for found in report.exact if found.test in inside]
        near = [replace(found, test=found.test - before) for found in report.near if found.test in inside]
        before += len(part)
        if exact:
            yield Finding(
                id="leak-exact",
                severity="error",
                title=f"{_tested(exact)} {name} rows stand in train: a score on them says nothing.",
                evidence=_pairs(name, exact),
                fix="Split with data.split, which keeps twins together, or take these rows out: "
                "data.leakage(train, part).without_leaks(part).",
                rows=tuple(sorted({found.train for found in exact})),
            )
        if near:
            yield Finding(
                id="leak-near",
                severity="warning",
                title=f"{_tested(near)} {name} rows are nearly the same as a training row: scores come out too high.",
                evidence=_pairs(name, near),
                fix="Split with data.split, which keeps near-duplicates together.",
                rows=tuple(sorted({found.train for found in near})),
            )


def _tested(overlaps: Sequence[Any]) -> int:
    return len({found.test for found in overlaps})


def _pairs(name: str, overlaps: Sequence[Any]) -> str:
    shown = []
    for found in overlaps[:_SHOWN]:
        on = "prompt" if found.on == "prompt" else "prompt and answer"
        shown.append(f"{name} row {found.test} ~ train row {found.train} ({on}, {found.similarity:.0%} alike)")
    if len(overlaps) > _SHOWN:
        shown.append(f"and {len(overlaps) - _SHOWN} more")
    return "\n".join(shown)


def squeezed(text: str) -> str:
    """Text without what templates may change: spaces, case, Unicode form."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
