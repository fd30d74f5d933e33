"""Which process reads which rows, so that together they read what one would: every row once a pass, none twice.

accelerate deals the micro-batches out in turn. Where they do not come out even, it starts again with the first rows,
and the trainer's validation repeats some as well; then N processes train and measure something else than one. Here a
blank row, of which nothing is trained, fills the last micro-batches, and validation weighs each row once.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ftkit import chat
from ftkit.hardware import launch
from ftkit.training import processes


def with_blank(rows: Any, tokenizer: Any) -> Any:
    """The rows, and as the last one a single token of which nothing is trained."""
    from datasets import Dataset, concatenate_datasets

    token = tokenizer.pad_token_id or 0
    blank = Dataset.from_dict({"input_ids": [[token]], "labels": [[chat.IGNORED]]}, features=rows.features)
    return concatenate_datasets([rows, blank])


@dataclass
class Evened:
    """An order of rows, followed by as many blank ones as let all processes get the same number of whole batches."""

    order: Any  # of one process: a sampler, or a range
    rows: int
    multiple: int

    def __len__(self) -> int:
        return math.ceil(self.rows / self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        for _ in range(len(self) - self.rows):
            yield self.rows  # the index of the blank row

    def set_epoch(self, epoch: int) -> None:
        """Another pass, another order, where the order is drawn."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)


def share_batches(trainer: Any, rows: int) -> None:
    """Let `trainer`, whose last training row is blank, train and validate its share of what one process would."""
    from accelerate.data_loader import SeedableRandomSampler

    arguments = trainer.args
    order: Any = range(rows)
    if arguments.train_sampling_strategy == "random":  # the order in which accelerate has one process read
        order = SeedableRandomSampler(range(rows), data_seed=arguments.data_seed)
    evened = Evened(order, rows, arguments.train_batch_size * launch().processes)
    loader = trainer.get_train_dataloader()
    loader.set_sampler(evened)
    trainer.get_train_dataloader = lambda: loader
    trainer.evaluation_loop = lambda *_, **__: _validated(trainer)


def _validated(trainer: Any) -> Any:
    """Validation loss over all processes: the mean of the batches' losses by their rows, as one process computes it.

    The model is asked itself: TRL would weigh a batch by the tokens of those that other processes read at that moment.
    """
    import torch
    from transformers.trainer_utils import EvalLoopOutput

    here, model = launch(), trainer.model
    rows, size, total, seen = trainer.eval_dataset, trainer.args.eval_batch_size, 0.0, 0
    model.eval()
    for start in range(here.rank * size, len(rows), here.processes * size):
        batch = [rows[i] for i in range(start, min(start + size, len(rows)))]
        with torch.no_grad():
            loss = model(**trainer.data_collator(batch).to(trainer.args.device)).loss
        total, seen = total + len(batch) * float(loss), seen + len(batch)
    model.train()
    summed, counted = processes.summed(total, seen)
    return EvalLoopOutput(None, None, {"eval_loss": summed / counted}, len(rows))
