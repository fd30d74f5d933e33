"""What rounding weights costs and saves: error by number format, bits really stored, bytes of a loaded model.

Formats come from bitsandbytes; int4 and int8 are plain symmetric rounding in blocks, for comparison. Trains nothing.
"""

import copy
from dataclasses import dataclass
from typing import Any

from ftkit import tables

KINDS = ("nf4", "fp4", "int4", "int8")


def roundtrip(weights: Any, kind: str = "nf4", blocksize: int | None = 64) -> Any:
    """`weights` after they were stored as `kind` with one scale for each `blocksize` neighbours, and read back as fp32.

    Any shape will do; `blocksize=None` takes one scale for all.

    Raises:
        ValueError: `kind` is not one of `KINDS`.
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


def nf4_levels() -> Any:
    """The levels of NF4 by their construction (Dettmers et al. 2023, section 3), ascending, between -1 and 1.

    Eight above zero and seven below, at evenly spaced shares of a normal distribution; zero; all over the largest.
    """
    import torch

    outermost = 0.9677083  # halfway between 1 - 1/32 and 1 - 1/30: at 1 the level would be infinite
    above = torch.special.ndtri(torch.linspace(outermost, 0.5, 9)[:-1].double())
    below = -torch.special.ndtri(torch.linspace(outermost, 0.5, 8)[:-1].double())
    levels = torch.cat([above, below, torch.zeros(1)]).float().sort().values
    return levels / levels.max()


def rounded(model: Any, kind: str = "nf4", blocksize: int | None = 64) -> Any:
    """A copy of a 16-bit `model` in which the matrices of every layer went through `roundtrip`."""
    import torch

    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in projections(other):
            weight.copy_(roundtrip(weight, kind, blocksize))
    return other


def projections(model: Any) -> list[Any]:
    """The weights of a Llama-like model's layers, in order: those that 4-bit loading rounds."""
    return [module.weight for name, module in model.named_modules() if name.endswith("_proj")]


def packed_codes(model: Any) -> dict[str, Any]:
    """A copy of what 4-bit layers store instead of weights: two codes a byte."""
    import torch

    codes = {}
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.uint8:
            codes[name] = parameter.data.clone()
    return codes


def error(weights: Any, kind: str = "nf4", blocksize: int | None = 64) -> float:
    """Relative root-mean-square error of storing `weights` as `kind`: 0.1 means a tenth of their own size."""
    exact = weights.detach().float()
    return float((roundtrip(exact, kind, blocksize) - exact).norm() / exact.norm())


@tables.shown
@dataclass(frozen=True)
class Stored:
    """Where a model's bytes are: parameters and bytes for each kind of storage."""

    parts: dict[str, tuple[int, int]]

    @property
    def gib(self) -> float:
        """All of it in GiB."""
        return self._sums("all")[1] / 2**30

    def bits(self, part: str) -> float:
        """Bits per parameter of one part, or of "all"."""
        count, size = self._sums(part)
        return 8 * size / count

    def _sums(self, part: str) -> tuple[int, int]:
        if part != "all":
            return self.parts[part]
        counts, sizes = zip(*self.parts.values(), strict=True)
        return sum(counts), sum(sizes)

    def _parts(self) -> list[tables.Table | str]:
        rows = []
        for part in (*self.parts, "all"):
            count, size = self._sums(part)
            rows.append((part, f"{count:,}", f"{size / 2**20:,.1f}", f"{self.bits(part):.3f}"))
        return [tables.Table(("stored as", "parameters", "MiB", "bits each"), rows)]


def stored(model: Any) -> Stored:
    """Walk a model's parameters and count what each kind really takes, scales and tables of 4-bit layers included.

    Tied weights count once.
    """
    parts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors = [parameter.data, state.absmax]
            if state.nested:  # the two tables of levels, alike in all layers, are left out
                tensors += [state.state2.absmax, state.offset]
            kind, count = f"4-bit ({state.quant_type})", state.shape.numel()
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        else:
            what = "adapter" if "lora_" in name else _owner(model.get_submodule(name.rpartition(".")[0]))
            kind, count = f"{what}, {str(parameter.dtype).removeprefix('torch.')}", parameter.numel()
            size = count * parameter.element_size()
        counts, sizes = parts.get(kind, (0, 0))
        parts[kind] = counts + count, sizes + size
    return Stored(parts)


def _owner(module: Any) -> str:
    name = type(module).__name__
    if "Embedding" in name:
        return "embedding"
    return "norm" if "Norm" in name else "linear"
