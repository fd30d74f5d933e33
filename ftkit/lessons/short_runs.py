"""Short trainings for lessons: a plain PyTorch loop over the same batches, nothing written, nothing scheduled.

For real runs there is `training.train`; this is what stands between two cells of a notebook. What a reader need not
mind is done here: 4-bit weights stay trainable on a CPU, short rows train with the attention that is fast there, memory
that was freed goes back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ftkit import models, tables
from ftkit.chat import IGNORED, render, tokenize
from ftkit.hardware import release_memory
from ftkit.models import TokenRow, answer_logits, answer_nll, evaluating, padded

_WIDTH = 16  # few distinct widths on a CPU: each new one leaves compiled kernels in memory


def tokens(examples: Any, tokenizer: Any) -> list[TokenRow]:
    """Ids and labels of each example; the prompt's labels are masked."""
    return [tokenize(example, tokenizer) for example in examples]


def fit(model: Any, rows: Sequence[TokenRow], *, steps: int, learning_rate: float, full: Any = None) -> list[float]:
    """Train what requires a gradient for `steps` updates of AdamW at a constant rate; the loss before each update.

    Every call sees the rows in the same order, two at a time, from the first on and round again: variants differ in
    nothing else. The model has an adapter, or `full` names a layer that is trained as it is while the rest is frozen;
    afterwards it too is frozen.
    """
    import torch

    if full is not None:
        model.requires_grad_(False)
        full.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    # gradients below what fp16 can hold would vanish: a factor before the backward pass, undone after it, keeps them
    scaler = torch.amp.GradScaler(model.device.type, init_scale=2.0**10, enabled=model.dtype == torch.float16)
    losses = []
    attention = model.config._attn_implementation
    models.keep_trainable(model)
    models.choose_attention(model, max(len(row["input_ids"]) for row in rows))
    model.train()
    try:
        for step in range(steps):
            picked = [rows[(2 * step + i) % len(rows)] for i in range(2)]
            loss = answer_loss(model, picked)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(float(loss.detach()))
            release_memory()
    finally:
        if model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)
    if full is not None:
        full.requires_grad_(False)
    return losses


def full_update(model: Any, layer: Any, rows: Sequence[TokenRow], *, steps: int, learning_rate: float) -> Any:
    """What `fit` changes in the weight of `layer` when every entry is free; the model is left as it was."""
    before = layer.weight.detach().clone()
    try:
        fit(model, rows, steps=steps, learning_rate=learning_rate, full=layer)
        return layer.weight.detach() - before
    finally:
        layer.weight.data.copy_(before)


def lora_update(
    model: Any, name: str, rows: Sequence[TokenRow], *, r: int, alpha: float, steps: int, learning_rate: float
) -> Any:
    """What `fit` adds to the layer called `name` through LoRA alone: alpha / r x BA; the model is left as it was."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=r, lora_alpha=alpha, target_modules=[name]))
    try:
        fit(adapted, rows, steps=steps, learning_rate=learning_rate)
        return adapted.get_base_model().get_submodule(name).get_delta_weight("default").detach()
    finally:
        adapted.unload()


def loss_with(model: Any, layer: Any, update: Any, rows: Sequence[TokenRow]) -> float:
    """The loss over `rows` with `update` added to the weight of `layer`; the model is left as it was."""
    before = layer.weight.detach().clone()
    try:
        layer.weight.data.add_(update)
        return mean_loss(model, rows)
    finally:
        layer.weight.data.copy_(before)


@dataclass(frozen=True)
class Variant:
    """One way to adapt a model, after a short training."""

    name: str
    parameters: int
    first_loss: float
    last_loss: float
    held_out_loss: float


@tables.shown
@dataclass(frozen=True)
class Variants:
    """Variants beside each other; shows itself as a table."""

    rows: tuple[Variant, ...]

    def __getitem__(self, name: str) -> Variant:
        by_name = {row.name: row for row in self.rows}
        if name not in by_name:
            raise KeyError(f"There is no variant {name!r}, only {', '.join(by_name) or 'none'}.")
        return by_name[name]

    def facts(self) -> list[dict[str, Any]]:
        """Plain values, for `run.json`."""
        return [asdict(row) for row in self.rows]

    def _parts(self) -> list[tables.Table | str]:
        head = ("variant", "trainable parameters", "first loss", "last loss", "held-out loss")
        rows = []
        for row in self.rows:
            losses = (f"{row.first_loss:.3f}", f"{row.last_loss:.3f}", f"{row.held_out_loss:.3f}")
            rows.append((row.name, f"{row.parameters:,}", *losses))
        return [tables.Table(head, rows)]


def compare_variants(
    model: Any,
    variants: Mapping[str, Mapping[str, Any]],
    rows: Sequence[TokenRow],
    held_out: Sequence[TokenRow],
    *,
    steps: int,
    learning_rate: float,
    alpha: int = 16,
    seed: int = 0,
) -> tuple[dict[str, list[float]], Variants]:
    """Train each variant from the same base on the same rows; the training losses, and a table with held-out losses.

    `model` has no adapter, and is left so. Of `variants` each name comes with the arguments of PEFT's `LoraConfig` that
    make it; a `lora_alpha` or a `learning_rate` of its own wins over what is given for all.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    losses, table = {}, []
    for name, settings in variants.items():
        torch.manual_seed(seed)
        own = {"lora_alpha": alpha, "learning_rate": learning_rate, "task_type": "CAUSAL_LM", **settings}
        rate = own.pop("learning_rate")
        adapted = get_peft_model(model, LoraConfig(**own))
        losses[name] = fit(adapted, rows, steps=steps, learning_rate=rate)
        count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        table.append(Variant(name, count, losses[name][0], losses[name][-1], mean_loss(adapted, held_out)))
        model = adapted.unload()
    return losses, Variants(tuple(table))


def compare_rows(
    model: Any,
    parts: Mapping[str, Sequence[TokenRow]],
    held_out: Sequence[TokenRow],
    *,
    steps: int,
    learning_rate: float,
    r: int = 16,
    alpha: int = 16,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Train the same new adapter on each of `parts`; the loss of every held-out row, "untrained" first.

    `model` has no adapter, and is left so.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    losses = {"untrained": row_losses(model, held_out)}
    for name, rows in parts.items():
        torch.manual_seed(seed)
        settings = {"r": r, "lora_alpha": alpha, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        adapted = get_peft_model(model, LoraConfig(**settings))
        fit(adapted, rows, steps=steps, learning_rate=learning_rate)
        losses[name] = row_losses(adapted, held_out)
        model = adapted.unload()
    return losses


def answer_loss(model: Any, rows: Sequence[TokenRow]) -> Any:
    """Mean cross-entropy of the answers' tokens, nats per token, as a tensor with its graph."""
    from torch.nn.functional import cross_entropy, pad

    ids, mask = padded([row["input_ids"] for row in rows], 0, model.device)
    labels, _ = padded([row["labels"] for row in rows], IGNORED, model.device)
    more = (0, -ids.shape[1] % _WIDTH)
    ids, mask, labels = pad(ids, more), pad(mask, more), pad(labels, more, value=IGNORED)
    logits, wanted = answer_logits(model, ids, mask, labels)
    return cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED)


def mean_loss(model: Any, rows: Sequence[TokenRow]) -> float:
    """Loss over all answer tokens of `rows`, nats per token."""
    models.keep_trainable(model)
    pairs = answer_nll(model, rows)
    return sum(nll for nll, _ in pairs) / sum(count for _, count in pairs)


def accumulated_loss(model: Any, rows: Sequence[TokenRow], size: int) -> tuple[float, float]:
    """Loss of `rows` cut into batches of `size`: by tokens, as training adds it up, and as the mean of their means."""
    models.keep_trainable(model)
    batches = [answer_nll(model, rows[start : start + size]) for start in range(0, len(rows), size)]
    sums = [(sum(nll for nll, _ in pairs), sum(count for _, count in pairs)) for pairs in batches]
    by_tokens = sum(nll for nll, _ in sums) / sum(count for _, count in sums)
    return by_tokens, sum(nll / count for nll, count in sums) / len(sums)


def row_losses(model: Any, rows: Sequence[TokenRow]) -> list[float]:
    """Loss of each row, nats per token."""
    models.keep_trainable(model)
    return [nll / count for nll, count in answer_nll(model, rows)]


def logits(model: Any, tokenizer: Any, question: str) -> Any:
    """What the model says to a chat's first turn, before a word is chosen: logits of shape (1, tokens, vocabulary)."""
    text = render([{"role": "user", "content": question}], tokenizer, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
    models.keep_trainable(model)
    with evaluating(model):
        return model(input_ids=ids).logits


def plain_weight(layer: Any) -> Any:
    """The weight that a linear layer multiplies by, in fp32: unpacked where it is 4-bit, without an adapter's part."""
    if hasattr(layer, "get_base_layer"):
        layer = layer.get_base_layer()
    weight = layer.weight
    if getattr(weight, "quant_state", None) is None:
        return weight.detach().float().clone()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state).float().reshape(layer.out_features, layer.in_features)
