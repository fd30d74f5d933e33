"""What a search may try: a range or a list of choices for each setting, read as the setting itself is declared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ftkit.config import TrainConfig
from ftkit.errors import ConfigError
from ftkit.tables import visible

Space = Mapping[str, Any]
_SPECS = {spec.name: spec for spec in fields(TrainConfig)}
_DIGITS = 3  # a learning rate of 0.000314 says all that a search knows
_NOT_COMPARABLE = {
    "seed": "a lucky seed is no better setting",
    "max_length": "it cuts the validation rows too, so that trials would be measured on different tokens",
    "packing": "packed examples would see each other",
}


@dataclass(frozen=True)
class Axis:
    """One setting and what it may be: from `low` to `high`, or one of `choices`."""

    field: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()
    log: bool = False
    whole: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a setting lies on this axis."""
        return value in self.choices if self.choices else self.low <= value <= self.high

    def rounded(self, value: float) -> Any:
        """A drawn number as a setting: whole, or with three digits; never outside the range."""
        if self.whole:
            return round(value)
        return min(self.high, max(self.low, float(f"{value:.{_DIGITS}g}")))

    @property
    def given(self) -> list[Any] | tuple[float, float]:
        """The choices or the range, as `axes` takes them."""
        return list(self.choices) if self.choices else (self.low, self.high)

    def __str__(self) -> str:
        if self.choices:
            return visible(f"{self.field}: {', '.join(map(short, self.choices))}")
        return f"{self.field}: {short(self.low)} to {short(self.high)}" + (", logarithmic" if self.log else "")


def axes(space: Space, config: TrainConfig) -> tuple[Axis, ...]:
    """Check a space and read it: `{field: (low, high)}` is a range, `{field: [a, b, c]}` a list of choices.

    Args:
        space: the settings that vary.
        config: those that do not; some settings have no effect beside others.

    Raises:
        ConfigError: lists every field that is misspelt, out of its range, without effect, or would make trials
            incomparable.
    """
    if not isinstance(space, Mapping) or not space:
        raise ConfigError("The space is empty: name at least one setting, such as {'learning_rate': (1e-4, 1e-3)}.")
    problems: list[str] = []
    for field, wanted in space.items():
        problems += _problems(str(field), wanted, config)
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(_axis(field, wanted) for field, wanted in space.items())


def combinations(space: tuple[Axis, ...]) -> float:
    """How many different settings there are; infinite with a range of fractions among them."""
    return math.prod(_size(axis) for axis in space)


def short(value: Any) -> str:
    """A setting in as few characters as say it."""
    if isinstance(value, tuple):
        return " ".join(name.removesuffix("_proj") for name in value)
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value)


def _axis(field: str, wanted: Any) -> Axis:
    if isinstance(wanted, list):
        return Axis(field, choices=_distinct(wanted))
    spec = _SPECS[field]
    whole = isinstance(spec.default, int)
    low, high = wanted if whole else map(float, wanted)
    return Axis(field, low, high, log=bool(spec.metadata["log"]), whole=whole)


def _size(axis: Axis) -> float:
    if axis.choices:
        return len(axis.choices)
    return axis.high - axis.low + 1 if axis.whole else math.inf


def _problems(field: str, wanted: Any, config: TrainConfig) -> list[str]:
    spec = _SPECS.get(field)
    if spec is None:
        return _refused(config, field, [None])
    if spec.metadata["group"] == "records":
        return [f"{field} changes what is recorded, not what is learnt: set it in the config."]
    if field in _NOT_COMPARABLE:
        return [f"{field} cannot be searched: {_NOT_COMPARABLE[field]}."]
    if field == "num_train_epochs" and config.max_steps > 0:
        steps = config.max_steps
        return [f"{field} has no effect while max_steps={steps}: set max_steps=-1, or search max_steps."]
    if isinstance(wanted, list):
        return _list_problems(field, wanted, config)
    return _range_problems(field, wanted, config)


def _list_problems(field: str, wanted: list[Any], config: TrainConfig) -> list[str]:
    said = _refused(config, field, wanted)
    if not said and len(_distinct(wanted)) < 2:
        return [f"{field}: {wanted!r} leaves nothing to choose. Give at least two values, or set it in the config."]
    return said


def _range_problems(field: str, wanted: Any, config: TrainConfig) -> list[str]:
    facts = _SPECS[field].metadata
    if facts["low"] is None:
        return [f"{field}: {wanted!r} is no list of choices, and {field} is no number. Write [a, b]."]
    if not isinstance(wanted, tuple) or len(wanted) != 2:
        return [f"{field}: {wanted!r} is neither a range (low, high) nor a list [a, b, c] of choices."]
    said = _refused(config, field, wanted)
    if said:
        return said
    if wanted[0] >= wanted[1]:
        return [f"{field}: {wanted!r} has its low end at or above its high end. Write (low, high)."]
    if facts["low"] < 0 and wanted[0] < 1:  # -1 means "let the epochs decide", which is no amount
        return [f"{field}: {wanted!r} begins below 1. A range of amounts wants 1 or more."]
    return []


def _refused(config: TrainConfig, field: str, values: Sequence[Any]) -> list[str]:
    """What the config itself says against these values of one setting."""
    said = []
    for value in values:
        try:
            config.replace(**{field: value})
        except ConfigError as error:
            said.append(str(error))
    return said


def _distinct(values: list[Any]) -> tuple[Any, ...]:
    """Values without repetitions, in their order; lists (target modules) as tuples."""
    return tuple(dict.fromkeys(tuple(v) if isinstance(v, list) else v for v in values))
