"""The rows before training, as text: are there any, does the template take them, and does one stand twice?

Rows are tokenised here, once, for the checks and for the training. What their tokens are worth is `tokens`' subject; no
marker of any model is written here: what a template writes is found by rendering.
"""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ftkit import chat, data
from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.errors import DataError
from ftkit.preflight.report import Finding, finding, listed, quoted

MOST_ROWS = 20_000  # more would take more than a few seconds: `data.leakage` and `cleaning.clean` look at them all
_RENDERED = 100  # rows whose text is searched for what their turns say
_READ = 2_000  # rows whose text is searched for what the template adds
_SHOWN_PROMPT = 30
_TAG = re.compile(r"</?(think|tool_call|tool_response|tools)>")  # such may stand in a text
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
    def chats(self) -> tuple[TokenisedRow, ...]:
        """Those that have messages; the others are documents or pieces of them."""
        return tuple(row for row in self.readable if row.example["messages"])

    @property
    def longest(self) -> int:
        """Tokens of the longest row, uncut."""
        return max((len(row.ids) for row in self.readable), default=0)

    def listed(self, numbers: Iterable[int]) -> str:
        """Such as "val rows 2, 7"."""
        return f"{self.name} {listed(numbers)}"

    def finding(self, id: str, numbers: Iterable[int], variant: str = "", **facts: Any) -> Finding:
        """What a check found in the rows of these numbers; its texts may use the facts that are given here."""
        of = list(numbers)
        facts |= {"part": self.name, "listed": self.listed(of), "count": len(of)}
        facts |= {"seen": len(self.readable), "longest": self.longest}
        return finding(id, variant, rows=of if self.name == "train" else (), **facts)


@dataclass(frozen=True)
class Rows:
    """Splits whose train and val parts are tokenised, for the check and the training alike.

    `val` holds the rows that the training measures: `config.max_eval_examples` of them, drawn and in drawn order.
    """

    splits: Splits
    train: TokenisedPart
    val: TokenisedPart


def tokenize_splits(splits: Splits, tokenizer: Any, config: TrainConfig) -> Rows:
    """Tokenise what a training reads, uncut; a row that the template refuses is noted, not raised.

    A document (a row without messages) is not cut: it becomes pieces of at most `max_length` tokens.
    """
    import numpy as np

    drawn = np.random.default_rng(config.seed).permutation(len(splits.val))  # as `Dataset.shuffle` draws
    train = _tokenised("train", splits.train, tokenizer, config, range(len(splits.train)))
    val = _tokenised("val", splits.val, tokenizer, config, drawn[: config.max_eval_examples].tolist())
    return Rows(splits, train, val)


def read_part(name: str, examples: Any, tokenizer: Any, config: TrainConfig, limit: int) -> TokenisedPart:
    """Tokenise a part; past `limit` rows an even sample stands for all."""
    total = len(examples)
    picked = range(total) if total <= limit else [i * total // limit for i in range(limit)]
    return _tokenised(name, examples, tokenizer, config, picked)


def _tokenised(name: str, examples: Any, tokenizer: Any, config: TrainConfig, picked: Sequence[int]) -> TokenisedPart:
    readable: list[TokenisedRow] = []
    refused: list[RefusedRow] = []
    pieces = 0
    for number, example in ((i + 1, examples[i]) for i in picked):
        try:
            tokens = chat.tokenize(example, tokenizer, train_on=config.train_on)
        except ValueError as error:  # DataError, and what transformers says of chats without turns
            if isinstance(error.__cause__, TimeoutError):  # it would not end on any other row
                raise
            refused.append(RefusedRow(number, example, str(error)))
            continue
        ids, labels = tokens["input_ids"], tokens["labels"]
        if example["messages"]:
            readable.append(TokenisedRow(number, example, ids, labels))
            continue
        start = ids[:1] if ids[:1] == [tokenizer.bos_token_id] else []
        size = config.max_length - len(start)
        cuts = range(len(start), max(len(ids), len(start) + 1), size)
        readable += [
            TokenisedRow(number, example, piece, piece) for cut in cuts if (piece := start + ids[cut : cut + size])
        ]
        pieces += len(cuts) - 1
    return TokenisedPart(name, len(examples) + pieces, tuple(readable), tuple(refused))


def check_sizes(splits: Splits) -> Iterator[Finding]:
    """Whether there are rows at all."""
    if not len(splits.train):
        yield finding("no-rows")
    if splits.val is not None and not len(splits.val):
        yield finding("val-empty")


def check_template(tokenizer: Any) -> Iterator[Finding]:
    """Whether there is a template at all; without one no row can be read."""
    if not getattr(tokenizer, "chat_template", None):
        yield finding("no-chat-template")


def check_turns(parts: Sequence[TokenisedPart], tokenizer: Any) -> Iterator[Finding]:
    """All findings about the turns of these parts, the training part first."""
    markers = _markers(tokenizer)
    for part in parts:
        yield from _check_order(part)
        yield from _check_refusals(part, tokenizer)
        yield from _check_dropped(part, tokenizer)
        yield from _check_told(part, tokenizer)
        yield from _check_prompts(part, tokenizer)
        yield from _check_markers(part, markers, tokenizer)
        yield from _check_documents(part)


def _check_order(part: TokenisedPart) -> Iterator[Finding]:
    problems: dict[str, list[int]] = {}
    for row in part.chats:
        if problem := data.order_problem(row.example["messages"]):
            problems.setdefault(problem, []).append(row.number)
    if silent := [row.number for row in part.chats if _has_empty_answer(row.example["messages"][:-1])]:
        yield part.finding("empty-answer", silent)
    if problems:
        malformed = sorted(itertools.chain.from_iterable(problems.values()))
        reasons = [f"{part.listed(numbers)}: {problem}" for problem, numbers in problems.items()]
        yield part.finding("turns-malformed", malformed, reasons="\n".join(reasons[:_REASONS]))


def _has_empty_answer(turns: Sequence[Mapping[str, Any]]) -> bool:
    said = ("content", "reasoning_content", "tool_calls")
    return any(turn["role"] == "assistant" and not any((turn.get(key) or "").strip() for key in said) for turn in turns)


def _check_refusals(part: TokenisedPart, tokenizer: Any) -> Iterator[Finding]:
    """Sort the refused rows by the change that makes the template take them."""
    kinds: dict[str, list[RefusedRow]] = {}
    for row in part.refused:
        kinds.setdefault(_kind(row.example, tokenizer), []).append(row)
    for kind, rows in kinds.items():
        first, turns = rows[0], rows[0].example["messages"]
        roles = " → ".join(message["role"] for message in turns)
        said = first.reason.split(": ", 1)[-1].split(". ", 1)[0].rstrip(".")
        cause = data.order_problem(turns) if kind == "malformed" else said
        numbers, shown = [row.number for row in rows], f"row {first.number} ({roles}): {cause}"
        yield part.finding(_REFUSALS[kind], numbers, kind, first=shown)


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
    "order": data.merge_turns,
    "system and order": lambda turns: data.merge_turns(chat.fold_system(turns)),
}


_REFUSALS = {
    "system": "template-refuses-system",
    "order": "template-refuses-turns",
    "system and order": "template-refuses-system",
    "tools": "template-loses-tools",
    "rewrites": "template-rewrites-turns",
    "several": "template-refuses-turns",
    "malformed": "turns-malformed",
    "other": "template-refuses-turns",
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
    for role, numbers in dropped.items():
        yield part.finding("template-drops-turns", numbers, role)


def _check_told(part: TokenisedPart, tokenizer: Any) -> Iterator[Finding]:
    """What a template adds to a text that holds it already: schemas, tags around a result, a think block."""
    told: list[int] = []
    thought: list[int] = []
    for row in part.chats[:: max(1, len(part.chats) // _READ)]:
        turns = [data.plain(message) for message in row.example["messages"]]
        system = "".join(turn["content"] for turn in turns[:1] if turn["role"] == "system")
        schemas = [tool["function"]["name"] for tool in data.parse_tools(row.example.get("tools"))]
        tagged = any(turn["role"] == "tool" and "<tool_response>" in turn["content"] for turn in turns)
        if tagged or any(name in system for name in schemas) or any("<think>" in turn["content"] for turn in turns):
            text = tokenizer.decode(row.ids)
            said = "\n".join(str(value) for value in itertools.chain.from_iterable(turn.values() for turn in turns))
            twice = any(f'"{name}"' in system and text.count(name) > said.count(name) for name in schemas)
            if twice or (tagged and text.count("<tool_response>") > said.count("<tool_response>")):
                told.append(row.number)
            if re.search(r"</?think>\s*<think>", text):
                thought.append(row.number)
    if told:
        yield part.finding("tools-told-twice", told)
    if thought:
        yield part.finding("double-reasoning", thought)


def _check_prompts(part: TokenisedPart, tokenizer: Any) -> Iterator[Finding]:
    """Whether a training text begins with what the trained model will be asked, on a sample."""
    differs: dict[int, str] = {}
    for row in part.chats[:: max(1, len(part.chats) // _RENDERED)]:
        try:
            asked = chat.render(data.prompt(row.example), tokenizer, add_generation_prompt=True)
        except DataError:  # a template that wants an answer
            continue
        if not chat.render(row.example, tokenizer).startswith(asked):
            differs[row.number] = asked[-_SHOWN_PROMPT:]
    if differs:
        yield part.finding("prompt-differs", differs, shown=quoted(next(iter(differs.values()))))


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


def _check_markers(part: TokenisedPart, markers: Sequence[str], tokenizer: Any) -> Iterator[Finding]:
    """Text that the tokenizer reads as control tokens; tags of reasoning and tools may stand in a text."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    candidates = dict.fromkeys([*markers, "<|im_end|>", "<|im_start|>", *special])
    known = [token for token in candidates if not _TAG.fullmatch(token)]
    openings = {token[0] for token in known}
    asked: dict[int, str] = {}
    answered: dict[int, str] = {}
    formatted: list[int] = []
    rows: list[TokenisedRow | RefusedRow] = [*part.chats, *part.refused]
    for row in rows:
        held: set[str] = set()
        for turn in map(data.plain, row.example["messages"]):
            text = data.text_of([turn])
            if not openings.isdisjoint(text) and (found := [token for token in known if token in text]):
                held.update(found)
                trained = turn["role"] == "assistant" and turn.get("train") is not False
                severe = [token for token in found if token in markers or token in _named(tokenizer)]
                if trained and severe:
                    answered.setdefault(row.number, severe[0])
                else:
                    asked.setdefault(row.number, found[0])
        if len(held.intersection(markers)) > 1:
            formatted.append(row.number)
    if len(formatted) > part.seen / 2:
        shown = quoted((asked | answered)[min(formatted)])
        yield part.finding("double-template", sorted(formatted), shown=shown)
        return
    if answered:
        yield part.finding("control-token", sorted(answered), shown=quoted(answered[min(answered)]))
    if asked:
        yield part.finding("double-template", sorted(asked), "some", shown=quoted(asked[min(asked)]))


def _named(tokenizer: Any) -> set[str]:
    """Control tokens whose name cannot be a word of a text: those with a role, and those in `<|bars|>`."""
    roles = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, "<|im_end|>", "<|im_start|>"}
    return roles | {token for token in tokenizer.all_special_tokens if re.match(r"<[|｜]", token)}


def _check_documents(part: TokenisedPart) -> Iterator[Finding]:
    pieces = Counter(row.number for row in part.readable if not row.example["messages"])
    if long := [number for number, count in pieces.items() if count > 1]:
        yield part.finding("documents-split", long, documents=len(pieces), pieces=sum(pieces.values()))


def check_twins(splits: Splits) -> Iterator[Finding]:
    """Compare val and test with train, and train with itself; what `data.split` has searched is not searched again."""
    yield from _check_leaks(splits)
    groups: Sequence[Sequence[int]] = splits.repeats
    if splits.searched is None:
        found = data.near_pairs(data.Texts(splits.train)).groups()
        groups = [[position + 1 for position in group] for group in found]
    if groups:
        extra = sum(len(rows) - 1 for rows in groups)
        shown = "; ".join(listed(rows) for rows in groups[:_SHOWN])
        shown = shown if len(groups) <= _SHOWN else f"{len(groups)} groups, such as {shown}"
        repeated = itertools.chain.from_iterable(rows[1:] for rows in groups)
        yield finding("near-duplicates", rows=repeated, extra=extra, total=len(splits.train), shown=shown)


def _check_leaks(splits: Splits) -> Iterator[Finding]:
    """Search val and test together, on prompts and on whole chats."""
    others = {name: part for name in ("val", "test") if (part := getattr(splits, name))}
    if not others:
        return
    read = [name for name in ("messages", "text") if all(name in part.column_names for part in others.values())]
    both = data.combined([part.select_columns(read) for part in others.values()])
    report = data.leakage(splits.train, both, threshold=data.THRESHOLD if splits.searched is None else None)
    before = 0
    for name, part in others.items():
        inside = range(before + 1, before + len(part) + 1)
        for id, overlaps in (("leak-exact", report.exact), ("leak-near", report.near)):
            found = [replace(pair, test=pair.test - before) for pair in overlaps if pair.test in inside]
            if found:
                count, rows = len({pair.test for pair in found}), sorted({pair.train for pair in found})
                yield finding(id, rows=rows, count=count, part=name, pairs=_pairs(name, found))
        before += len(part)


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
