"""A TrainConfig in Axolotl's words, and Axolotl's YAML as a TrainConfig; what one of them cannot say is named.

One table of pairs serves both directions. Axolotl itself is never imported: it lives in an environment of its own.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ftkit import files, models, tables
from ftkit.config import TrainConfig, is_misspelt, nested_values
from ftkit.errors import ConfigError, FtkitWarning, MissingArtifact
from ftkit.runs import Run
from ftkit.tables import Table

_MOST_BYTES = 2**17  # the reader of YAML refuses half of it
_DEPENDS = None  # Axolotl wants a value, or takes one that depends on the run: samples/axolotl.json says which

# Our setting: Axolotl's field, and what Axolotl takes where a file does not name it.
_PAIRS: dict[str, tuple[str, Any]] = {
    "load_in_4bit": ("load_in_4bit", False),
    "gradient_checkpointing": ("gradient_checkpointing", False),
    "lora_r": ("lora_r", _DEPENDS),
    "lora_alpha": ("lora_alpha", _DEPENDS),
    "lora_dropout": ("lora_dropout", 0.0),
    "target_modules": ("lora_target_modules", _DEPENDS),
    "use_rslora": ("peft_use_rslora", False),
    "use_dora": ("peft_use_dora", False),
    "learning_rate": ("learning_rate", _DEPENDS),
    "lr_scheduler_type": ("lr_scheduler", "cosine"),
    "warmup_steps": ("warmup_steps", _DEPENDS),
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
    "logging_steps": ("logging_steps", _DEPENDS),
    "eval_steps": ("eval_steps", _DEPENDS),
    "early_stopping_patience": ("early_stopping_patience", 0),
    "save_steps": ("save_steps", _DEPENDS),
    "save_total_limit": ("save_total_limit", 4),
}
# Settings whose value means "not at all": Axolotl's field is left out then.
_OFF = {"max_steps": -1, "early_stopping_patience": 0, "eval_steps": 0, "save_steps": 0}
_DTYPES = {"bf16": {"bf16": True}, "fp16": {"bf16": False, "fp16": True}, "fp32": {"bf16": False, "fp16": False}}
_REPORTERS = {"wandb": "use_wandb", "trackio": "use_trackio", "tensorboard": "use_tensorboard"}
_ATTENTION = ("flash_attention", "sdp_attention", "xformers_attention", "flex_attention", "sage_attention")
# A field that Axolotl refuses beside the first, or reads in its place.
_GIVES_WAY = {
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
def _said() -> dict[str, Any]:
    said: dict[str, Any] = files.sample("axolotl")
    return said


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
            Table(("setting", "value", "Axolotl's field", "its value"), self.pairs),
            Table(("setting", "value", "has no counterpart"), self.lacking, prose=True),
        ]


@tables.shown
@dataclass(frozen=True)
class AxolotlReading:
    """What `from_axolotl` understood.

    Args:
        config: the settings.
        kept: the fields that the config cannot say, as they stood; `to_axolotl(config, kept=kept)` writes them again.
        pairs: field, value, setting, value of what both can say.
        left: field, value, and what ftkit does instead.
        assumed: setting, value, and what Axolotl does where a file does not name it.
    """

    config: TrainConfig
    kept: dict[str, Any]
    pairs: tuple[tuple[str, Any, str, Any], ...]
    left: tuple[tuple[str, Any, str], ...]
    assumed: tuple[tuple[str, Any, str], ...]

    @property
    def base_model(self) -> str:
        """The base model that the file names, or ""."""
        return str(self.kept.get("base_model") or "")

    @property
    def datasets(self) -> tuple[tuple[str, str], ...]:
        """Path and type of each data set that the file trains on."""
        return tuple((str(part.get("path")), str(part.get("type"))) for part in self.kept.get("datasets", []))

    def _parts(self) -> list[Table | str]:
        return [
            Table(("Axolotl's field", "value", "setting", "its value"), self.pairs),
            Table(("Axolotl's field", "value", "ftkit has no such setting"), self.left, prose=True),
            Table(("setting", "value", "the file does not say"), self.assumed, prose=True),
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
        train = train or source.require("data") / "train.jsonl"
        val = val or source.require("data") / "val.jsonl"
        output_dir = output_dir or source / "axolotl"
    else:
        config = source
    lacking = _lacking(config)
    named = {"base_model": models.resolve(models.BUNDLED) if base_model == models.BUNDLED else base_model}
    named |= {"lora_model_dir": adapter, "output_dir": output_dir}
    explicit: dict[str, Any] = {name: str(value) for name, value in named.items() if value is not None}
    explicit |= {"datasets": [_rows(train)]} if train is not None else {}
    explicit |= {"test_datasets": [_rows(val) | {"split": "train"}]} if val is not None else {}
    if on_cpu:
        explicit |= _DTYPES["fp32"] | _said()["on_cpu"]
        lacking += [("dtype", config.dtype, _said()["lacking"]["cpu_dtype"])] * (config.dtype != "fp32")
        if "8bit" in config.optim:
            explicit["optimizer"] = "adamw_torch"
            lacking.append(("optim", config.optim, _said()["lacking"]["cpu_optim"]))
    kept = {name: value for name, value in (kept or {}).items() if not (name == "val_set_size" and val is not None)}
    fields = _fields(config)
    for name, way in _GIVES_WAY.items():
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
        lacking += [(name, value, _said()["lacking"]["no_val"]) for name, value in unmeasured.items()]
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


def _fields(config: TrainConfig) -> dict[str, Any]:
    """Settings as fields, and what makes Axolotl do as ftkit does where it would do otherwise."""
    fields: dict[str, Any] = {"adapter": "qlora" if config.load_in_4bit else "lora"}
    for setting, (name, _) in _PAIRS.items():
        value = getattr(config, setting)
        if setting not in _OFF or value != _OFF[setting]:
            fields[name] = list(value) if isinstance(value, tuple) else value
    fields |= {"excess_length_strategy": "truncate", "train_on_inputs": False} | _DTYPES[config.dtype]
    fields |= {"eval_strategy": "no"} if not config.eval_steps else {}
    fields |= {"save_strategy": "no"} if not config.save_steps else {}
    fields |= {"attn_implementation": "sdpa"} if config.packing else {}  # it keeps packed rows apart
    fields |= {_REPORTERS[config.report_to]: True} if config.report_to in _REPORTERS else {}
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
    said = _said()["lacking"]
    return [(setting, getattr(config, setting), said[why]) for setting, (why, holds) in there.items() if holds]


def _refuse_early_stopping(fields: Mapping[str, Any]) -> None:
    patience, measured, saved = (fields.get(name) for name in ("early_stopping_patience", "eval_steps", "save_steps"))
    if patience and (not measured or not saved or saved % measured):
        raise ConfigError(
            f"early_stopping_patience={patience}: Axolotl wants save_steps to be a multiple of eval_steps, and they are "
            f"{saved or 0} and {measured or 0}. Set save_steps={measured or 20} and eval_steps={measured or 20}, or "
            "early_stopping_patience=0."
        )


def _pairs(config: TrainConfig, fields: Mapping[str, Any]) -> tuple[tuple[str, Any, str, Any], ...]:
    pairs = {setting: name for setting, (name, _) in _PAIRS.items()}
    pairs |= {"dtype": "bf16", "report_to": _REPORTERS.get(config.report_to, "")}
    pairs |= {"bnb_4bit_use_double_quant": "bnb_config_kwargs"}
    return tuple((s, getattr(config, s), name, fields[name]) for s, name in pairs.items() if name in fields)


def _text(fields: Mapping[str, Any], kept: Mapping[str, Any], lacking: list[tuple[str, Any, str]]) -> str:
    """The fields as YAML, those that were kept at its end, below the comments."""
    import yaml

    def block(names: list[str]) -> str:
        chosen = {name: fields[name] for name in names}
        return yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True, width=120) if chosen else ""

    own = [name for name in fields if name not in kept]
    others = [name for name in fields if name in kept]
    lines = [f"# Settings of ftkit for Axolotl, written for its release {_said()['release']}. Run: axolotl train FILE"]
    lines += ["# What Axolotl cannot say, or says in another way:"] if lacking else []
    lines += [tables.flat(f"#   {name}: {value}. {why}") for name, value, why in lacking]
    own_text, kept_text = block(own), block(others)
    heading = "# Kept as it was given:\n" if others else ""
    return "\n".join(lines) + "\n" + own_text + heading + kept_text


def from_axolotl(source: str | Path) -> AxolotlReading:
    """Read Axolotl's YAML, a file or its text, as a TrainConfig; what it cannot say is named and kept.

    A value that ftkit refuses is warned about, and the default stands in the config.

    Raises:
        MissingArtifact: no such file.
        ConfigError: it is no YAML, or no plain one (tags, aliases, thousands of values); or fields are misspelt, which
            Axolotl would pass over in silence. Lists all of them.
    """
    given = {name: value for name, value in _read(source).items() if value is not None}
    if problems := [problem for name in given if (problem := _misspelt(name))] + _odd_datasets(given):
        raise ConfigError("\n".join(problems))
    settings, refused, pairs, assumed = dict[str, Any](), dict[str, str](), [], []
    for setting, (name, value, said) in _settings(given).items():
        if name not in given:
            settings |= {} if value is _DEPENDS else {setting: value}
            now = getattr(TrainConfig(), setting) if value is _DEPENDS else value
            assumed += [(setting, now, said)] if now != getattr(TrainConfig(), setting) or value is _DEPENDS else []
            continue
        try:
            settings[setting] = getattr(TrainConfig(**{setting: value}), setting)
            pairs.append((name, given[name], setting, settings[setting]))
        except ConfigError as error:
            refused[name] = str(error)
    if not given.get("adapter"):
        assumed.append(("adapter", "LoRA", _said()["assumed"]["adapter"]))
    config = TrainConfig(**settings)
    written = _fields(config)
    kept = {name: value for name, value in given.items() if name not in written or written[name] != value}
    if "excess_length_strategy" not in given:  # else writing it again would change what it means
        kept["excess_length_strategy"] = "drop"
        assumed.append(("excess_length_strategy", "drop", _said()["assumed"]["excess_length_strategy"]))
    if refused:
        listed = "\n".join(refused.values())
        warnings.warn(f"ftkit cannot train so, and its defaults stand instead:\n{listed}", FtkitWarning, stacklevel=2)
    left = [(name, _shown(value), refused.get(name) or _instead(name, value)) for name, value in given.items() if name in kept]
    return AxolotlReading(config, kept, tuple(pairs), tuple(left), tuple(assumed))


def _read(source: str | Path) -> dict[str, Any]:
    if isinstance(source, str) and ("\n" in source or ": " in source):
        name, text = "The YAML", source.encode("utf-8", "surrogatepass")
    else:
        name = str(source)
        try:
            with Path(source).open("rb") as file:
                text = file.read(_MOST_BYTES)
        except FileNotFoundError as error:
            raise MissingArtifact(f"{name} does not exist. Give the path of an Axolotl YAML file, or its text.") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"{name} cannot be read ({why}). Give the path of an Axolotl YAML file.") from error
    values = nested_values(name, text)
    if not isinstance(values, dict):
        raise ConfigError(f"{name} is no Axolotl file: wanted `name: value` lines, found {_shown(values)}.")
    return values


def _misspelt(name: str) -> str | None:
    if name in _said()["fields"]:
        return None
    meant = next((known for known in _said()["fields"] if is_misspelt(name[:100].lower(), known)), None)
    return meant and f"{name} is no field of Axolotl, which would pass over it in silence. Did you mean {meant}?"


def _odd_datasets(given: Mapping[str, Any]) -> list[str]:
    """What is wrong with the lists of data sets."""
    odd = []
    for name in ("datasets", "test_datasets"):
        parts = given.get(name, [])
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            odd.append(f"{name}={_shown(parts)} is no list of mappings. Write `- path: FILE` and `type: chat_template`.")
    return odd


def _settings(given: Mapping[str, Any]) -> dict[str, tuple[str, Any, str]]:
    """By setting: the field that speaks of it and its value; or what Axolotl takes where none does, and a word on it."""
    found = {}
    said = _said()["assumed"]
    for setting, (name, default) in _PAIRS.items():
        if name in given:
            value = given[name]
            whole = isinstance(getattr(TrainConfig(), setting), int) and isinstance(value, float) and value.is_integer()
            found[setting] = (name, int(value) if whole else value, "")
        elif not any(way == name and given.get(first) for first, way in _GIVES_WAY.items()):
            found[setting] = (name, default, said.get(setting, "It is Axolotl's own default."))
    for setting, name in (("eval_steps", "eval_strategy"), ("save_steps", "save_strategy")):
        if given.get(name) in ("no", False) and name in given:
            found[setting] = (name, 0, "")
    if isinstance(given.get("gradient_checkpointing"), str):  # "offload": checkpoints that lie elsewhere
        found["gradient_checkpointing"] = ("gradient_checkpointing", True, "")
    if isinstance(given.get("lora_target_modules"), str) and given["lora_target_modules"].isidentifier():
        found["target_modules"] = ("lora_target_modules", [given["lora_target_modules"]], "")
    if isinstance(kwargs := given.get("bnb_config_kwargs"), dict) and "bnb_4bit_use_double_quant" in kwargs:
        found["bnb_4bit_use_double_quant"] = ("bnb_config_kwargs", kwargs["bnb_4bit_use_double_quant"], "")
    for reporter, name in _REPORTERS.items():
        if given.get(name):
            found["report_to"] = (name, reporter, "")
    return found | {"dtype": _dtype(given)}


def _dtype(given: Mapping[str, Any]) -> tuple[str, Any, str]:
    """The first field that says in which number format to compute."""
    asked = (("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16"), ("float16", "fp16"), ("float32", "fp32"))
    for name, dtype in asked:
        if given.get(name) in (True, "full"):
            return name, dtype, ""
    return ("bf16", "fp32", "") if given.get("bf16") is False else ("", _DEPENDS, _said()["assumed"]["dtype"])


def _instead(name: str, value: Any) -> str:
    """What ftkit does instead of what a field says."""
    said = _said()["instead"]
    if name == "datasets":
        kinds = {str(part.get("type")).split(".")[0].split(":")[0] for part in value}
        own = [said[kind] for kind in sorted(kinds & {"alpaca", "sharegpt"})]
        return " ".join([*own, _elsewhere(name)])
    if name not in _said()["fields"]:
        return str(said["unknown"]).format(release=_said()["release"])
    return str(said.get(name) or _elsewhere(name) or said["other"])


def _elsewhere(name: str) -> str:
    sentences = files.sample("setting_names")["instead"]
    return next((sentence for sentence, names in sentences.items() if name in names), "")


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:180]}… ({len(text):,} characters)"
