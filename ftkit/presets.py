"""Starting points with a name: how thorough a run should be, and on which machine.

The two kinds touch different settings, so that one of each combines: `variant(variant(config, "T4"), "balanced")`.
"""

from typing import Any

from ftkit.config import TrainConfig
from ftkit.errors import ConfigError
from ftkit.hardware import Hardware

# Effort: what the run learns and how long it takes. Ranges: `TrainConfig`'s own typical ones.
_EFFORTS: dict[str, tuple[str, dict[str, Any]]] = {
    "quick look": (
        "does it learn at all? Twenty updates, a narrow adapter",
        {
            "lora_r": 8,
            "lora_alpha": 16,
            "max_steps": 20,
            "num_train_epochs": 1.0,
            "warmup_steps": 2,
            "eval_steps": 10,
            "save_steps": 10,
            "max_eval_examples": 16,
            "learning_rate": 2e-4,
        },
    ),
    "balanced": (
        "one pass over the data with the usual adapter",
        {
            "lora_r": 16,
            "lora_alpha": 32,
            "max_steps": -1,
            "num_train_epochs": 1.0,
            "warmup_steps": 10,
            "eval_steps": 20,
            "save_steps": 50,
            "max_eval_examples": 100,
            "learning_rate": 2e-4,
        },
    ),
    "thorough": (
        "three passes, a wide adapter, a gentler step size",
        {
            "lora_r": 32,
            "lora_alpha": 64,
            "max_steps": -1,
            "num_train_epochs": 3.0,
            "warmup_steps": 50,
            "eval_steps": 50,
            "save_steps": 100,
            "max_eval_examples": 200,
            "learning_rate": 1e-4,
        },
    ),
}
# Visible memory: what torch reports on the usual cloud machines, GiB.
MACHINES = {
    "T4": Hardware("cuda", "Tesla T4", 14.6, (7, 5), False, 2),
    "L4": Hardware("cuda", "NVIDIA L4", 22.0, (8, 9), True, 8),
    "A100": Hardware("cuda", "NVIDIA A100-SXM4-40GB", 39.5, (8, 0), True, 12),
}
# Memory against speed: what fits an 8B model in 4-bit there. Everything else is left as it is.
_ROOM: dict[str, dict[str, Any]] = {
    "T4": {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "max_length": 1024,
        "load_in_4bit": True,
    },
    "L4": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_length": 2048,
        "load_in_4bit": True,
    },
    "A100": {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_length": 2048,
        "load_in_4bit": False,
    },
}

EFFORTS = tuple(_EFFORTS)


def names() -> tuple[str, ...]:
    """All presets, efforts first."""
    return (*_EFFORTS, *MACHINES)


def describe(name: str) -> str:
    """What a preset is for, in half a sentence.

    Raises:
        ConfigError: no preset of that name.
    """
    if name in _EFFORTS:
        return _EFFORTS[name][0]
    machine = MACHINES[_known(name)]
    return f"batch, length and number format for {machine.name} ({machine.memory_gib:.0f} GiB)"


def settings(name: str) -> dict[str, Any]:
    """The settings that a preset sets; all others are left alone.

    Raises:
        ConfigError: no preset of that name.
    """
    if name in _EFFORTS:
        return dict(_EFFORTS[name][1])
    machine = MACHINES[_known(name)]
    dtype = "bf16" if machine.bf16 else "fp16"
    return {"dtype": dtype, "gradient_checkpointing": True, "optim": "adamw_8bit", **_ROOM[name]}


def variant(config: TrainConfig, name: str) -> TrainConfig:
    """`config` with the settings of a preset.

    Raises:
        ConfigError: no preset of that name.
    """
    return config.replace(**settings(name))


def _known(name: str) -> str:
    if name not in MACHINES:
        raise ConfigError(f"{name!r} is no preset. There are: {', '.join(names())}.")
    return name
