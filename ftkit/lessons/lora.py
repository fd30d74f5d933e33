"""The arithmetic of low-rank updates: how many parameters an adapter has, what a rank can hold, how far a step moves.

Knows shapes and matrices, no language models; `models.add_lora` attaches real adapters.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A linear layer that an adapter can attach to: `out = weight @ input`, weight of shape (d_out, d_in)."""

    name: str
    d_in: int
    d_out: int


def targets(model: Any, names: Iterable[str]) -> list[Target]:
    """The linear layers of `model` whose last name is in `names`, in order; it may be 4-bit, adapted or on "meta".

    Raises:
        ValueError: no layer has one of these names.
    """
    wanted = set(names)
    found = [
        Target(name, module.in_features, module.out_features)
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in wanted and hasattr(module, "in_features")
    ]
    if not found:
        raise ValueError(f"This model has no layer named {', '.join(sorted(wanted))}.")
    return found


def adapter_parameters(layers: Sequence[Target], r: int) -> int:
    """Trainable parameters of an adapter: A has r x d_in numbers, B d_out x r (Hu et al. 2021, section 4.1)."""
    return sum(r * (layer.d_in + layer.d_out) for layer in layers)


def step_size(alpha: float, r: int) -> float:
    """How far one step of Adam moves a layer of 64 inputs and outputs: the norm of the change of alpha / r x BA.

    A is the same for every alpha, B begins at zero, and the layer is asked to undo the identity.
    """
    import torch

    A = torch.randn(r, 64, generator=torch.manual_seed(0)) / 8  # noqa: N806
    B = torch.zeros(64, r, requires_grad=True)  # noqa: N806
    answer = torch.ones(4, 64) + alpha / r * torch.ones(4, 64) @ A.T @ B.T
    answer.square().mean().backward()
    torch.optim.Adam([B], lr=1e-3).step()
    return alpha / r * float((B.detach() @ A).norm())


def rank_errors(values: Sequence[float]) -> list[float]:
    """Relative Frobenius error of the best approximation at rank 0, 1, 2 …, of singular values (Eckart, Young 1936)."""
    squares = [value**2 for value in values]
    return [math.sqrt(sum(squares[rank:]) / sum(squares)) for rank in range(len(squares) + 1)]


def truncated(update: Any, r: int) -> Any:
    """The matrix of rank `r` that lies closest to `update` (Eckart and Young 1936), in its dtype."""
    import torch

    left, values, right = torch.linalg.svd(update.detach().float(), full_matrices=False)
    return ((left[:, :r] * values[:r]) @ right[:r]).to(update.dtype)
