"""The arithmetic of low-rank updates: how many parameters an adapter has, what a rank can hold, how far a step moves.

Knows shapes and matrices, no language models; `models.add_lora` attaches real adapters.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit.tables import Table


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


def target_table(layers: Sequence[Target], r: int) -> Table:
    """For each kind of matrix its shape, and how many numbers it and its part of an adapter have in all layers."""
    kinds: dict[str, list[Target]] = {}
    for layer in layers:
        kinds.setdefault(layer.name.rsplit(".", 1)[-1], []).append(layer)
    rows = []
    for name, alike in kinds.items():
        shape = f"{alike[0].d_in:,} → {alike[0].d_out:,}"
        full = sum(layer.d_in * layer.d_out for layer in alike)
        rows.append((name, shape, f"{full:,}", f"{adapter_parameters(alike, r):,}"))
    full = sum(layer.d_in * layer.d_out for layer in layers)
    rows.append(("all", "", f"{full:,}", f"{adapter_parameters(layers, r):,}"))
    return Table(("matrix", "inputs → outputs", "numbers in W, all layers", f"in A and B, r={r}"), rows)


def gaps_to_peft(by_hand: Callable[..., Any], layer: Any, alpha: float) -> dict[str, float]:
    """Largest differences in output and gradients between `by_hand(x, W, A, B, alpha)` and PEFT's own LoRA `layer`.

    Both get the same input, the layer's A, and a random B: a B of zeros would hide every difference.
    """
    import torch

    x = torch.randn(32, layer.in_features)
    theirs = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(theirs[1])
    ours = [weight.detach().clone().requires_grad_() for weight in theirs]
    outputs = by_hand(x, layer.base_layer.weight, *ours, alpha), layer(x)
    by_hand_gradients = torch.autograd.grad(outputs[0].square().mean(), ours)
    gradients = torch.autograd.grad(outputs[1].square().mean(), theirs)
    pairs = {
        "output": outputs,
        "A's gradient": (by_hand_gradients[0], gradients[0]),
        "B's gradient": (by_hand_gradients[1], gradients[1]),
    }
    return {name: float((one - other).detach().abs().max()) for name, (one, other) in pairs.items()}


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


def rank_shares(values: Sequence[float]) -> list[float]:
    """Share of a matrix's squared size that its best approximation of rank 0, 1, 2 … keeps, from its singular values.

    The squared size is the sum of all squared entries, which is the sum of the squared singular values (Eckart and
    Young 1936).
    """
    kept = [0.0, *itertools.accumulate(value**2 for value in values)]
    return [part / kept[-1] for part in kept]


def truncated(update: Any, r: int) -> Any:
    """The matrix of rank `r` that lies closest to `update` (Eckart and Young 1936), in its dtype."""
    import torch

    left, values, right = torch.linalg.svd(update.detach().float(), full_matrices=False)
    return ((left[:, :r] * values[:r]) @ right[:r]).to(update.dtype)
