"""The choices of one training run: every knob, its range, its usual range and its help text, written once.

Knows nothing of models, data or widgets. Names are TRL's for training and PEFT's for adapters.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Self

from ftkit.errors import ConfigError, MissingArtifact
from ftkit.files import write_text
from ftkit.hardware import Hardware
from ftkit.tables import Table

_MOST_BYTES, _MOST_PARTS, _DEEPEST = 64 * 2**10, 2_000, 10  # what `save` writes: 4,000 bytes, 80 parts, 2 deep

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
            kind: Any = str.__str__ if isinstance(value, str) else type(spec.default)
            if isinstance(value, int | float | str) and not _problem(spec, value):
                object.__setattr__(
                    self, spec.name, kind(value)
                )  # NumPy's floats and texts too, which YAML cannot write
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
            with path.open("rb") as file:
                text = file.read(_MOST_BYTES + 1)
        except FileNotFoundError as error:
            raise MissingArtifact(
                f"{path} does not exist. TrainConfig().save({str(path)!r}) writes one to edit."
            ) from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"{path} cannot be read ({why}). Give the path of a YAML file.") from error
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


@cache
def _elsewhere() -> dict[str, Any]:
    file = resources.files("ftkit").joinpath("samples/setting_names.json")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _unknown(name: str) -> str:
    """What to say of a name that is no setting: what another tool's name is called here, or how it is spelt."""
    elsewhere = _elsewhere()
    plain = re.sub(r"[\W_]+", "_", name[:100].lower()).strip("_")  # --Lora-Rank as lora_rank
    hints = [f"Did you mean {ours}?" for ours, theirs in elsewhere["same"].items() if plain in theirs]
    hints += [sentence for sentence, theirs in elsewhere["instead"].items() if plain in theirs]
    hints += [f"Did you mean {spec.name}?" for spec in fields(TrainConfig) if _is_misspelt(plain, spec.name)]
    return f"{_short(name, quoted=False)} is no setting. {[*hints, 'help(TrainConfig) lists the settings.'][0]}"


def _is_misspelt(typed: str, name: str) -> bool:
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
    return _number_problem(spec.name, value, isinstance(default, int), facts["low"], facts["high"], tail)


def _number_problem(name: str, value: Any, whole: bool, low: float, high: float, tail: str) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"{name}={_short(value)} wants a {'whole ' if whole else ''}number {tail}"
    # NaN differs from itself; a whole number may be too large for a float
    if value != value or not low <= value <= high:
        return f"{name}={_short(value)} is outside {low:g} to {high:g} {tail}"
    return None


# Effort: what the run learns and how long it takes. Ranges: `TrainConfig`'s own typical ones.
_EFFORT = ["lora_r", "lora_alpha", "max_steps", "num_train_epochs", "warmup_steps", "eval_steps", "save_steps"]
_EFFORT += ["max_eval_examples", "learning_rate"]
_EFFORTS: dict[str, tuple[str, tuple[float, ...]]] = {
    "quick look": ("does it learn at all? Twenty updates, a narrow adapter", (8, 16, 20, 1.0, 2, 10, 10, 16, 2e-4)),
    "balanced": ("one pass over the data with the usual adapter", (16, 32, -1, 1.0, 10, 20, 50, 100, 2e-4)),
    "thorough": ("three passes, a wide adapter, a gentler step size", (32, 64, -1, 3.0, 50, 50, 100, 200, 1e-4)),
}

# Visible memory: what torch reports on the usual cloud machines, GiB.
MACHINES = {
    "T4": Hardware("cuda", "Tesla T4", 14.6, (7, 5), False, 2),
    "L4": Hardware("cuda", "NVIDIA L4", 22.0, (8, 9), True, 8),
    "A100": Hardware("cuda", "NVIDIA A100-SXM4-40GB", 39.5, (8, 0), True, 12),
}

# Memory against speed: what fits an 8B model in 4-bit there. Everything else is left as it is.
_ROOM = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "load_in_4bit")
_ROOMS = {"T4": (1, 8, 1024, True), "L4": (2, 4, 2048, True), "A100": (8, 1, 2048, False)}

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
        return dict(zip(_EFFORT, _EFFORTS[name][1], strict=True))
    machine = MACHINES[_known(name)]
    dtype = "bf16" if machine.bf16 else "fp16"
    room = dict(zip(_ROOM, _ROOMS[name], strict=True))
    return {"dtype": dtype, "gradient_checkpointing": True, "optim": "adamw_8bit", **room}


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
