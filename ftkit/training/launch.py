"""The same run on several GPUs: settings for N processes, and the files that accelerate, TRL and SkyPilot read.

Writes files and starts nothing: that is for `torchrun`, `accelerate launch` or `sky`, with the command that each
docstring names. The values of FSDP-QLoRA are those of PEFT's guide (huggingface.co/docs/peft/accelerate/fsdp, of PEFT
0.21.2), but where a comment says otherwise; this kit has run none of them, for want of several GPUs.
"""

import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

from ftkit import files
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, MissingArtifact

_MIXED = {"bf16": "bf16", "fp16": "fp16", "fp32": "no"}
_SAME_IN_TRL = (
    "seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "logging_steps",
    "save_total_limit",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
)
_LONG = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def share_among(config: TrainConfig, processes: int) -> TrainConfig:
    """The settings under which so many processes train what `config` trains in one: accumulation is divided.

    Left as it is, each process would take as many rows as before, and the batch behind an update would grow N times.

    Raises:
        ConfigError: the accumulation cannot be divided so.
    """
    summed = config.gradient_accumulation_steps
    if processes < 1 or summed % processes:
        size = config.per_device_train_batch_size
        fits = [n for n in range(2, size * summed + 1) if size * summed % n == 0]
        other = max(1, size // processes) if processes > 0 else size
        raise ConfigError(
            f"gradient_accumulation_steps={summed} cannot be divided among {processes} processes. With "
            f"per_device_train_batch_size={other} and gradient_accumulation_steps={size * summed // other} the batch "
            f"of {config.effective_batch_size} is the same; it can be divided among {', '.join(map(str, fits))}."
        )
    return config.replace(gradient_accumulation_steps=summed // processes)


def accelerate_config(path: str | Path, config: TrainConfig, gpus: int = 2, *, shard: bool = False) -> Path:
    """Write what `accelerate launch --config_file PATH -m ftkit train …` reads: a process a GPU, each with the model.

    Args:
        path: the YAML file.
        config: gives the number format.
        gpus: GPUs of the machine.
        shard: FSDP in place of DDP: each GPU holds a part of the model. `fsdp_qlora` writes the training for it.

    Raises:
        ConfigError: fewer than two GPUs.
    """
    if isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < 2:
        raise ConfigError(f"gpus={gpus!r}: several processes want 2 GPUs or more. One needs no launcher.")
    settings = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "FSDP" if shard else "MULTI_GPU",
        "downcast_bf16": "no",
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": "no" if shard and config.load_in_4bit else _MIXED[config.dtype],
        "num_machines": 1,
        "num_processes": gpus,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }
    if shard:
        settings["fsdp_config"] = {
            "fsdp_version": 1,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_backward_prefetch": "BACKWARD_PRE",
            "fsdp_cpu_ram_efficient_loading": True,
            "fsdp_forward_prefetch": False,
            "fsdp_offload_params": True,
            "fsdp_reshard_after_forward": "FULL_SHARD",
            "fsdp_state_dict_type": "FULL_STATE_DICT",  # the guide's SHARDED one would leave no adapter at the end
            "fsdp_sync_module_states": True,
            "fsdp_use_orig_params": False,
        }
    return _write(path, settings)


def fsdp_qlora(folder: str | Path, config: TrainConfig, *, base_model: str, rows: str | Path, gpus: int = 2) -> str:
    """Write the training of a model that fits no single GPU: what accelerate reads, and the arguments of TRL's script.

    Args:
        folder: gets `accelerate.yaml` and `sft.yaml`.
        config: the settings, for one of the processes.
        base_model: a Hub id or a folder.
        rows: a file of `messages`, such as a run's data/train.jsonl.
        gpus: GPUs of the machine.

    Returns:
        The command that starts it.

    Raises:
        ConfigError: settings that this way cannot keep.
    """
    folder, storage = Path(folder), "float32" if config.dtype == "fp16" else _LONG[config.dtype]
    if not config.load_in_4bit:
        raise ConfigError("fsdp_qlora with load_in_4bit=False: QLoRA is 4-bit. Use config.replace(load_in_4bit=True).")
    settings: dict[str, Any] = {
        "model_name_or_path": base_model,
        "datasets": [{"path": "json", "data_files": str(rows)}],
        "output_dir": str(folder / "output"),
        "assistant_only_loss": True,
        "dtype": storage,  # FSDP shards floating point alone, all of one format: the 4-bit weights are stored as such
        "bnb_4bit_quant_storage": storage,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "use_bnb_nested_quant": config.bnb_4bit_use_double_quant,
        "use_peft": True,
        "lora_target_modules": list(config.target_modules),
        "bf16": config.dtype == "bf16",
        "fp16": config.dtype == "fp16",
        "optim": "adamw_torch",  # 8-bit and paged states fail at a checkpoint under FSDP
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "report_to": config.report_to,
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or 500,
        **{name: getattr(config, name) for name in _SAME_IN_TRL},
    }
    accelerate = accelerate_config(folder / "accelerate.yaml", config, gpus, shard=True)
    script = _write(folder / "sft.yaml", settings)
    return f"accelerate launch --config_file {accelerate} -m trl.scripts.sft --config {script}"


def skypilot_task(
    path: str | Path,
    config: TrainConfig,
    rows: str | Path,
    *,
    base_model: str = "",
    gpus: str = "T4:2",
    store: str = "",
    name: str = "ftkit",
) -> Path:
    """Write a task for `sky launch PATH`: a machine is rented, the kit installed, and `config` trained on all its GPUs.

    Args:
        path: the YAML file; the settings are written beside it, divided among the GPUs.
        config: settings of one process, which all GPUs together keep.
        rows: a file that `data.load_examples` reads.
        base_model: a Hub id; by default what suits the machine.
        gpus: kind and number, as SkyPilot writes them.
        store: a bucket, such as "s3://my-runs", that holds the run folders. With `sky jobs launch PATH` a machine that
            was taken away is then replaced, and the run goes on from its newest checkpoint.
        name: of task and run.

    Raises:
        ConfigError: no such number of GPUs, or settings that cannot be divided among them.
        MissingArtifact: `rows` is no file.
    """
    path, rows = Path(path), Path(rows)
    kind, _, count = gpus.partition(":")
    if not kind or not (count or "1").isdecimal() or int(count or 1) < 1:
        raise ConfigError(f"gpus={gpus!r}: wanted kind and number, such as 'T4:2' or 'A100:1'.")
    if not rows.is_file():
        raise MissingArtifact(f"{rows} is no file. data.save and training.train write one: a run's data/train.jsonl.")
    settings = share_among(config, int(count or 1)).save(path.with_suffix(".config.yaml"))
    mounts: dict[str, Any] = {"~/config.yaml": str(settings), f"~/{rows.name}": str(rows)}
    if store:
        mounts["~/runs"] = {"source": store, "mode": "MOUNT"}
    launched = "~/ftkit/.venv/bin/torchrun --nproc_per_node $SKYPILOT_NUM_GPUS_PER_NODE -m ftkit train ~/config.yaml"
    given = f"--data ~/{shlex.quote(rows.name)} --name {shlex.quote(name)} --root ~/runs"
    model = f" --model {shlex.quote(base_model)}" if base_model else ""
    return _write(
        path,
        {
            "name": name,
            "resources": {"accelerators": f"{kind}:{count or 1}", "use_spot": bool(store)},
            "file_mounts": mounts,
            "setup": f"git clone --depth 1 {_repository()} ~/ftkit && make -C ~/ftkit install",
            "run": f"{launched} {given}{model}",
        },
    )


def _repository() -> str:
    """Where this kit is fetched, as pyproject.toml says."""
    urls = [str(url) for url in metadata.metadata("ftkit").get_all("Project-URL") or ()]
    return next(url.partition(", ")[2] for url in urls if url.startswith("Repository, "))


def _write(path: str | Path, settings: dict[str, Any]) -> Path:
    import yaml

    return files.write_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=1000))
