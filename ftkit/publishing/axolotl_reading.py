"""Axolotl's YAML as a TrainConfig: what both can say, what ftkit has in its place, and what the file leaves open.

A file of others: nothing in it is obeyed or unfolded, and what a config cannot say is kept as it stood.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit import files, tables
from ftkit.config import TrainConfig, config_bytes, is_misspelt, nested_values
from ftkit.errors import ConfigError, FtkitWarning
from ftkit.publishing.axolotl import DEPENDS, GIVES_WAY, PAIRS, REPORTERS, fields_of, said, shown
from ftkit.tables import Table


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
            Table(("Axolotl's field", "value", "setting", "its value"), [tuple(map(shown, row)) for row in self.pairs]),
            Table(("Axolotl's field", "value", "ftkit has no such setting"), self.left, prose=True),
            Table(("setting", "value", "the file does not say"), self.assumed, prose=True),
        ]


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
    for setting, (name, value, why) in _settings(given).items():
        if name not in given:
            settings |= {} if value is DEPENDS else {setting: value}
            now = getattr(TrainConfig(), setting) if value is DEPENDS else value
            assumed += [(setting, now, why)] if now != getattr(TrainConfig(), setting) or value is DEPENDS else []
            continue
        try:
            settings[setting] = getattr(TrainConfig(**{setting: value}), setting)
            pairs.append((name, given[name], setting, settings[setting]))
        except ConfigError as error:
            refused[name] = str(error)
    if not given.get("adapter"):
        assumed.append(("adapter", "LoRA", said()["assumed"]["adapter"]))
    config = TrainConfig(**settings)
    written = fields_of(config)
    kept = {name: value for name, value in given.items() if name not in written or written[name] != value}
    if "excess_length_strategy" not in given:  # else writing it again would change what it means
        kept["excess_length_strategy"] = "drop"
        assumed.append(("excess_length_strategy", "drop", said()["assumed"]["excess_length_strategy"]))
    if refused:
        listed = "\n".join(refused.values())
        warnings.warn(f"ftkit cannot train so, and its defaults stand instead:\n{listed}", FtkitWarning, stacklevel=2)
    left = [
        (name, shown(value), refused.get(name) or _instead(name, value))
        for name, value in given.items()
        if name in kept
    ]
    return AxolotlReading(config, kept, tuple(pairs), tuple(left), tuple(assumed))


def _read(source: str | Path) -> dict[str, Any]:
    if isinstance(source, str) and ("\n" in source or ": " in source):
        name, text = "The YAML", source.encode("utf-8", "surrogatepass")
    else:
        name = str(source)
        text = config_bytes(Path(source), "Give the path of an Axolotl YAML file, or its text.")
    values = nested_values(name, text)
    if not isinstance(values, dict):
        raise ConfigError(f"{name} is no Axolotl file: wanted `name: value` lines, found {shown(values)}.")
    return values


def _misspelt(name: str) -> str | None:
    if name in said()["fields"]:
        return None
    meant = next((known for known in said()["fields"] if is_misspelt(name[:100].lower(), known)), None)
    return meant and f"{name} is no field of Axolotl, which would pass over it in silence. Did you mean {meant}?"


def _odd_datasets(given: Mapping[str, Any]) -> list[str]:
    """What is wrong with the lists of data sets."""
    odd = []
    for name in ("datasets", "test_datasets"):
        parts = given.get(name, [])
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            odd.append(f"{name}={shown(parts)} is no list of mappings. Write `- path: FILE` and `type: chat_template`.")
    return odd


def _settings(given: Mapping[str, Any]) -> dict[str, tuple[str, Any, str]]:
    """By setting: the field that says it and its value; or what Axolotl takes where none does, and a word on it."""
    found = {}
    texts = said()["assumed"]
    for setting, (name, default) in PAIRS.items():
        if name in given:
            value = given[name]
            whole = isinstance(getattr(TrainConfig(), setting), int) and isinstance(value, float) and value.is_integer()
            found[setting] = (name, int(value) if whole else value, "")
        elif not any(way == name and given.get(first) for first, way in GIVES_WAY.items()):
            found[setting] = (name, default, texts.get(setting, "It is Axolotl's own default."))
    for setting, name in (("eval_steps", "eval_strategy"), ("save_steps", "save_strategy")):
        if given.get(name) in ("no", False) and name in given:
            found[setting] = (name, 0, "")
    if isinstance(given.get("gradient_checkpointing"), str):  # "offload": checkpoints that lie elsewhere
        found["gradient_checkpointing"] = ("gradient_checkpointing", True, "")
    if isinstance(given.get("lora_target_modules"), str) and given["lora_target_modules"].isidentifier():
        found["target_modules"] = ("lora_target_modules", [given["lora_target_modules"]], "")
    if isinstance(kwargs := given.get("bnb_config_kwargs"), dict) and "bnb_4bit_use_double_quant" in kwargs:
        found["bnb_4bit_use_double_quant"] = ("bnb_config_kwargs", kwargs["bnb_4bit_use_double_quant"], "")
    for reporter, name in REPORTERS.items():
        if given.get(name):
            found["report_to"] = (name, reporter, "")
    return found | {"dtype": _dtype(given)}


def _dtype(given: Mapping[str, Any]) -> tuple[str, Any, str]:
    """The first field that says in which number format to compute."""
    asked = (("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16"), ("float16", "fp16"), ("float32", "fp32"))
    for name, dtype in asked:
        if given.get(name) in (True, "full"):
            return name, dtype, ""
    return ("bf16", "fp32", "") if given.get("bf16") is False else ("", DEPENDS, said()["assumed"]["dtype"])


def _instead(name: str, value: Any) -> str:
    """What ftkit does instead of what a field says."""
    texts = said()["instead"]
    if name == "datasets":
        kinds = {str(part.get("type")).split(".")[0].split(":")[0] for part in value}
        own = [texts[kind] for kind in sorted(kinds & {"alpaca", "sharegpt"})]
        return " ".join([*own, _elsewhere(name)])
    if name not in said()["fields"]:
        return str(texts["unknown"]).format(release=said()["release"])
    return str(texts.get(name) or _elsewhere(name) or texts["other"])


def _elsewhere(name: str) -> str:
    sentences = files.sample("setting_names")["instead"]
    return next((sentence for sentence, names in sentences.items() if name in names), "")
