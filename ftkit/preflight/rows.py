"""Tokenised rows before training: what the loss sees of them, what is cut, and where an answer ends.

The mask is judged by what it trains, decoded, against the messages: no marker of any model is written here.
"""

import itertools
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ftkit import chat, data
from ftkit.chat import fold_system, fold_tools, merge_turns, render, tokenize
from ftkit.config import TrainConfig
from ftkit.data import THRESHOLD, LeakageReport, Splits, Texts, leakage, order_problem, plain
from ftkit.errors import DataError
from ftkit.models import context_tokens
from ftkit.preflight.report import Finding, listed, quoted

ANSWER_CHECKS = {
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
class TokenisedPart:
    """Rows of one part as looked at: `numbers` count from 1, `tokens` is None where the template refuses."""

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


@dataclass(frozen=True)
class Rows:
    """Splits whose train and val parts are tokenised, uncut, for the check and the training alike."""

    splits: Splits
    train: TokenisedPart
    val: TokenisedPart


def tokenize_splits(splits: Splits, tokenizer: Any, config: TrainConfig) -> Rows:
    """Tokenise the training part, and as many validation rows as `config.max_eval_examples` asks for."""
    import numpy as np

    drawn = np.random.default_rng(config.seed).permutation(len(splits.val))  # as `Dataset.shuffle` draws
    train = _tokenised("train", splits.train, tokenizer, range(len(splits.train)))
    val = _tokenised("val", splits.val, tokenizer, drawn[: config.max_eval_examples].tolist())
    return Rows(splits, train, val)


def read_part(name: str, examples: Any, tokenizer: Any, limit: int = 2_000) -> TokenisedPart:
    """Tokenise a part; past `limit` rows an even sample stands for all."""
    total = len(examples)
    picked = range(total) if total <= limit else [i * total // limit for i in range(limit)]
    return _tokenised(name, examples, tokenizer, picked)


def _tokenised(name: str, examples: Any, tokenizer: Any, picked: Sequence[int]) -> TokenisedPart:
    rows = [examples[i] for i in picked]
    tokens: list[Mapping[str, Any] | None] = []
    refusals: dict[int, str] = {}
    for i, row in zip(picked, rows, strict=True):
        try:
            tokens.append(chat.tokenize(row, tokenizer))
        except ValueError as error:  # DataError, and what transformers says of chats without turns
            tokens.append(None)
            refusals[i + 1] = str(error)
    return TokenisedPart(name, len(examples), tuple(i + 1 for i in picked), tuple(rows), tuple(tokens), refusals)


def trained_share(parts: Sequence[TokenisedPart], max_length: int) -> float:
    """Share of the tokens that the loss sees after the cut, over all rows looked at, 0 to 1."""
    seen: list[int] = []
    for part in parts:
        for _, _, _, labels in part.readable:
            seen += labels[:max_length]
    return sum(label != chat.IGNORED for label in seen) / max(1, len(seen))


def check_answers(parts: Sequence[TokenisedPart], tokenizer: Any, model: Any, max_length: int) -> Iterator[Finding]:
    """All findings about tokens and masks of these parts, the training part first."""
    yield from _check_trained(parts, max_length)
    yield from _check_cut(parts, max_length)
    yield from _check_text(parts, tokenizer)
    yield from _check_stop(parts, tokenizer, model)
    yield from _check_start(parts, tokenizer)
    if model is not None:
        yield from _check_context(parts, model, max_length)


def _check_trained(parts: Sequence[TokenisedPart], max_length: int) -> Iterator[Finding]:
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
            else "Derive the labels with chat.tokenize; show_example shows a row token by token."
        )
        if len(empty) == len(rows):
            yield Finding(
                id="no-trained-tokens",
                severity="error",
                title=f"No {part.name} row has a token that the loss sees: it would be 0 or not a number.",
                evidence=f"{len(rows)} {part.name} rows; {reason}",
                fix=fix,
                field="max_length",
                rows=_train_rows(part, empty),
            )
        else:
            yield Finding(
                id="rows-without-trained-tokens",
                severity="warning",
                title=f"{len(empty)} of {len(rows)} {part.name} rows have no token that the loss sees.",
                evidence=f"{part.name} {listed(empty)}; {reason}",
                fix=f"{fix} As they are, these rows teach nothing.",
                field="max_length",
                rows=_train_rows(part, empty),
            )
    share = trained_share(parts[:1], max_length)
    if 0 < share < _LOW_SHARE:
        yield Finding(
            id="low-trained-share",
            severity="note",
            title="The loss sees few of the tokens: most of the time goes into reading prompts.",
            evidence=f"{share:.1%} of the tokens are trained",
            fix="Shorten prompts where they repeat themselves; else this is the task.",
        )


def _trains_nothing(labels: Sequence[int]) -> bool:
    return all(label == chat.IGNORED for label in labels)


def _check_cut(parts: Sequence[TokenisedPart], max_length: int) -> Iterator[Finding]:
    for part in parts:
        lost = {
            n: sum(label != chat.IGNORED for label in labels[max_length:])
            for n, _, ids, labels in part.readable
            if len(ids) > max_length and not _trains_nothing(labels[:max_length])
        }
        if cut := [n for n, tokens in lost.items() if tokens]:
            seen = len(part.readable)
            yield Finding(
                id="answers-cut",
                severity="warning",
                title=f"max_length={max_length} cuts the answers of {len(cut)} of {seen} {part.name} rows, "
                ""
                "and with them the stop token: such answers teach the model not to end.",
                evidence=f"{part.name} {listed(cut)}; {sum(lost.values()):,} answer tokens are lost",
                fix=f"Set max_length={part.longest}, or leave these rows out.",
                field="max_length",
                rows=_train_rows(part, cut),
            )


def _check_text(parts: Sequence[TokenisedPart], tokenizer: Any) -> Iterator[Finding]:
    """Read the mask as text, on a sample: it must hold the answers, and nothing of what others say."""
    for part in parts:
        asked: list[int] = []
        unanswered: list[int] = []
        shown = ""
        for n, example, _, labels in part.readable[:: max(1, len(part.readable) // _DECODED)]:
            if _trains_nothing(labels):
                continue
            trained = _flat(tokenizer.decode([label for label in labels if label != chat.IGNORED]))
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
                id="prompt-trained",
                severity="error",
                title="The loss sees prompts: the model would learn to ask, not to answer.",
                evidence=f"{part.name} {listed(asked)}, such as {quoted(shown)}",
                fix="Mask all but the answers: chat.tokenize does.",
                rows=_train_rows(part, asked),
            )
        if unanswered:
            yield Finding(
                id="answer-untrained",
                severity="warning",
                title="The last answer of some rows is not, or not wholly, among the trained tokens.",
                evidence=f"{part.name} {listed(unanswered)}",
                fix="Look at one with chat.show_example; the template may rewrite answers.",
                rows=_train_rows(part, unanswered),
            )


def _check_stop(parts: Sequence[TokenisedPart], tokenizer: Any, model: Any) -> Iterator[Finding]:
    stops = set(chat.stop_ids(tokenizer, model))
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
        which = "No answer ends" if every else f"The answers of {len(without)} {part.name} rows do not end"
        yield Finding(
            id="stop-token-untrained",
            severity="error" if every else "warning",
            title=f"{which} in a stop token: the model would not learn to stop.",
            evidence=f"{part.name} {listed(without)}; stop tokens: {names}; an answer ends with {quoted(last)}",
            fix="Set tokenizer.eos_token to the token with which the template ends an answer."
            if every
            else "Look at one of these rows with chat.show_example.",
            rows=_train_rows(part, without),
        )


def _ends(labels: Sequence[int]) -> list[list[int]]:
    """The last three tokens of each stretch of trained tokens."""
    runs: list[list[int]] = []
    before = chat.IGNORED
    for label in labels:
        if label != chat.IGNORED:
            if before == chat.IGNORED:
                runs.append([])
            runs[-1].append(label)
        before = label
    return [run[-3:] for run in runs]


def _check_start(parts: Sequence[TokenisedPart], tokenizer: Any) -> Iterator[Finding]:
    start = tokenizer.bos_token_id
    if start is None:
        return
    expected = tokenizer("")["input_ids"][:1] == [start]
    for part in parts:
        twice = [n for n, _, ids, _ in part.readable if list(ids[:2]) == [start, start]]
        never = [n for n, _, ids, _ in part.readable if expected and list(ids[:1]) != [start]]
        if twice:
            yield Finding(
                id="double-bos",
                severity="error",
                title=f"Rows begin with two start tokens ({tokenizer.bos_token}): the model has never seen that.",
                evidence=f"{part.name} {listed(twice)}",
                fix="Tokenise rendered text with add_special_tokens=False, and let the template write one.",
                rows=_train_rows(part, twice),
            )
        if never:
            yield Finding(
                id="missing-bos",
                severity="warning",
                title=f"Rows lack the start token ({tokenizer.bos_token}) that this tokenizer puts before plain text.",
                evidence=f"{part.name} {listed(never)}",
                fix="Tokenise with chat.tokenize, which puts it there.",
                rows=_train_rows(part, never),
            )


def _check_context(parts: Sequence[TokenisedPart], model: Any, max_length: int) -> Iterator[Finding]:

    context = context_tokens(model)
    if context is None or max_length <= context:
        return
    for part in parts:
        if over := [n for n, _, ids, _ in part.readable if len(ids) > context]:
            yield Finding(
                id="longer-than-context",
                severity="warning",
                title=f"Rows are longer than the {context:,} tokens that this model can read.",
                evidence=f"{part.name} {listed(over)}; the longest has {part.longest:,} tokens",
                fix=f"Set max_length={context}, or leave these rows out.",
                field="max_length",
                rows=_train_rows(part, over),
            )


def _train_rows(part: TokenisedPart, numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(numbers) if part.name == "train" else ()


def _flat(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


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

_RENDERED = 100  # rows whose text is searched for what their turns say

_ASKED, _ANSWERED = "probe-question", "probe-answer"

_Chat = list[dict[str, Any]]


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
    for n, example in zip(part.numbers, part.examples, strict=True):
        if n not in part.refusals and (problem := order_problem(example["messages"])):
            problems.setdefault(problem, []).append(n)
    if problems:
        rows = sorted(itertools.chain.from_iterable(problems.values()))
        reasons = [f"{part.name} {listed(numbers)}: {problem}" for problem, numbers in list(problems.items())[:5]]
        yield Finding(
            id="turns-malformed",
            severity="warning",
            title=f"{len(rows)} {part.name} rows are no chats that end with an answer.",
            evidence="\n".join(reasons),
            fix="Leave them out: data.load_examples(..., on_error='skip') does; "
            "chat.merge_turns joins neighbours of one role.",
            rows=_rows(part, rows),
        )


def _check_refusals(part: TokenisedPart, tokenizer: Any) -> Iterator[Finding]:
    """Sort the refused rows by the change that makes the template take them."""
    kinds: dict[str, list[int]] = {}
    for n, example in zip(part.numbers, part.examples, strict=True):
        if n in part.refusals:
            kinds.setdefault(_kind(example, tokenizer), []).append(n)
    for kind, rows in kinds.items():
        id, title, fix = _REFUSALS[kind]
        first = part.examples[part.numbers.index(rows[0])]["messages"]
        roles = " → ".join(m["role"] for m in first)
        cause = order_problem(first) if kind == "malformed" else _cause(part.refusals[rows[0]])
        yield Finding(
            id=id,
            severity="error",
            title=title,
            evidence=f"{part.name} {listed(rows)}; row {rows[0]} ({roles}): {cause}",
            fix=fix,
            rows=_rows(part, rows),
        )


def _kind(example: Mapping[str, Any], tokenizer: Any) -> str:
    """Name of the first change under which the template takes the row."""
    chat, tools = [plain(message) for message in example["messages"]], example.get("tools")
    for name, change in _CHANGES:
        if change(chat) != chat and _works(tokenize, change(chat), tools, tokenizer):
            return name
    if _works(tokenize, fold_tools(chat, tools), None, tokenizer):
        return "tools"
    if order_problem(chat):
        return "malformed"
    if _works(render, chat, tools, tokenizer):
        return "rewrites"
    answers = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    alone = len(answers) > 1 and _works(tokenize, chat[: answers[0] + 1], tools, tokenizer)
    return "several" if alone else "other"


def _works(step: Callable[[Any, Any], Any], chat: _Chat, tools: Any, tokenizer: Any) -> bool:
    try:
        return bool(step({"messages": chat, "tools": tools}, tokenizer))
    except ValueError:  # DataError among them
        return False


_CHANGES: tuple[tuple[str, Callable[[_Chat], _Chat]], ...] = (
    ("system", chat.fold_system),
    ("order", chat.merge_turns),
    ("system and order", lambda chat: merge_turns(fold_system(chat))),
)

_MAP = "examples.map(lambda row: {{'messages': {}(row['messages'])}})"

_REFUSALS = {
    "system": (
        "template-refuses-system",
        "The template refuses a system turn.",
        f"Fold it into the first user turn: {_MAP.format('chat.fold_system')}. Ask the trained model in the same way.",
    ),
    "order": (
        "template-refuses-turns",
        "The template wants turns to alternate.",
        f"Join neighbours of one role: {_MAP.format('chat.merge_turns')}.",
    ),
    "system and order": (
        "template-refuses-system",
        "The template refuses a system turn, and wants turns to alternate.",
        "Mend both: examples.map(lambda row: {'messages': chat.merge_turns(chat.fold_system(row['messages']))}).",
    ),
    "tools": (
        "template-loses-tools",
        "The template leaves out tool calls, results or schemas.",
        "Write them into the text with chat.fold_tools(messages, tools), or take a model whose template knows them.",
    ),
    "rewrites": (
        "template-rewrites-turns",
        "The template writes an earlier answer differently once later turns follow.",
        "Keep the first question and answer of these chats, or use another template.",
    ),
    "several": (
        "template-refuses-turns",
        "The template takes one question and answer, not several.",
        "Keep the first question and answer of these chats, or use another template.",
    ),
    "malformed": (
        "turns-malformed",
        "The turns of some chats are out of order, and the template refuses them.",
        "Leave these rows out: data.load_examples(..., on_error='skip') does.",
    ),
    "other": (
        "template-refuses-turns",
        "The template refuses these turns.",
        "Change the turns to what the template takes, leave these rows out, or use another template.",
    ),
}


def _cause(message: str) -> str:
    return message.split(": ", 1)[-1].split(". ", 1)[0].rstrip(".")


def _check_dropped(part: TokenisedPart, tokenizer: Any) -> Iterator[Finding]:
    """Search the rendered text for what system and user turns say; some templates skip a role without a word."""
    dropped: dict[str, list[int]] = {}
    rows = part.readable
    for n, example, ids, _ in rows[:: max(1, len(rows) // _RENDERED)]:
        text = _flat(tokenizer.decode(ids))
        for role in {
            m["role"]
            for m in map(plain, example["messages"])
            if m["role"] in ("system", "user") and _flat(m["content"]) not in text
        }:
            dropped.setdefault(role, []).append(n)
    for role, numbers in dropped.items():
        yield Finding(
            id="template-drops-turns",
            severity="warning",
            title=f"What the {role} turn says does not stand in the text that the model reads.",
            evidence=f"{part.name} {listed(numbers)}",
            fix="Fold it into the first user turn with chat.fold_system, or use another template."
            if role == "system"
            else "Print chat.render of such a row; the template may rewrite the turn.",
            rows=_rows(part, numbers),
        )


def _markers(tokenizer: Any) -> tuple[str, ...]:
    """What the template writes around turns, found by rendering a probe: special tokens, the bridge to an answer."""
    chat = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}]
    try:
        text = render(chat, tokenizer)
    except DataError:
        return ()
    bridge = text.partition(_ASKED)[2].partition(_ANSWERED)[0].strip()
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if str(token) in text]
    return tuple(dict.fromkeys([*special, *([bridge] if len(bridge) > 3 else [])]))


def _check_markers(part: TokenisedPart, markers: Sequence[str]) -> Iterator[Finding]:
    rows, seen = [], ""
    for n, example in zip(part.numbers, part.examples, strict=True):
        text = "\n".join(m["content"] for m in map(plain, example["messages"]))
        if found := [marker for marker in markers if marker in text]:
            rows.append(n)
            seen = seen or found[0]
    if rows:
        most = len(rows) > len(part.examples) / 2
        yield Finding(
            id="double-template",
            severity="error" if most else "warning",
            title="The messages are in a chat format already: the template would be applied twice."
            if most
            else "Some messages hold the template's own markers: they would be read as the end of a turn.",
            evidence=f"{part.name} {listed(rows)}: {quoted(seen)}",
            fix="Load the raw turns: data.load_examples takes a `text` column in ChatML apart."
            if most
            else "Take the markers out of the text, or leave these rows out.",
            rows=_rows(part, rows),
        )


def _rows(part: TokenisedPart, numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(numbers) if part.name == "train" else ()


TOKENIZER_CHECKS = {
    "no-stop-token": "the tokenizer has a stop token",
    "stop-token-differs": "the model's generation config stops at the tokenizer's stop token",
    "no-pad-token": "the tokenizer has a pad token",
    "pad-is-stop": "pad and stop are two tokens",
    "token-outside-embeddings": "every token has a row in the model's embedding",
    "template-tokens-untrained": "the template's special tokens were trained with the base model",
}

_ORDINARY = 1_000  # ordinary tokens that the special ones are held against

_SMALL = 0.05  # of the ordinary norm: as good as zero

_SAME = 0.01  # of the ordinary norm: as good as equal


def check_special_tokens(tokenizer: Any, model: Any, parts: Sequence[TokenisedPart] = ()) -> Iterator[Finding]:
    """All findings about special tokens; without a model only those of the tokenizer itself."""
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
    if model is None:
        return
    yield from _check_configured(tokenizer, model)
    yield from _check_range(model, parts)
    yield from _check_trained_tokens(tokenizer, model, parts)


def _check_configured(tokenizer: Any, model: Any) -> Iterator[Finding]:
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


def _check_range(model: Any, parts: Sequence[TokenisedPart]) -> Iterator[Finding]:
    weight = _embedding(model)
    if weight is None:
        return
    for part in parts:
        over = {n: max(ids) for n, _, ids, _ in part.readable if ids and max(ids) >= len(weight)}
        if over:
            yield Finding(
                id="token-outside-embeddings",
                severity="error",
                title="Rows hold tokens for which the model has no embedding: "
                "tokenizer and model do not belong together.",
                evidence=f"{part.name} {listed(over)}; token {max(over.values())}, "
                f"the embedding has {len(weight):,} rows",
                fix="Load both with one call of models.load, "
                "or model.resize_token_embeddings(len(tokenizer)) and train the new rows.",
            )


def _check_trained_tokens(tokenizer: Any, model: Any, parts: Sequence[TokenisedPart]) -> Iterator[Finding]:
    """Special tokens whose embeddings are about zero, or equal one another: nobody ever trained them."""
    import torch

    weight = _embedding(model)
    if weight is None or weight.device.type == "meta":
        return
    marked = set(tokenizer.added_tokens_decoder)
    seen: set[int] = set()
    for part in parts:
        for _, _, ids, _ in part.readable:
            seen |= marked.intersection(ids)
    used = sorted(seen & set(range(len(weight))))
    plain = [i for i in range(0, len(weight), max(1, len(weight) // _ORDINARY)) if i not in marked]
    if not used or not plain:
        return
    usual = float(_weight_rows(weight, plain).norm(dim=1).median())
    rows = _weight_rows(weight, used)
    small = {used[i] for i in (rows.norm(dim=1) < _SMALL * usual).nonzero().flatten().tolist()}
    alike = torch.cdist(rows, rows).fill_diagonal_(float("inf")) < _SAME * usual
    same = {used[i] for i in alike.any(dim=1).nonzero().flatten().tolist()}
    if untrained := sorted(small | same):
        names = ", ".join(tokenizer.decode([i]) for i in untrained)
        why = "about zero" if small >= same else "equal to one another"
        yield Finding(
            id="template-tokens-untrained",
            severity="warning",
            title="The template uses tokens that the base model was never trained on; "
            "an adapter does not train them either.",
            evidence=f"embeddings of {names} are {why}",
            fix="Take the instruct variant of this model, or a template of ordinary words.",
        )


def _weight_rows(weight: Any, ids: list[int]) -> Any:
    import torch

    return weight[torch.tensor(ids, device=weight.device)].float()


def _embedding(model: Any) -> Any:
    """The input embedding's weight, one row a token; None where it is packed in some other way."""
    weight: Any = getattr(model.get_input_embeddings(), "weight", None)
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        return None
    return weight.detach()


OVERLAP_CHECKS = {
    "leak-exact": "no val or test row stands in train",
    "leak-near": "no val or test row is nearly the same as one in train",
    "near-duplicates": "no two training rows are nearly the same",
}

MOST_ROWS = 20_000  # more would take more than a few seconds: `data.leakage` and `cleaning.clean` look at them all

_SHOWN = 5


def check_leaks(train: Any, others: Mapping[str, Any], *, near: bool = True) -> Iterator[Finding]:
    """Compare each other part with train, on prompts and on whole chats; without `near` for equal ones alone."""
    for name, part in others.items():
        report = leakage(train, part, threshold=THRESHOLD if near else None)
        rows = sorted({overlap.test for overlap in report.exact})
        if rows:
            yield Finding(
                id="leak-exact",
                severity="error",
                title=f"{len(rows)} {name} rows stand in train: a score on them says nothing.",
                evidence=_pairs(report, name, exact=True),
                fix="Split with data.split, which keeps twins together, or take these rows out: "
                "data.leakage(train, part).without_leaks(part).",
                rows=_train(report, exact=True),
            )
        alike = sorted({overlap.test for overlap in report.near})
        if alike:
            yield Finding(
                id="leak-near",
                severity="warning",
                title=f"{len(alike)} {name} rows are nearly the same as a training row: scores come out too high.",
                evidence=_pairs(report, name, exact=False),
                fix="Split with data.split, which keeps near-duplicates together.",
                rows=_train(report, exact=False),
            )


def check_duplicates(train: Any) -> Iterator[Finding]:
    """Search for training rows that are the same, or nearly."""
    groups: dict[int, list[int]] = {}
    for row, first in enumerate(data.near_pairs(Texts(train)).clusters()):
        groups.setdefault(first, []).append(row + 1)
    yield from repeated([rows for rows in groups.values() if len(rows) > 1], len(train))


def repeated(groups: Sequence[Sequence[int]], total: int) -> Iterator[Finding]:
    """List groups of training rows, numbered from 1, that repeat one another."""
    if not groups:
        return
    extra = sum(len(rows) - 1 for rows in groups)
    shown = "; ".join(listed(rows) for rows in groups[:_SHOWN])
    yield Finding(
        id="near-duplicates",
        severity="warning",
        title=f"{extra} of {total} training rows repeat another one: they weigh more than the rest.",
        evidence=shown if len(groups) <= _SHOWN else f"{len(groups)} groups, such as {shown}",
        fix="Drop them: cleaning.clean with cleaning.near_duplicates(); keep them if repetition is meant.",
        rows=tuple(itertools.chain.from_iterable(rows[1:] for rows in groups)),
    )


def _pairs(report: LeakageReport, name: str, *, exact: bool) -> str:
    overlaps = report.exact if exact else report.near
    shown = []
    for o in overlaps[:_SHOWN]:
        on = "prompt" if o.on == "prompt" else "prompt and answer"
        shown.append(f"{name} row {o.test} ~ train row {o.train} ({on}, {o.similarity:.0%} alike)")
    more = f"\nand {len(overlaps) - _SHOWN} more" if len(overlaps) > _SHOWN else ""
    return "\n".join(shown) + more


def _train(report: LeakageReport, *, exact: bool) -> tuple[int, ...]:
    return tuple(sorted({overlap.train for overlap in (report.exact if exact else report.near)}))
