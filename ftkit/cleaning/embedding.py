"""Texts to vectors with the language model that is there anyway; a dedicated embedder is better where one is installed."""

from collections.abc import Callable, Sequence
from typing import Any


def embedder(
    model: Any, tokenizer: Any, *, batch_size: int = 16, max_length: int = 256
) -> Callable[[Sequence[str]], Any]:
    """A function from texts to an array of shape (texts, hidden size): the mean of the middle layer's hidden states.

    The first tokens of a causal model carry no meaning of their own, and the last layers serve the next token; the middle
    layer compares texts better than either.
    """

    def encode(texts: Sequence[str]) -> Any:
        """One vector a text, in order."""
        import numpy as np
        import torch

        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
        device = next(model.parameters()).device
        side, tokenizer.padding_side = tokenizer.padding_side, "right"
        try:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = tokenizer(
                    [texts[i] or " " for i in rows],
                    return_tensors="pt",
                    padding=True,
                    truncation=True,
                    max_length=max_length,
                )
                batch = batch.to(device)
                with torch.no_grad():
                    layers = model(**batch, output_hidden_states=True).hidden_states
                states, mask = layers[len(layers) // 2].float(), batch["attention_mask"][..., None].float()
                vectors[rows] = ((states * mask).sum(1) / mask.sum(1)).cpu().numpy()
        finally:
            tokenizer.padding_side = side
        return vectors

    return encode
