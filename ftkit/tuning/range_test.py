"""A learning-rate range test: one short ramp of the rate shows where learning begins and where it breaks.

After Smith 2017, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), with an exponential ramp.
"""

import itertools
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ftkit import models, tables
from ftkit.chat import IGNORED, tokenize
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError
from ftkit.hardware import release_memory
from ftkit.models import TokenRow, padded

_WIDTH = 5  # losses that a smoothed point is the mean of

_FELL = 0.1  # a fall by less than this share of the first loss is noise


@tables.shown
@dataclass(frozen=True)
class RateRange:
    """The ramp: a learning rate and the loss before its update, step by step, per trained token.

    `blew_up` is the rate at which the loss had climbed halfway back, or was no number, and the test stopped; None where
    it never did.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    blew_up: float | None

    @property
    def smoothed(self) -> tuple[float, ...]:
        """Mean of five neighbours, fewer at the ends; centred, so that it lags nowhere."""
        half, finite = _WIDTH // 2, [loss if math.isfinite(loss) else self.losses[0] * 10 for loss in self.losses]
        return tuple(statistics.fmean(finite[max(0, i - half) : i + half + 1]) for i in range(len(finite)))

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls fastest per decade; None where it never fell to speak of."""
        smoothed, end = self.smoothed, self._bottom()
        if end < 2 or smoothed[end] > (1 - _FELL) * smoothed[0]:
            return None

        def slope(i: int) -> float:
            return (smoothed[i + 1] - smoothed[i - 1]) / math.log(self.rates[i + 1] / self.rates[i - 1])

        return self.rates[min(range(1, end), key=slope)]

    @property
    def suggestion(self) -> float | None:
        """A peak rate to begin with: where the loss falls fastest, and at most a tenth of where it blew up."""
        if self.steepest is None:
            return None
        return min(self.steepest, math.inf if self.blew_up is None else self.blew_up / 10)

    @property
    def zone(self) -> tuple[float, float] | None:
        """Rates worth trying: from a third of the suggestion to a tenth of the blow-up, or else to the lowest loss."""
        if self.suggestion is None:
            return None
        upper = self.rates[self._bottom()] if self.blew_up is None else self.blew_up / 10
        return self.suggestion / 3, max(self.suggestion, upper)

    def verdict(self) -> str:
        """One plain sentence."""
        tried = f"from {self.rates[0]:.2g} to {self.rates[-1]:.2g}"
        if self.blew_up is None:
            ended = f"the loss never climbed back {tried}: raise `high` to see where it does"
        else:
            how = "had climbed halfway back" if math.isfinite(self.losses[-1]) else "was no number"
            ended = f"the loss {how} at {self.blew_up:.2g}"
        if self.suggestion is None or self.zone is None:
            return f"The loss did not fall {tried}; {ended}. Use more steps, or a wider range."
        assert self.steepest is not None
        return (
            f"The loss falls fastest near {self.steepest:.2g}; {ended}. "
            f"Begin with learning_rate={self.suggestion:.2g}, and search from {self.zone[0]:.2g} to {self.zone[1]:.2g}."
        )

    def _parts(self) -> list[tables.Table | str]:
        return [self.verdict()]

    def _bottom(self) -> int:
        smoothed = self.smoothed
        return min(range(len(smoothed)), key=smoothed.__getitem__)


def learning_rate_range(
    model: Any,
    tokenizer: Any,
    examples: Any,
    config: TrainConfig,
    *,
    low: float = 1e-5,
    high: float = 1e-1,
    steps: int = 60,
) -> RateRange:
    """Train for a moment with a rate that grows from `low` to `high`, and take every change of the weights back.

    Each update sees `config.effective_batch_size` fresh rows. The test ends when the loss is not finite, or has lost
    half of what it had gained. What it finds holds for this batch size, rank and alpha, without warm-up. `high` may lie
    far above what a config would allow; of `steps`, ten a decade is little. Afterwards the weights of the model, which
    has an adapter from `models.add_lora`, are what they were, bit for bit.

    Raises:
        ConfigError: rates or steps that are no range, or a model without an adapter.
        DataError: no row has a trained token.
    """
    problems = []
    if not (math.isfinite(low) and math.isfinite(high) and 0 < low < high):
        given = f"low={low!r}, high={high!r}"
        problems.append(f"{given}: wanted two rates above 0, the low one first, such as 1e-5 and 1e-1.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2 * _WIDTH:
        problems.append(f"steps={steps!r} wants a whole number, {2 * _WIDTH} or more: fewer show no curve.")
    if not models.is_adapted(model):
        why = "and none could be taken out again without a trace"
        problems.append(f"The model has no adapter, {why}. Call models.add_lora first.")
    if problems:
        raise ConfigError("\n".join(problems))
    rows = [tokenize(example, tokenizer, max_length=config.max_length) for example in examples]
    rows = [row for row in rows if any(label != IGNORED for label in row["labels"][1:])]
    if not rows:
        limit = f"max_length={config.max_length}"
        raise DataError(f"No row has a trained token within {limit}. Raise it, or look at the examples.")
    rates: list[float] = []
    losses: list[float] = []
    with _kept(model):
        models.choose_attention(model, max(len(row["input_ids"]) for row in rows))
        step = _stepper(model, config)
        for number, batch in zip(range(steps), _batches(rows, config), strict=False):
            rates.append(low * (high / low) ** (number / (steps - 1)))
            losses.append(step(batch, rates[-1]))
            release_memory()
            if _climbed_back(losses):
                return RateRange(tuple(rates), tuple(losses), rates[-1])
    return RateRange(tuple(rates), tuple(losses), None)


def _batches(rows: Sequence[TokenRow], config: TrainConfig) -> Iterator[list[list[TokenRow]]]:
    """Without end: the micro-batches of one update, rows shuffled anew for every pass."""
    draw, size = random.Random(config.seed), config.per_device_train_batch_size
    order: list[int] = []
    while True:
        while len(order) < config.effective_batch_size:
            order += draw.sample(range(len(rows)), len(rows))
        picked, order = order[: config.effective_batch_size], order[config.effective_batch_size :]
        yield [[rows[i] for i in picked[start : start + size]] for start in range(0, len(picked), size)]


def _stepper(model: Any, config: TrainConfig) -> Any:
    """A function that makes one update at a given rate and returns the loss before it."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    kind = torch.optim.SGD if config.optim == "sgd" else torch.optim.AdamW
    optimizer = kind(trained, lr=1.0, weight_decay=config.weight_decay)
    device = torch.device(model.device).type
    numbers = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[config.dtype]
    scaler = torch.amp.GradScaler(device, enabled=config.dtype == "fp16" and device == "cuda")

    def step(batch: list[list[TokenRow]], rate: float) -> float:
        """One update over all micro-batches of `batch`."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows_of_update = itertools.chain.from_iterable(batch)
        answers = itertools.chain.from_iterable(row["labels"][1:] for row in rows_of_update)
        wanted, total = sum(label != IGNORED for label in answers), 0.0
        for rows in batch:
            ids, mask = padded([row["input_ids"] for row in rows], 0, model.device)
            labels, _ = padded([row["labels"] for row in rows], IGNORED, model.device)
            with torch.autocast(device, numbers, enabled=config.dtype != "fp32"):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
                loss = loss * int((labels[:, 1:] != IGNORED).sum()) / wanted  # one mean, however the update is cut
            scaler.scale(loss).backward()
            total += float(loss.detach())
        scaler.unscale_(optimizer)
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return total

    return step


def _climbed_back(losses: Sequence[float]) -> bool:
    """Whether the loss is not finite, or its last few lie halfway back to the first; a noisy step is neither."""
    if not math.isfinite(losses[-1]):
        return True
    if len(losses) < _WIDTH:
        return False
    means = [statistics.fmean(losses[i : i + 3]) for i in range(len(losses) - 2)]
    first, lowest = means[0], min(means)
    return means[-1] > lowest + max(0.5 * (first - lowest), 0.3 * first)


@contextmanager
def _kept(model: Any) -> Iterator[None]:
    """Give the model back as it was: trained weights, gradients, mode, attention, and the draws that follow."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    weights, was_training = [p.detach().clone() for p in trained], model.training
    attention = model.config._attn_implementation
    devices = [model.device] if torch.device(model.device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)  # dropout draws the same for every test
        model.train()
        try:
            yield
        finally:
            model.train(was_training)
            if model.config._attn_implementation != attention:
                model.set_attn_implementation(attention)
            with torch.no_grad():
                for parameter, before in zip(trained, weights, strict=True):
                    parameter.copy_(before)
                    parameter.grad = None
