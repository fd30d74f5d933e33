"""The shape of a language model, read from its config alone: widths, matrices, and exact parameter counts.

Describes decoders whose layers are all alike: attention, then one feed-forward block. Refuses by name what it cannot
count honestly, such as mixtures of experts and models that also see or hear. Loads no weights and no torch.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Self

from ftkit import models
from ftkit.errors import ConfigError, ModelError


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

_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok")

_OTHER_SENSES = ("vision_config", "audio_config", "vision_tower", "mm_vision_tower", "visual")

_MEASURED_ELSEWHERE = {
    "gpt_bigcode": "its 4-bit runs need up to 60 % more in public measurements than this arithmetic says"
}


@dataclass(frozen=True)
class Matrix:
    """One weight matrix of a layer, under the name that `target_modules` uses."""

    name: str
    inputs: int
    outputs: int

    @property
    def parameters(self) -> int:
        """Weights in it, without a bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """Everything about a model that its memory depends on."""

    name: str
    family: str
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    matrices: tuple[Matrix, ...]
    layer_extra: int
    model_extra: int

    @classmethod
    def from_config(cls, config: Any, name: str = "") -> Self:
        """Read a transformers config, its dict, or the path of a `config.json` or of the folder that holds one.

        Raises:
            ConfigError: an architecture that is not described (named, with the reason), or a value that is missing.
            ModelError: the file is not there or is no JSON.
        """
        facts, given = _as_dict(config)
        family = _family(facts, name or given)
        values = {
            key: _whole(facts, key, family)
            for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
        }
        heads = values["num_attention_heads"]
        widths = Widths(
            hidden=values["hidden_size"],
            queries=heads * _optional(facts, "head_dim", family.head_dim or values["hidden_size"] // heads),
            keys=_optional(facts, "num_key_value_heads", heads)
            * _optional(facts, "head_dim", family.head_dim or values["hidden_size"] // heads),
            feed_forward=values["intermediate_size"],
            vocabulary=values["vocab_size"],
        )
        tied = facts.get("tie_word_embeddings")
        return cls(
            name=name or given or str(facts.get("_name_or_path") or family.name),
            family=family.name,
            hidden_size=widths.hidden,
            num_layers=values["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=_optional(facts, "num_key_value_heads", heads),
            head_dim=widths.queries // heads,
            intermediate_size=widths.feed_forward,
            vocab_size=widths.vocabulary,
            tie_word_embeddings=family.tied if tied is None else bool(tied),
            matrices=tuple(Matrix(*row) for row in family.matrices(widths)),
            layer_extra=family.layer_extra(widths, facts),
            model_extra=family.model_extra(widths),
        )

    @property
    def matrix_parameters(self) -> int:
        """Weights in the layers' matrices: what 4-bit loading quantises."""
        return self.num_layers * sum(matrix.parameters for matrix in self.matrices)

    @property
    def other_parameters(self) -> int:
        """Embeddings, head, norms and biases: what stays in 16-bit."""
        tables = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return tables + self.num_layers * self.layer_extra + self.model_extra

    @property
    def parameters(self) -> int:
        """All weights, tied ones counted once."""
        return self.matrix_parameters + self.other_parameters

    @property
    def gated(self) -> bool:
        """Whether the feed-forward block has a gate: three matrices, or two of them fused."""
        return any("gate" in matrix.name for matrix in self.matrices)

    @property
    def rms_norm(self) -> bool:
        """Whether its norms are RMS norms, which compute in 32-bit; the others are layer norms."""
        return FAMILIES[self.family].rms_norm

    def targets(self, names: Sequence[str]) -> tuple[Matrix, ...]:
        """The matrices of one layer that `target_modules` means.

        Raises:
            ConfigError: a name that the model does not have; lists those that it has.
        """
        there = {matrix.name: matrix for matrix in self.matrices}
        if missing := [name for name in names if name not in there]:
            raise ConfigError(
                f"target_modules {', '.join(missing)} are not in {self.name} ({self.family}). It has: {', '.join(there)}."
            )
        return tuple(there[name] for name in names)

    def lora_parameters(self, r: int, target_modules: Sequence[str], *, use_dora: bool = False) -> int:
        """Trainable parameters of an adapter: `r * (inputs + outputs)` a matrix; DoRA adds one a row of output."""
        found = self.targets(target_modules)
        return self.num_layers * sum(r * (m.inputs + m.outputs) + (m.outputs if use_dora else 0) for m in found)

    def split(self) -> Self:
        """The same model with fused matrices taken apart and named as Llama's are, as Unsloth and litgpt load it."""
        widths = Widths(
            self.hidden_size,
            self.num_attention_heads * self.head_dim,
            self.num_key_value_heads * self.head_dim,
            self.intermediate_size,
            self.vocab_size,
        )
        rows = FAMILIES["llama" if self.gated else "phi"].matrices(widths)
        return replace(self, matrices=tuple(Matrix(*row) for row in rows))

    def __str__(self) -> str:
        return f"{self.name} · {self.family} · {self.parameters:,} parameters in {self.num_layers} layers of width {self.hidden_size}"

    def _repr_html_(self) -> str:
        rows = {
            "parameters": f"{self.parameters:,}",
            "of them in the layers' matrices": f"{self.matrix_parameters:,}",
            "layers": self.num_layers,
            "hidden size": self.hidden_size,
            "feed-forward size": self.intermediate_size,
            "attention heads": f"{self.num_attention_heads}, {self.num_key_value_heads} for keys and values",
            "vocabulary": f"{self.vocab_size:,}{', head tied to the embedding' if self.tie_word_embeddings else ''}",
        }
        cells = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows.items())
        return f"<table><tr><th>{self.name}</th><th>{self.family}</th></tr>{cells}</table>"


def find(name: str | Path) -> ModelShape:
    """The shape behind a model's name: a listed one, the bundled model, a local folder, or a Hub id.

    Listed shapes (`names()`) and folders need no network; of a Hub id only `config.json` is fetched.

    Raises:
        ModelError: neither listed nor a folder, and the Hub does not give its config; says why.
        ConfigError: an architecture that is not described.
    """
    text = str(name)
    listed = _listed()
    if text in listed:
        return ModelShape.from_config(listed[text], text)
    if text in (models.BUNDLED, models.HUB_ID):
        return ModelShape.from_config(listed["HuggingFaceTB/SmolLM2-135M"], text)
    path = Path(text).expanduser()
    if path.exists():
        return ModelShape.from_config(path, path.name)
    return ModelShape.from_config(_from_hub(text), text)


def names() -> list[str]:
    """Models whose shapes come with the package, smallest first."""
    return sorted(_listed(), key=lambda name: find(name).parameters)


def _from_hub(name: str) -> str:
    from huggingface_hub import hf_hub_download

    models.resolve(name)  # explains what is wrong with a name, a gate or a connection
    return str(hf_hub_download(name, "config.json"))


@functools.cache
def _listed() -> dict[str, dict[str, Any]]:
    text = resources.files("ftkit").joinpath("samples/model_shapes.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["models"])


def _as_dict(config: Any) -> tuple[dict[str, Any], str]:
    if isinstance(config, str | Path):
        path = Path(config).expanduser()
        path = path / "config.json" if path.is_dir() else path
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ModelError(
                f"{path} does not exist. Wanted: a config.json; `memory.find` also takes names."
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} is no JSON ({error}). Wanted: the config.json of a model.") from error
        given = str(facts.get("_name_or_path") or path.parent.name) if isinstance(facts, dict) else ""
    else:
        facts = config.to_dict() if hasattr(config, "to_dict") else config
        given = str(getattr(config, "_name_or_path", "") or "")
    if not isinstance(facts, dict):
        raise ConfigError(f"Wanted a model's config, its dict or a path, not a {type(config).__name__}.")
    return facts, given


def _family(facts: dict[str, Any], name: str) -> Family:
    """The family of a config, or a refusal that names the architecture and the reason."""
    kind = str(facts.get("model_type") or "")
    who = f"{name or 'This model'} ({kind or 'no model_type'})"
    described = f"Described are: {', '.join(sorted(FAMILIES))}."
    if any(facts.get(key) for key in _EXPERT_KEYS):
        raise ConfigError(
            f"{who} is a mixture of experts: which experts a token visits decides its memory, so no estimate is given. {described}"
        )
    if any(facts.get(key) for key in _OTHER_SENSES):
        raise ConfigError(
            f"{who} also reads pictures or sound, which need memory that its text settings do not show, so no estimate is given. {described}"
        )
    if facts.get("is_encoder_decoder"):
        raise ConfigError(f"{who} is an encoder with a decoder; only decoders are described. {described}")
    if kind not in FAMILIES:
        reason = _MEASURED_ELSEWHERE.get(kind, "its layers were not checked against a real model")
        raise ConfigError(f"{who} is not described: {reason}, so no estimate is given. {described}")
    return FAMILIES[kind]


def _whole(facts: dict[str, Any], key: str, family: Family) -> int:
    value = facts.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key}={value!r} in the config of this {family.name}: wanted a whole number of 1 or more.")
    return value


def _optional(facts: dict[str, Any], key: str, otherwise: int) -> int:
    value = facts.get(key)
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key}={value!r} in this config: wanted a whole number of 1 or more.")
    return value
