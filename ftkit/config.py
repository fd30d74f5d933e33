"""The choices of one training run: every knob with its default; help, range and usual range are in samples/knobs.json.

Knows nothing of models, data or widgets. Names are TRL's for training and PEFT's for adapters.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from ftkit.errors import ConfigError, MissingArtifact
from ftkit.files import sample, write_text
from ftkit.hardware import Hardware
from ftkit.tables import Table

_MOST_BYTES, _MOST_PARTS, _DEEPEST = 64 * 2**10, 2_000, 10  # what `save` writes: 4,000 bytes, 80 parts, 2 deep

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


# By setting: group, help, the range (low, high) and the usual one, choices, and what lies below and above the usual.
_KNOBS: dict[str, dict[str, Any]] = sample("knobs")
_ELSEWHERE: dict[str, Any] = sample("setting_names")  # what other tools call a setting
_UNSAID = {"low": None, "high": None, "typical": None, "log": False, "choices": (), "below": "", "above": ""}


def _knob(name: str, default: Any) -> Any:
    """Declare one setting: samples/knobs.json feeds the docs, the range check, the tooltip and the slider."""
    facts = {key: tuple(fact) if isinstance(fact, list) else fact for key, fact in _KNOBS[name].items()}
    return field(default=default, metadata=_UNSAID | facts)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one run. Frozen: `dataclasses.replace` makes a variant.

    Raises:
        ConfigError: lists every setting that is misspelt, of the wrong type or out of range, at once.
    """

    backend: str = _knob("backend", "auto")
    load_in_4bit: bool = _knob("load_in_4bit", True)
    bnb_4bit_use_double_quant: bool = _knob("bnb_4bit_use_double_quant", True)
    dtype: str = _knob("dtype", "bf16")
    gradient_checkpointing: bool = _knob("gradient_checkpointing", True)

    lora_r: int = _knob("lora_r", 16)
    lora_alpha: int = _knob("lora_alpha", 32)
    lora_dropout: float = _knob("lora_dropout", 0.0)
    target_modules: tuple[str, ...] = _knob("target_modules", ALL_LINEAR)
    use_rslora: bool = _knob("use_rslora", False)
    use_dora: bool = _knob("use_dora", False)

    learning_rate: float = _knob("learning_rate", 2e-4)
    lr_scheduler_type: str = _knob("lr_scheduler_type", "cosine")
    warmup_steps: int = _knob("warmup_steps", 50)
    per_device_train_batch_size: int = _knob("per_device_train_batch_size", 2)
    gradient_accumulation_steps: int = _knob("gradient_accumulation_steps", 4)
    num_train_epochs: float = _knob("num_train_epochs", 1.0)
    max_steps: int = _knob("max_steps", -1)
    optim: str = _knob("optim", "adamw_8bit")
    weight_decay: float = _knob("weight_decay", 0.01)
    max_grad_norm: float = _knob("max_grad_norm", 1.0)
    seed: int = _knob("seed", 42)

    max_length: int = _knob("max_length", 2048)
    group_by_length: bool = _knob("group_by_length", False)
    train_on: str = _knob("train_on", "answers+reasoning")
    packing: bool = _knob("packing", False)

    logging_steps: int = _knob("logging_steps", 1)
    eval_steps: int = _knob("eval_steps", 20)
    max_eval_examples: int = _knob("max_eval_examples", 200)
    early_stopping_patience: int = _knob("early_stopping_patience", 0)
    save_steps: int = _knob("save_steps", 50)
    save_total_limit: int = _knob("save_total_limit", 2)
    report_to: str = _knob("report_to", "none")

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
            kind: Any = str.__str__ if isinstance(value, str) else type(spec.default)
            if isinstance(value, int | float | str) and not _problem(spec, value):
                plain = kind(value)  # NumPy's floats and texts too, which YAML cannot write
                object.__setattr__(self, spec.name, plain)
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
        text = config_bytes(path, f"TrainConfig().save({str(path)!r}) writes one to edit.")
        try:
            settings = _settings_with_lines(path, text)
        except (yaml.YAMLError, UnicodeError, RecursionError) as error:
            raise ConfigError(f"{path} is not YAML: {error}") from error
        return cls(**settings)

    def replace(self, **settings: Any) -> Self:
        """A variant; the same as `dataclasses.replace`, with misspelt names refused."""
        return replace(self, **settings)

    def _repr_html_(self) -> str:
        rows = [(spec.name, getattr(self, spec.name), spec.metadata["help"]) for spec in fields(self)]
        return Table(("setting", "value", "what it does"), rows)._repr_html_()


def typed_value(text: str) -> Any:
    """A value as YAML reads it: 60 is a number, auto is text, [a, b] a list.

    Raises:
        ConfigError: it does not parse, or is a date, a mapping, or anything else that is no plain value.
    """
    import yaml

    try:
        root = _composed("The value", text.encode("utf-8", "surrogatepass"))
        return None if root is None else _value(root)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        way = """Text wants quotes of its own, such as '"a: b"'."""
        raise ConfigError(f"{_short(text)} cannot be read as a value: {error}. {way}") from error


def config_bytes(path: Path, otherwise: str) -> bytes:
    """What a config file holds, up to a byte more than is read; `otherwise` says what to do where there is none.

    Raises:
        MissingArtifact: no such file.
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise MissingArtifact(f"{path} does not exist. {otherwise}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read ({why}). Give the path of a YAML file.") from error


def _composed(name: Any, text: bytes) -> Any:
    """The root of YAML that is little work: not long, not deep, and nothing in it stands for something else."""
    import yaml

    if len(text) > _MOST_BYTES:
        raise ConfigError(f"{name} is no config: it holds more than {_MOST_BYTES:,} bytes. Give YAML of a few lines.")
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if count > _MOST_PARTS or depth > _DEEPEST or isinstance(event, yaml.AliasEvent):
            where = f"{name} is not YAML of settings: line {event.start_mark.line + 1}"  # type: ignore[union-attr]
            many = "thousands of values, values in values, or *names for them"
            raise ConfigError(f"{where} has {many}. Write plain `name: value` lines.")
    return yaml.compose(text, Loader=yaml.SafeLoader)


def nested_values(name: Any, text: bytes) -> Any:
    """Mappings, lists and plain values of YAML, under the same bounds as a config's; all problems are told at once.

    Raises:
        ConfigError: names the line of each tag that would make more than a value, of what is no plain value, and of
            each key that is set twice; or it is no YAML.
    """
    import yaml

    problems: list[str] = []
    try:
        root = _composed(name, text)
        value = None if root is None else _nested(name, root, problems)
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"{name} is not YAML: {error}") from error
    if problems:
        raise ConfigError("\n".join(problems))
    return value


def _nested(name: Any, node: Any, problems: list[str]) -> Any:
    import yaml

    where = f"{name} line {node.start_mark.line + 1}: "
    if not isinstance(node, yaml.ScalarNode) and node.tag.rpartition(":")[2] not in ("map", "seq"):
        problems.append(f"{where}the tag {_short(node.tag)} is not read. Write lists, mappings and plain values.")
    elif isinstance(node, yaml.SequenceNode):
        return [_nested(name, item, problems) for item in node.value]
    elif isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problems.append(f"{where}a list or mapping stands where a name is wanted.")
                continue
            if key.value in values:
                problems.append(
                    f"{name} line {key.start_mark.line + 1}: {_short(key.value, quoted=False)} is set twice."
                )
            values[key.value] = _nested(name, item, problems)
        return values
    else:
        try:
            return _value(node)
        except (TypeError, ValueError) as error:
            problems.append(f"{where}{error} cannot be read as a value.")
    return None


def _settings_with_lines(path: Path, text: bytes) -> dict[str, Any]:
    import yaml

    root = _composed(path, text)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        found = _short(root.value) if isinstance(root, yaml.ScalarNode) else "a list"
        raise ConfigError(f"{path} line 1: wanted `name: value` lines, found {found}.")
    known, settings, problems = {spec.name: spec for spec in fields(TrainConfig)}, {}, []
    for key, node in root.value:
        where = f"{path} line {key.start_mark.line + 1}: "
        if not isinstance(key, yaml.ScalarNode):
            problems.append(f"{where}a list or mapping stands where a setting's name is wanted.")
            continue
        name = key.value
        if name not in known:
            problems.append(where + _unknown(name))
            continue
        try:
            value = _value(node)
        except (TypeError, ValueError) as error:
            problems.append(f"{where}{name}={error} cannot be read as a value.")
            continue
        if name in settings:
            problems.append(f"{where}{name} is set twice.")
        elif problem := _problem(known[name], value):
            problems.append(where + problem)
        settings[name] = value
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def _value(node: Any) -> Any:
    """None, a yes or no, a number, text, or a list of them; whatever else stands there, an error's text shows it."""
    import yaml

    if isinstance(node, yaml.SequenceNode) and node.tag.endswith("yaml.org,2002:seq"):
        return [_value(item) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise TypeError("{…}")
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError, AttributeError, LookupError, ArithmeticError) as error:  # !!bool x, 2001-99-99
        raise ValueError(_short(node.value)) from error
    if value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(_short(node.value))
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)  # YAML reads 2e-4 as text: it wants 2.0e-4
    return value


def _short(value: Any, *, quoted: bool = True) -> str:
    """A value as Python writes it, or without quotes as it is, with its end cut off where it is long."""
    try:
        text = repr(value) if quoted else str(value)
    except (ValueError, RecursionError):  # whole numbers of more than 4,300 digits, lists within thousands of lists
        return "a value of thousands of digits or brackets"
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text):,} characters)"


def _unknown(name: str) -> str:
    """What to say of a name that is no setting: what another tool's name is called here, or how it is spelt."""
    plain = re.sub(r"[\W_]+", "_", name[:100].lower()).strip("_")  # --Lora-Rank as lora_rank
    hints = [f"Did you mean {ours}?" for ours, theirs in _ELSEWHERE["same"].items() if plain in theirs]
    hints += [sentence for sentence, theirs in _ELSEWHERE["instead"].items() if plain in theirs]
    hints += [f"Did you mean {spec.name}?" for spec in fields(TrainConfig) if is_misspelt(plain, spec.name)]
    return f"{_short(name, quoted=False)} is no setting. {[*hints, 'help(TrainConfig) lists the settings.'][0]}"


def is_misspelt(typed: str, name: str) -> bool:
    """Whether one or two letters of a name are wrong; another digit or short word is another name: load_in_8bit."""
    if typed.replace("_", "") == name.replace("_", ""):
        return True
    if typed.count("_") != name.count("_") or re.findall(r"\d", typed) != re.findall(r"\d", name):
        return False
    pairs = zip(typed.split("_"), name.split("_"), strict=True)
    edits = [(_edits(mine, right), len(right)) for mine, right in pairs if mine != right]
    return sum(count for count, _ in edits) <= 2 and all(count <= size // 4 for count, size in edits)


def _edits(a: str, b: str) -> int:
    """Letters to leave out, add, replace or swap with a neighbour (optimal string alignment) until `a` is `b`."""
    rows = [list(range(len(b) + 1))]
    for i, mine in enumerate(a, 1):
        rows.append([i])
        for j, theirs in enumerate(b, 1):
            best = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (mine != theirs))
            if i > 1 and j > 1 and (mine, a[i - 2]) == (b[j - 2], theirs):
                best = min(best, rows[i - 2][j - 2] + 1)
            rows[i].append(best)
    return rows[-1][-1]


def _problem(spec: "dataclasses.Field[Any]", value: Any) -> str | None:
    """What is wrong with one value, or None."""
    facts, default = spec.metadata, spec.default
    assert default is not MISSING
    if isinstance(value, list):  # YAML and JSON have no tuples
        value = tuple(value)
    tail, said = f"({facts['help']}). The default is {default}.", f"{spec.name}={_short(value)}"
    if facts["choices"]:
        known = isinstance(value, str) and value in facts["choices"]
        return None if known else f"{said} is not one of {', '.join(facts['choices'])} {tail}"
    if isinstance(default, tuple):
        if isinstance(value, tuple) and value and all(isinstance(name, str) and name for name in value):
            return None
        return f"{said} wants a list of names, such as {list(default[:2])} {tail}"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else f"{said} wants true or false {tail}"
    whole, low, high = isinstance(default, int), facts["low"], facts["high"]
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"{said} wants a {'whole ' if whole else ''}number {tail}"
    # NaN differs from itself; a whole number may be too large for a float
    if value != value or not low <= value <= high:
        return f"{said} is outside {low:g} to {high:g} {tail}"
    return None


# Visible memory: what torch reports on the usual cloud machines, GiB.
MACHINES = {
    "T4": Hardware("cuda", "Tesla T4", 14.6, (7, 5), False, 2),
    "L4": Hardware("cuda", "NVIDIA L4", 22.0, (8, 9), True, 8),
    "A100": Hardware("cuda", "NVIDIA A100-SXM4-40GB", 39.5, (8, 0), True, 12),
    "2 x T4": Hardware("cuda", "Tesla T4, one of two", 14.6, (7, 5), False, 4),  # Kaggle; a process each under torchrun
}

# Efforts (what the run learns, and how long it takes), then machines (what fits an 8B model in 4-bit there).
_PRESETS: dict[str, dict[str, Any]] = sample("presets")
EFFORTS = tuple(name for name in _PRESETS if name not in MACHINES)


def preset(name: str) -> dict[str, Any]:
    """What a preset is for ("about"), and the "settings" that it sets; all others are left alone.

    Raises:
        ConfigError: no preset of that name.
    """
    if name not in _PRESETS:
        raise ConfigError(f"{name!r} is no preset. There are: {', '.join(_PRESETS)}.")
    return _PRESETS[name]
