"""What this machine is: the accelerator if there is one, its memory, and which number formats it computes in."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from ftkit.tables import escaped, visible

GIB = 1024**3

_CPU = Path("/proc/cpuinfo")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # containers see the host's RAM, but may use only this much
_BF16_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Hardware:
    """One machine as a training run sees it.

    `memory_gib` is the accelerator's memory where there is one, else what this process may use of the RAM.
    `bf16` is true only where bfloat16 is native, not emulated (a T4 emulates it).
    """

    device: str
    name: str
    memory_gib: float
    compute_capability: tuple[int, int] | None
    bf16: bool
    cores: int

    def __str__(self) -> str:
        capability = "" if self.compute_capability is None else f" · sm_{''.join(map(str, self.compute_capability))}"
        formats = "bf16" if self.bf16 else "no bf16"
        return visible(f"{self.name} · {self.memory_gib:.1f} GiB{capability} · {formats} · {self.cores} CPU cores")

    def _repr_html_(self) -> str:
        return f"<b>{escaped(self.device.upper())}</b> {escaped(self)}"


def detect() -> Hardware:
    """Look at this machine; a CUDA device wins over the CPU. Costs one import of torch."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        capability = (properties.major, properties.minor)
        return Hardware(
            "cuda", properties.name, properties.total_memory / GIB, capability, capability >= (8, 0), _cores()
        )
    return Hardware("cpu", _cpu_name(), _ram_gib(), None, _cpu_has_bf16(), _cores())


@dataclass(frozen=True)
class Launch:
    """Which of how many processes this one is; `local` counts on its machine alone, as its GPUs do."""

    rank: int = 0
    local: int = 0
    processes: int = 1


def launch() -> Launch:
    """What torchrun or accelerate said when it started this process; one process alone without them."""
    defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    said = [os.environ.get(name, default) for name, default in defaults.items()]
    return Launch(*map(int, said)) if all(text.isdecimal() for text in said) else Launch()


def process_memory_gib() -> float:
    """Resident memory of this process now, in GiB."""
    import psutil

    return float(psutil.Process().memory_info().rss) / GIB


def peak_memory_gib() -> float:
    """Highest memory so far: allocated on the accelerator where there is one, else resident in this process."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / GIB
    return _peak_resident_bytes() / GIB


def free_gpu_memory_gib() -> float:
    """What this process could still take on the GPU: what is free there, and what PyTorch keeps for reuse."""
    import torch

    return float(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()) / GIB


_SLACK_GIB = 1.2

_after_release = {"gib": 0.0}


def release_memory() -> None:
    """Give freed memory back to the system once 1.2 GiB have gathered; does nothing where glibc is absent.

    glibc would keep it, and a process that sees tensors of ever new sizes would only grow. Released at every step the
    pages would be fetched anew at every step, which costs more than the rest of the bookkeeping.
    """
    import ctypes

    if platform.system() != "Linux" or not hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        return
    now = process_memory_gib()
    if now > _after_release["gib"] + _SLACK_GIB:
        libc.malloc_trim(0)
        now = process_memory_gib()
        _after_release["gib"] = now
    _after_release["gib"] = min(_after_release["gib"], now)


def _peak_resident_bytes() -> float:
    try:
        import resource
    except ImportError:  # Windows keeps the peak elsewhere
        import psutil

        return float(psutil.Process().memory_info().peak_wset)  # type: ignore[attr-defined]
    unit = 1 if platform.system() == "Darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ram_gib() -> float:
    import psutil

    total = float(psutil.virtual_memory().total)
    if (text := _text(_MEMORY_LIMIT).strip()).isdecimal():
        total = min(total, float(text))
    return total / GIB


def _text(path: Path) -> str:
    """What the system says in a file, or nothing: containers hide some of them."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_fact(*names: str) -> str:
    """What the system says of the first CPU under one of these names."""
    lines = [line.partition(":") for line in _text(_CPU).splitlines() if line.lower().startswith(names)]
    return lines[0][2].strip() if lines else ""


def _cpu_name() -> str:
    return _cpu_fact("model name") or platform.processor() or platform.machine()


def _cpu_has_bf16() -> bool:
    return bool(_BF16_CPU_FLAGS & set(_cpu_fact("flags", "features").split()))
