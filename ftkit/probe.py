"""One forward and one backward pass over the longest micro-batch, before training: out of memory shows in seconds, not hours.

Nothing of it remains: gradients are dropped and the random state is put back, so the training is the same to the last bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ftkit import check_memory, memory
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, PreflightError
from ftkit.hardware import Hardware, detect, free_gpu_memory_gib

_CLEARLY_LONGER = {"cuda": 1.0, "cpu": 2.0}  # a pass takes milliseconds on a GPU, and a fair part of an update on a CPU
_SIGNS = ("out of memory", "can't allocate memory", "Failed to allocate")


def longest_batch(lengths: Sequence[int], batch_size: int) -> list[int]:
    """Positions of the `batch_size` longest rows, the longest first: no micro-batch can be larger."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])[:batch_size]


def tells_something(lengths: Sequence[int], batch_size: int, device: str = "cpu") -> bool:
    """Whether the longest micro-batch is clearly longer than a usual one; else the first update shows as much, for nothing."""
    usual = [max(lengths[i : i + batch_size]) for i in range(0, len(lengths), batch_size)]
    return max(lengths) > _CLEARLY_LONGER.get(device, 1.0) * sum(usual) / len(usual)


def surely_fits(model: Any, config: TrainConfig, longest: int, free_gib: float) -> bool:
    """Whether even the estimate's high end, weights included, is less than half of what is free: nothing needs to be tried then.

    On a GPU with Unsloth a pass before the training costs a second compilation, longer than a short run.
    """
    found = check_memory.need(model.config, config, Hardware("cuda", "", free_gib, None, bf16=True, cores=1), longest)
    return found.estimate is not None and 2 * found.estimate.high_gib < free_gib


def run(trainer: Any, config: TrainConfig, lengths: Sequence[int]) -> bool:
    """Take the longest micro-batch of `trainer` through the model and back; says whether that was worth doing.

    Args:
        trainer: with model, data and collator.
        config: its settings.
        lengths: of its training rows, in their order.

    Raises:
        PreflightError: out of memory, with what to change.
    """
    import torch

    on_gpu = trainer.args.device.type == "cuda"
    if not tells_something(lengths, config.per_device_train_batch_size, trainer.args.device.type):
        return False
    if on_gpu and surely_fits(trainer.model, config, max(lengths), free_gpu_memory_gib()):
        return False
    chosen = longest_batch(lengths, config.per_device_train_batch_size)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in chosen])
    model, training = trainer.model, trainer.model.training
    devices = [trainer.args.device] if on_gpu else []
    with explained(config, max(lengths), model), torch.random.fork_rng(devices), trainer.accelerator.autocast():
        try:
            model.train()
            model(**{name: tensor.to(trainer.args.device) for name, tensor in batch.items()}).loss.backward()
        finally:
            model.zero_grad(set_to_none=True)
            model.train(training)
    return True


@contextmanager
def explained(config: TrainConfig, longest: int, model: Any = None) -> Iterator[None]:
    """Turn the several ways in which torch says "out of memory" into one that names the settings to change.

    Args:
        config: the settings that did not fit.
        longest: tokens of the longest row.
        model: gives the gain of each change in GiB, where its architecture can be estimated.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _SIGNS):
            raise
        changes = _estimated(config, longest, model) or _usual(config, longest)
        raise PreflightError(
            f"Out of memory on a micro-batch of {config.per_device_train_batch_size} x {longest} tokens. Change in this order: "
            f"{'; '.join(changes)}; a smaller base model; or close what else uses this memory."
        ) from error


def _estimated(config: TrainConfig, longest: int, model: Any) -> list[str]:
    if model is None:
        return []
    try:
        found = memory.savings(
            memory.ModelShape.from_config(model.config),
            config,
            device=detect().device,
            longest=longest,
            loss_path=memory.TRL_LOSS_PATH,
        )
    except ConfigError:  # an architecture that the estimate does not describe
        return []
    return [
        f"{row.change} (about {row.gain_gib:.1f} GiB less, {row.cost.split(':')[0]})"
        for row in found.rows
        if row.gain_gib >= 0.1
    ]


def _usual(config: TrainConfig, longest: int) -> list[str]:
    size, summed = config.per_device_train_batch_size, config.gradient_accumulation_steps
    tips = []
    if size > 1:
        tips.append(
            f"per_device_train_batch_size={max(1, size // 2)} with gradient_accumulation_steps={summed * 2} "
            "trains the same in about half the activations"
        )
    if not config.gradient_checkpointing:
        tips.append("gradient_checkpointing=True recomputes activations instead of keeping them")
    if not config.load_in_4bit:
        tips.append("load_in_4bit=True shrinks the frozen weights about three times")
    if longest > 512:
        tips.append(f"max_length={longest // 2} cuts the longest rows, if they are not what matters")
    return tips
