"""What others say that a run needs: the brief's table, LLaMA-Factory's table, and the arithmetic of `accelerate estimate-memory`.

Their numbers, unchanged, to stand beside an estimate. None of them asks how long the examples are.
"""

from dataclasses import dataclass

from ftkit.errors import ConfigError

BRIEF = "the brief that this kit follows, section 10"
LLAMA_FACTORY = "https://github.com/hiyouga/LLaMA-Factory, README, hardware requirement (estimated)"
ACCELERATE = "accelerate.commands.estimate, accelerate 1.15.0: total size, and 8 bytes a parameter for training with Adam in bf16"
_METHODS = ("full", "lora", "qlora")
_GB = 1e9
_GIB = 1024**3


@dataclass(frozen=True)
class SizeClass:
    """One row of the brief's table: GiB as it gives them, and the parameters that it means."""

    name: str
    low_billions: float
    high_billions: float
    full_gib: float | None
    lora_gib: float
    qlora_gib: float
    hardware: str
    example: str

    def gib(self, method: str) -> float | None:
        """What the table says for a method; None where it gives no number."""
        return {"full": self.full_gib, "lora": self.lora_gib, "qlora": self.qlora_gib}[_known(method)]


TABLE = (
    SizeClass("1B to 3B", 0.0, 4.5, 24, 8, 4, "RTX 3060 12 GB / free Colab T4", "meta-llama/Llama-3.2-3B"),
    SizeClass("7B to 8B", 4.5, 10.5, 60, 16, 8, "RTX 3090 24 GB / RTX 4090", "meta-llama/Llama-3.1-8B"),
    SizeClass("13B", 10.5, 40, 120, 32, 14, "RTX 3090 24 GB + gradient checkpointing", "meta-llama/Llama-2-13b-hf"),
    SizeClass("70B", 40, 1e9, None, 160, 40, "A100 80 GB x 1 (QLoRA)", "NousResearch/Llama-2-70b-hf"),
)


def brief(parameters: int, method: str) -> float | None:
    """The brief's number for a model of this size, in GiB as it writes GB."""
    return next(row for row in TABLE if row.low_billions <= parameters / 1e9 < row.high_billions).gib(method)


_FACTORY_COLUMNS = (  # billions, from and to: GB for full fine-tuning in pure bf16, LoRA, 4-bit QLoRA
    (4.5, 10.5, {"full": 60, "lora": 16, "qlora": 6}),
    (10.5, 22, {"full": 120, "lora": 32, "qlora": 12}),
    (22, 50, {"full": 300, "lora": 64, "qlora": 24}),
    (50, 1e9, {"full": 600, "lora": 160, "qlora": 48}),
)


def llama_factory(parameters: int, method: str) -> float:
    """LLaMA-Factory's number: its column of 7, 14, 30 or 70 billion, below that its formula for x billion; GB in GiB."""
    _known(method)
    billions = parameters / 1e9
    for low, high, column in _FACTORY_COLUMNS:
        if low <= billions < high:
            return column[method] * _GB / _GIB
    return {"full": 8.0, "lora": 2.0, "qlora": 0.5}[method] * billions * _GB / _GIB


def accelerate(parameters: int, method: str) -> float:
    """What `accelerate estimate-memory` prints: the size in the base's format, or training with Adam for full fine-tuning.

    It knows no adapters: for LoRA a reader finds the 16-bit size, for QLoRA the 4-bit size.
    """
    bytes_each = {"full": 8.0, "lora": 2.0, "qlora": 0.5}[_known(method)]
    return bytes_each * parameters / _GIB


def _known(method: str) -> str:
    if method not in _METHODS:
        raise ConfigError(f"method={method!r} is not one of {', '.join(_METHODS)}.")
    return method
