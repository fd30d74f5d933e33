"""The same short run under several settings, each in a process of its own, so that nothing of one is left in the other.

Measured are tokens a second after the first step (which compiles), peak memory, every loss, and what Unsloth had replaced.
"""

import ast
import html
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path, PurePath
from types import FunctionType, MethodType
from typing import Any

from ftkit import data, files, hardware, models, runs
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
        return files.write_json(path, [asdict(run) for run in self.runs])

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


def measure_backends(
    configs: Mapping[str, TrainConfig], *, model: str, rows: int = 32, late: bool = False
) -> SideBySide:
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
    files.write_json(
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
                replaced=len(find_patches()),
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


@dataclass(frozen=True)
class Patch:
    """A function under the name `where`, whose code was written elsewhere, in `code`."""

    where: str
    code: str


@dataclass(frozen=True)
class Patches:
    """All that was found; shows itself as a table, one row a module."""

    found: tuple[Patch, ...]

    def by_module(self) -> dict[str, int]:
        """How many functions are replaced in each module, most first."""
        return dict(Counter(_module(patch.where) for patch in self.found).most_common())

    def __len__(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        return "\n".join(f"{count:4}  {module}" for module, count in self.by_module().items())

    def _repr_html_(self) -> str:
        rows = []
        for module, count in self.by_module().items():
            names = [p.where.removeprefix(f"{module}.") for p in self.found if _module(p.where) == module]
            more = f" and {count - 3} more" if count > 3 else ""
            rows.append(f"<tr><td>{count}</td><td><code>{module}</code></td><td>{', '.join(names[:3])}{more}</td></tr>")
        head = "<tr><th>replaced</th><th>in</th><th>for example</th></tr>"
        return f"<table>{head}{''.join(rows)}</table>"


def find_patches(
    by: str = "unsloth", libraries: tuple[str, ...] = ("transformers", "trl", "peft", "bitsandbytes")
) -> Patches:
    """Functions, methods and whole classes in the loaded modules of `libraries` whose code was written by `by`.

    Code that is generated at run time counts when its file lies in a folder that bears the name, as
    `unsloth_compiled_cache` does.
    """
    found: dict[str, Patch] = {}
    for name, module in sorted(sys.modules.items()):
        if module is None or name.split(".")[0] not in libraries:
            continue
        for owner, attributes in _owners(name, dict(vars(module))):
            for attribute, value in attributes.items():
                if code := _code(value, by):
                    found.setdefault(f"{owner}.{attribute}", Patch(f"{owner}.{attribute}", code))
    return Patches(tuple(found.values()))


def find_patches_on(model: Any, by: str = "unsloth") -> Patches:
    """Methods that were put on one model's own layers, or come with their class, and whose code was written by `by`."""
    found: dict[str, Patch] = {}
    for layer in model.modules():
        own = type(layer).__name__
        for attribute, value in [("forward", vars(type(layer)).get("forward")), *vars(layer).items()]:
            if code := _code(value, by):
                found.setdefault(f"{own}.{attribute}", Patch(f"{own}.{attribute}", code))
    return Patches(tuple(found.values()))


def patches_written(file: str = "models/llama.py", package: str = "unsloth") -> Patches:
    """What a file of an installed package would put on other libraries' classes, read from its text without running it.

    Shows what waits for another machine: lines `Class.method = function`, where they stand.

    Raises:
        MissingExtra: the package is not installed.
    """
    found: dict[str, Patch] = {}
    tree = ast.parse(_source(package, file))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Attribute)
            and _gives_a_function(node.value)
        ):
            where = ast.unparse(node.targets[0])
            if re.search(r"\b[A-Z]\w+\.[a-z]\w+$", where) and where.split(".")[-2] not in own:
                found.setdefault(where, Patch(where, f"{package}/{file}:{ast.unparse(node.value)}"))
    return Patches(tuple(found.values()))


def supported_families(file: str = "models/mapper.py", package: str = "unsloth") -> dict[str, int]:
    """Model families in Unsloth's own list of 4-bit repositories, by the first word of their names, most first.

    Raises:
        MissingExtra: the package is not installed.
    """
    tables = [
        ast.literal_eval(node.value)
        for node in ast.parse(_source(package, file)).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    ]
    names = (repository.split("/")[-1] for table in tables for repository in table)
    words = (re.match(r"(?:meta-)?([a-z]+)", name.lower()) for name in names)
    return dict(Counter(word.group(1) for word in words if word).most_common())


def _source(package: str, file: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingExtra(f"{package} is not installed, so its files cannot be read. Run: make install.")
    return (Path(spec.origin).parent / file).read_text(encoding="utf-8")


def _gives_a_function(node: ast.expr) -> bool:
    """A function's name, or a call that makes one."""
    return isinstance(node, ast.Name | ast.Call)


def _owners(name: str, top: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The module, and its own classes with those below them; what a module only re-exports would count twice."""
    classes = [
        (key, base)
        for key, value in top.items()
        if issubclass(type(value), type) and value.__module__ == name
        for base in value.__mro__
        if base.__module__ == name
    ]
    return [(name, top), *((f"{name}.{key}", dict(vars(base))) for key, base in classes)]


def _code(value: Any, by: str) -> str:
    """Where the code of a function or class lies if `by` wrote it, else empty."""
    if issubclass(type(value), type):
        home = str(value.__module__)
        return f"{home}:{value.__name__}" if _is(home.split(".")[0], by) else ""
    return next((origin for function in _functions(value) if (origin := _origin(function, by))), "")


def _functions(value: Any) -> Iterator[FunctionType]:
    """The function itself and those that it wraps; types are asked, since lazy modules import when an attribute is."""
    if type(value) in (staticmethod, classmethod, MethodType):
        value = value.__func__
    elif type(value) is property:
        value = value.fget
    while type(value) is FunctionType:
        yield value
        value = vars(value).get("__wrapped__")


def _origin(function: FunctionType, by: str) -> str:
    """`file:name` where the code lies in a package or folder `by` or `by_…`, else empty."""
    file = function.__code__.co_filename.replace("\\", "/").rsplit("site-packages/", 1)[-1]
    parts = PurePath(file).parts
    places = [i for i, part in enumerate(parts[:-1]) if _is(part, by)]
    return f"{'/'.join(parts[places[-1] :])}:{function.__name__}" if places else ""


def _is(package: str, by: str) -> bool:
    return package == by or package.startswith(f"{by}_")


def _module(where: str) -> str:
    """The loaded module that a place is in: the longest beginning of its name that is one."""
    parts = where.split(".")
    names = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    return next((name for name in names if name in sys.modules), parts[0])


_FILE = Path(__file__).parents[1] / "samples/gpu_records.json"


@dataclass(frozen=True)
class GpuRecord:
    """One table; shows itself with where it comes from. None stands for a run that did not fit into memory."""

    question: str
    device: str
    day: str
    model: str
    settings: str
    by: str
    source: str
    rows: tuple[dict[str, Any], ...]

    @property
    def where(self) -> str:
        """Device, day, settings, who measured, and where it stands."""
        return f"{self.model}, {self.device}, {self.day}. {self.settings}. Measured by {self.by}: {self.source}"

    def __str__(self) -> str:
        lines = [" · ".join(f"{name} {_text(value)}" for name, value in row.items()) for row in self.rows]
        return "\n".join([self.question, *lines, self.where])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{_title(name)}</th>" for name in self.rows[0])
        rows = ("".join(f"<td>{html.escape(_text(value))}</td>" for value in row.values()) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<p>{self.question}</p><table><tr>{head}</tr>{body}</table><p>{html.escape(self.where)}</p>"


def load_record(name: str = "length") -> GpuRecord:
    """A record by name: "length", "baseline" and "t4" as others published them, "h200" from this kit.

    Raises:
        MissingArtifact: no record of that name; lists those that there are.
    """
    known = json.loads(_FILE.read_text(encoding="utf-8"))
    if name not in known:
        raise MissingArtifact(f"No record {name!r}. There are: {', '.join(known)}.")
    facts = known[name]
    return GpuRecord(**{**facts, "rows": tuple(facts["rows"])})


def _title(name: str) -> str:
    """A column's name as a heading, its unit last."""
    for end, unit in (("_tokens_per_s", ", tokens/s"), ("_tokens", ", tokens"), ("_gb", ", GB"), ("_gib", ", GiB")):
        if name.endswith(end):
            return name.removesuffix(end).replace("_", " ") + unit
    return {"gb": "GB", "tokens_per_s": "tokens/s", "plain_torch_2_1_1": "plain, torch 2.1.1"}.get(
        name, name.replace("_", " ")
    )


def _text(value: Any) -> str:
    return "out of memory" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
