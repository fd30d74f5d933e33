"""A TrainConfig in Axolotl's words: the pairs of names, and the YAML that is written; what Axolotl cannot say is named.

Axolotl itself is never imported: it lives in an environment of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ftkit import files, models, tables
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError
from ftkit.runs import Run
from ftkit.tables import Table

DEPENDS = None  # Axolotl wants a value, or takes one that depends on the run: samples/axolotl.json says which

# Our setting: Axolotl's field, and what Axolotl takes where a file does not name it.
PAIRS: dict[str, tuple[str, Any]] = {
    "load_in_4bit": ("load_in_4bit", False),
    "gradient_checkpointing": ("gradient_checkpointing", False),
    "lora_r": ("lora_r", DEPENDS),
    "lora_alpha": ("lora_alpha", DEPENDS),
    "lora_dropout": ("lora_dropout", 0.0),
    "target_modules": ("lora_target_modules", DEPENDS),
    "use_rslora": ("peft_use_rslora", False),
    "use_dora": ("peft_use_dora", False),
    "learning_rate": ("learning_rate", DEPENDS),
    "lr_scheduler_type": ("lr_scheduler", "cosine"),
    "warmup_steps": ("warmup_steps", DEPENDS),
    "per_device_train_batch_size": ("micro_batch_size", 1),
    "gradient_accumulation_steps": ("gradient_accumulation_steps", 1),
    "num_train_epochs": ("num_epochs", 1.0),
    "max_steps": ("max_steps", -1),
    "optim": ("optimizer", "adamw_torch_fused"),
    "weight_decay": ("weight_decay", 0.0),
    "max_grad_norm": ("max_grad_norm", 1.0),
    "seed": ("seed", 42),
    "max_length": ("sequence_len", 512),
    "group_by_length": ("group_by_length", False),
    "packing": ("sample_packing", False),
    "logging_steps": ("logging_steps", DEPENDS),
    "eval_steps": ("eval_steps", DEPENDS),
    "early_stopping_patience": ("early_stopping_patience", 0),
    "save_steps": ("save_steps", DEPENDS),
    "save_total_limit": ("save_total_limit", 4),
}
# Settings whose value means "not at all": Axolotl's field is left out then.
_OFF = {"max_steps": -1, "early_stopping_patience": 0, "eval_steps": 0, "save_steps": 0}
DTYPES = {"bf16": {"bf16": True}, "fp16": {"bf16": False, "fp16": True}, "fp32": {"bf16": False, "fp16": False}}
REPORTERS = {"wandb": "use_wandb", "trackio": "use_trackio", "tensorboard": "use_tensorboard"}
_ATTENTION = ("flash_attention", "sdp_attention", "xformers_attention", "flex_attention", "sage_attention")
# A field that Axolotl refuses beside the first, or reads in its place.
GIVES_WAY = {
    "warmup_ratio": "warmup_steps",
    "evals_per_epoch": "eval_steps",
    "eval_strategy": "eval_steps",
    "saves_per_epoch": "save_steps",
    "save_strategy": "save_steps",
    "lora_target_linear": "lora_target_modules",
    "batch_size": "gradient_accumulation_steps",
    **dict.fromkeys((*_ATTENTION, "eager_attention"), "attn_implementation"),
}
_DATA_TYPES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@cache
def said() -> dict[str, Any]:
    """What is told where Axolotl and ftkit differ, and the names of Axolotl's fields."""
    texts: dict[str, Any] = files.sample("axolotl")
    return texts


def shown(value: Any) -> str:
    """A value for a table: names of a list beside each other, and no text without end."""
    text = (
        ", ".join(value) if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value) else str(value)
    )
    return text if len(text) <= 200 else f"{text[:180]}… ({len(text):,} characters)"


@tables.shown
@dataclass(frozen=True)
class AxolotlFile:
    """What `to_axolotl` wrote: `text` is the YAML.

    `pairs` are setting, value, field, value; `lacking` are setting, value, and what is to be known of it.
    """

    text: str
    pairs: tuple[tuple[str, Any, str, Any], ...]
    lacking: tuple[tuple[str, Any, str], ...]

    def save(self, path: str | Path) -> Path:
        """Write the YAML; the file appears whole or not at all."""
        return files.write_text(path, self.text)

    def _parts(self) -> list[Table | str]:
        return [
            Table(("setting", "value", "Axolotl's field", "its value"), [tuple(map(shown, row)) for row in self.pairs]),
            Table(("setting", "value", "has no counterpart"), self.lacking, prose=True),
        ]


def to_axolotl(
    source: TrainConfig | Run,
    *,
    base_model: str | Path | None = None,
    train: str | Path | None = None,
    val: str | Path | None = None,
    output_dir: str | Path | None = None,
    adapter: str | Path | None = None,
    kept: Mapping[str, Any] | None = None,
    on_cpu: bool = False,
) -> AxolotlFile:
    """Write settings as Axolotl's YAML, with a comment for each one that Axolotl cannot say.

    Args:
        source: the settings; or a run, which brings its base model and the rows that it was trained on.
        base_model: a folder, a Hub id, or the bundled model's name.
        train: rows with `messages`, as `data.save` writes them: a file or a Hub id.
        val: likewise, for validation.
        output_dir: where Axolotl is to write.
        adapter: a folder with an adapter from which training goes on.
        kept: other fields of Axolotl's as they are to stand, such as `from_axolotl` gives back; they win over `source`.
        on_cpu: write what makes Axolotl train without a GPU.

    Raises:
        ConfigError: no base model or no rows are named, or Axolotl would refuse the file; says what to change.
        MissingArtifact: the run holds no settings or no rows.
    """
    if isinstance(source, Run):
        config = TrainConfig.load(source.require("config.yaml"))
        base_model = base_model or source.facts.get("train", {}).get("base_model")
        # absolute: Axolotl may be started from another folder
        train = train or source.require("data/train.jsonl").absolute()
        val = val or source.require("data/val.jsonl").absolute()
        output_dir = output_dir or (source / "axolotl").absolute()
    else:
        config = source
    lacking = _lacking(config)
    named = {"base_model": models.resolve(models.BUNDLED) if base_model == models.BUNDLED else base_model}
    named |= {"lora_model_dir": adapter, "output_dir": output_dir}
    explicit: dict[str, Any] = {name: str(value) for name, value in named.items() if value is not None}
    explicit |= {"datasets": [_rows(train)]} if train is not None else {}
    explicit |= {"test_datasets": [_rows(val) | {"split": "train"}]} if val is not None else {}
    if adapter is not None:
        lacking.append(("lora_r", config.lora_r, said()["lacking"]["adapter_goes_on"]))
    if on_cpu:
        explicit |= DTYPES["fp32"] | said()["on_cpu"]
        lacking += [("dtype", config.dtype, said()["lacking"]["cpu_dtype"])] * (config.dtype != "fp32")
        if "8bit" in config.optim:
            explicit["optimizer"] = "adamw_torch"
            lacking.append(("optim", config.optim, said()["lacking"]["cpu_optim"]))
    kept = {name: value for name, value in (kept or {}).items() if not (name == "val_set_size" and val is not None)}
    fields = fields_of(config)
    for name, way in GIVES_WAY.items():
        stays = way in kept or kept.get(name) in (None, False, "steps")
        if not stays and way in fields:
            lacking.append((way, fields.pop(way), f"It gives way to {name}, which was to be kept."))
    fields = {"base_model": None, "datasets": None} | fields | kept | explicit
    if missing := [name for name in ("base_model", "datasets") if not fields[name]]:
        raise ConfigError(
            f"Axolotl wants {' and '.join(missing)}. Give base_model= and train=, kept= of what from_axolotl read, or "
            "a run that was trained."
        )
    if not fields.get("test_datasets") and not fields.get("val_set_size"):
        unmeasured = {name: fields.pop(name) for name in ("eval_steps", "early_stopping_patience") if name in fields}
        lacking += [(name, value, said()["lacking"]["no_val"]) for name, value in unmeasured.items()]
    _refuse_early_stopping(fields)
    pairs = _pairs(config, fields)
    return AxolotlFile(_text(fields, kept, lacking), pairs, tuple(lacking))


def _rows(path: str | Path) -> dict[str, Any]:
    """One data set of chats, asked through the tokenizer's own template, with the answers that ftkit trains."""
    suffix = Path(path).suffix.lower()
    kind = {"ds_type": _DATA_TYPES[suffix]} if suffix in _DATA_TYPES else {}
    return {
        "path": str(path),
        **kind,
        "type": "chat_template",
        "chat_template": "tokenizer_default",
        "field_messages": "messages",
        "message_field_training": "train",
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }


def fields_of(config: TrainConfig) -> dict[str, Any]:
    """Settings as fields, and what makes Axolotl do as ftkit does where it would do otherwise."""
    fields: dict[str, Any] = {"adapter": "qlora" if config.load_in_4bit else "lora"}
    for setting, (name, _) in PAIRS.items():
        value = getattr(config, setting)
        if setting not in _OFF or value != _OFF[setting]:
            fields[name] = list(value) if isinstance(value, tuple) else value
    fields |= {"excess_length_strategy": "truncate", "train_on_inputs": False} | DTYPES[config.dtype]
    fields |= {"eval_strategy": "no"} if not config.eval_steps else {}
    fields |= {"save_strategy": "no"} if not config.save_steps else {}
    fields |= {"attn_implementation": "sdpa"} if config.packing else {}  # it keeps packed rows apart
    fields |= {REPORTERS[config.report_to]: True} if config.report_to in REPORTERS else {}
    if not config.bnb_4bit_use_double_quant:
        fields["bnb_config_kwargs"] = {"bnb_4bit_use_double_quant": False}
    return fields


def _lacking(config: TrainConfig) -> list[tuple[str, Any, str]]:
    """The settings that have no counterpart, or one that does something else."""
    there = {
        "backend": ("backend", True),
        "max_eval_examples": ("max_eval_examples", True),
        "train_on": ("answers", config.train_on == "answers"),
        "warmup_steps": ("one_warmup", config.warmup_steps == 1),
        "eval_steps": ("no_eval_steps", config.eval_steps == 0),
        "group_by_length": ("grouping", config.group_by_length),
    }
    texts = said()["lacking"]
    return [(setting, getattr(config, setting), texts[why]) for setting, (why, holds) in there.items() if holds]


def _refuse_early_stopping(fields: Mapping[str, Any]) -> None:
    patience, measured, saved = (fields.get(name) for name in ("early_stopping_patience", "eval_steps", "save_steps"))
    numbers = isinstance(measured, int | float) and isinstance(saved, int | float)
    if patience and not (numbers and measured and saved and saved % measured == 0):
        raise ConfigError(
            f"early_stopping_patience={patience}: Axolotl wants save_steps to be a multiple of eval_steps, and they "
            f"are {saved or 0} and {measured or 0}. Set save_steps={measured or 20} and eval_steps={measured or 20}, "
            "or early_stopping_patience=0."
        )


def _pairs(config: TrainConfig, fields: Mapping[str, Any]) -> tuple[tuple[str, Any, str, Any], ...]:
    pairs = {setting: name for setting, (name, _) in PAIRS.items()}
    pairs |= {"dtype": "bf16", "report_to": REPORTERS.get(config.report_to, "")}
    pairs |= {"bnb_4bit_use_double_quant": "bnb_config_kwargs"}
    return tuple((s, getattr(config, s), name, fields[name]) for s, name in pairs.items() if name in fields)


def _text(fields: Mapping[str, Any], kept: Mapping[str, Any], lacking: list[tuple[str, Any, str]]) -> str:
    """The fields as YAML, those that were kept at its end, below the comments."""
    import yaml

    def block(names: list[str]) -> str:
        """So many of the fields as YAML; nothing where there are none."""
        chosen = {name: fields[name] for name in names}
        try:
            return yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True, width=120) if chosen else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"kept= holds what YAML cannot write: {error}. Give plain values and lists.") from error

    own = [name for name in fields if name not in kept]
    others = [name for name in fields if name in kept]
    lines = [f"# Settings of ftkit for Axolotl, written for its release {said()['release']}. Run: axolotl train FILE"]
    lines += ["# What Axolotl cannot say, or says in another way:"] if lacking else []
    lines += [tables.flat(f"#   {name}: {value}. {why}") for name, value, why in lacking]
    own_text, kept_text = block(own), block(others)
    heading = "# Kept as it was given:\n" if others else ""
    return "\n".join(lines) + "\n" + own_text + heading + kept_text
