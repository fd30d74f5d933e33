"""What a backend changes: the same short run under several settings, what Unsloth replaced, what others measured.

Each run has a process of its own, so that nothing of one is left in the other. Runs are repeated in turn, since a
neighbour on the machine may slow one of them; where the repeats disagree, no speed is told. Measured are tokens a
second of each update after the first (which compiles), peak memory, every loss, and how much Unsloth had replaced.
"""

import importlib.util
import json
import pkgutil
import re
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

from ftkit import data, files, hardware, models, runs, tables
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitError, FtkitWarning, MissingArtifact, MissingExtra
from ftkit.training import train

# Names that training scripts import at their top, before they come to Unsloth.
_TAKEN = (
    "transformers.Trainer",
    "transformers.TrainingArguments",
    "trl.SFTConfig",
    "trl.SFTTrainer",
    "peft.get_peft_model",
)
_IN_A_PROCESS = "import json, sys; from ftkit.lessons import backends; backends.run_here(**json.loads(sys.argv[1]))"
_TOO_FAR_APART = 0.2
_INNER = {staticmethod: "__func__", classmethod: "__func__", MethodType: "__func__", property: "fget"}


@dataclass(frozen=True)
class BackendRun:
    """One run: how fast, how large, what it learned, and in which surroundings.

    `rates` are the repeats' tokens a second, each the median of its updates. `replaced` counts what Unsloth had
    exchanged in other libraries when the run ended; `stale` names what was taken from them before Unsloth came, and no
    longer is what stands there; `warned` is what `models.load` had to say.
    """

    name: str
    device: str
    day: str
    losses: tuple[float, ...]
    rates: tuple[float, ...]
    peak_gib: float
    replaced: int
    versions: dict[str, str]
    stale: tuple[str, ...] = ()
    warned: str = ""

    @property
    def tokens_per_s(self) -> float:
        """The median of the repeats."""
        return statistics.median(self.rates)

    @property
    def spread(self) -> float | None:
        """How far the fastest repeat lies above the slowest, as a share; None where the run was not repeated."""
        return max(self.rates) / min(self.rates) - 1 if len(self.rates) > 1 else None

    @property
    def steady(self) -> bool:
        """Whether there are repeats, and they differ by no more than a fifth."""
        return self.spread is not None and self.spread <= _TOO_FAR_APART

    @property
    def speed(self) -> str:
        """Tokens a second with the spread of the repeats, or why they say nothing."""
        if self.spread is None:
            return "not repeated"
        if not self.steady:
            return f"too noisy to read: repeats differ by {self.spread:.0%}"
        return f"{self.tokens_per_s:.0f} (repeats within {self.spread:.0%})"


@tables.shown
@dataclass(frozen=True)
class SideBySide:
    """Runs on the same rows; shows itself as a table."""

    runs: tuple[BackendRun, ...]

    def __getitem__(self, name: str) -> BackendRun:
        by_name = {run.name: run for run in self.runs}
        if name not in by_name:
            raise KeyError(f"There is no run {name!r}, only {', '.join(by_name) or 'none'}.")
        return by_name[name]

    def __add__(self, other: "SideBySide") -> "SideBySide":
        return SideBySide(self.runs + other.runs)

    def speed_up(self, name: str, over: str) -> float | None:
        """Tokens a second of `name` over those of `over`; None where the repeats of one are too noisy to read."""
        if not (self[name].steady and self[over].steady):
            return None
        return self[name].tokens_per_s / self[over].tokens_per_s

    def ratio(self, name: str, over: str) -> str:
        """Speed and memory of `name` as multiples of those of `over`; no speed where it is too noisy to read."""
        times = self.speed_up(name, over)
        speed = "speed too noisy to read" if times is None else f"{times:.2f} times the speed"
        return f"{name} over {over}: {speed}, {1 - self.memory_saved(name, over):.2f} times the memory"

    def memory_saved(self, name: str, over: str) -> float:
        """Share of `over`'s peak memory that `name` does without; negative where it needs more."""
        return 1 - self[name].peak_gib / self[over].peak_gib

    def loss_gap(self, one: str, other: str) -> float:
        """Largest relative difference between two runs' losses at the same step."""
        pairs = zip(self[one].losses, self[other].losses, strict=True)
        return max(abs(a - b) / b for a, b in pairs)

    def save(self, path: Path) -> Path:
        """Write all of it as JSON, whole or not at all."""
        return files.write_json(path, [asdict(run) for run in self.runs])

    def _parts(self) -> list[tables.Table | str]:
        head = ("run", "tokens/s", "peak GiB", "first loss", "last loss", "replaced by Unsloth")
        rows = []
        for run in self.runs:
            losses = (f"{run.losses[0]:.4f}", f"{run.losses[-1]:.4f}")
            rows.append((run.name, run.speed, f"{run.peak_gib:.2f}", *losses, run.replaced))
        places = dict.fromkeys(f"{run.device}, {run.day}" for run in self.runs)
        return [tables.Table(head, rows), " · ".join(places)]


def measure_backends(
    configs: Mapping[str, TrainConfig], *, model: str, rows: int = 32, repeats: int = 2, late: bool = False
) -> SideBySide:
    """Train on the same invoices with each of `configs` in turn, `repeats` times around.

    "transformers" trains in a process without Unsloth. `late` imports what Unsloth replaces first, and Unsloth last.
    The first step of a run is not timed.

    Raises:
        ConfigError: fewer than two updates.
        FtkitError: a run failed; carries the end of what it printed.
    """
    if short := [name for name, config in configs.items() if config.max_steps == 1]:
        raise ConfigError(
            f"{', '.join(short)}: max_steps=1 leaves nothing to time, since the first step compiles. Give 3 or more."
        )
    found: dict[str, BackendRun] = {}
    for _ in range(repeats):
        for name, config in configs.items():
            run = _in_a_process(name, config, model, rows, late)
            if earlier := found.get(name):
                run = replace(earlier, rates=earlier.rates + run.rates, peak_gib=max(earlier.peak_gib, run.peak_gib))
            found[name] = run
    return SideBySide(tuple(found.values()))


def _in_a_process(name: str, config: TrainConfig, model: str, rows: int, late: bool) -> BackendRun:
    with tempfile.TemporaryDirectory() as folder:
        config.save(Path(folder) / "config.yaml")
        task = json.dumps({"name": name, "folder": folder, "base": model, "rows": rows, "late": late})
        done = subprocess.run([sys.executable, "-c", _IN_A_PROCESS, task], capture_output=True, text=True)
        result = Path(folder) / "measured.json"
        if done.returncode or not result.exists():
            raise FtkitError(f"The run {name!r} failed:\n{done.stderr[-1500:]}")
        facts = json.loads(result.read_text(encoding="utf-8"))
    return BackendRun(**{**facts, **{key: tuple(facts[key]) for key in ("losses", "rates", "stale")}})


def run_here(name: str, folder: str, base: str, rows: int, late: bool) -> None:
    """One run in this process, with the `config.yaml` in `folder`; leaves `measured.json` there."""
    config = TrainConfig.load(Path(folder) / "config.yaml")
    # models.load imports Unsloth first even for a plain run, unless Transformers is there already
    first = _TAKEN if late or config.backend == "transformers" else ()
    taken = {place: pkgutil.resolve_name(place) for place in first}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FtkitWarning)
        model, tokenizer = models.load(base, config)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, FtkitWarning)]
    invoices = data.load_examples("invoices")
    parts = data.Splits(*(invoices.select(range(*ends)) for ends in ((rows,), (rows, rows + 1), (rows + 1, rows + 2))))
    history = train(model, tokenizer, parts, config, runs.Run.create("one", folder))
    steps = [point for point in history.points if point.loss is not None]
    timed = [((b.tokens or 0) - (a.tokens or 0), (b.seconds or 0) - (a.seconds or 0)) for a, b in pairwise(steps)]
    measured = BackendRun(
        name=name,
        device=str(hardware.detect()),
        day=date.today().isoformat(),
        losses=tuple(point.loss or 0 for point in steps),
        rates=(statistics.median(tokens / seconds for tokens, seconds in timed),),
        peak_gib=history.peak_memory_gib,
        replaced=len(find_patches()),
        versions=runs.versions(),
        stale=tuple(place for place, thing in taken.items() if pkgutil.resolve_name(place) is not thing),
        warned=said[0] if said else "",
    )
    files.write_json(Path(folder) / "measured.json", asdict(measured))


@tables.shown
@dataclass(frozen=True)
class Patches:
    """For each module, or kind of layer, the names under which code of another origin stands."""

    names: dict[str, list[str]]

    def __len__(self) -> int:
        return sum(map(len, self.names.values()))

    def _parts(self) -> list[tables.Table | str]:
        rows = []
        for place, names in sorted(self.names.items(), key=lambda item: -len(item[1])):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            rows.append((len(names), place, ", ".join(names[:3]) + more))
        return [tables.Table(("replaced", "in", "for example"), rows)]


def find_patches(
    by: str = "unsloth", libraries: tuple[str, ...] = ("transformers", "trl", "peft", "bitsandbytes"), model: Any = None
) -> Patches:
    """Functions, methods and whole classes in the loaded modules of `libraries` whose code was written by `by`.

    With `model`, instead the methods that were put on its own layers, or come with their class. Code that is generated
    at run time counts when its file lies in a folder such as `unsloth_compiled_cache`.
    """
    members: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for layer in model.modules() if model is not None else ():
        kind = type(layer)
        members[kind.__name__] += [("forward", vars(kind).get("forward")), *vars(layer).items()]
    for name, module in sorted(sys.modules.items()) if model is None else ():
        if name.split(".")[0] in libraries and module:
            members[name] += _members(name, dict(vars(module)))
    found = {}
    for place, inside in members.items():
        if names := [name for name, value in inside if _is_by(value, by)]:
            found[place] = list(dict.fromkeys(names))
    return Patches(found)


def patches_written(file: str = "models/llama.py", package: str = "unsloth") -> tables.Table:
    """What a file of an installed package would put on other libraries' classes, read from its text without running it.

    Shows what waits for another machine: lines `Class.method = function`, each with its function.

    Raises:
        MissingExtra: the package is not installed.
    """
    lines = re.findall(r"^\s+([A-Z]\w+\.[a-z]\w+) = (\w+(?:\(\w+\))?)$", _source(package, file), re.MULTILINE)
    return tables.Table(("method", "would become"), list(dict.fromkeys(lines)))


def supported_families(file: str = "models/mapper.py", package: str = "unsloth") -> dict[str, int]:
    """Model families in Unsloth's own list of 4-bit repositories, by the first word of their names, most first.

    Raises:
        MissingExtra: the package is not installed.
    """
    repository = r'^\s*"[\w.-]+/(?:meta-)?([a-z]+)[\w.-]*"\s*:'
    keys = re.findall(repository, _source(package, file), re.MULTILINE | re.IGNORECASE)
    return dict(Counter(map(str.lower, keys)).most_common())


def _source(package: str, file: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingExtra(f"{package} is not installed, so its files cannot be read. Run: make install.")
    return (Path(spec.origin).parent / file).read_text(encoding="utf-8")


def _members(module: str, members: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What stands in a module, and in its own classes with those below them; what it re-exports would count twice."""
    yield from members.items()
    own = {name: kind for name, kind in members.items() if issubclass(type(kind), type) and kind.__module__ == module}
    for name, kind in own.items():
        for base in kind.__mro__:
            if base.__module__ == module:
                yield from ((f"{name}.{key}", member) for key, member in vars(base).items())


def _is_by(value: Any, by: str) -> bool:
    """Whether `by` wrote a class, a function or one that it wraps: its code lies in a folder `by` or `by_…`.

    Types are asked, never attributes: lazy modules import when one of theirs is.
    """
    folder = re.compile(rf"(^|/){by}(_\w+)?/")
    if issubclass(type(value), type):
        return bool(folder.match(str(value.__module__).split(".")[0] + "/"))
    if type(value) in _INNER:
        value = getattr(value, _INNER[type(value)])
    while type(value) is FunctionType:
        file = value.__code__.co_filename.replace("\\", "/")
        if folder.search(file.rsplit("site-packages/", 1)[-1]):
            return True
        value = vars(value).get("__wrapped__")
    return False


@tables.shown
@dataclass(frozen=True)
class GpuRecord:
    """A table that others or this kit measured on a GPU, with its source; None stands for a run out of memory."""

    question: str
    device: str
    day: str
    model: str
    settings: str
    by: str
    source: str
    heads: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]

    @property
    def where(self) -> str:
        """Device, day, settings, who measured, and where it stands."""
        return f"{self.model}, {self.device}, {self.day}. {self.settings}. Measured by {self.by}: {self.source}"

    def _parts(self) -> list[tables.Table | str]:
        rows = [list(map(_text, row.values())) for row in self.rows]
        return [self.question, tables.Table(self.heads, rows), self.where]


def load_record(name: str = "length") -> GpuRecord:
    """A record by name: "length", "baseline" and "t4" as others published them, "h200" from this kit.

    Raises:
        MissingArtifact: no record of that name; lists those that there are.
    """
    known = files.sample("gpu_records")
    if name not in known:
        raise MissingArtifact(f"No record {name!r}. There are: {', '.join(known)}.")
    facts = known[name]
    return GpuRecord(**{**facts, "heads": tuple(facts["heads"]), "rows": tuple(facts["rows"])})


def recorded_speed_ups() -> dict[str, list[float]]:
    """How many times as fast Unsloth was in each record, by its opponent, the card, who measured, and the year."""
    length, baseline, t4, own = (load_record(name).rows for name in ("length", "baseline", "t4", "h200"))
    plain, flash, unsloth = (row["tokens_per_s"] for row in baseline)
    over_flash = [
        row["unsloth_tokens_per_s"] / row["plain_tokens_per_s"] for row in length if row["plain_tokens_per_s"]
    ]
    return {
        "plain (T4, 2024, its maker)": [row["unsloth"] for row in t4],
        "plain, newer torch (T4, 2024, its maker)": [row["unsloth"] / row["plain_torch_2_1_1"] for row in t4],
        "plain (A100, 2024, others)": [unsloth / plain],
        "FlashAttention 2 (A100, 2024, others)": [unsloth / flash, *over_flash],
        "plain (H200, 2026, this kit)": [row["unsloth_tokens_per_s"] / row["plain_tokens_per_s"] for row in own],
    }


def _text(value: Any) -> str:
    if value is None:
        return "out of memory"
    return f"{value:,}" if isinstance(value, int) else str(value)
