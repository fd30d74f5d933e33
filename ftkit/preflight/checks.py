"""Refuse a run that cannot work, in seconds and before anything expensive: what stays silent elsewhere is said here.

`check` looks at model, tokenizer, rows and settings and gives a report; `check_settings` needs the settings alone.
Errors stop a training, warnings cost quality or time, notes explain. Nothing is run through the model unless
`probe=True`. `CHECKS` says of each check what passing it means.
"""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ftkit import models, runs
from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.errors import DataError
from ftkit.hardware import Hardware, detect
from ftkit.preflight import machine, model, rows, settings
from ftkit.preflight.machine import check_disk, check_gpus, check_imports, check_versions, check_writable
from ftkit.preflight.model import (
    MEMORY_CHECKS,
    MODEL_CHECKS,
    PROBES,
    adapter_parameters,
    check_loaded,
    check_memory,
    check_probe,
    need,
)
from ftkit.preflight.report import Finding, PreflightReport, worst_first
from ftkit.preflight.rows import (
    ANSWER_CHECKS,
    MOST_ROWS,
    OVERLAP_CHECKS,
    TOKENIZER_CHECKS,
    TURN_CHECKS,
    Rows,
    TokenisedPart,
    check_answers,
    check_duplicates,
    check_leaks,
    check_special_tokens,
    check_template,
    check_turns,
    read_part,
    repeated,
    trained_share,
)
from ftkit.preflight.settings import SCHEDULE_CHECKS, SETTINGS_CHECKS, passes_over, updates_in
from ftkit.runs import Run

_DATA = {"no-rows": "the training part has rows", "val-empty": "the validation part has rows"}

_LEAKS = ("leak-exact", "leak-near")

CHECKS: dict[str, str] = (
    _DATA
    | rows.TURN_CHECKS
    | rows.ANSWER_CHECKS
    | rows.TOKENIZER_CHECKS
    | rows.OVERLAP_CHECKS
    | settings.SETTINGS_CHECKS
    | settings.SCHEDULE_CHECKS
    | model.MEMORY_CHECKS
    | model.MODEL_CHECKS
    | machine.MACHINE_CHECKS
    | model.PROBES
)


def check(
    model: Any,
    tokenizer: Any,
    examples: Any,
    config: TrainConfig,
    *,
    val: Any = None,
    test: Any = None,
    hardware: Hardware | None = None,
    run: Run | None = None,
    probe: bool = False,
    max_rows: int = 2_000,
) -> PreflightReport:
    """Look at everything that a training needs, and say all that is wrong with it at once; raises nothing by itself.

    Args:
        model: from `models.load`, with or without an adapter; None leaves out what concerns it.
        tokenizer: its tokenizer.
        examples: the training part; or `data.Splits`, whose val and test are then compared with it; or their `Rows`,
            so that nothing is tokenised twice.
        config: the settings.
        val: the validation part, where `examples` is the training part alone.
        test: the test part, likewise.
        hardware: the machine that will train; this one by default.
        run: the folder that will be written: its disk and its earlier versions are looked at.
        probe: also run one batch through the model, without training it.
        max_rows: rows of a part that are tokenised here; of a larger part an even sample is taken.

    Raises:
        DataError: a part is no Dataset of `messages`.
    """
    started, looking = time.monotonic(), _Look(config, hardware or detect(), run)
    ready = examples if isinstance(examples, Rows) else None
    splits = ready.splits if ready else examples
    if isinstance(splits, Splits):
        val, test = splits.val if val is None else val, splits.test if test is None else test
    else:
        splits = Splits(examples, val, test)
    given = {"train": splits.train, "val": val, "test": test}
    looking.data(given)
    parts = looking.rows(tokenizer, model, given, ready, max_rows)
    looking.overlaps(given, splits)
    looking.settings(parts, model)
    if model is None:
        looking.skip(MODEL_CHECKS, "no model given")
    else:
        looking.take(MODEL_CHECKS, check_loaded(model, config, looking.hardware))
    looking.machine(model)
    looking.probe(model, tokenizer, parts, probe)
    return looking.report(time.monotonic() - started)


def check_settings(
    config: TrainConfig, hardware: Hardware, shape: Any = None, *, rows: int | None = None, longest: int | None = None
) -> tuple[Finding, ...]:
    """What the settings alone let expect on this machine, the worst first; takes milliseconds.

    Args:
        config: the settings.
        hardware: the machine that will train.
        shape: a `memory.ModelShape`, for the memory estimate.
        rows: training rows, for what depends on the length of the run.
        longest: tokens of the longest row.
    """
    updates = settings.updates_in(config, rows)
    found = [
        *settings.check_values(config, updates=updates, longest=longest),
        *settings.check_device(config, hardware),
        *settings.check_schedule(config, rows),
    ]
    if shape is not None:
        found += model.check_memory(model.need(shape, config, hardware, longest), config, hardware)
    return worst_first(found)


class _Look:
    """The findings of one check so far, and what was looked at."""

    def __init__(self, config: TrainConfig, hardware: Hardware, run: Run | None) -> None:
        self.config, self.hardware, self.run = config, hardware, run
        self.found: list[Finding] = []
        self.checked: set[str] = set()
        self.skipped: dict[str, str] = {}
        self.facts: dict[str, str] = {"device": str(hardware)}

    def take(self, ids: Iterable[str], findings: Iterable[Finding]) -> None:
        """Note that these checks were made, and what they found."""
        self.checked |= set(ids)
        self.found += findings

    def skip(self, ids: Iterable[str], why: str) -> None:
        """Note why these checks could not be made."""
        self.skipped |= dict.fromkeys(ids, why)

    def data(self, given: Mapping[str, Any]) -> None:
        """Whether there are rows at all."""
        for name, part in given.items():
            if part is not None and len(part) and "messages" not in getattr(part, "column_names", ()):
                raise DataError(
                    f"The {name} part is no Dataset with `messages`. "
                    "Read it with data.load_examples, which takes lists too."
                )
        self.take(
            ["no-rows"],
            []
            if len(given["train"])
            else [
                Finding(
                    id="no-rows",
                    severity="error",
                    title="The training part has no rows.",
                    evidence="0 rows",
                    fix="Load examples: data.load_examples.",
                )
            ],
        )
        if given["val"] is None:
            self.skip(["val-empty"], "no validation part given")
            return
        self.take(
            ["val-empty"],
            []
            if len(given["val"])
            else [
                Finding(
                    id="val-empty",
                    severity="error",
                    title="The validation part has no rows: overfitting could not be seen.",
                    evidence="0 rows",
                    fix="Split with data.split(examples, val=0.1, test=0.1).",
                )
            ],
        )

    def rows(
        self, tokenizer: Any, model: Any, given: Mapping[str, Any], ready: Rows | None, limit: int
    ) -> list[TokenisedPart]:
        """Tokenise train and val and look at turns, masks and special tokens."""
        self.take(["no-chat-template"], missing := list(check_template(tokenizer)))
        ids = [*TURN_CHECKS, *ANSWER_CHECKS]
        parts = []
        if missing:
            self.skip(set(ids) - {"no-chat-template"}, "needs a chat template")
        else:
            if ready:
                parts = [part for part in (ready.train, ready.val) if part.total]
            else:
                there = [name for name in ("train", "val") if given[name] is not None and len(given[name])]
                parts = [read_part(name, given[name], tokenizer, limit) for name in there]
            self.take(ids, check_turns(parts, tokenizer))
            self.found += check_answers(parts, tokenizer, model, self.config.max_length)
            self._tell(parts)
        on_model = set(TOKENIZER_CHECKS) - {"no-stop-token", "no-pad-token", "pad-is-stop"}
        self.take(TOKENIZER_CHECKS, check_special_tokens(tokenizer, model, parts))
        if model is None:
            self.checked -= on_model | {"longer-than-context"}
            self.skip([*on_model, "longer-than-context"], "no model given")
        return parts

    def _tell(self, parts: Sequence[TokenisedPart]) -> None:
        for part in parts:
            seen = len(part.numbers)
            lengths = [len(ids) for _, _, ids, _ in part.readable] or [0]
            sample = "" if seen == part.total else f" (a sample of {seen:,})"
            self.facts[f"{part.name} rows"] = (
                f"{part.total:,}{sample} · {statistics.median(lengths):.0f} tokens in the middle, "
                f"{max(lengths)} at most"
            )
        share = trained_share(parts[:1], self.config.max_length)
        self.facts["trained tokens"] = f"{share:.0%} of those that are read"

    def overlaps(self, given: Mapping[str, Any], splits: Splits) -> None:
        """Compare train with the other parts, and with itself; what `data.split` has searched is not searched again."""
        train = given["train"]
        others = {name: part for name, part in given.items() if name != "train" and part is not None and len(part)}
        if splits.searched is not None:
            self.take(["near-duplicates"], repeated(splits.repeats, len(train)))
        elif len(train) > MOST_ROWS:
            self.skip(OVERLAP_CHECKS, f"more than {MOST_ROWS:,} rows: use data.leakage and cleaning.clean")
            return
        else:
            self.take(["near-duplicates"], check_duplicates(train) if len(train) else [])
        if not others or not len(train):
            self.skip(_LEAKS, "no other part given")
        else:
            self.take(_LEAKS, check_leaks(train, others, near=splits.searched is None))

    def settings(self, parts: Sequence[TokenisedPart], model: Any) -> None:
        """The settings, with what is known of rows and model."""
        train = next((part for part in parts if part.name == "train"), None)
        rows, longest = (train.total, train.longest or None) if train else (None, None)
        ids = {*SETTINGS_CHECKS, *SCHEDULE_CHECKS}
        self.take(ids, check_settings(self.config, self.hardware, rows=rows, longest=longest))
        if rows and (updates := updates_in(self.config, rows)):
            self.facts["updates"] = (
                f"{updates:,} of {self.config.effective_batch_size} examples · "
                f"{passes_over(self.config, rows):.1f} passes over the data"
            )
        if model is None:
            self.skip(MEMORY_CHECKS, "no model given")
            return
        needed = need(model.config, self.config, self.hardware, longest)
        self.take(MEMORY_CHECKS, check_memory(needed, self.config, self.hardware))
        if needed.estimate is None:
            self.checked.remove("memory-too-small")
            self.skip(["memory-too-small"], "no estimate for this model")
        else:
            self.facts["memory"] = f"{needed} of {self.hardware.memory_gib:.1f} GiB"

    def machine(self, model: Any) -> None:
        """GPUs, imports, versions, disk."""
        backend = "" if model is None else models.backend_of(model)
        self.take(["several-gpus"], check_gpus())
        self.take(["unsloth-late"], check_imports(backend))
        if self.run is None:
            self.skip(["versions-differ", "run-not-writable"], "no run given")
        else:
            self.take(["versions-differ"], check_versions(self.run))
            self.take(["run-not-writable"], check_writable(self.run.path))
        if model is None:
            self.skip(["disk-low"], "no model given")
            return
        place = self.run.path if self.run is not None else runs.default_root()
        self.take(
            ["disk-low"],
            check_disk(place, self.config, adapter_parameters(model, self.config)),
        )

    def probe(self, model: Any, tokenizer: Any, parts: Sequence[TokenisedPart], wanted: bool) -> None:
        """One batch through the model, where that is wanted and can work."""
        blocked = any(finding.id in ("no-trained-tokens", "token-outside-embeddings") for finding in self.found)
        if not wanted or model is None or not parts or blocked:
            self.skip(PROBES, "asked for with probe=True" if not wanted else "the rows cannot be run")
            return
        self.take(PROBES, check_probe(model, tokenizer, parts[0], self.config))

    def report(self, seconds: float) -> PreflightReport:
        """All that was found, in order, with what was looked at."""
        return PreflightReport(
            worst_first(self.found),
            {name: about for name, about in CHECKS.items() if name in self.checked},
            {name: self.skipped[name] for name in CHECKS if name in self.skipped},
            self.facts,
            seconds,
        )
