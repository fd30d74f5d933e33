"""What a search may try: a range or a list of choices for each setting, read as the setting itself is declared."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ftkit.config import TrainConfig
from ftkit.errors import ConfigError

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


def axes(space: Space, config: TrainConfig) -> tuple[Axis, ...]:
    """Check a space and read it: `{field: (low, high)}` is a range, `{field: [a, b, c]}` a list of choices.

    `config` has the settings that do not vary; some settings have no effect beside others.

    Raises:
        ConfigError: lists every field that is misspelt, out of its range, without effect, or would make trials
            incomparable.
    """
    if not isinstance(space, Mapping) or not space:
        raise ConfigError("The space is empty: name at least one setting, such as {'learning_rate': (1e-4, 1e-3)}.")
    problems: list[str] = []
    found = []
    for field, wanted in space.items():
        said = _problems(str(field), wanted, config)
        problems += said
        if said:
            continue
        spec = _SPECS[field]
        if isinstance(wanted, list):
            found.append(Axis(field, choices=_distinct(wanted)))
        else:
            whole = isinstance(spec.default, int)
            low, high = wanted if whole else map(float, wanted)
            found.append(Axis(field, low, high, log=bool(spec.metadata["log"]), whole=whole))
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(found)


def combinations(space: tuple[Axis, ...]) -> float:
    """How many different settings there are; infinite with a range of fractions among them."""
    sizes = (len(axis.choices) or (axis.high - axis.low + 1 if axis.whole else math.inf) for axis in space)
    return math.prod(sizes)


def short(value: Any) -> str:
    """A setting in as few characters as say it."""
    if isinstance(value, tuple):
        return " ".join(name.removesuffix("_proj") for name in value)
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value)


def _problems(field: str, wanted: Any, config: TrainConfig) -> list[str]:
    """What is wrong with one setting of a space; what the config itself refuses comes in its words."""
    choices = isinstance(wanted, list)
    known = field in _SPECS
    facts = _SPECS[field].metadata if known else {}
    problem = ""
    if known and facts["group"] == "records":
        problem = " changes what is recorded, not what is learnt: set it in the config."
    elif field in _NOT_COMPARABLE:
        problem = f" cannot be searched: {_NOT_COMPARABLE[field]}."
    elif field == "num_train_epochs" and config.max_steps > 0:
        problem = f" has no effect while max_steps={config.max_steps}: set max_steps=-1, or search max_steps."
    elif known and not choices and facts["low"] is None:
        problem = f": {wanted!r} is no list of choices, and {field} is no number. Write [a, b]."
    elif known and not choices and (not isinstance(wanted, tuple) or len(wanted) != 2):
        problem = f": {wanted!r} is neither a range (low, high) nor a list [a, b, c] of choices."
    if problem:
        return [field + problem]
    said = []
    for value in wanted if known else [None]:
        try:
            config.replace(**{field: value})
        except ConfigError as error:
            said.append(str(error))
    if said:
        return said
    if choices:
        problem = "leaves nothing to choose. Give at least two values, or set it in the config."
        return [] if len(_distinct(wanted)) > 1 else [f"{field}: {wanted!r} {problem}"]
    if wanted[0] >= wanted[1]:
        return [f"{field}: {wanted!r} has its low end at or above its high end. Write (low, high)."]
    if facts["low"] < 0 and wanted[0] < 1:  # -1 means "let the epochs decide", which is no amount
        return [f"{field}: {wanted!r} begins below 1. A range of amounts wants 1 or more."]
    return []


def _distinct(values: list[Any]) -> tuple[Any, ...]:
    """Values without repetitions, in their order; lists (target modules) as tuples."""
    return tuple(dict.fromkeys(tuple(v) if isinstance(v, list) else v for v in values))
