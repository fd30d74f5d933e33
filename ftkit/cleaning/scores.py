"""How good is each example? Scores from rules that read text and from a model's own likelihood, and `select`.

A score function takes rows of `messages` and gives one score a row, in order: higher is better, None where there is
none. `select` sets what a score picks beside a random draw, the baseline to beat. Models that judge are in `raters`.
"""

import itertools
import math
import random
import re
import statistics
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ftkit import chat, data, tables
from ftkit.chat import IGNORED, Messages
from ftkit.errors import DataError, FtkitWarning
from ftkit.models import TokenRow, answer_nll, context_tokens
from ftkit.tables import Table

_T = TypeVar("_T")
ScoreFn = Callable[[Sequence[Messages]], Sequence[float | None]]
_REPEATED = 0.3  # share of repeated lines at which Gopher drops a document (Rae et al. 2021, arXiv:2112.11446, A1)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_ASKS_LONG = re.compile(
    r"(?:^|[.!?:\n])\s*(?:please )?(?:explain|describe|discuss|write|tell|compare|summari[sz]e|list)\b"
    r"|in detail|step by step",
    re.I,
)
_ASKS_SHORT = re.compile(
    r"classif|categor|label|sentiment|\b(?:one|single)[- ]word|number|\btrue\b|\byes\b|choose|option|calculat"
    r"|comput|solve|translat|\bname\b|\w+nym\b|extract|convert|identif|answer (?:only )?with|[A-D][).]|[=\d]"
    r"|\b(?:what|which|whose|who|when|where)\b|how (?:many|much|old|long|far|tall|big|fast|often)"
    r"|(?:^|[.!?:\n])\s*(?:is|are|was|were|do|does|did|can|has|have|should|will)\b",
    re.I,
)
_ASKS_MARKUP = re.compile(r"html|xml|svg|jsx|markup|\btags?\b|web ?(?:site|page)|css", re.I)
_ASKS_CAPITALS = re.compile(r"upper.?case|capital|all.?caps|shout", re.I)

_REFUSAL = (
    r"(?i)\b(?:as an? (?:AI|artificial intelligence|(?:AI |large )?language model)|i(?:'|’| a)m (?:just )?an ai"
    r"|i (?:can(?:no|'|’)t|am (?:not able|unable) to) (?:assist|help|fulfil|comply|provide)"
    r"|(?:sorry|apologi[sz]e),? but i (?:can|am)|knowledge cut-?off)"
)
_PLACEHOLDER = r"\b(?:TODO|FIXME|TBD)\b|[\[<{](?i:insert|your)\b[^\]>}\n]{0,60}[\]>}]|(?i:lorem ipsum)"
_MARKUP = (
    r"(?i)</?(?:div|span|p|br|a|img|t[rdh]|table|[uo]l|li|font|script|style|b|i|h[1-6])\b[^<>]{0,200}>"
    r"|&(?:nbsp|amp|lt|gt|quot|#\d{1,6});|<\|\w{1,30}\|>|\[/?INST\]|###? ?(?:Instruction|Response):"
)
_BROKEN = "\ufffd|Ã[\x80-\xbf]|Â[\x80-\xbf]|â€|ï»¿|[\x00-\x08\x0e-\x1f\x7f]"
# points, name, what costs them where it stands outside code, and prompts that ask for it
_PATTERNS: tuple[tuple[float, str, re.Pattern[str], re.Pattern[str] | None], ...] = (
    (0.5, "refusal boilerplate", re.compile(_REFUSAL), None),
    (0.4, "placeholder text", re.compile(_PLACEHOLDER), None),
    (0.4, "markup left over", re.compile(_MARKUP), _ASKS_MARKUP),
    (0.4, "broken characters", re.compile(_BROKEN), None),
    (0.2, "shouting", re.compile(r"[!?]{4,}"), None),
)


def heuristics(rows: Sequence[Messages]) -> list[float]:
    """Score each row's last answer by rules that read text alone, 0 to 1; 1 is an answer without a fault."""
    return [max(0.0, round(1.0 - sum(points for points, _ in _faults(messages)), 2)) for messages in rows]


def explain(messages: Messages) -> list[str]:
    """What cost `heuristics` points in this row, each with its points."""
    return [f"{fault} (-{points:.1f})" for points, fault in _faults(messages)]


def ifd(model: Any, tokenizer: Any, batch_size: int = 8, *, limit: float = 1.0) -> ScoreFn:
    """Score by instruction-following difficulty: how little the prompt helps the model to write the answer.

    s(A|Q) / s(A), each the mean negative log-likelihood of the answer's tokens, with the prompt and without (Li et al.
    2023, arXiv:2308.12032, eq. 5). Without the prompt the model reads only what the template puts before any answer
    (start token, assistant header), as the authors' code does; an empty user turn would bring the template's default
    system prompt along. The mask is training's own, of the last answer, so its stop token counts.

    None are: an answer without text, a row longer than the model's context, a row that the template refuses, and, as in
    the paper, a score above `limit` (`math.inf` keeps all): there the prompt makes the answer less likely. In bf16 the
    score of a few tokens moves by some hundredths with the batch size, whose kernels round differently; in fp32 it does
    not.
    """

    def score(rows: Sequence[Messages]) -> list[float | None]:
        """One score a row, in order."""
        pairs = each(rows, lambda messages: _with_and_without(messages, tokenizer, context_tokens(model)))
        sums = iter(answer_nll(model, list(itertools.chain.from_iterable(filter(None, pairs))), batch_size=batch_size))
        ratios = [next(sums)[0] / (next(sums)[0] or math.nan) if pair else math.nan for pair in pairs]
        return [ratio if ratio <= limit else None for ratio in ratios]

    return score


@tables.shown
@dataclass(frozen=True)
class Selection:
    """The best rows beside as many drawn at random; `scores` has one entry a row of the examples."""

    chosen: Any
    baseline: Any
    scores: tuple[float | None, ...]
    chosen_rows: tuple[int, ...]
    baseline_rows: tuple[int, ...]

    def _parts(self) -> list[Table | str]:
        head = ("", "rows", "mean score", "mean answer words", "distinct-2", "without a score")
        lines = []
        sides = (("chosen", self.chosen, self.chosen_rows), ("random", self.baseline, self.baseline_rows))
        for name, examples, rows in sides:
            answers = [data.words(answer_of(messages)) for messages in examples["messages"]]
            pairs = list(itertools.chain.from_iterable(map(itertools.pairwise, answers)))
            known = [score for score in map(self.scores.__getitem__, rows) if score is not None]
            mean = f"{statistics.fmean(known):.3f}" if known else "–"
            distinct = f"{len(set(pairs)) / len(pairs):.3f}" if pairs else "–"  # share of word pairs (Li et al. 2016)
            words = f"{statistics.fmean(map(len, answers)):.1f}"
            lines.append((name, len(rows), mean, words, distinct, len(rows) - len(known)))
        without = f"{self.scores.count(None)} of {len(self.scores)} rows have no score; none of them can be chosen."
        return [Table(head, lines), without]


def select(examples: Any, score_fn: ScoreFn, share: float, *, seed: int = 0) -> Selection:
    """Choose the best `share` of all rows by score, in their own order, and draw as many at random to compare with.

    Ties are drawn with `seed`, so that a score with few values does not favour the file's beginning. Rows without a
    score are never chosen; where they leave too few, fewer are chosen.

    Raises:
        DataError: a share outside 0 to 1, no row with a score, or a score function that lost rows.
    """
    n = len(examples)
    if not 0 < share <= 1:
        raise DataError(f"share={share} is outside 0 to 1: it says how much of the {n} rows to keep, such as 0.25.")
    scores = tuple(scored(score_fn, messages_of(examples)))
    draw = random.Random(seed)
    ranked = [(score, i) for i in draw.sample(range(n), n) if (score := scores[i]) is not None]
    if not ranked:
        raise DataError(f"None of the {n} rows has a score, so none can be chosen. Score one row alone to see why.")
    ranked.sort(key=lambda pair: -pair[0])
    chosen = tuple(sorted(i for _, i in ranked[: max(1, round(share * n))]))
    baseline = tuple(sorted(draw.sample(range(n), len(chosen))))
    return Selection(examples.select(chosen), examples.select(baseline), scores, chosen, baseline)


def scored(score_fn: ScoreFn, rows: Sequence[Messages]) -> list[float | None]:
    """One score a row; what is no finite number counts as none. Raises DataError for a function that lost rows."""
    given = list(score_fn(rows))
    if len(given) != len(rows):
        gave = f"The score function gave {len(given)} scores for {len(rows)} rows"
        raise DataError(f"{gave}; it must give one a row, None where there is none.")
    return [None if score is None or not math.isfinite(score) else float(score) for score in given]


def _faults(messages: Messages) -> list[tuple[float, str]]:
    """Points and names of what is wrong with the last answer; what already stands in the question is no fault."""
    answer = answer_of(messages)
    if not answer:
        return [] if messages and messages[-1].get("tool_calls") else [(1.0, "empty answer")]
    prompt = next((m["content"] or "" for m in reversed(messages) if m["role"] == "user"), "")
    body, words, asked = _CODE.sub(" ", answer), data.words(answer), data.words(prompt)
    short_is_fine = _ASKS_SHORT.search(prompt) and not _ASKS_LONG.search(prompt)
    lines = [line.strip() for line in body.splitlines() if len(line.split()) > 1]
    # a long passage of the prompt, and most of it: a quotation that was asked for is shorter
    copied = len(words) > 20 and 2 * len(words) > len(asked) and " ".join(words) in " ".join(asked)
    checks = (
        (0.5, len(words) < 3 and len(answer) < 25 and not short_is_fine, "hardly an answer"),
        (0.5, len(asked) > 2 and (words[: len(asked)] == asked or copied), "repeats the prompt"),
        (0.4, _repeated(lines, 4) > _REPEATED, "repeated lines"),
        (0.4, _repeated(list(zip(words, words[1:], words[2:], strict=False)), 10) > _REPEATED, "repeated phrases"),
        (0.3, 2 * sum(map(len, words)) < len(answer) and _few_letters(body), "few letters"),
        (0.2, _capitals(body) and not _capitals(prompt) and not _ASKS_CAPITALS.search(prompt), "shouting: capitals"),
        (0.3, len(words) > 15 and _cut_off(answer), "ends mid-sentence"),
    )
    found = []
    for points, name, pattern, asks in _PATTERNS:
        hit = next((m.group() for m in pattern.finditer(body) if m.group() not in prompt), None)
        if hit is not None and not (asks and asks.search(prompt)):
            found.append((points, f"{name}: {hit[:40]!r}"))
    return found + [(points, name) for points, wrong, name in checks if wrong]


def _repeated(items: Sequence[object], least: int) -> float:
    return 1 - len(set(items)) / len(items) if len(items) >= least else 0.0


def _few_letters(text: str) -> bool:
    kinds = [unicodedata.category(sign)[0] for sign in text if not sign.isspace()]
    return len(kinds) >= 20 and 2 * sum(kind in "LNM" for kind in kinds) < len(kinds)  # M: vowels of Indic scripts


def _capitals(text: str) -> bool:
    upper = sum(map(str.isupper, text))
    return upper > 20 and upper > 0.7 * (upper + sum(map(str.islower, text)))


def _cut_off(answer: str) -> bool:
    """A code block left open, or a last line of prose that ends in a comma or, in a script with capitals, a letter."""
    last = answer.rsplit("\n", 1)[-1].strip()
    prose = len(last.split()) > 8 and not re.match(r"[-*•|#>]|\d+[.)]", last)
    open_end = prose and (last[-1] in ",;:(–-" or last[-1].lower() != last[-1].upper())
    return open_end or answer.count("```") % 2 == 1


def _with_and_without(messages: Messages, tokenizer: Any, context: int | None) -> tuple[TokenRow, TokenRow] | None:
    """The row with only its last answer labelled, and the same answer behind nothing but the template's opening."""
    if not answer_of(messages) or messages[-1].get("train") is False:
        return None
    row = chat.tokenize(messages, tokenizer)
    ids, trained = row["input_ids"], [label != IGNORED for label in row["labels"]]
    end = len(ids) - trained[::-1].index(True) if any(trained) else 0
    start = end - [*trained[:end][::-1], False].index(False)
    opening = _opening(messages[:-1], tokenizer, ids)
    first = start if opening and start else start + 1  # a row's first token is not predicted: count it in neither
    if first >= end or (context and len(ids) > context):
        return None
    masked = [IGNORED] * (len(opening) + first - start)
    return (
        {"input_ids": ids[:end], "labels": [IGNORED] * first + ids[first:end]},
        {"input_ids": opening + ids[start:end], "labels": masked + ids[first:end]},
    )


def _opening(prompt: Messages, tokenizer: Any, ids: list[int]) -> list[int]:
    """Tokens that the template puts before an answer whatever was asked: start token and assistant header."""
    asked, bare = chat.render(prompt, tokenizer, add_generation_prompt=True), chat.render(prompt, tokenizer)
    header = tokenizer(asked[len(bare) :] if asked.startswith(bare) else "", add_special_tokens=False)["input_ids"]
    start = [tokenizer.bos_token_id] if ids[:1] == [tokenizer.bos_token_id] else []
    return list(header if header[:1] == start else [*start, *header])


def each(rows: Sequence[Messages], make: Callable[[Messages], _T | None]) -> list[_T | None]:
    """Apply `make` to each row, None where the template refuses it; warns, and raises when it refuses all."""
    made: list[_T | None] = []
    refused: list[DataError] = []
    for messages in rows:
        try:
            made.append(make(messages))
        except DataError as error:
            made.append(None)
            refused.append(error)
    if refused and len(refused) == len(rows):
        raise refused[0]
    if refused:
        said = f"{len(refused)} of {len(rows)} rows get no score. The first: {refused[0]}"
        warnings.warn(said, FtkitWarning, stacklevel=4)
    return made


def messages_of(examples: Any) -> list[Messages]:
    """The messages of all rows; where a row has schemas, these and its calls are written into the text."""
    schemas = examples["tools"] if "tools" in examples.column_names else itertools.repeat(None)
    pairs = zip(examples["messages"], schemas, strict=False)
    return [chat.fold_tools(messages, tools) if tools else messages for messages, tools in pairs]


def answer_of(messages: Messages) -> str:
    """The last turn's text where it is an answer, else nothing."""
    return (messages[-1]["content"] or "").strip() if messages and messages[-1]["role"] == "assistant" else ""
