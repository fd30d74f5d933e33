"""An estimate of a run's peak memory, as a range with line items, from a shape and the settings alone.

`likely` is the peak that torch's allocator hands out, what `torch.cuda.max_memory_allocated` reports. `high` is what
should be free on the card: it adds the allocator's reserve, the CUDA context and the error that public measurements
showed. On a CPU both are the process's resident memory. Knows no card and loads nothing; `fitting` compares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftkit import tables
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError
from ftkit.hardware import GIB
from ftkit.memory.footprint import (
    CHUNK_TOKENS,
    CPU_CHUNK_TOKENS,
    FITTED,
    Constants,
    MemoryPart,
    TrainingSetup,
    moments,
    total,
    trainable,
)
from ftkit.memory.shapes import ModelShape

TRL_LOSS_PATH = "chunked"  # what training.train's runs use: SFTTrainer's default, or Unsloth's own loss on a GPU
CONTEXT_GIB = 0.75  # CUDA's own, on an H200 (benchmarks/gpu.py); 0.5 on an A100 or H100, 0.14 on a T4
LIBRARIES_GIB = 0.55  # resident on a CPU once torch, transformers, peft, trl and Unsloth are imported; measured: 0.52

_FIXED = (0.98, 1.02)  # rounding of many small tensors
# Over what grows with the tokens. The worst public point, estimated without its own model, needed 1.22, 1.61 and 1.20.
_GROWING = {"checkpointed": (0.8, 1.45), "scores": (0.8, 1.8), "kept": (0.65, 1.45)}
_FULL_RESERVE = 1.12  # of full fine-tuning: the process held 12 % more than its tensors
_ON_CPU = (0.6, 1.8)  # glibc keeps what it was given back; checked on this kit's own runs alone
_UNCHECKED = 1.15  # more room where no public point of quality A or B stands behind the stack
_UNSLOTH_LOSS_GIB, _UNSLOTH_LOGIT_BYTES = 4.0, 16  # its fused loss takes up to half of what is free, to this limit
_CPU_WIDTH = 16  # on a CPU rows are padded to a multiple of this, see training
_PLAIN_ATTENTION_TOKENS = 256  # on a CPU shorter rows get plain attention, see models.choose_attention


@tables.shown
@dataclass(frozen=True)
class MemoryEstimate:
    """What a run will need, in GiB. The parts add up to `likely_gib`; shows itself as a table."""

    low_gib: float  # no public run of this kind needed less
    likely_gib: float  # expected peak of the tensors (on a CPU: of the process)
    high_gib: float  # what should be free
    parts: tuple[MemoryPart, ...]  # the lines of the bill, in the order in which they come into being
    about: str  # model and settings
    device: str = "cuda"
    trainable: int = 0  # parameters that learn
    elastic_gib: float = 0.0  # of `high_gib`, taken only where it is free (Unsloth's loss): keeps no run from fitting

    @property
    def dominant(self) -> str:
        """The name of the largest part."""
        return max(self.parts, key=lambda part: part.gib).name

    def __getitem__(self, name: str) -> float:
        """GiB of one part; 0 where the run has none of it."""
        return sum(part.gib for part in self.parts if part.name == name)

    def _parts(self) -> list[tables.Table]:
        rows = [(part.name, f"{part.gib:.2f}", part.how) for part in self.parts]
        ends = f"low {self.low_gib:.2f}, high {self.high_gib:.2f}; largest is {self.dominant}"
        rows.append(("likely", f"{self.likely_gib:.2f}", ends))
        return [tables.Table(("part", "GiB", "how"), rows, caption=self.about)]


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
            By default what the library does by itself: Unsloth chunks, Transformers does not. This kit's own runs go
            through TRL, where the loss is chunked beside either: `TRL_LOSS_PATH`.
        method: "qlora", "lora" or "full" (every weight learns); by default what `config.load_in_4bit` says.
        attention: "sdpa" (also FlashAttention) or "eager", which writes all scores out.
        device: "cuda" or "cpu".
        longest: tokens of the longest example, where it is shorter than `config.max_length`.
        upcast: QLoRA after PEFT's `prepare_model_for_kbit_training`, which keeps embedding, head and stream in 32-bit.
            This kit does not call it.
        mixed_precision: full fine-tuning only: 32-bit master weights and optimiser states beside 16-bit weights.

    Raises:
        ConfigError: a choice that does not exist, or target modules that the model does not have.
    """
    config = config or TrainConfig()
    if backend is None:
        backend = config.backend
        if backend == "auto":  # Unsloth always quantises twice
            backend = "transformers" if config.load_in_4bit and not config.bnb_4bit_use_double_quant else "unsloth"
    wrong = []
    for name, value, known in (
        ("backend", backend, ("unsloth", "transformers")),
        ("attention", attention or "sdpa", ("sdpa", "eager")),
        ("device", device, ("cuda", "cpu")),
    ):
        if value not in known:
            wrong.append(f"{name}={value!r} is not one of {', '.join(known)}.")
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
        wrong.append(f"longest={longest!r}: wanted the tokens of the longest example, 1 or more.")
    if wrong:
        raise ConfigError("\n".join(wrong))
    method = method or ("qlora" if config.load_in_4bit else "lora")
    on_cpu, unsloth = device == "cpu", backend == "unsloth"
    length = min(config.max_length, longest or config.max_length)
    if on_cpu:
        length = -(-length // _CPU_WIDTH) * _CPU_WIDTH
    # TRL turns a 4-bit model's adapter to bf16, on a CPU beside Unsloth too; on a GPU Unsloth keeps it in 32-bit
    narrow_adapter = method == "qlora" and config.dtype == "bf16" and (on_cpu or not unsloth)
    chunk = CPU_CHUNK_TOKENS if on_cpu else CHUNK_TOKENS
    if unsloth and on_cpu:  # RAM is plenty: its loss takes all that it may
        chunk = max(1, int(_UNSLOTH_LOSS_GIB * GIB / _UNSLOTH_LOGIT_BYTES / shape.vocab_size))
    setup = TrainingSetup(
        method=method,
        micro_batch=config.per_device_train_batch_size,
        length=length,
        r=config.lora_r,
        target_modules=config.target_modules,
        use_dora=config.use_dora,
        double_quant=config.bnb_4bit_use_double_quant,
        compute_bytes=4 if config.dtype == "fp32" else 2,
        adapter_bytes=2 if narrow_adapter else 4,
        optim="adamw_torch" if on_cpu and "8bit" in config.optim else config.optim,
        checkpointing=config.gradient_checkpointing,
        offloaded=unsloth and not on_cpu,
        loss_path=loss_path or ("chunked" if unsloth else "full"),
        eager=attention == "eager" if attention else on_cpu and length <= _PLAIN_ATTENTION_TOKENS,
        upcast=upcast and method == "qlora",
        master_weights=mixed_precision and method == "full",
        accumulates=config.gradient_accumulation_steps > 1,
        chunk_tokens=chunk,
    )
    return estimate_setup(shape, setup, backend=backend, device=device)


def estimate_setup(
    shape: ModelShape,
    setup: TrainingSetup,
    *,
    backend: str = "transformers",
    device: str = "cuda",
    constants: Constants = FITTED,
) -> MemoryEstimate:
    """The estimate for a `memory.TrainingSetup`: settings without a `TrainConfig`, such as those of a published run."""
    candidates = moments(shape, setup, constants)
    peak = max(candidates, key=total)
    before = []  # what a process on a CPU holds before training
    if device == "cpu":
        before.append(MemoryPart("Python and its libraries", LIBRARIES_GIB * GIB, "measured once, without a model"))
    if device == "cpu" and setup.method == "qlora":
        read, how = "16-bit weights, read to be quantised", "freed, and kept by the allocator"
        before.append(MemoryPart(read, 2 * shape.parameters, how))
    start = total(before) / GIB
    lows, highs = zip(*(_ends(moment, setup, backend, device) for moment in candidates), strict=True)
    low, high, likely = max(lows), max(highs), total(peak) / GIB
    elastic, context = 0.0, CONTEXT_GIB if device == "cuda" else 0.0
    if device == "cuda" and backend == "unsloth" and setup.loss_path == "chunked":
        buffer = min(_UNSLOTH_LOGIT_BYTES * setup.tokens * shape.vocab_size / GIB, _UNSLOTH_LOSS_GIB)
        elastic = max(0.0, buffer - (high - likely))
    method = {"qlora": f"QLoRA r={setup.r}", "lora": f"LoRA r={setup.r}", "full": "full fine-tuning"}[setup.method]
    tokens = f"{setup.micro_batch} x {setup.length:,} tokens"
    saved = "checkpointing" if setup.checkpointing else "no checkpointing"
    about = (shape.name, method, tokens, saved, f"loss {setup.loss_path}", backend, device)
    return MemoryEstimate(
        low_gib=start * 0.8 + low,
        likely_gib=start + likely,
        high_gib=start * 1.3 + high + elastic + context,
        parts=(*before, *peak),
        about=" · ".join(about),
        device=device,
        trainable=trainable(shape, setup),
        elastic_gib=elastic,
    )


@tables.shown
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

    def _parts(self) -> list[tables.Table]:
        estimated = self.estimate
        cells = [estimated.low_gib, estimated.likely_gib, estimated.high_gib, self.measured_gib]
        row = [*(f"{gib:.2f}" for gib in cells), f"{100 * self.error:+.0f} %", "within" if self.within else "outside"]
        head = ("low, GiB", "likely, GiB", "high, GiB", "measured, GiB", "likely is off by", "the range")
        return [tables.Table(head, [row], caption=estimated.about)]


def beside(estimated: MemoryEstimate, measured: Any) -> EstimateCheck:
    """Put an estimate beside what was measured under the same settings: GiB, a `History`, or a finished `Run`.

    Raises:
        ConfigError: the measurement is no positive number.
    """
    if hasattr(measured, "facts"):
        measured = measured.facts.get("train", {}).get("peak_memory_gib")
    value = getattr(measured, "peak_memory_gib", measured)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"measured={value!r}: wanted GiB above 0, a History, or a Run whose training is finished.")
    return EstimateCheck(estimated, float(value))


def _ends(moment: Sequence[MemoryPart], setup: TrainingSetup, backend: str, device: str) -> tuple[float, float]:
    """Low and high end of one moment of the step, without context and libraries."""
    growing = sum(part.gib for part in moment if part.grows)
    fixed = sum(part.gib for part in moment if not part.grows)
    if device == "cpu":
        low, high = _ON_CPU
    elif setup.eager:
        low, high = _GROWING["scores"]
    else:
        low, high = _GROWING["checkpointed" if setup.checkpointing else "kept"]
    unchecked = _UNCHECKED if device == "cuda" and (backend == "unsloth" or setup.use_dora) else 1.0
    reserve = _FULL_RESERVE if setup.method == "full" else _FIXED[1]
    return fixed * _FIXED[0] + growing * low, fixed * reserve + growing * high * unchecked
