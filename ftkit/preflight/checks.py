"""Refuse a run that cannot work, in seconds and before anything expensive: what stays silent elsewhere is said here.

`check` looks at model, tokenizer, rows and settings and gives a report; `check_settings` needs the settings alone.
Errors stop a training, warnings cost quality or time, notes explain. Nothing is run through the model unless
`probe=True`. Knows which checks are made and why one cannot be; what they look for stands in the other files, their
order and their words in samples/findings.json.
"""

import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ftkit import models, runs
from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.errors import DataError
from ftkit.hardware import Hardware, detect
from ftkit.preflight import machine, rows, settings, tokens
from ftkit.preflight import model as loaded
from ftkit.preflight.report import CHECKS, GROUPS, Finding, PreflightReport, worst_first
from ftkit.preflight.rows import Rows, TokenisedPart
from ftkit.runs import Run

_NO_MODEL = "no model given"


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

    `examples` are the training part, with `val` and `test` beside it; or `data.Splits`; or their `Rows`, so that
    nothing is tokenised twice. A model of None leaves out what concerns it. Of the folder `run` that will be written,
    disk and earlier versions are looked at. `probe` also runs one batch through the model, without training it. Of a
    part with more than `max_rows` rows an even sample is tokenised.

    Raises:
        DataError: a part is no Dataset of `messages`.
    """
    look = _Look(config, hardware or detect())
    splits = _as_splits(examples, val, test)
    look.at_sizes(splits)
    parts = []
    if not look.lacks_template(tokenizer):
        ready = isinstance(examples, Rows) and examples.splits is splits
        parts = _tokenised(examples if ready else splits, tokenizer, config, max_rows)
        look.at_rows(parts, tokenizer, model)
    look.at_special_tokens(parts, tokenizer, model)
    look.at_twins(splits)
    look.at_settings(parts, model)
    look.at_machine(model, run)
    look.at_a_batch(parts, tokenizer, model, probe)
    return look.report()


def check_settings(
    config: TrainConfig, hardware: Hardware, shape: Any = None, *, rows: int | None = None, longest: int | None = None
) -> tuple[Finding, ...]:
    """What the settings alone let expect on this machine, the worst first; takes milliseconds.

    With a `memory.ModelShape` also the memory, with a number of training `rows` also what depends on the run's length;
    `longest` are the tokens of the longest row.
    """
    found = [*settings.check_values(config, hardware, rows=rows, longest=longest)]
    if shape is not None:
        found += loaded.check_memory(loaded.need(shape, config, hardware, longest), config, hardware)
    return worst_first(found)


def _as_splits(examples: Any, val: Any, test: Any) -> Splits:
    splits = examples.splits if isinstance(examples, Rows) else examples
    if not isinstance(splits, Splits):
        return Splits(examples, val, test)
    if val is None and test is None:
        return splits
    val, test = splits.val if val is None else val, splits.test if test is None else test
    return Splits(splits.train, val, test)  # nobody has searched these parts together


def _tokenised(examples: Rows | Splits, tokenizer: Any, config: TrainConfig, limit: int) -> list[TokenisedPart]:
    """Train and val, as far as there are rows."""
    if isinstance(examples, Rows):
        return [part for part in (examples.train, examples.val) if part.total]
    given = {"train": examples.train, "val": examples.val}
    return [rows.read_part(name, part, tokenizer, config, limit) for name, part in given.items() if part]


class _Look:
    """What one check has found so far, and what it could not look at."""

    def __init__(self, config: TrainConfig, hardware: Hardware) -> None:
        self.config, self.hardware = config, hardware
        self.started = time.monotonic()
        self.found: list[Finding] = []
        self.skipped: dict[str, str] = {}
        self.facts: dict[str, str] = {"device": str(hardware)}

    def skip(self, ids: Iterable[str], why: str) -> None:
        """Note why these checks could not be made."""
        self.skipped |= dict.fromkeys(ids, why)

    def at_sizes(self, splits: Splits) -> None:
        """Whether there are rows at all."""
        for name in ("train", "val", "test"):
            part = getattr(splits, name)
            if part and "messages" not in getattr(part, "column_names", ()):
                raise DataError(
                    f"The {name} part is no Dataset with `messages`. "
                    "Read it with data.load_examples, which takes lists too."
                )
        self.found += rows.check_sizes(splits)
        if splits.val is None:
            self.skip(["val-empty"], "no validation part given")

    def lacks_template(self, tokenizer: Any) -> bool:
        """Whether there is no template; no row can be read then."""
        missing = [*rows.check_template(tokenizer)]
        if missing:
            self.found += missing
            needing = {*GROUPS["turns"], *GROUPS["masks"], "longer-than-context"} - {"no-chat-template"}
            self.skip(needing, "needs a chat template")
        return bool(missing)

    def at_rows(self, parts: Sequence[TokenisedPart], tokenizer: Any, model: Any) -> None:
        """Turns, masks, and how long the rows are."""
        limit = self.config.max_length
        self.found += rows.check_turns(parts, tokenizer)
        self.found += tokens.check_masks(parts, tokenizer, model, limit, reasoning=self.config.train_on != "answers")
        for part in parts:
            sample = "" if part.seen == part.total else f" (a sample of {part.seen:,})"
            middle = statistics.median([len(row.ids) for row in part.readable] or [0])
            told = f"{part.total:,}{sample} · {middle:.0f} tokens in the middle, {part.longest} at most"
            self.facts[f"{part.name} rows"] = told
        if parts:
            share = tokens.trained_share(parts[0], limit)
            self.facts["trained tokens"] = f"{share:.0%} of those that are read"

    def at_special_tokens(self, parts: Sequence[TokenisedPart], tokenizer: Any, model: Any) -> None:
        """Stop, pad and the template's own tokens, in tokenizer and model."""
        self.found += tokens.check_special_tokens(tokenizer)
        if model is None:
            self.skip(GROUPS["known tokens"], _NO_MODEL)
        else:
            self.found += tokens.check_known_tokens(parts, tokenizer, model, self.config.max_length)

    def at_twins(self, splits: Splits) -> None:
        """Rows that stand twice."""
        if not splits.val and not splits.test:
            self.skip(("leak-exact", "leak-near"), "no other part given")
        if splits.searched is None and len(splits.train) > rows.MOST_ROWS:
            why = f"more than {rows.MOST_ROWS:,} rows: use data.leakage and cleaning.clean"
            self.skip(GROUPS["twins"], why)
        elif splits.train:
            self.found += rows.check_twins(splits)
        else:
            self.skip(GROUPS["twins"], "no training rows")

    def at_settings(self, parts: Sequence[TokenisedPart], model: Any) -> None:
        """The settings, with what is known of rows and model."""
        config, hardware = self.config, self.hardware
        train = next((part for part in parts if part.name == "train"), None)
        total, longest = (train.total, train.longest or None) if train else (None, None)
        self.found += settings.check_values(config, hardware, rows=total, longest=longest)
        if total:
            updates, passes = settings.updates_in(config, total), settings.passes_over(config, total)
            each = f"{config.effective_batch_size} examples · {passes:.1f} passes over the data"
            self.facts["updates"] = f"{updates:,} of {each}"
        if model is None:
            self.skip([*GROUPS["memory"], *GROUPS["model"]], _NO_MODEL)
            return
        needed = loaded.need(model.config, config, hardware, longest)
        self.found += loaded.check_memory(needed, config, hardware)
        if needed.estimate is None:
            self.skip(["memory-too-small"], "no estimate for this model")
        else:
            self.facts["memory"] = f"{needed} of {hardware.memory_gib:.1f} GiB"
        self.found += loaded.check_loaded(model, config, hardware)

    def at_machine(self, model: Any, run: Run | None) -> None:
        """GPUs, imports, versions, disk."""
        self.found += machine.check_gpus()
        self.found += machine.check_imports("" if model is None else models.backend_of(model))
        if run is None:
            self.skip(["versions-differ", "run-not-writable"], "no run given")
        else:
            self.found += machine.check_versions(run)
            self.found += machine.check_writable(run.path)
        if model is None:
            self.skip(["disk-low"], _NO_MODEL)
        else:
            place = runs.default_root() if run is None else run.path
            self.found += machine.check_disk(place, self.config, loaded.adapter_parameters(model, self.config))

    def at_a_batch(self, parts: Sequence[TokenisedPart], tokenizer: Any, model: Any, wanted: bool) -> None:
        """One batch through the model, where that is wanted and can work."""
        blocked = {"no-trained-tokens", "token-outside-embeddings"}.intersection(found.id for found in self.found)
        if not wanted:
            self.skip(GROUPS["probe"], "asked for with probe=True")
        elif model is None or not parts or blocked:
            self.skip(GROUPS["probe"], "the rows cannot be run")
        else:
            self.found += loaded.check_probe(model, tokenizer, parts[0], self.config)

    def report(self) -> PreflightReport:
        """All that was found, the worst first; a check that nobody skipped was made."""
        return PreflightReport(
            findings=worst_first(self.found),
            checked={id: meaning for id, meaning in CHECKS.items() if id not in self.skipped},
            skipped={id: self.skipped[id] for id in CHECKS if id in self.skipped},
            facts=self.facts,
            seconds=time.monotonic() - self.started,
        )
