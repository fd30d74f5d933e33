"""The same short run under several settings, each in a process of its own, so that nothing of one is left in the other.

Measured are tokens a second after the first step (which compiles), peak memory, every loss, and what Unsloth had replaced.
"""

import html
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitError

# Names that training scripts import at their top, before they come to Unsloth.
_TAKEN = (
    "transformers.Trainer",
    "transformers.TrainingArguments",
    "trl.SFTConfig",
    "trl.SFTTrainer",
    "peft.get_peft_model",
)


@dataclass(frozen=True)
class Measured:
    """One run: how fast, how large, what it learned, and in which surroundings.

    `replaced` counts what Unsloth had exchanged in other libraries when the run ended; `stale` names what was taken from
    them before Unsloth came, and no longer is what stands there; `warned` is what `models.load` had to say.
    """

    name: str
    device: str
    day: str
    losses: tuple[float, ...]
    tokens_per_s: float
    peak_gib: float
    seconds: float
    replaced: int
    versions: dict[str, str]
    stale: tuple[str, ...] = ()
    warned: str = ""


@dataclass(frozen=True)
class SideBySide:
    """Runs on the same rows; shows itself as a table."""

    runs: tuple[Measured, ...]

    def __getitem__(self, name: str) -> Measured:
        found = next((run for run in self.runs if run.name == name), None)
        if found is None:
            raise KeyError(f"There is no run {name!r}, only {', '.join(run.name for run in self.runs) or 'none'}.")
        return found

    def __add__(self, other: "SideBySide") -> "SideBySide":
        return SideBySide(self.runs + other.runs)

    def speed_up(self, name: str, over: str) -> float:
        """Tokens a second of `name` over those of `over`."""
        return self[name].tokens_per_s / self[over].tokens_per_s

    def memory_saved(self, name: str, over: str) -> float:
        """Share of `over`'s peak memory that `name` does without; negative where it needs more."""
        return 1 - self[name].peak_gib / self[over].peak_gib

    def loss_gap(self, one: str, other: str) -> float:
        """Largest relative difference between two runs' losses at the same step."""
        pairs = zip(self[one].losses, self[other].losses, strict=True)
        return max(abs(a - b) / b for a, b in pairs)

    def save(self, path: Path) -> Path:
        """Write all of it as JSON, whole or not at all."""
        from ftkit import storage

        return storage.write_json(path, [asdict(run) for run in self.runs])

    def _lines(self) -> list[list[str]]:
        return [
            [
                run.name,
                f"{run.tokens_per_s:.0f}",
                f"{run.peak_gib:.2f}",
                f"{run.losses[0]:.4f}",
                f"{run.losses[-1]:.4f}",
                str(run.replaced),
            ]
            for run in self.runs
        ]

    def _where(self) -> str:
        return " · ".join(dict.fromkeys(f"{run.device}, {run.day}" for run in self.runs))

    def __str__(self) -> str:
        return "\n".join([*(" · ".join(line) for line in self._lines()), self._where()])

    def _repr_html_(self) -> str:
        head = ("run", "tokens/s", "peak GiB", "first loss", "last loss", "replaced by Unsloth")
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in line) + "</tr>" for line in self._lines())
        names = "".join(f"<th>{name}</th>" for name in head)
        return f"<table><tr>{names}</tr>{rows}</table><p>{html.escape(self._where())}</p>"


def measure(configs: Mapping[str, TrainConfig], *, model: str, rows: int = 32, late: bool = False) -> SideBySide:
    """Train on the same invoices once for each of `configs`.

    A config with backend "transformers" runs in a process that Unsloth never enters.

    Args:
        configs: a name for each run, and its settings; `max_steps` is at least 2, since the first step is not timed.
        model: a base model's name, as `models.load` takes it.
        rows: how many training rows there are to draw from.
        late: import what Unsloth replaces first, and Unsloth last.

    Raises:
        ConfigError: fewer than two updates.
        FtkitError: a run failed; carries the end of what it printed.
    """
    if short := [name for name, config in configs.items() if config.max_steps == 1]:
        raise ConfigError(
            f"{', '.join(short)}: max_steps=1 leaves nothing to time, since the first step compiles. Give 3 or more."
        )
    return SideBySide(tuple(_in_a_process(name, config, model, rows, late) for name, config in configs.items()))


def _in_a_process(name: str, config: TrainConfig, model: str, rows: int, late: bool) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        config.save(Path(folder) / "config.yaml")
        task = json.dumps({"name": name, "folder": folder, "base": model, "rows": rows, "late": late})
        done = subprocess.run([sys.executable, "-m", "ftkit.sidebyside", task], capture_output=True, text=True)
        result = Path(folder) / "measured.json"
        if done.returncode or not result.exists():
            raise FtkitError(f"The run {name!r} failed:\n{done.stderr[-1500:]}")
        facts = json.loads(result.read_text(encoding="utf-8"))
    return Measured(**{**facts, "losses": tuple(facts["losses"]), "stale": tuple(facts["stale"])})


def _run(name: str, folder: str, base: str, rows: int, late: bool) -> None:
    """One run in this process; leaves `measured.json`."""
    import warnings

    from ftkit import data, hardware, models, patches, runs, storage
    from ftkit.errors import FtkitWarning
    from ftkit.train import train

    config = TrainConfig.load(Path(folder) / "config.yaml")
    # models.load imports Unsloth first even for a plain run, unless Transformers is there already
    taken = {place: _lookup(place) for place in _TAKEN} if late or config.backend == "transformers" else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FtkitWarning)
        model, tokenizer = models.load(base, config)
    invoices = data.load_examples("invoices")
    parts = data.Splits(*(invoices.select(range(*ends)) for ends in ((rows,), (rows, rows + 1), (rows + 1, rows + 2))))
    history = train(model, tokenizer, parts, config, runs.Run.create("one", folder))
    steps = [p for p in history.points if p.loss is not None]
    seconds = (steps[-1].seconds or 0) - (steps[0].seconds or 0)
    storage.write_json(
        Path(folder) / "measured.json",
        asdict(
            Measured(
                name=name,
                device=str(hardware.detect()),
                day=date.today().isoformat(),
                losses=tuple(p.loss or 0 for p in steps),
                tokens_per_s=((steps[-1].tokens or 0) - (steps[0].tokens or 0)) / seconds,
                peak_gib=history.peak_memory_gib,
                seconds=history.seconds,
                replaced=len(patches.find()),
                versions=runs.versions(),
                stale=tuple(place for place, thing in taken.items() if _lookup(place) is not thing),
                warned=next((str(w.message) for w in caught if issubclass(w.category, FtkitWarning)), ""),
            )
        ),
    )


def _lookup(place: str) -> Any:
    from importlib import import_module

    module, name = place.rsplit(".", 1)
    return getattr(import_module(module), name)


if __name__ == "__main__":
    _run(**json.loads(sys.argv[1]))
