"""Refuse a run that cannot work, in seconds and before anything expensive: what stays silent elsewhere is said here.

`check` looks at model, tokenizer, rows and settings and gives a report; `check_settings` needs the settings alone. Errors
stop a training, warnings cost quality or time, notes explain. Nothing is run through the model unless `probe=True`.

| Id | Passes when |
|---|---|
| `no-rows` | the training part has rows |
| `val-empty` | the validation part has rows |
| `no-chat-template` | the tokenizer has a chat template |
| `turns-malformed` | turns alternate, and each chat ends with an answer that says something |
| `template-refuses-system` | the template takes the system turns that there are |
| `template-refuses-turns` | the template takes the order of all turns |
| `template-loses-tools` | the template writes out tool calls, results and schemas |
| `template-rewrites-turns` | answers stay the same once later turns follow |
| `template-drops-turns` | what each turn says stands in the text that the model reads |
| `double-template` | no message holds the template's own markers already |
| `no-trained-tokens` | rows have tokens that the loss sees |
| `rows-without-trained-tokens` | every row has a token that the loss sees |
| `low-trained-share` | the loss sees a fair share of the tokens |
| `prompt-trained` | the prompts are masked |
| `answer-untrained` | the answers are trained |
| `answers-cut` | max_length cuts no answer |
| `stop-token-untrained` | each answer ends in a stop token that is trained |
| `double-bos` | no row begins with two start tokens |
| `missing-bos` | each row has the start token that the model expects |
| `longer-than-context` | every row fits into the model's context |
| `no-stop-token` | the tokenizer has a stop token |
| `stop-token-differs` | the model's generation config stops at the tokenizer's stop token |
| `no-pad-token` | the tokenizer has a pad token |
| `pad-is-stop` | pad and stop are two tokens |
| `token-outside-embeddings` | every token has a row in the model's embedding |
| `template-tokens-untrained` | the template's special tokens were trained with the base model |
| `leak-exact` | no val or test row stands in train |
| `leak-near` | no val or test row is nearly the same as one in train |
| `near-duplicates` | no two training rows are nearly the same |
| `unusual-setting` | every setting lies in its usual range |
| `effective-batch` | 8 to 32 examples stand behind each update |
| `alpha-ratio` | lora_alpha is about once or twice lora_r |
| `warmup-too-long` | the learning rate is reached, and held for most of the run |
| `save-never` | a checkpoint is written before the end |
| `eval-never` | the validation loss is measured before the end |
| `early-stopping-idle` | early stopping can come into play |
| `few-updates` | there are at least ten updates |
| `fewer-rows-than-batch` | the data fill a batch |
| `too-many-epochs` | a small set is not read so often that it is learnt by heart |
| `bf16-unsupported` | the device computes in bf16, where the settings want it |
| `fp16-on-cpu` | fp16 is not asked of a CPU |
| `fp32-on-gpu` | a GPU computes in 16-bit |
| `optimizer-replaced` | the optimiser exists on this device |
| `packing-leaks` | packed examples cannot see each other |
| `package-missing` | the packages that the settings need are installed |
| `memory-too-small` | the estimate of memory stays below the device's |
| `memory-unknown` | the memory of this architecture can be estimated |
| `target-modules-missing` | the model has the layers that get an adapter |
| `model-differs` | the model was loaded as the settings say |
| `fp16-trainable` | trainable weights are kept in fp32 where fp16 scales the loss |
| `accumulation-loss` | accumulated micro-batches weigh tokens alike |
| `model-split` | the model lies on one device |
| `several-gpus` | one process sees one GPU |
| `unsloth-late` | Unsloth was imported before the libraries that it patches |
| `versions-differ` | the versions are those of the run's earlier steps |
| `disk-low` | checkpoints and adapter fit on the disk |
| `run-not-writable` | the run folder can be written |
| `probe-loss-not-finite` | the loss of a first batch is a number |
| `probe-loss-zero` | the loss of a first batch is above zero |
| `probe-loss-high` | the model does better than guessing |
| `probe-loss-differs` | the loss is that of the answer tokens alone |
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
    Part,
    check_answers,
    check_duplicates,
    check_leaks,
    check_special_tokens,
    check_template,
    check_turns,
    read_part,
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
    tokenized: Mapping[str, Sequence[Mapping[str, Any]]] | Sequence[Mapping[str, Any]] | None = None,
    probe: bool = False,
    max_rows: int = 2_000,
) -> PreflightReport:
    """Look at everything that a training needs, and say all that is wrong with it at once; raises nothing by itself.

    Args:
        model: from `models.load`, with or without an adapter; None leaves out what concerns it.
        tokenizer: its tokenizer.
        examples: the training part, or `data.Splits`, whose val and test are then compared with it.
        config: the settings.
        val: the validation part, where `examples` is the training part alone.
        test: the test part, likewise.
        hardware: the machine that will train; this one by default.
        run: the folder that will be written: its disk and its earlier versions are looked at.
        tokenized: what `chat.tokenize` gave for each row, uncut and in order, so that it is not done twice: of the
            training part, or of several as `{"train": rows, "val": rows}`.
        probe: also run one batch through the model, without training it.
        max_rows: rows of a part that are tokenised here; of a larger part an even sample is taken.

    Raises:
        DataError: a part is no Dataset of `messages`.
        ConfigError: `tokenized` does not match the rows.
    """
    started, looking = time.monotonic(), _Look(config, hardware or detect(), run)
    if isinstance(examples, Splits):
        examples, val, test = (
            examples.train,
            val if val is not None else examples.val,
            test if test is not None else examples.test,
        )
    given = {"train": examples, "val": val, "test": test}
    looking.data(given)
    parts = looking.rows(tokenizer, model, given, tokenized, max_rows)
    looking.overlaps(given)
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
                    f"The {name} part is no Dataset with `messages`. Read it with data.load_examples, which takes lists too."
                )
        self.take(
            ["no-rows"],
            []
            if len(given["train"])
            else [
                Finding(
                    "no-rows", "error", "The training part has no rows.", "0 rows", "Load examples: data.load_examples."
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
                    "val-empty",
                    "error",
                    "The validation part has no rows: overfitting could not be seen.",
                    "0 rows",
                    "Split with data.split(examples, val=0.1, test=0.1).",
                )
            ],
        )

    def rows(self, tokenizer: Any, model: Any, given: Mapping[str, Any], tokenized: Any, limit: int) -> list[Part]:
        """Tokenise train and val and look at turns, masks and special tokens."""
        self.take(["no-chat-template"], missing := list(check_template(tokenizer)))
        ids = [*TURN_CHECKS, *ANSWER_CHECKS]
        parts = []
        if missing:
            self.skip(set(ids) - {"no-chat-template"}, "needs a chat template")
        else:
            ready = tokenized if isinstance(tokenized, Mapping) or tokenized is None else {"train": tokenized}
            parts = [
                read_part(name, given[name], tokenizer, tokenized=(ready or {}).get(name), limit=limit)
                for name in ("train", "val")
                if given[name] is not None and len(given[name])
            ]
            self.take(ids, check_turns(parts, tokenizer))
            self.found += check_answers(parts, tokenizer, model, self.config.max_length)
            self._tell(parts)
        on_model = set(TOKENIZER_CHECKS) - {"no-stop-token", "no-pad-token", "pad-is-stop"}
        self.take(TOKENIZER_CHECKS, check_special_tokens(tokenizer, model, parts))
        if model is None:
            self.checked -= on_model | {"longer-than-context"}
            self.skip([*on_model, "longer-than-context"], "no model given")
        return parts

    def _tell(self, parts: Sequence[Part]) -> None:
        for part in parts:
            seen = len(part.numbers)
            lengths = [len(ids) for _, _, ids, _ in part.readable] or [0]
            sample = "" if seen == part.total else f" (a sample of {seen:,})"
            self.facts[f"{part.name} rows"] = (
                f"{part.total:,}{sample} · {statistics.median(lengths):.0f} tokens in the middle, {max(lengths)} at most"
            )
        share = trained_share(parts[:1], self.config.max_length)
        self.facts["trained tokens"] = f"{share:.0%} of those that are read"

    def overlaps(self, given: Mapping[str, Any]) -> None:
        """Compare train with the other parts, and with itself."""
        train = given["train"]
        others = {name: part for name, part in given.items() if name != "train" and part is not None and len(part)}
        if len(train) > MOST_ROWS:
            self.skip(OVERLAP_CHECKS, f"more than {MOST_ROWS:,} rows: use data.leakage and cleaning.clean")
            return
        self.take(["near-duplicates"], check_duplicates(train) if len(train) else [])
        if not others or not len(train):
            self.skip(_LEAKS, "no other part given")
        else:
            self.take(_LEAKS, check_leaks(train, others))

    def settings(self, parts: Sequence[Part], model: Any) -> None:
        """The settings, with what is known of rows and model."""
        train = next((part for part in parts if part.name == "train"), None)
        rows, longest = (train.total, train.longest or None) if train else (None, None)
        ids = {*SETTINGS_CHECKS, *SCHEDULE_CHECKS}
        self.take(ids, check_settings(self.config, self.hardware, rows=rows, longest=longest))
        if rows and (updates := updates_in(self.config, rows)):
            self.facts["updates"] = (
                f"{updates:,} of {self.config.effective_batch_size} examples · {passes_over(self.config, rows):.1f} passes over the data"
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

    def probe(self, model: Any, tokenizer: Any, parts: Sequence[Part], wanted: bool) -> None:
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
