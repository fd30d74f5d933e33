"""How likely a model finds given answers: summed negative log-likelihood in batches, and what that needs.

Knows tokens and labels, no examples; `cleaning` and `evaluation` ask it.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ftkit.chat import IGNORED
from ftkit.hardware import release_memory
from ftkit.models.loading import backend_of

TokenRow = dict[str, list[int]]


def answer_nll(model: Any, rows: Sequence[TokenRow], *, batch_size: int = 8) -> list[tuple[float, int]]:
    """Summed negative log-likelihood (nats) of each row's labelled tokens, and their number, in the order given.

    `rows` are as `chat.tokenize` makes them; a row's first token is never predicted. Rows of like length share a batch.
    """
    import torch

    totals = [(0.0, 0)] * len(rows)
    with evaluating(model):
        for picked in batches([len(row["input_ids"]) for row in rows], batch_size):
            ids, mask = padded([rows[i]["input_ids"] for i in picked], 0, model.device)
            labels = padded([rows[i]["labels"] for i in picked], IGNORED, model.device)[0]
            logits, labels = answer_logits(model, ids, mask, labels)
            wanted = labels != IGNORED
            losses = torch.nn.functional.cross_entropy(logits[wanted].float(), labels[wanted], reduction="none")
            for i, part in zip(picked, losses.split(wanted.sum(dim=1).tolist()), strict=True):
                totals[i] = (float(part.sum()), len(part))
    return totals


def next_token_nll(
    model: Any, rows: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], *, batch_size: int = 8
) -> list[list[float]]:
    """Negative log-likelihood (nats) of each `wanted` token as the next one after its row, in the order given."""
    import torch

    found: list[list[float]] = [[] for _ in rows]
    with evaluating(model):
        for picked in batches([len(row) for row in rows], batch_size):
            ids, mask = padded([rows[i] for i in picked], 0, model.device)
            ends = torch.tensor([len(rows[i]) - 1 for i in picked], device=ids.device)
            kept, where = ends.unique(return_inverse=True)
            logits = _logits_at(model, ids, mask, kept)
            for place, i in enumerate(picked):
                last = torch.log_softmax(logits[place, where[place]].float(), dim=-1)
                found[i] = (-last[list(wanted[i])]).tolist()
    return found


def answer_logits(model: Any, ids: Any, mask: Any, labels: Any) -> tuple[Any, Any]:
    """Logits of a padded batch where any row has a labelled token next, and the labels of those tokens."""
    kept = (labels[:, 1:] != IGNORED).any(dim=0).nonzero()[:, 0]
    return _logits_at(model, ids, mask, kept), labels[:, kept + 1]


def _logits_at(model: Any, ids: Any, mask: Any, kept: Any) -> Any:
    """Logits at these positions of every row, where the model can without the others: a small one's cost it a fifth."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    chooses = "logits_to_keep" in inspect.signature(base.forward).parameters
    if chooses and backend_of(model) != "unsloth":  # on a GPU Unsloth's forward takes no positions, only a count
        return model(input_ids=ids, attention_mask=mask, logits_to_keep=kept).logits
    return model(input_ids=ids, attention_mask=mask).logits[:, kept]


def context_tokens(model: Any) -> int | None:
    """Tokens that the model can read at once, None where its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout and gradients inside the block; the model's mode comes back afterwards."""
    import torch

    was_training, _ = model.training, model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices of rows in batches of like length, shortest first, with a bar on stderr for many rows."""
    from tqdm.auto import tqdm

    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    with tqdm(total=len(order), unit="row", disable=len(order) <= 64, leave=False) as bar:
        for start in range(0, len(order), size):
            yield order[start : start + size]
            bar.update(len(order[start : start + size]))
            release_memory()


def padded(rows: Sequence[Sequence[int]], filler: int, device: Any) -> tuple[Any, Any]:
    """Rows padded on the right, and the mask of what is no padding."""
    import torch

    width = max(map(len, rows))
    full = torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], device=device)
    return full, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
