"""An estimate of a run's peak memory, as a range with line items, from a shape and the settings alone.

`likely` is the peak that torch's allocator hands out, what `torch.cuda.max_memory_allocated` reports. `high` is what should
be free on the card: it adds the allocator's reserve, the CUDA context and the error that public measurements showed.
On a CPU both are the process's resident memory.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ftkit.config import TrainConfig
from ftkit.errors import ConfigError
from ftkit.memory.footprint import GIB, Term, TrainingSetup, moments, total, trainable
from ftkit.memory.shapes import ModelShape

BACKENDS = ("unsloth", "transformers")

TRL_LOSS_PATH = "chunked"  # what training.train's runs use: SFTTrainer's default, or Unsloth's own loss on a GPU

CONTEXT_GIB = 0.75  # CUDA's own, on an H200 (benchmarks/gpu.py); 0.5 on an A100 or H100, 0.14 on a T4

LIBRARIES_GIB = 0.55  # resident on a CPU once torch, transformers, peft, trl and Unsloth are imported; measured: 0.52

_FIXED = (0.98, 1.02)  # rounding of many small tensors

# Over what grows with the tokens. The worst public point, estimated without its own model, needed 1.22, 1.61 and 1.20.
_GROWING = {"checkpointed": (0.8, 1.45), "scores": (0.8, 1.8), "kept": (0.65, 1.45)}

_FULL_RESERVE = 1.12  # of full fine-tuning: the process held 12 % more than its tensors

_ON_CPU = (0.6, 1.8)  # glibc keeps what it was given back; checked on this kit's own runs alone

_UNSLOTH_LOSS_GIB, _UNSLOTH_LOGIT_BYTES = 4.0, 16  # its fused loss takes up to half of what is free, to this limit

_UNCHECKED = 1.15  # more room where no public point of quality A or B stands behind the stack

_CPU_WIDTH = 16  # on a CPU rows are padded to a multiple of this, see train

_PLAIN_ATTENTION_TOKENS = 256  # on a CPU shorter rows get plain attention, see models.choose_attention


@dataclass(frozen=True)
class Item:
    """One line of the bill."""

    name: str
    gib: float
    how: str


@dataclass(frozen=True)
class MemoryEstimate:
    """What a run will need, in GiB. The items add up to `likely_gib`; shows itself as a table.

    Attributes:
        low_gib: no public run of this kind needed less.
        likely_gib: expected peak of the tensors (on a CPU: of the process).
        high_gib: what should be free.
        items: the parts, in the order in which they come into being.
        about: model and settings in one line.
        device: "cuda" or "cpu".
        trainable: parameters that learn.
        elastic_gib: how much of `high_gib` is taken only where it is free (Unsloth's loss), so it never keeps a run from fitting.
    """

    low_gib: float
    likely_gib: float
    high_gib: float
    items: tuple[Item, ...]
    about: str
    device: str = "cuda"
    trainable: int = 0
    elastic_gib: float = 0.0

    @property
    def dominant(self) -> str:
        """The name of the largest item."""
        return max(self.items, key=lambda item: item.gib).name

    def __getitem__(self, name: str) -> float:
        """GiB of one item; 0 where the run has none of it."""
        return sum(item.gib for item in self.items if item.name == name)

    def __str__(self) -> str:
        width = max(len(item.name) for item in self.items)
        lines = [f"{item.name:{width}} {item.gib:8.2f} GiB  {item.how}" for item in self.items]
        return "\n".join([self.about, *lines, f"{'likely':{width}} {self.likely_gib:8.2f} GiB, {self._range()}"])

    def _range(self) -> str:
        return f"low {self.low_gib:.2f}, high {self.high_gib:.2f}; most is {self.dominant}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(i.name)}</td><td>{i.gib:.2f}</td><td>{html.escape(i.how)}</td></tr>"
            for i in self.items
        )
        foot = f"<tr><th>likely</th><th>{self.likely_gib:.2f}</th><th>{html.escape(self._range())}</th></tr>"
        return f"<table><caption>{html.escape(self.about)}</caption><tr><th>part</th><th>GiB</th><th>how</th></tr>{rows}{foot}</table>"


def estimate(
    shape: ModelShape,
    config: TrainConfig | None = None,
    *,
    backend: str | None = None,
    loss_path: str | None = None,
    method: str | None = None,
    attention: str | None = None,
    device: str = "cuda",
    longest: int | None = None,
    upcast: bool = False,
    mixed_precision: bool = False,
) -> MemoryEstimate:
    """Estimate the peak memory of training a model of this shape on one device.

    Args:
        shape: from `ModelShape.from_config` or `memory.find`.
        config: the settings; by default the kit's.
        backend: "unsloth" or "transformers"; by default the one that `config` gets where both are installed.
        loss_path: "full" computes all logits at once, "fast" overwrites them, "chunked" computes a few rows at a time.
            By default what the library does by itself: Unsloth chunks, Transformers does not. This kit's own runs go through
            TRL, where the loss is chunked beside either: `TRL_LOSS_PATH`.
        method: "qlora", "lora" or "full" (every weight learns); by default what `config.load_in_4bit` says.
        attention: "sdpa" (also FlashAttention) or "eager", which writes all scores out.
        device: "cuda" or "cpu".
        longest: tokens of the longest example, where it is shorter than `config.max_length`.
        upcast: QLoRA after PEFT's `prepare_model_for_kbit_training`, which keeps embedding, head and stream in 32-bit. This
            kit does not call it.
        mixed_precision: full fine-tuning only: 32-bit master weights and optimiser states beside 16-bit weights.

    Raises:
        ConfigError: a choice that does not exist, or target modules that the model does not have.
    """
    config = config or TrainConfig()
    backend = backend or _backend(config)
    if problems := _problems(backend, attention, device, longest):
        raise ConfigError("\n".join(problems))
    way = _way(config, backend, loss_path, method, attention, device, longest)
    way = replace(way, master_weights=mixed_precision and way.method == "full", upcast=upcast and way.method == "qlora")
    if backend == "unsloth" and device == "cpu":  # RAM is plenty: its loss takes all that it may
        way = replace(way, chunk_tokens=max(1, int(_UNSLOTH_LOSS_GIB * GIB / _UNSLOTH_LOGIT_BYTES / shape.vocab_size)))
    return estimate_setup(shape, way, backend=backend, device=device)


def estimate_setup(
    shape: ModelShape, way: TrainingSetup, *, backend: str = "transformers", device: str = "cuda"
) -> MemoryEstimate:
    """The estimate for a `memory.TrainingSetup`: settings without a `TrainConfig`, such as those of a published run."""
    candidates = moments(shape, way)
    found = max(candidates, key=total)
    before = _before(shape, way) if device == "cpu" else ()
    start = sum(item.gib for item in before)
    ends = [_ends(moment, way, backend, device) for moment in candidates]
    low, high = (max(end[i] for end in ends) for i in (0, 1))
    spare = high - total(found) / GIB
    elastic = max(0.0, _loss_buffer(shape, way, backend) - spare) if device == "cuda" else 0.0
    return MemoryEstimate(
        low_gib=start * 0.8 + low,
        likely_gib=start + total(found) / GIB,
        high_gib=start * 1.3 + high + elastic + (CONTEXT_GIB if device == "cuda" else 0.0),
        items=(*before, *(Item(t.name, t.bytes / GIB, t.how) for t in found)),
        about=_about(shape, way, backend, device),
        device=device,
        trainable=trainable(shape, way),
        elastic_gib=elastic,
    )


def _ends(moment: Sequence[Term], way: TrainingSetup, backend: str, device: str) -> tuple[float, float]:
    """Low and high end of one moment of the step, without context and libraries."""
    fixed, growing = (sum(t.bytes for t in moment if t.grows is grows) / GIB for grows in (False, True))
    low, high = _growth(way, device)
    unchecked = _UNCHECKED if device == "cuda" and (backend == "unsloth" or way.use_dora) else 1.0
    reserve = _FULL_RESERVE if way.method == "full" else _FIXED[1]
    return fixed * _FIXED[0] + growing * low, fixed * reserve + growing * high * unchecked


def _growth(way: TrainingSetup, device: str) -> tuple[float, float]:
    if device == "cpu":
        return _ON_CPU
    return _GROWING["scores" if way.eager else "checkpointed" if way.checkpointing else "kept"]


def _before(shape: ModelShape, way: TrainingSetup) -> tuple[Item, ...]:
    """What a process on a CPU holds before training: libraries, and what was read to be quantised and not given back."""
    libraries = Item("Python and its libraries", LIBRARIES_GIB, "measured once, without a model")
    read = Item("16-bit weights, read to be quantised", 2 * shape.parameters / GIB, "freed, and kept by the allocator")
    return (libraries, read) if way.method == "qlora" else (libraries,)


def _loss_buffer(shape: ModelShape, way: TrainingSetup, backend: str) -> float:
    if backend != "unsloth" or way.loss_path != "chunked":
        return 0.0
    return min(_UNSLOTH_LOGIT_BYTES * way.tokens * shape.vocab_size / GIB, _UNSLOTH_LOSS_GIB)


def _backend(config: TrainConfig) -> str:
    if config.backend != "auto":
        return config.backend
    return "transformers" if config.load_in_4bit and not config.bnb_4bit_use_double_quant else "unsloth"


def _problems(backend: str, attention: str | None, device: str, longest: int | None) -> list[str]:
    wrong = [
        f"{name}={value!r} is not one of {', '.join(known)}."
        for name, value, known in (
            ("backend", backend, BACKENDS),
            ("attention", attention or "sdpa", ("sdpa", "eager")),
            ("device", device, ("cuda", "cpu")),
        )
        if value not in known
    ]
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
        wrong.append(f"longest={longest!r}: wanted the tokens of the longest example, 1 or more.")
    return wrong


def _way(
    config: TrainConfig,
    backend: str,
    loss_path: str | None,
    method: str | None,
    attention: str | None,
    device: str,
    longest: int | None,
) -> TrainingSetup:
    method = method or ("qlora" if config.load_in_4bit else "lora")
    length = min(config.max_length, longest or config.max_length)
    on_cpu = device == "cpu"
    length = -(-length // _CPU_WIDTH) * _CPU_WIDTH if on_cpu else length
    eager = attention == "eager" if attention else on_cpu and length <= _PLAIN_ATTENTION_TOKENS
    return TrainingSetup(
        method=method,
        micro_batch=config.per_device_train_batch_size,
        length=length,
        r=config.lora_r,
        target_modules=config.target_modules,
        use_dora=config.use_dora,
        double_quant=config.bnb_4bit_use_double_quant,
        compute_bytes=4 if config.dtype == "fp32" else 2,
        # TRL turns a 4-bit model's adapter to bf16, on a CPU beside Unsloth too; on a GPU Unsloth keeps it in 32-bit
        adapter_bytes=2 if method == "qlora" and config.dtype == "bf16" and (on_cpu or backend != "unsloth") else 4,
        optim="adamw_torch" if on_cpu and "8bit" in config.optim else config.optim,
        checkpointing=config.gradient_checkpointing,
        offloaded=backend == "unsloth" and not on_cpu,
        loss_path=loss_path or ("chunked" if backend == "unsloth" else "full"),
        eager=eager,
        accumulates=config.gradient_accumulation_steps > 1,
    )


def _about(shape: ModelShape, way: TrainingSetup, backend: str, device: str) -> str:
    how = {"qlora": f"QLoRA r={way.r}", "lora": f"LoRA r={way.r}", "full": "full fine-tuning"}[way.method]
    saved = "checkpointing" if way.checkpointing else "no checkpointing"
    return f"{shape.name} · {how} · {way.micro_batch} x {way.length:,} tokens · {saved} · loss {way.loss_path} · {backend} · {device}"


@dataclass(frozen=True)
class EstimateCheck:
    """An estimate beside what was measured; shows itself as a table."""

    estimate: MemoryEstimate
    measured_gib: float

    @property
    def error(self) -> float:
        """Of `likely_gib` against the measurement, as a share; above 0 the estimate was too high."""
        return self.estimate.likely_gib / self.measured_gib - 1

    @property
    def within(self) -> bool:
        """Whether the measurement lies between low and high."""
        return self.estimate.low_gib <= self.measured_gib <= self.estimate.high_gib

    def __str__(self) -> str:
        e = self.estimate
        return (
            f"measured {self.measured_gib:.2f} GiB, estimated {e.likely_gib:.2f} ({e.low_gib:.2f} to {e.high_gib:.2f}): "
            f"{100 * self.error:+.0f} %, {'within' if self.within else 'outside'} the range"
        )

    def _repr_html_(self) -> str:
        e = self.estimate
        cells = (
            f"{e.low_gib:.2f}",
            f"{e.likely_gib:.2f}",
            f"{e.high_gib:.2f}",
            f"{self.measured_gib:.2f}",
            f"{100 * self.error:+.0f} %",
            "yes" if self.within else "no",
        )
        head = ("low, GiB", "likely, GiB", "high, GiB", "measured, GiB", "likely is off by", "within the range")
        return (
            f"<table><caption>{html.escape(e.about)}</caption><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>"
            f"<tr>{''.join(f'<td>{c}</td>' for c in cells)}</tr></table>"
        )


def beside(estimated: MemoryEstimate, measured: Any) -> EstimateCheck:
    """Put an estimate beside a measurement.

    Args:
        estimated: the estimate for the same settings and device.
        measured: GiB, a `History`, or a finished `Run` (its recorded peak).

    Raises:
        ConfigError: the measurement is no positive number.
    """
    if hasattr(measured, "facts"):
        measured = measured.facts.get("train", {}).get("peak_memory_gib")
    value = getattr(measured, "peak_memory_gib", measured)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"measured={value!r}: wanted GiB above 0, a History, or a Run whose training is finished.")
    return EstimateCheck(estimated, float(value))
