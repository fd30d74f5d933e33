"""Splits as tokens, made once and read by the check and by the training alike."""

from dataclasses import dataclass
from typing import Any

from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.preflight import checks
from ftkit.preflight.report import PreflightReport
from ftkit.preflight.rows import Part, read_part


@dataclass(frozen=True)
class Rows:
    """Splits whose train and val parts are tokenised, uncut."""

    splits: Splits
    train: Part
    val: Part


def tokenize_splits(splits: Splits, tokenizer: Any, config: TrainConfig) -> Rows:
    """Tokenise the training part, and as many validation rows as `config.max_eval_examples` asks for."""
    val = splits.val.shuffle(seed=config.seed).select(range(min(len(splits.val), config.max_eval_examples)))
    train = read_part("train", splits.train, tokenizer, limit=len(splits.train))
    return Rows(splits, train, read_part("val", val, tokenizer, limit=len(val)))


def check(model: Any, tokenizer: Any, examples: Any, config: TrainConfig, **given: Any) -> PreflightReport:
    """What `checks.check` does, of `Rows` as well."""
    if not isinstance(examples, Rows):
        return checks.check(model, tokenizer, examples, config, **given)
    ready: Any = None if examples.train.refusals else {"train": examples.train.tokens}
    return checks.check(model, tokenizer, examples.splits, config, tokenized=ready, **given)
