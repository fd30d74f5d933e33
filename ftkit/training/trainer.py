"""The rows and the settings of a run as TRL's SFTTrainer wants them, and a first step that shows whether they fit.

The only module that builds a trainer. It knows nothing of run folders but where the trainer may write.
"""

import hashlib
import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ftkit import chat, memory, preflight
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, PreflightError
from ftkit.hardware import Hardware, detect, free_gpu_memory_gib, launch
from ftkit.runs import Run
from ftkit.training import checkpoints, sharing

PROJECT = "ftkit"  # under which trackio and Weights & Biases list the runs


def cut(rows: preflight.Rows, config: TrainConfig) -> dict[str, Any]:
    """Datasets of ids and labels, "train" and "val", cut at `config.max_length`, in the order in which they are read.

    Rows in which nothing is trained then are left out.

    Raises:
        DataError: a part has no row with a trained token.
    """
    from datasets import Dataset

    limit, parts = config.max_length, {}
    for part in (rows.train, rows.val):
        kept = [
            {"input_ids": ids[:limit], "labels": labels[:limit]}
            for _, _, ids, labels in part.readable
            if any(label != chat.IGNORED for label in labels[:limit])
        ]
        if not kept:
            raise DataError(_nothing_to_train(part, limit))
        parts[part.name] = Dataset.from_list(kept)
    if config.group_by_length:
        lengths = [len(ids) for ids in parts["train"]["input_ids"]]
        order = length_batches(lengths, config.per_device_train_batch_size, config.seed)
        parts["train"] = parts["train"].select(order)
    return parts


def digest(parts: dict[str, Any]) -> str:
    """Twelve hex digits that change with any token or label of what `cut` gives, in whatever order it is read."""
    running = hashlib.sha256()
    for part in parts.values():
        for column in ("input_ids", "labels"):
            chunks = part.data.column(column).chunks
            for numbers in (*(c.value_lengths() for c in chunks), *(c.flatten() for c in chunks)):
                running.update(numbers.to_numpy())
    return running.hexdigest()[:12]


def _nothing_to_train(part: Any, limit: int) -> str:
    if not part.seen:
        return f"The {part.name} part has no rows."
    if not part.readable:
        return f"The chat template refuses all {part.name} rows: preflight.check says why."
    return (
        f"All {part.seen} {part.name} rows have no trained token: the answer lies beyond max_length={limit}. "
        "Raise max_length."
    )


def length_batches(lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """An order of rows in which each `batch_size` neighbours are of like length, and the batches come shuffled.

    Transformers' own grouping puts the longest rows of 50 batches first: a run of 40 steps would never see a short one.
    """
    draw = random.Random(seed)
    order = list(range(len(lengths)))
    draw.shuffle(order)  # ties in length, and which rows a short run sees, are up to the seed
    order.sort(key=lambda i: lengths[i])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    draw.shuffle(batches)
    batches.sort(key=len, reverse=True)  # the one that is not full comes last, or all others would be cut differently
    return list(itertools.chain.from_iterable(batches))


def build(
    model: Any, tokenizer: Any, parts: dict[str, Any], config: TrainConfig, run: Run, callbacks: Sequence[Any]
) -> Any:
    """An SFTTrainer over the parts that `cut` gives; it writes checkpoints where half-finished ones may lie."""
    from transformers import DataCollatorForSeq2Seq, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    on_cpu, several = detect().device == "cpu", launch().processes > 1
    arguments = SFTConfig(
        output_dir=str(checkpoints.partial_folder(run / "checkpoints")),
        seed=config.seed,
        data_seed=config.seed,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        optim="adamw_torch" if on_cpu and "8bit" in config.optim else config.optim,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.dtype == "bf16",
        fp16=config.dtype == "fp16",
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        gradient_checkpointing=config.gradient_checkpointing,
        max_length=config.max_length,
        packing=config.packing,
        dataset_kwargs={"skip_prepare_dataset": True},
        prediction_loss_only=True,
        eval_strategy="steps" if config.eval_steps else "no",
        eval_steps=config.eval_steps or None,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        include_num_input_tokens_seen="non_padding",  # TRL's own count is lost where Unsloth exchanges its loss
        logging_nan_inf_filter=False,  # a loss that is no number is shown as such, not as the mean of those before it
        report_to="none" if config.report_to == "tensorboard" else config.report_to,
        project=PROJECT,
        run_name=run.path.name,
        disable_tqdm=True,
        train_sampling_strategy="sequential" if config.group_by_length else "random",
        ddp_find_unused_parameters=False if several else None,  # LoRA uses all its weights: looking for others costs
    )
    # Labels are padded by position, never by token id: a pad token that equals the stop token does no harm.
    # Few distinct widths on a CPU: each new one leaves compiled kernels in memory.
    collator = DataCollatorForSeq2Seq(
        tokenizer, label_pad_token_id=chat.IGNORED, pad_to_multiple_of=16 if on_cpu else None
    )
    with small_chunks() if on_cpu else nullcontext():
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            processing_class=tokenizer,
            train_dataset=sharing.with_blank(parts["train"], tokenizer) if several else parts["train"],
            eval_dataset=parts["val"],
            data_collator=collator,
            callbacks=list(callbacks),
        )
    trainer.remove_callback(PrinterCallback)
    if several:
        sharing.share_batches(trainer, len(parts["train"]))
    if config.dtype == "fp16":  # TRL turns a 4-bit model's adapter to bf16, whose gradients fp16's scaler does not take
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    # Transformers would load a checkpoint through PEFT, which turns bf16 weights into fp32: other steps would follow.
    trainer._load_from_checkpoint = lambda checkpoint, model=None: put_back(trainer.model, checkpoint)
    if config.report_to == "tensorboard":
        from transformers.integrations import TensorBoardCallback

        tensorboard = TensorBoardCallback()
        tensorboard.logging_dir = str(run / "tensorboard")  # by default it writes into the checkpoints' folder
        trainer.add_callback(tensorboard)
    return trainer


@contextmanager
def small_chunks() -> Iterator[None]:
    """Trainers made inside compute the loss of fewer answer tokens at a time, with the same result.

    TRL fills the last chunk up with tokens that count nothing. On a CPU a micro-batch has fewer answer tokens than one
    chunk of 256, and filling it took a fifth of an update.
    """
    from trl.trainer import sft_trainer

    usual = sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE
    sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE = memory.CPU_CHUNK_TOKENS
    try:
        yield
    finally:
        sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE = usual


def forget_embeddings() -> None:
    """Let go of the embeddings that bitsandbytes' optimisers note: each training would keep one on the GPU for good."""
    if "bitsandbytes" in sys.modules:
        from bitsandbytes.optim import GlobalOptimManager

        GlobalOptimManager.get_instance().module_weight_config_triple.clear()


def put_back(model: Any, folder: str | Path) -> None:
    """Load a checkpoint's weights into a model that has an adapter, in the number format that they have there."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(Path(folder) / "adapter_model.safetensors"))


_CLEARLY_LONGER = {"cuda": 1.0, "cpu": 2.0}  # a pass takes milliseconds on a GPU, and a fair part of an update on a CPU
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Failed to allocate")


def tells_something(lengths: Sequence[int], batch_size: int, device: str = "cpu") -> bool:
    """Whether the longest micro-batch is clearly longer than a usual one; else the first update shows as much."""
    usual = [max(lengths[i : i + batch_size]) for i in range(0, len(lengths), batch_size)]
    return max(lengths) > _CLEARLY_LONGER.get(device, 1.0) * sum(usual) / len(usual)


def surely_fits(model: Any, config: TrainConfig, longest: int, free_gib: float) -> bool:
    """Whether even the high end of the estimate, weights included, is less than half of what is free.

    Nothing needs to be tried then: with Unsloth on a GPU a pass before the training costs a second compilation, which
    takes longer than a short run.
    """
    found = preflight.need(model.config, config, Hardware("cuda", "", free_gib, None, bf16=True, cores=1), longest)
    return found.estimate is not None and 2 * found.estimate.high_gib < free_gib


def probe(trainer: Any, config: TrainConfig, lengths: Sequence[int]) -> bool:
    """Take the longest micro-batch of `trainer` through the model and back; says whether that was worth doing.

    Args:
        trainer: with model, data and collator.
        config: its settings.
        lengths: of its training rows, in their order.

    Raises:
        PreflightError: out of memory, with what to change.
    """
    import torch

    size, device, model = config.per_device_train_batch_size, trainer.args.device, trainer.model
    if not tells_something(lengths, size, device.type):
        return False
    if device.type == "cuda" and surely_fits(model, config, max(lengths), free_gpu_memory_gib()):
        return False
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batch = trainer.data_collator([trainer.train_dataset[i] for i in longest_first[:size]])
    training = model.training
    with (
        out_of_memory_explained(config, max(lengths), model),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        trainer.accelerator.autocast(),
    ):
        try:
            model.train()
            model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss.backward()
        finally:
            model.zero_grad(set_to_none=True)
            model.train(training)
    return True


@contextmanager
def out_of_memory_explained(config: TrainConfig, longest: int, model: Any = None) -> Iterator[None]:
    """Turn the several ways in which torch says "out of memory" into one that names the settings to change.

    Args:
        config: the settings that did not fit.
        longest: tokens of the longest row.
        model: gives the gain of each change in GiB, where its architecture can be estimated.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        changes = "; ".join(_estimated(config, longest, model) or _usual(config, longest))
        raise PreflightError(
            f"Out of memory on a micro-batch of {config.per_device_train_batch_size} x {longest} tokens. "
            f"Change in this order: {changes}; a smaller base model; or close what else uses this memory."
        ) from error


def _estimated(config: TrainConfig, longest: int, model: Any) -> list[str]:
    """What each change would gain on this model, the best first; nothing where that cannot be estimated."""
    if model is None:
        return []
    try:
        shape = memory.ModelShape.from_config(model.config)
        found = memory.savings(shape, config, device=detect().device, longest=longest, loss_path=memory.TRL_LOSS_PATH)
    except ConfigError:  # an architecture that the estimate does not describe
        return []
    return [
        f"{row.change} (about {row.gain_gib:.1f} GiB less, {row.cost.split(':')[0]})"
        for row in found.rows
        if row.gain_gib >= 0.1
    ]


def _usual(config: TrainConfig, longest: int) -> list[str]:
    """What helps on any model."""
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
