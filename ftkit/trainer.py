"""The settings of a run as TRL's SFTTrainer wants them; the only module that builds one."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftkit import checkpoints, template
from ftkit.config import TrainConfig
from ftkit.errors import MissingExtra
from ftkit.hardware import detect
from ftkit.runs import Run

PROJECT = "ftkit"  # under which trackio and Weights & Biases list the runs


def check_reporter(config: TrainConfig) -> None:
    """Refuse a `report_to` whose package is missing.

    Raises:
        MissingExtra: names the command that installs it.
    """
    if config.report_to != "none" and find_spec(config.report_to) is None:
        raise MissingExtra(
            f"report_to={config.report_to!r} needs a package that is not installed. Run: pip install {config.report_to}, "
            "or set report_to='none': the run folder keeps every metric anyway."
        )


def build(
    model: Any, tokenizer: Any, rows: dict[str, Any], config: TrainConfig, run: Run, callbacks: Sequence[Any]
) -> Any:
    """An SFTTrainer over tokenised `rows["train"]` and `rows["val"]` that writes its checkpoints into the run's workshop."""
    from transformers import DataCollatorForSeq2Seq, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    on_cpu = detect().device == "cpu"
    arguments = SFTConfig(
        output_dir=str(checkpoints.workshop(run / "checkpoints")),
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
        logging_nan_inf_filter=False,  # a loss that is not a number is shown as such, not as the mean of those before it
        report_to="none" if config.report_to == "tensorboard" else config.report_to,
        project=PROJECT,
        run_name=run.path.name,
        disable_tqdm=True,
        train_sampling_strategy="sequential" if config.group_by_length else "random",
    )
    # Labels are padded by position, never by token id: a pad token that equals the stop token does no harm.
    # Few distinct widths on a CPU: each new one leaves compiled kernels in memory.
    collator = DataCollatorForSeq2Seq(
        tokenizer, label_pad_token_id=template.IGNORED, pad_to_multiple_of=16 if on_cpu else None
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=rows["train"],
        eval_dataset=rows["val"],
        data_collator=collator,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    if config.dtype == "fp16":  # TRL turns a 4-bit model's adapter to bf16, whose gradients fp16's scaler does not take
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    # Transformers would load a checkpoint's adapter through PEFT, which turns bf16 weights into fp32: other steps from there on.
    trainer._load_from_checkpoint = lambda checkpoint, model=None: put_back(trainer.model, checkpoint)
    if config.report_to == "tensorboard":
        trainer.add_callback(_tensorboard(run))
    return trainer


def forget_embeddings() -> None:
    """Let go of the embeddings that bitsandbytes' optimisers note: each training would keep one on the GPU for good."""
    if "bitsandbytes" in sys.modules:
        from bitsandbytes.optim import GlobalOptimManager

        GlobalOptimManager.get_instance().module_weight_config_triple.clear()


def put_back(model: Any, folder: str | Path) -> None:
    """Load the adapter weights of a checkpoint into a model that has an adapter, in the number format that they have there."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(Path(folder) / "adapter_model.safetensors"))


def _tensorboard(run: Run) -> Any:
    """Transformers' own callback; by default it would write into the checkpoints' folder."""
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = str(run / "tensorboard")
    return callback
