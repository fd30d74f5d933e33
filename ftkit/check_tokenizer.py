"""A tokenizer's special tokens against its model: stop and pad, rows of the embedding, tokens that were never trained."""

from collections.abc import Iterator, Sequence
from typing import Any

from ftkit.check_rows import Part
from ftkit.findings import Finding, listed

CHECKS = {
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


def check(tokenizer: Any, model: Any, parts: Sequence[Part] = ()) -> Iterator[Finding]:
    """All findings about special tokens; without a model only those of the tokenizer itself."""
    stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if stop is None:
        yield Finding(
            "no-stop-token",
            "error",
            "The tokenizer has no stop token: answers would never end.",
            "tokenizer.eos_token is None",
            "Set tokenizer.eos_token to the token with which the template ends an answer.",
        )
    if pad is None:
        yield Finding(
            "no-pad-token",
            "error",
            "The tokenizer has no pad token: rows of unlike length cannot share a batch.",
            "tokenizer.pad_token is None",
            "Load with models.load, which picks one, or set tokenizer.pad_token to a token that no text holds.",
        )
    elif pad == stop:
        yield Finding(
            "pad-is-stop",
            "warning",
            f"{tokenizer.pad_token} is both pad and stop token: whoever masks padding by token id masks the stop as well.",
            f"pad_token_id = eos_token_id = {pad}; train.train masks by position, so this run is safe",
            "Set tokenizer.pad_token to another token of the vocabulary.",
        )
    if model is None:
        return
    yield from _check_configured(tokenizer, model)
    yield from _check_range(model, parts)
    yield from _check_trained(tokenizer, model, parts)


def _check_configured(tokenizer: Any, model: Any) -> Iterator[Finding]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(configured if isinstance(configured, list) else [configured]) - {None}
    if ids and tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        names = ", ".join(tokenizer.decode([i]) for i in sorted(ids))
        yield Finding(
            "stop-token-differs",
            "warning",
            "The model's generation config stops at another token than the tokenizer: other engines would not stop.",
            f"generation_config: {names}; tokenizer: {tokenizer.eos_token}",
            "Set model.generation_config.eos_token_id = tokenizer.eos_token_id.",
        )


def _check_range(model: Any, parts: Sequence[Part]) -> Iterator[Finding]:
    weight = _embedding(model)
    if weight is None:
        return
    for part in parts:
        over = {n: max(ids) for n, _, ids, _ in part.readable if ids and max(ids) >= len(weight)}
        if over:
            yield Finding(
                "token-outside-embeddings",
                "error",
                "Rows hold tokens for which the model has no embedding: tokenizer and model do not belong together.",
                f"{part.name} {listed(over)}; token {max(over.values())}, the embedding has {len(weight):,} rows",
                "Load both with one call of models.load, or model.resize_token_embeddings(len(tokenizer)) and train the new rows.",
            )


def _check_trained(tokenizer: Any, model: Any, parts: Sequence[Part]) -> Iterator[Finding]:
    """Special tokens whose embeddings are about zero, or equal one another: nobody ever trained them."""
    import torch

    weight = _embedding(model)
    if weight is None or weight.device.type == "meta":
        return
    marked = set(tokenizer.added_tokens_decoder)
    used = sorted(
        {i for part in parts for _, _, ids, _ in part.readable for i in marked.intersection(ids)}
        & set(range(len(weight)))
    )
    plain = [i for i in range(0, len(weight), max(1, len(weight) // _ORDINARY)) if i not in marked]
    if not used or not plain:
        return
    usual = float(_rows(weight, plain).norm(dim=1).median())
    rows = _rows(weight, used)
    small = {used[i] for i in (rows.norm(dim=1) < _SMALL * usual).nonzero().flatten().tolist()}
    alike = torch.cdist(rows, rows).fill_diagonal_(float("inf")) < _SAME * usual
    same = {used[i] for i in alike.any(dim=1).nonzero().flatten().tolist()}
    if untrained := sorted(small | same):
        names = ", ".join(tokenizer.decode([i]) for i in untrained)
        why = "about zero" if small >= same else "equal to one another"
        yield Finding(
            "template-tokens-untrained",
            "warning",
            "The template uses tokens that the base model was never trained on; an adapter does not train them either.",
            f"embeddings of {names} are {why}",
            "Take the instruct variant of this model, or a template of ordinary words.",
        )


def _rows(weight: Any, ids: list[int]) -> Any:
    import torch

    return weight[torch.tensor(ids, device=weight.device)].float()


def _embedding(model: Any) -> Any:
    """The input embedding's weight, one row a token; None where it is packed in some other way."""
    weight: Any = getattr(model.get_input_embeddings(), "weight", None)
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        return None
    return weight.detach()
