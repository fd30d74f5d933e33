"""What rounding weights costs and saves: error by number format, bits really stored, bytes of a loaded model.

Formats come from bitsandbytes; int4 and int8 are plain symmetric rounding in blocks, for comparison.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

KINDS = ("nf4", "fp4", "int4", "int8")


def roundtrip(weights: Any, kind: str = "nf4", blocksize: int | None = 64) -> Any:
    """`weights` after they were stored as `kind` with one scale for each `blocksize` neighbours, and read back as fp32.

    Args:
        weights: any shape; the number of weights need not be a multiple of the block size.
        kind: one of `KINDS`.
        blocksize: neighbours that share a scale; None for one scale over all.

    Raises:
        ValueError: an unknown kind.
    """
    import torch

    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}.")
    flat = weights.detach().float().reshape(-1)
    size = blocksize or flat.numel()
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % size)).view(-1, size)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-38)
    if kind.startswith("int"):
        steps = 2 ** (int(kind[3:]) - 1) - 1
        stored = torch.round(blocks / scale * steps) / steps
    else:
        levels = levels_of(kind).to(blocks.device)
        stored = levels[torch.bucketize((blocks / scale).clamp(-1, 1), (levels[1:] + levels[:-1]) / 2)]
    return (stored * scale).reshape(-1)[: flat.numel()].view(weights.shape)


def levels_of(kind: str) -> Any:
    """The levels of a 4-bit format between -1 and 1, ascending, from bitsandbytes' own table."""
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type(kind, device="cpu").float().unique()


def error(weights: Any, kind: str = "nf4", blocksize: int | None = 64) -> float:
    """Relative root-mean-square error of storing `weights` as `kind`: 0.1 means a tenth of their own size."""
    exact = weights.detach().float()
    return float((roundtrip(exact, kind, blocksize) - exact).norm() / exact.norm())


@dataclass(frozen=True)
class Stored:
    """Where a model's bytes are: parameters, bytes and bits a parameter for each kind of storage."""

    parts: dict[str, tuple[int, int]]

    @property
    def gib(self) -> float:
        """All of it in GiB."""
        return sum(size for _, size in self.parts.values()) / 2**30

    def bits(self, part: str) -> float:
        """Bits a parameter of one part, or of "all"."""
        chosen = list(self.parts.values()) if part == "all" else [self.parts[part]]
        return 8 * sum(size for _, size in chosen) / sum(count for count, _ in chosen)

    def _lines(self) -> list[tuple[str, str, str, str]]:
        everything = (sum(count for count, _ in self.parts.values()), sum(size for _, size in self.parts.values()))
        return [
            (part, f"{count:,}", f"{size / 2**20:,.1f}", f"{8 * size / count:.3f}")
            for part, (count, size) in [*self.parts.items(), ("all", everything)]
        ]

    def __str__(self) -> str:
        head = f"{'stored as':28} {'parameters':>13} {'MiB':>8} {'bits each':>9}"
        return "\n".join([head, *(f"{a:28} {b:>13} {c:>8} {d:>9}" for a, b, c, d in self._lines())])

    def _repr_html_(self) -> str:
        rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in self._lines())
        return f"<table><tr><th>stored as</th><th>parameters</th><th>MiB</th><th>bits each</th></tr>{rows}</table>"


def stored(model: Any) -> Stored:
    """Walk a model's parameters and count what each kind really takes, scales and tables of 4-bit layers included.

    Tied weights count once.
    """
    parts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            kind, count, size = f"4-bit ({state.quant_type})", state.shape.numel(), state_bytes(parameter)
        else:
            owner = modules[name.rsplit(".", 1)[0]]
            what = "adapter" if "lora_" in name else _owner(owner)
            kind, count = f"{what}, {str(parameter.dtype).removeprefix('torch.')}", parameter.numel()
            size = count * parameter.element_size()
        before = parts[kind]
        parts[kind] = before[0] + count, before[1] + size
    return Stored(dict(parts))


def state_bytes(parameter: Any) -> int:
    """Bytes of a 4-bit weight with its scales; the two tables of levels, which all layers share in kind, are left out."""
    state = parameter.quant_state
    size = parameter.data.numel() * parameter.data.element_size() + state.absmax.numel() * state.absmax.element_size()
    if state.nested:
        size += state.state2.absmax.numel() * state.state2.absmax.element_size() + state.offset.element_size()
    return int(size)


def _owner(module: Any) -> str:
    name = type(module).__name__
    if "Embedding" in name:
        return "embedding"
    return "norm" if "Norm" in name else "linear"
