"""Families of decoders: the matrices in a layer, and how many norms and biases stand around them.

Each row was compared with a model of that family built by transformers; see `tests/test_shapes.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Widths:
    """The widths inside one layer: of its stream, of all queries, of all keys, of the feed-forward block."""

    hidden: int
    queries: int
    keys: int
    feed_forward: int
    vocabulary: int


Rows = list[tuple[str, int, int]]


def _split_attention(w: Widths, out: str = "o_proj") -> Rows:
    return [
        ("q_proj", w.hidden, w.queries),
        ("k_proj", w.hidden, w.keys),
        ("v_proj", w.hidden, w.keys),
        (out, w.queries, w.hidden),
    ]


def _llama(w: Widths) -> Rows:
    ff = [
        ("gate_proj", w.hidden, w.feed_forward),
        ("up_proj", w.hidden, w.feed_forward),
        ("down_proj", w.feed_forward, w.hidden),
    ]
    return _split_attention(w) + ff


def _phi3(w: Widths) -> Rows:
    return [
        ("qkv_proj", w.hidden, w.queries + 2 * w.keys),
        ("o_proj", w.queries, w.hidden),
        ("gate_up_proj", w.hidden, 2 * w.feed_forward),
        ("down_proj", w.feed_forward, w.hidden),
    ]


def _phi(w: Widths) -> Rows:
    return [*_split_attention(w, "dense"), ("fc1", w.hidden, w.feed_forward), ("fc2", w.feed_forward, w.hidden)]


def _neox(w: Widths) -> Rows:
    return [
        ("query_key_value", w.hidden, w.queries + 2 * w.keys),
        ("dense", w.queries, w.hidden),
        ("dense_h_to_4h", w.hidden, w.feed_forward),
        ("dense_4h_to_h", w.feed_forward, w.hidden),
    ]


def _plain(w: Widths, facts: Mapping[str, Any]) -> int:
    """Two norms; biases where the config asks for them."""
    attention = w.queries + 2 * w.keys + w.hidden if facts.get("attention_bias") else 0
    return 2 * w.hidden + attention + (2 * w.feed_forward + w.hidden if facts.get("mlp_bias") else 0)


def _head_dim(w: Widths, facts: Mapping[str, Any]) -> int:
    return w.queries // int(facts["num_attention_heads"])


def _qwen2(w: Widths, facts: Mapping[str, Any]) -> int:
    return 2 * w.hidden + w.queries + 2 * w.keys


def _qwen3(w: Widths, facts: Mapping[str, Any]) -> int:
    return _plain(w, facts) + 2 * _head_dim(w, facts)


def _gemma2(w: Widths, facts: Mapping[str, Any]) -> int:
    return _plain(w, facts) + 2 * w.hidden


def _gemma3(w: Widths, facts: Mapping[str, Any]) -> int:
    return _gemma2(w, facts) + 2 * _head_dim(w, facts)


def _olmo2(w: Widths, facts: Mapping[str, Any]) -> int:
    return _plain(w, facts) + w.queries + w.keys


def _phi_extra(w: Widths, facts: Mapping[str, Any]) -> int:
    return 2 * w.hidden + w.queries + 2 * w.keys + 2 * w.hidden + w.feed_forward


def _neox_extra(w: Widths, facts: Mapping[str, Any]) -> int:
    attention = w.queries + 2 * w.keys + w.hidden if facts.get("attention_bias", True) else 0
    return 4 * w.hidden + attention + w.feed_forward + w.hidden


def _one_norm(w: Widths) -> int:
    return w.hidden


@dataclass(frozen=True)
class Family:
    """How to count one `model_type`.

    Attributes:
        name: the `model_type`.
        matrices: rows of name, inputs and outputs, for one layer.
        layer_extra: norms and biases of one layer.
        model_extra: what stands outside the layers besides embedding and head.
        tied: whether the head shares the embedding where the config does not say.
        head_dim: where the config does not say; 0 divides the hidden size by the heads.
        rms_norm: whether its norms are RMS norms; otherwise layer norms.
    """

    name: str
    matrices: Callable[[Widths], Rows] = _llama
    layer_extra: Callable[[Widths, Mapping[str, Any]], int] = _plain
    model_extra: Callable[[Widths], int] = _one_norm
    tied: bool = False
    head_dim: int = 0
    rms_norm: bool = True


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("llama"),
        Family("mistral"),
        Family("granite"),
        Family("smollm3", tied=True),
        Family("qwen2", layer_extra=_qwen2),
        Family("qwen3", layer_extra=_qwen3, head_dim=128),
        Family("gemma", tied=True, head_dim=256),
        Family("gemma2", layer_extra=_gemma2, tied=True, head_dim=256),
        Family("gemma3_text", layer_extra=_gemma3, tied=True, head_dim=256),
        Family("olmo2", layer_extra=_olmo2),
        Family("olmo3", layer_extra=_olmo2),
        Family("phi3", _phi3),
        Family("phi", _phi, _phi_extra, lambda w: 2 * w.hidden + w.vocabulary, rms_norm=False),
        Family("gpt_neox", _neox, _neox_extra, lambda w: 2 * w.hidden, rms_norm=False),
    )
}
