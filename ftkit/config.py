"""The choices of one training run: every knob, its range, its usual range and its help text, written once.

Knows nothing of models, data or widgets. Names are TRL's for training and PEFT's for adapters.
"""

import dataclasses
import difflib
import hashlib
import json
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from ftkit.errors import ConfigError, MissingArtifact
from ftkit.files import write_text
from ftkit.hardware import Hardware
from ftkit.tables import Table

_ALIASES = {
    "lr": "learning_rate",
    "r": "lora_r",
    "rank": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "steps": "max_steps",
    "optimizer": "optim",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "max_seq_length": "max_length",
    "sequence_len": "max_length",
    "lr_scheduler": "lr_scheduler_type",
}

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def knob(
    default: Any,
    help: str,
    *,
    group: str,
    low: float | None = None,
    high: float | None = None,
    typical: tuple[float, float] | None = None,
    choices: tuple[Any, ...] = (),
    log: bool = False,
) -> Any:
    """Declare one setting: this line feeds the docs, the range check, the tooltip and the slider."""
    facts = {"help": help, "group": group, "low": low, "high": high, "typical": typical, "choices": choices, "log": log}
    return field(default=default, metadata=facts)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one run. Frozen: `dataclasses.replace` makes a variant.

    Raises:
        ConfigError: lists every setting that is misspelt, of the wrong type or out of range, at once.
    """

    backend: str = knob(
        "auto",
        "who loads and patches the model; auto takes Unsloth where it is installed",
        group="model",
        choices=("auto", "unsloth", "transformers"),
    )
    load_in_4bit: bool = knob(True, "QLoRA: keep the frozen base model in 4-bit NF4", group="model")
    bnb_4bit_use_double_quant: bool = knob(True, "also quantise the scales; saves 0.37 bits a parameter", group="model")
    dtype: str = knob(
        "bf16", "number format of the computation; a T4 has fp16 only", group="model", choices=("bf16", "fp16", "fp32")
    )
    gradient_checkpointing: bool = knob(
        True, "recompute activations: less memory, about a third more time", group="model"
    )

    lora_r: int = knob(
        16, "rank: width of the trainable detour", group="adapter", low=1, high=256, typical=(8, 64), log=True
    )
    lora_alpha: int = knob(
        32,
        "the detour is scaled by alpha / r; usually r or twice r",
        group="adapter",
        low=1,
        high=512,
        typical=(8, 128),
        log=True,
    )
    lora_dropout: float = knob(
        0.0,
        "share of the detour's inputs dropped in training; Unsloth is fastest at 0",
        group="adapter",
        low=0.0,
        high=0.9,
        typical=(0.0, 0.1),
    )
    target_modules: tuple[str, ...] = knob(
        ALL_LINEAR, "weight matrices that get a detour; fewer is cheaper and weaker", group="adapter"
    )
    use_rslora: bool = knob(False, "scale by alpha / sqrt(r), steadier at high rank", group="adapter")
    use_dora: bool = knob(False, "train magnitude and direction apart; slower", group="adapter")

    learning_rate: float = knob(
        2e-4,
        "step size; LoRA wants about ten times full fine-tuning's",
        group="optimisation",
        low=1e-6,
        high=1e-2,
        typical=(1e-4, 3e-4),
        log=True,
    )
    lr_scheduler_type: str = knob(
        "cosine",
        "how the step size falls after warm-up",
        group="optimisation",
        choices=("cosine", "linear", "constant_with_warmup", "constant"),
    )
    warmup_steps: int = knob(
        50, "steps over which the step size rises from zero", group="optimisation", low=0, high=10_000, typical=(5, 100)
    )
    per_device_train_batch_size: int = knob(
        2, "examples in memory at once", group="optimisation", low=1, high=512, log=True
    )
    gradient_accumulation_steps: int = knob(
        4,
        "micro-batches summed before an update: batch size without memory",
        group="optimisation",
        low=1,
        high=512,
        log=True,
    )
    num_train_epochs: float = knob(
        1.0,
        "passes over the data; small sets overfit past three",
        group="optimisation",
        low=0.01,
        high=100,
        typical=(1, 5),
    )
    max_steps: int = knob(
        -1, "updates in all; -1 lets the epochs decide", group="optimisation", low=-1, high=10_000_000
    )
    optim: str = knob(
        "adamw_8bit",
        "8-bit Adam needs a quarter of Adam's memory, on a GPU",
        group="optimisation",
        choices=("adamw_8bit", "adamw_torch", "adamw_torch_fused", "paged_adamw_8bit", "sgd"),
    )
    weight_decay: float = knob(
        0.01, "pull of the adapter towards zero", group="optimisation", low=0.0, high=1.0, typical=(0.0, 0.1)
    )
    max_grad_norm: float = knob(
        1.0, "longer gradients are clipped to this", group="optimisation", low=0.0, high=100.0, typical=(0.3, 1.0)
    )
    seed: int = knob(42, "of weights, shuffling and dropout", group="optimisation", low=0, high=2**31 - 1)

    max_length: int = knob(
        2048,
        "tokens an example may have; longer ones are cut",
        group="length",
        low=8,
        high=1_048_576,
        typical=(512, 8192),
        log=True,
    )
    group_by_length: bool = knob(
        False, "batches of examples of like length: less padding, the same order every epoch", group="length"
    )
    train_on: str = knob(
        "answers+reasoning",
        "what of an assistant turn is trained: its reasoning too, or the answer alone",
        group="length",
        choices=("answers+reasoning", "answers"),
    )
    packing: bool = knob(
        False, "several short examples in one row; needs a backend that keeps them apart", group="length"
    )

    logging_steps: int = knob(1, "updates between two points of the loss curve", group="records", low=1, high=10_000)
    eval_steps: int = knob(
        20, "updates between two validation losses; 0 measures only at the end", group="records", low=0, high=100_000
    )
    max_eval_examples: int = knob(
        200, "validation rows measured each time; more is steadier and slower", group="records", low=1, high=1_000_000
    )
    early_stopping_patience: int = knob(
        0,
        "validation losses in a row without a new best after which training ends, with the adapter of "
        "the best one; 0 trains to the end",
        group="records",
        low=0,
        high=1000,
    )
    save_steps: int = knob(50, "updates between two checkpoints; 0 writes none", group="records", low=0, high=100_000)
    save_total_limit: int = knob(2, "checkpoints kept", group="records", low=1, high=100)
    report_to: str = knob(
        "none", "where else metrics go", group="records", choices=("none", "tensorboard", "trackio", "wandb")
    )

    def __new__(cls, *_: Any, **settings: Any) -> Self:
        """Refuse misspelt names with a suggestion, before the generated `__init__` would raise a bare TypeError."""
        known = {spec.name: spec for spec in fields(cls)}
        misspelt = [_unknown(name) for name in settings if name not in known]
        if misspelt:
            checked = [_problem(known[name], value) for name, value in settings.items() if name in known]
            raise ConfigError("\n".join(misspelt + [problem for problem in checked if problem]))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        targets: Any = self.target_modules
        if isinstance(targets, list):
            object.__setattr__(self, "target_modules", tuple(targets))
        for spec in fields(self):  # weight_decay=0 and 0.0 are one setting, with one digest
            value: Any = getattr(self, spec.name)
            if isinstance(spec.default, float) and isinstance(value, int | float) and not _problem(spec, value):
                object.__setattr__(self, spec.name, float(value))  # NumPy's floats too, which YAML cannot write
        if problems := [problem for spec in fields(self) if (problem := _problem(spec, getattr(self, spec.name)))]:
            raise ConfigError("\n".join(problems))
        if self.max_steps == 0:
            raise ConfigError("max_steps=0 would train nothing. Give at least 1, or -1 to let num_train_epochs decide.")
        if self.early_stopping_patience and not self.eval_steps:
            raise ConfigError(
                f"early_stopping_patience={self.early_stopping_patience} with eval_steps=0: "
                "validation would be measured only at the end. Set eval_steps, such as 20."
            )

    @property
    def effective_batch_size(self) -> int:
        """Examples behind each weight update, on one device."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @classmethod
    def for_hardware(cls, hardware: Hardware, **settings: Any) -> Self:
        """Defaults that come out right on `hardware`; `settings` win over them.

        On a CPU gradient checkpointing is pure cost and 8-bit Adam does not exist; a T4 computes in fp16.
        """
        if hardware.device == "cpu":
            sensible: dict[str, Any] = {
                "dtype": "bf16" if hardware.bf16 else "fp32",
                "gradient_checkpointing": False,
                "optim": "adamw_torch",
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 2,
                "max_length": 512,
                "group_by_length": True,
                "max_eval_examples": 16,
            }
        else:
            sensible = {"dtype": "bf16" if hardware.bf16 else "fp16"}
            if hardware.memory_gib >= 40:
                sensible |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
        return cls(**(sensible | settings))

    def changed(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        return {s.name: getattr(self, s.name) for s in fields(self) if getattr(self, s.name) != s.default}

    def digest(self) -> str:
        """Twelve hex digits that change with any setting."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def save(self, path: str | Path) -> Path:
        """Write YAML with every setting and its help text as a comment; the file appears whole or not at all."""
        import yaml

        lines = []
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, tuple):  # YAML has lists alone
                value = list(value)
            text = yaml.safe_dump({spec.name: value}, default_flow_style=False)
            lines.append(f"# {spec.metadata['help']}\n{text}")
        return write_text(path, "".join(lines))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read YAML that `save` wrote or a person edited.

        Raises:
            MissingArtifact: no such file.
            ConfigError: names the line and the field of each problem.
        """
        import yaml

        path = Path(path)
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
            settings = _settings_with_lines(path, root)
        except FileNotFoundError as error:
            raise MissingArtifact(
                f"{path} does not exist. TrainConfig().save({str(path)!r}) writes one to edit."
            ) from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}). Give the path of a YAML file.") from error
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{path} is not YAML: {error}") from error
        return cls(**settings)

    def replace(self, **settings: Any) -> Self:
        """A variant; the same as `dataclasses.replace`, with misspelt names refused."""
        return replace(self, **settings)

    def _repr_html_(self) -> str:
        rows = [(spec.name, getattr(self, spec.name), spec.metadata["help"]) for spec in fields(self)]
        return Table(("setting", "value", "what it does"), rows)._repr_html_()


def _settings_with_lines(path: Path, root: Any) -> dict[str, Any]:
    import yaml

    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} line 1: wanted `name: value` lines, found a {root.id}.")
    known, settings, problems = {spec.name: spec for spec in fields(TrainConfig)}, {}, []
    loader = yaml.SafeLoader("")
    for key, node in root.value:
        name, where = str(key.value), f"{path} line {key.start_mark.line + 1}: "
        try:
            value = loader.construct_object(node, deep=True)
        except (ValueError, AttributeError):  # 2001-99-99, !!int abc, a number of thousands of digits
            problems.append(f"{where}{name}={_short(node.value)} cannot be read as a value.")
            continue
        if isinstance(value, str) and isinstance(getattr(known.get(name), "default", None), float):
            value = _number(value)  # YAML reads 2e-4 as text: it wants 2.0e-4
        if name not in known:
            problems.append(where + _unknown(name))
        elif name in settings:
            problems.append(f"{where}{name} is set twice.")
        elif problem := _problem(known[name], value):
            problems.append(where + problem)
        settings[name] = value
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write whole numbers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text):,} characters)"


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _unknown(name: str) -> str:
    names = [spec.name for spec in fields(TrainConfig)]
    close = [_ALIASES[name]] if name in _ALIASES else difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]}?" if close else "help(TrainConfig) lists the settings."
    return f"{name} is no setting. {hint}"


def _problem(spec: "dataclasses.Field[Any]", value: Any) -> str | None:
    """What is wrong with one value, or None."""
    facts, default = spec.metadata, spec.default
    assert default is not MISSING
    if isinstance(value, list):  # YAML and JSON have no tuples
        value = tuple(value)
    tail = f"({facts['help']}). The default is {default}."
    if facts["choices"]:
        known = isinstance(value, str) and value in facts["choices"]
        return None if known else f"{spec.name}={value!r} is not one of {', '.join(facts['choices'])} {tail}"
    if isinstance(default, tuple):
        if isinstance(value, tuple) and value and all(isinstance(name, str) and name for name in value):
            return None
        return f"{spec.name}={value!r} wants a list of names {tail}"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else f"{spec.name}={value!r} wants true or false {tail}"
    return _number_problem(spec.name, value, isinstance(default, int), facts["low"], facts["high"], tail)


def _number_problem(name: str, value: Any, whole: bool, low: float, high: float, tail: str) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"{name}={value!r} wants a {'whole ' if whole else ''}number {tail}"
    # NaN differs from itself; a whole number may be too large for a float
    if value != value or not low <= value <= high:
        return f"{name}={_short(value)} is outside {low:g} to {high:g} {tail}"
    return None


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


def preset_names() -> tuple[str, ...]:
    """All presets, efforts first."""
    return (*_EFFORTS, *MACHINES)


def describe_preset(name: str) -> str:
    """What a preset is for, in half a sentence.

    Raises:
        ConfigError: no preset of that name.
    """
    if name in _EFFORTS:
        return _EFFORTS[name][0]
    machine = MACHINES[_known(name)]
    return f"batch, length and number format for {machine.name} ({machine.memory_gib:.0f} GiB)"


def preset_settings(name: str) -> dict[str, Any]:
    """The settings that a preset sets; all others are left alone.

    Raises:
        ConfigError: no preset of that name.
    """
    if name in _EFFORTS:
        return dict(_EFFORTS[name][1])
    machine = MACHINES[_known(name)]
    dtype = "bf16" if machine.bf16 else "fp16"
    return {"dtype": dtype, "gradient_checkpointing": True, "optim": "adamw_8bit", **_ROOM[name]}


def preset_variant(config: TrainConfig, name: str) -> TrainConfig:
    """`config` with the settings of a preset.

    Raises:
        ConfigError: no preset of that name.
    """
    return config.replace(**preset_settings(name))


def _known(name: str) -> str:
    if name not in MACHINES:
        raise ConfigError(f"{name!r} is no preset. There are: {', '.join(preset_names())}.")
    return name
