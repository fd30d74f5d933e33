"""Usual settings: what the brief's table says, what `TrainConfig` calls usual, and what a reader has measured, side by side."""

import html
from collections.abc import Mapping
from dataclasses import dataclass, fields

from ftkit import check_settings
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError

SOURCE = "the brief, section 8"


@dataclass(frozen=True)
class Claim:
    """One row of the brief's table, unchanged: the typical range, and its advice."""

    setting: str
    low: float
    high: float
    advice: str


CLAIMS = (
    Claim("learning_rate", 1e-4, 3e-4, "higher than full fine-tuning; cosine decay recommended"),
    Claim("effective_batch_size", 8, 32, "gradient accumulation reaches it without more memory"),
    Claim("num_train_epochs", 1, 5, "overfits with more on small datasets; below 3 is usually optimal"),
    Claim("max_length", 2048, 8192, "higher needs more memory; start with 4096"),
    Claim("lora_r", 8, 64, "higher has more capacity; for complex tasks try 32 to 64"),
    Claim("warmup_steps", 50, 100, "prevents loss spikes at the start of training"),
)


@dataclass(frozen=True)
class Usual:
    """The claims beside the kit's own ranges and defaults, and what was measured of them; shows itself as a table."""

    measured: Mapping[str, str]

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Settings that nothing was measured of."""
        return tuple(claim.setting for claim in CLAIMS if claim.setting not in self.measured)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Setting, claim with its advice, the kit's usual range, its default, and what was measured."""
        return [
            (
                claim.setting,
                f"{_span(claim.low, claim.high)}: {claim.advice}",
                kits_range(claim.setting),
                f"{_default(claim.setting):g}",
                self.measured.get(claim.setting, "not measured here"),
            )
            for claim in CLAIMS
        ]

    def __str__(self) -> str:
        return "\n".join(
            f"{name}: the brief {claim}; this kit {usual}, default {default}; {seen}"
            for name, claim, usual, default, seen in self.rows()
        )

    def _repr_html_(self) -> str:
        head = ("setting", SOURCE, "usual in this kit", "default", "measured")
        titles = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        left = ' style="text-align:left"'
        lines = "".join(
            "<tr>" + "".join(f"<td{left}>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows()
        )
        return f"<table><tr>{titles}</tr>{lines}</table>"


def beside(measured: Mapping[str, str] | None = None) -> Usual:
    """The table, with one sentence for each setting that was measured.

    Raises:
        ConfigError: a setting that the table does not have.
    """
    known = [claim.setting for claim in CLAIMS]
    if strange := [name for name in measured or {} if name not in known]:
        raise ConfigError(f"{', '.join(strange)}: not in the table. It has: {', '.join(known)}.")
    return Usual(dict(measured or {}))


def kits_range(setting: str) -> str:
    """What `TrainConfig` calls usual; for the effective batch size, what the check before a run wants."""
    usual = next((spec.metadata["typical"] for spec in fields(TrainConfig) if spec.name == setting), None)
    return _span(*usual) if usual else check_settings.CHECKS["effective-batch"]


def _default(setting: str) -> float:
    return float(getattr(TrainConfig(), setting))


def _span(low: float, high: float) -> str:
    return f"{low:g} to {high:g}"
