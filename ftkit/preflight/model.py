"""A loaded model against the settings: its layers and number formats, the memory it needs, and one batch as a probe."""

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ftkit import chat, memory, models
from ftkit.config import TrainConfig
from ftkit.errors import FtkitError
from ftkit.hardware import Hardware
from ftkit.preflight.report import Finding, finding
from ftkit.preflight.rows import TokenisedPart, TokenisedRow
from ftkit.tables import visible

_HALF = {"bf16": "bfloat16", "fp16": "float16"}

_ADAPTER = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}  # a setting, and PEFT's name

_PROBED = 4  # rows, at most
_CLEARLY_DIFFERENT = 0.03
_TIPS = 4
_WORTH_GIB = 0.05


def check_loaded(model: Any, config: TrainConfig, hardware: Hardware) -> Iterator[Finding]:
    """All findings about the model that need no computation."""
    yield from _check_targets(model, config)
    if differences := list(_differences(model, config)):
        yield finding("model-differs", differences="\n".join(differences))
    yield from _check_trainable(model, config)
    yield from _check_accumulation(model, config)
    yield from _check_devices(model, hardware)


def adapter_parameters(model: Any, config: TrainConfig) -> int:
    """Trainable parameters of the adapter: counted where there is one, else r * (inputs + outputs) of each target."""
    if models.is_adapted(model):
        return models.parameters(model)[0]
    return sum(
        config.lora_r * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in config.target_modules and hasattr(module, "in_features")
    )


def _check_targets(model: Any, config: TrainConfig) -> Iterator[Finding]:
    there = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if "Linear" in type(module).__name__ and "lora_" not in name and not name.endswith("base_layer")
    }
    if missing := [name for name in config.target_modules if name not in there]:
        yield finding("target-modules-missing", missing=", ".join(missing), there=", ".join(sorted(there)))


def _differences(model: Any, config: TrainConfig) -> Iterator[str]:
    """How the base model was loaded against the settings, and an adapter that is there already: it stays as it is."""
    loaded = bool(getattr(model, "is_loaded_in_4bit", False))
    if loaded != config.load_in_4bit:
        yield f"load_in_4bit={config.load_in_4bit}, the model is {'' if loaded else 'not '}in 4-bit"
    dtype = str(model.dtype).removeprefix("torch.")
    if dtype in _HALF.values() and dtype != _HALF.get(config.dtype):
        yield f"dtype={config.dtype}, the model's weights are {dtype}"
    if config.backend != "auto" and models.backend_of(model) != config.backend:
        yield f"backend={config.backend}, the model was loaded by {models.backend_of(model)}"
    if not models.is_adapted(model):
        return
    adapter = model.peft_config[model.active_adapter]
    for setting, name in _ADAPTER.items():
        if getattr(adapter, name) != getattr(config, setting):
            yield f"{setting}={getattr(config, setting):g}, the adapter has {getattr(adapter, name):g}"
    targets = adapter.target_modules
    if not isinstance(targets, str) and set(targets) != set(config.target_modules):
        yield f"target_modules: {', '.join(config.target_modules)}; the adapter sits on {', '.join(sorted(targets))}"


def _check_trainable(model: Any, config: TrainConfig) -> Iterator[Finding]:
    formats = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
    halves = formats.intersection(_HALF.values())
    if config.dtype == "fp16" and models.is_adapted(model) and halves:
        yield finding("fp16-trainable", formats=", ".join(sorted(halves)))


def _check_accumulation(model: Any, config: TrainConfig) -> Iterator[Finding]:
    """Transformers' Trainer divides by the tokens of the whole update only for models that take loss arguments."""
    if config.gradient_accumulation_steps == 1:
        return
    base = model.get_base_model() if models.is_adapted(model) else model
    takes = getattr(base, "accepts_loss_kwargs", None)
    if takes is None:
        kinds = [parameter.kind for parameter in inspect.signature(base.forward).parameters.values()]
        takes = inspect.Parameter.VAR_KEYWORD in kinds
    if not takes:
        yield finding("accumulation-loss", model=type(base).__name__, config=config)


def _check_devices(model: Any, hardware: Hardware) -> Iterator[Finding]:
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    places = places or {parameter.device.type for parameter in model.parameters()}
    if len(places) > 1:
        yield finding("model-split", places=", ".join(sorted(places)))
    elif hardware.device == "cuda" and places == {"cpu"}:
        yield finding("model-split", "beside the GPU", hardware=hardware)


@dataclass(frozen=True)
class Need:
    """What a run needs: a `MemoryEstimate` for rows of at most `longest` tokens, or the problem why there is none."""

    shape: Any = None
    estimate: Any = None
    longest: int | None = None
    problem: str = ""

    def __str__(self) -> str:
        if self.estimate is None:
            return visible(self.problem)
        low, likely = self.estimate.low_gib, self.estimate.likely_gib
        surely = self.estimate.high_gib - self.estimate.elastic_gib  # without what is taken only where it is free
        return f"likely {likely:.1f} GiB ({low:.1f} to {surely:.1f})"


def need(source: Any, config: TrainConfig, hardware: Hardware, longest: int | None = None) -> Need:
    """Estimate for a `memory.ModelShape`, or anything that one is made from."""
    try:
        shape = source if isinstance(source, memory.ModelShape) else memory.ModelShape.from_config(source)
        how: dict[str, Any] = {"device": hardware.device, "longest": longest, "loss_path": memory.TRL_LOSS_PATH}
        estimated = memory.estimate(shape, config, **how)
        return Need(shape, estimated, longest)
    except FtkitError as error:
        return Need(problem=str(error))


def check_memory(needed: Need, config: TrainConfig, hardware: Hardware) -> Iterator[Finding]:
    """Needed against what there is: surely too much is an error, probably too much a warning, perhaps a note."""
    if needed.estimate is None:
        yield finding("memory-unknown", needed=needed)
        return
    there = hardware.memory_gib
    found = memory.verdict(needed.estimate, there)
    if found == "fits":
        return
    variant = "never" if needed.estimate.low_gib > there else found
    how: dict[str, Any] = {"device": hardware.device, "longest": needed.longest, "loss_path": memory.TRL_LOSS_PATH}
    changes = memory.savings(needed.shape, config, room_gib=there, **how)
    worth = [row for row in changes.rows[: changes.enough or _TIPS] if row.gain_gib >= _WORTH_GIB]
    fix, setting = "Take a smaller model or a larger GPU.", ""
    if worth:
        tips = [f"{row.change} (saves {row.gain_gib:.1f} GiB)" for row in worth]
        tips.append("then it fits" if changes.enough else "and a smaller model or a larger GPU")
        fix = f"Change in this order: {'; '.join(tips)}."
        setting = max(worth, key=lambda row: row.gain_gib).change.split("=")[0]
    yield finding("memory-too-small", variant, needed=needed, hardware=hardware, fix=fix, field=setting)


def check_probe(model: Any, tokenizer: Any, part: TokenisedPart, config: TrainConfig) -> Iterator[Finding]:
    """Run one batch without training: is the loss a number, above zero, better than a guess, and of answers alone?"""
    limit = config.max_length
    cut = [row._replace(ids=list(row.ids[:limit]), labels=list(row.labels[:limit])) for row in part.readable]
    rows = [row for row in cut if any(label != chat.IGNORED for label in row.labels[1:])]
    rows.sort(key=lambda row: len(row.ids))
    size = min(_PROBED, config.per_device_train_batch_size)
    middle = max(0, (len(rows) - size) // 2)
    rows = rows[middle : middle + size]  # of middling length, cut as in training, and with something to train
    if not rows:
        return
    loss, expected = _losses(model, rows, tokenizer.pad_token_id or 0)
    seen = f"loss {loss:.3f} nats per token on train rows {', '.join(str(row.number) for row in rows)}"
    guessing = math.log(max(2, model.config.get_text_config().vocab_size))
    if not math.isfinite(loss):
        yield finding("probe-loss-not-finite", seen=seen)
        return
    if loss <= 0:
        yield finding("probe-loss-zero", seen=seen)
    if loss > 1.5 * guessing:
        yield finding("probe-loss-high", seen=seen, guessing=guessing)
    if abs(loss - expected) > _CLEARLY_DIFFERENT * max(expected, 0.1):
        yield finding("probe-loss-differs", seen=seen, expected=expected)


def _losses(model: Any, rows: list[TokenisedRow], pad: int) -> tuple[float, float]:
    """The model's own loss on a batch, and the mean over its labelled tokens reckoned from the logits."""
    import torch

    device = next(model.parameters()).device
    with models.evaluating(model):
        ids, mask = models.padded([row.ids for row in rows], pad, device)
        labels, _ = models.padded([row.labels for row in rows], chat.IGNORED, device)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        logits, wanted = model(input_ids=ids, attention_mask=mask).logits[:, :-1], labels[:, 1:]
        chosen = wanted != chat.IGNORED
        return float(loss), float(torch.nn.functional.cross_entropy(logits[chosen].float(), wanted[chosen]))
