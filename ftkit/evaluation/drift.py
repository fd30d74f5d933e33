"""What did the adapter do to text that it was not trained on? Loss a token with the adapter off and on.

The base weights are frozen, and yet the model that is asked is the base plus the adapter: it can forget.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftkit import chat, models, tables
from ftkit.data import load_examples
from ftkit.errors import DataError, ModelError
from ftkit.evaluation.statistics import Score, difference_interval
from ftkit.models import TokenRow, answer_nll
from ftkit.tables import Table

_SHOWN = 10


@dataclass(frozen=True)
class TextLoss:
    """One text: its first words, how many of its tokens were predicted, and their mean loss (nats) off and on."""

    text: str
    tokens: int
    off: float
    on: float

    @property
    def change(self) -> float:
        """What the adapter adds to the loss of a token."""
        return self.on - self.off


@tables.shown
@dataclass(frozen=True)
class Forgetting:
    """How the loss on general text moved.

    Args:
        off, on: loss per token (nats) over all texts together, without and with the adapter.
        change: on minus off, with its interval; whole texts are drawn, since tokens of one text belong together.
        texts: the same, text by text.
    """

    off: float
    on: float
    change: Score
    texts: tuple[TextLoss, ...]

    @property
    def forgot(self) -> bool:
        """Whether the whole interval of the change lies above zero."""
        return self.change.low > 0

    def against(self, other: "Forgetting") -> Score:
        """What this adapter adds to the loss per token beyond `other`, text by text, with its interval.

        Raises:
            DataError: the two were measured on other texts.
        """
        mine, theirs = ([(text.text, text.tokens, text.off) for text in report.texts] for report in (self, other))
        if mine != theirs:
            raise DataError("These two were measured on other texts or another base. Measure both alike.")
        pairs = zip(self.texts, other.texts, strict=True)
        return _change(tuple(TextLoss(a.text, a.tokens, b.on, a.on) for a, b in pairs))

    def verdict(self) -> str:
        """One plain sentence."""
        c = self.change
        moved = f"{c.value:+.3f} nats per token [{c.low:+.3f}, {c.high:+.3f}] on {len(self.texts)} texts"
        times = f"perplexity {math.exp(min(self.off, 700)):.1f} became {math.exp(min(self.on, 700)):.1f}"
        if self.forgot:
            return f"The adapter made these texts less likely: {moved}; {times}."
        if c.high < 0:
            return f"The adapter made these texts likelier: {moved}; {times}."
        return f"No change can be told from these texts: {moved}; {times}."

    def _parts(self) -> list[Table | str]:
        worst = sorted(self.texts, key=lambda text: -text.change)[:_SHOWN]
        rows = [(t.text, t.tokens, f"{t.off:.3f}", f"{t.on:.3f}", f"{t.change:+.3f}") for t in worst]
        head = ("text", "tokens", "loss, adapter off", "loss, adapter on", "change")
        most = f" The {_SHOWN} that changed most are shown." if len(self.texts) > _SHOWN else ""
        return [Table(head, rows), self.verdict() + most]


def forgetting(
    model: Any, tokenizer: Any, texts: Sequence[Any] | Any = None, *, max_length: int = 512, batch_size: int = 8
) -> Forgetting:
    """Loss of general texts with the adapter off and on; each token is predicted from those before it.

    Args:
        model: with its adapter, not merged.
        tokenizer: its own.
        texts: strings, of which every token but the first counts; or examples, of which the answers count (of
            documents all). By default the bundled passages.
        max_length: tokens of a text that are read.
        batch_size: texts at once.

    Raises:
        ModelError: a model without an adapter, or a merged one.
        DataError: no texts, an empty one, or a loss that is no number.
    """
    if not models.is_adapted(model):
        raise ModelError(
            "This model has no adapter that could be switched off: it is a base, or the adapter was merged. Load it "
            "with models.load_adapter(path), without merge=True."
        )
    given = list(load_examples("passages") if texts is None else [texts] if isinstance(texts, str) else texts)
    if not given:
        raise DataError("There are no texts to measure.")
    rows = [_tokens(number, text, tokenizer, max_length) for number, text in enumerate(given, 1)]
    with model.disable_adapter():
        off = answer_nll(model, rows, batch_size=batch_size)
    on = answer_nll(model, rows, batch_size=batch_size)
    if odd := [n for n, pair in enumerate(zip(off, on, strict=True), 1) if not all(math.isfinite(v) for v, _ in pair)]:
        raise DataError(
            f"The loss of text {odd[0]} is no number ({len(odd)} of {len(rows)} texts): the adapter's weights are "
            "damaged. Take an earlier checkpoint."
        )
    told = tuple(
        TextLoss(_head(text), count, was / count, now / count)
        for text, (was, count), (now, _) in zip(given, off, on, strict=True)
    )
    total = sum(text.tokens for text in told)
    return Forgetting(
        off=sum(was for was, _ in off) / total,
        on=sum(now for now, _ in on) / total,
        change=_change(told),
        texts=told,
    )


def _tokens(number: int, text: Any, tokenizer: Any, max_length: int) -> TokenRow:
    if isinstance(text, str):
        ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
        row = {"input_ids": ids, "labels": list(ids)}
    else:
        row = chat.tokenize(text, tokenizer, max_length=max_length)
    if all(label == chat.IGNORED for label in row["labels"][1:]):
        raise DataError(
            f"Text {number} has no token to predict: it is empty, or max_length={max_length} cuts its answer off. "
            "Leave it out, or raise max_length."
        )
    return {"input_ids": list(row["input_ids"]), "labels": list(row["labels"])}


def _head(text: Any) -> str:
    said = text if isinstance(text, str) else text.get("text") or text["messages"][-1]["content"]
    return said if len(said) <= 60 else said[:59] + "…"


def _change(texts: Sequence[TextLoss]) -> Score:
    """Change of the loss of all tokens; the interval counts a text as one, however many tokens it has."""
    changes = [text.change for text in texts]
    value = sum(text.change * text.tokens for text in texts) / sum(text.tokens for text in texts)
    if len(texts) == 1:
        return Score(value, -math.inf, math.inf)
    if min(changes) == max(changes):  # an adapter that does nothing
        return Score(value, value, value)
    changed, owners = list[float](), list[str]()
    for number, text in enumerate(texts):  # each token counts, and those of one text belong together
        changed += [text.change] * text.tokens
        owners += [str(number)] * text.tokens
    return difference_interval(changed, owners)
