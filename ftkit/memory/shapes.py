"""The shape of a language model: its widths, the matrices of a layer, and exact parameter counts.

Listed models come as numbers; any other is built once from its config on torch's meta device, which takes no memory.
Describes decoders whose layers are all alike, attention and then one feed-forward block, and refuses by name what it
cannot count honestly, such as mixtures of experts and models that also see or hear. Loads no weights.
"""

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from ftkit import files, models, tables
from ftkit.errors import ConfigError, ModelError


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


@tables.shown
@dataclass(frozen=True)
class ModelShape:
    """Everything about a model that its memory depends on."""

    name: str
    family: str  # its `model_type`
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    matrices: tuple[Matrix, ...]  # those of one layer
    other_parameters: int  # embeddings, head, norms and biases: what stays in 16-bit
    rms_norm: bool  # RMS norms compute in 32-bit; the others are layer norms

    @classmethod
    def from_config(cls, config: Any, name: str = "") -> "ModelShape":
        """Read a transformers config, its dict, or the path of a `config.json` or of the folder that holds one.

        Raises:
            ConfigError: an architecture that is not described (named, with the reason), or a value that is missing.
            ModelError: the file is not there or is no JSON.
        """
        facts, given = _facts(config)
        who = f"{name or given or 'This model'} ({facts.get('model_type') or 'no model_type'})"
        _refuse(facts, who)
        found = _by_widths().get(_widths(facts)) or _built(json.dumps(facts, sort_keys=True, default=str), who)
        return replace(found, name=name or given or found.family)

    @functools.cached_property
    def matrix_parameters(self) -> int:
        """Weights in the layers' matrices: what 4-bit loading quantises."""
        return self.num_layers * sum(matrix.parameters for matrix in self.matrices)

    @property
    def parameters(self) -> int:
        """All weights, tied ones counted once."""
        return self.matrix_parameters + self.other_parameters

    @property
    def queries(self) -> int:
        """Width of all queries together."""
        return self.num_attention_heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys together, and of all values."""
        return self.num_key_value_heads * self.head_dim

    @functools.cached_property
    def feed_forwards(self) -> float:
        """How many matrices of the feed-forward block's size a layer has: 3 where it has a gate, else 2."""
        attention = 2 * self.hidden_size * (self.queries + self.keys)
        rest = sum(matrix.parameters for matrix in self.matrices) - attention
        return rest / (self.hidden_size * self.intermediate_size)

    def targets(self, names: Sequence[str]) -> tuple[Matrix, ...]:
        """The matrices of one layer that `target_modules` means; a ConfigError names those that the model lacks."""
        there = {matrix.name: matrix for matrix in self.matrices}
        if missing := [name for name in names if name not in there]:
            lacking = f"target_modules {', '.join(missing)} are not in {self.name} ({self.family})"
            raise ConfigError(f"{lacking}. It has: {', '.join(there)}.")
        return tuple(there[name] for name in names)

    def lora_parameters(self, r: int, target_modules: Sequence[str], *, use_dora: bool = False) -> int:
        """Trainable parameters of an adapter: `r * (inputs + outputs)` a matrix; DoRA adds one a row of output."""
        found = self.targets(target_modules)
        each = sum(r * (matrix.inputs + matrix.outputs) for matrix in found)
        magnitudes = sum(matrix.outputs for matrix in found) if use_dora else 0
        return self.num_layers * (each + magnitudes)

    def split(self) -> Self:
        """The same with fused matrices taken apart and named as Llama's or Phi's are: so Unsloth and litgpt load it."""
        gated = self.feed_forwards == 3
        hidden, wide = self.hidden_size, self.intermediate_size
        attention = (
            Matrix("q_proj", hidden, self.queries),
            Matrix("k_proj", hidden, self.keys),
            Matrix("v_proj", hidden, self.keys),
            Matrix("o_proj" if gated else "dense", self.queries, hidden),
        )
        *into, out = ("gate_proj", "up_proj", "down_proj") if gated else ("fc1", "fc2")
        block = (*(Matrix(name, hidden, wide) for name in into), Matrix(out, wide, hidden))
        return replace(self, matrices=attention + block)

    def _parts(self) -> list[tables.Table]:
        tied = ", head tied to the embedding" if self.tie_word_embeddings else ""
        rows = (
            ("parameters", f"{self.parameters:,}"),
            ("of them in the layers' matrices", f"{self.matrix_parameters:,}"),
            ("layers", self.num_layers),
            ("hidden size", self.hidden_size),
            ("feed-forward size", self.intermediate_size),
            ("attention heads", f"{self.num_attention_heads}, {self.num_key_value_heads} for keys and values"),
            ("vocabulary", f"{self.vocab_size:,}{tied}"),
        )
        return [tables.Table((), rows, caption=f"{self.name} · {self.family}")]


def find(name: str | Path) -> ModelShape:
    """The shape behind a model's name: a listed one (`names()`), the bundled model, a local folder, or a Hub id.

    Of a Hub id only `config.json` is fetched.

    Raises:
        ModelError: neither listed nor a folder, and the Hub does not give its config; says why.
        ConfigError: an architecture that is not described.
    """
    text = str(name)
    bundled = text in (models.BUNDLED, models.HUB_ID)
    if listed := _listed().get("HuggingFaceTB/SmolLM2-135M" if bundled else text):
        return replace(listed, name=text)
    path = Path(text).expanduser()
    if path.exists():
        return ModelShape.from_config(path, path.name)
    from huggingface_hub import hf_hub_download

    models.resolve(text)  # explains what is wrong with a name, a gate or a connection
    return ModelShape.from_config(hf_hub_download(text, "config.json"), text)


def names() -> list[str]:
    """Models whose shapes come with the package, smallest first."""
    return sorted(_listed(), key=lambda name: find(name).parameters)


_WIDTHS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_OPTIONAL = ("num_key_value_heads", "head_dim")


@functools.cache
def _listed_facts() -> dict[str, dict[str, Any]]:
    return dict(files.sample("model_shapes")["models"])


@functools.cache
def _listed() -> dict[str, ModelShape]:
    return {name: _shape(name, facts) for name, facts in _listed_facts().items()}


@functools.cache
def _by_widths() -> dict[tuple[Any, ...], ModelShape]:
    """The listed models by all that their counts follow from: a model that was tuned from one is known as well."""
    return {_widths(facts): _listed()[name] for name, facts in _listed_facts().items()}


def _widths(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    heads = facts["num_attention_heads"]
    return (
        facts["model_type"],
        *(facts[key] for key in _WIDTHS),
        facts.get("num_key_value_heads") or heads,
        facts.get("head_dim") or facts["hidden_size"] // heads,
        facts.get("tie_word_embeddings"),
        bool(facts.get("attention_bias")),
        bool(facts.get("mlp_bias")),
    )


def _shape(name: str, facts: Mapping[str, Any]) -> ModelShape:
    named: dict[str, Any] = {"name": name, "family": facts["model_type"], "num_layers": facts["num_hidden_layers"]}
    named["matrices"] = tuple(Matrix(matrix, *sizes) for matrix, sizes in facts["matrices"].items())
    same = {field.name: facts[field.name] for field in fields(ModelShape) if field.name not in named}
    return ModelShape(**named, **same)


@functools.lru_cache(maxsize=64)
def _built(text: str, who: str) -> ModelShape:
    """Counted on a model that transformers builds from the config without memory; any decoder that it knows."""
    models.import_unsloth_first()
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    facts = json.loads(text)
    kept = {key: value for key, value in facts.items() if key not in ("quantization_config", "dtype", "torch_dtype")}
    # tokens outside of a small vocabulary only make transformers warn
    kept |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    try:
        config = CONFIG_MAPPING[facts["model_type"]].from_dict(kept)
        with torch.device("meta"):
            model = models.pretrained(AutoModelForCausalLM, config)
    except (KeyError, ValueError, TypeError, StrictDataclassError, ModelError) as error:
        raise _not_described(who, "transformers builds no language model from its config") from error
    # inputs and outputs of a layer's linear parts, by name; none where layers differ or use a name twice
    counts: Counter[tuple[str, tuple[int, int]]] = Counter()
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            counts[path.rpartition(".")[2], (module.in_features, module.out_features)] += 1
    matrices = dict(counts.keys())
    if len(matrices) != len(counts) or set(counts.values()) != {config.num_hidden_layers}:
        matrices = {}
    inside = config.num_hidden_layers * sum(inputs * outputs for inputs, outputs in matrices.values())
    counted = {
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "matrices": matrices,
        "other_parameters": sum(p.numel() for p in model.parameters()) - inside,
        "rms_norm": any("RMSNorm" in type(module).__name__ for module in model.modules()),
    }
    found = _shape("", facts | counted)
    if found.feed_forwards not in (2, 3):
        raise _not_described(who, "its matrices do not add up to layers of attention and one feed-forward block")
    return found


_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok")
_OTHER_SENSES = ("vision_config", "audio_config", "vision_tower", "mm_vision_tower", "visual")
_DESCRIBED = "Described are decoders whose layers are all alike, such as Llama, Mistral, Qwen, Gemma, Phi and OLMo."


def _facts(config: Any) -> tuple[dict[str, Any], str]:
    """The config as a dict, and the name that it bears."""
    if isinstance(config, str | Path):
        path = Path(config).expanduser()
        path = path / "config.json" if path.is_dir() else path
        if not path.exists():
            raise ModelError(f"{path} does not exist. Wanted: a config.json; `memory.find` also takes names.")
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} is no JSON ({error}). Wanted: the config.json of a model.") from error
        given = path.parent.name
    else:
        facts = config.to_dict() if hasattr(config, "to_dict") else config
        given = str(getattr(config, "_name_or_path", "") or "")
    if not isinstance(facts, dict):
        raise ConfigError(f"Wanted a model's config, its dict or a path, not a {type(config).__name__}.")
    return facts, str(facts.get("_name_or_path") or given)


def _refuse(facts: Mapping[str, Any], who: str) -> None:
    """Refuse what a decoder's arithmetic would count wrongly, and damaged widths, before anything is built."""
    if any(facts.get(key) for key in _EXPERT_KEYS):
        reason = "is a mixture of experts: which experts a token visits decides its memory"
        raise ConfigError(f"{who} {reason}, so no estimate is given. {_DESCRIBED}")
    if any(facts.get(key) for key in _OTHER_SENSES):
        reason = "also reads pictures or sound, which need memory that its text settings do not show"
        raise ConfigError(f"{who} {reason}, so no estimate is given. {_DESCRIBED}")
    if facts.get("is_encoder_decoder"):
        raise ConfigError(f"{who} is an encoder with a decoder; only decoders are described. {_DESCRIBED}")
    if not facts.get("model_type"):
        raise _not_described(who, "its config names no architecture")
    if facts["model_type"] == "gpt_bigcode":
        reason = "its 4-bit runs need up to 60 % more in public measurements than this arithmetic says"
        raise _not_described(who, reason)
    for key in (*_WIDTHS, *_OPTIONAL):
        value = facts.get(key)
        if value is None and key in _OPTIONAL:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            where = f"{key}={value!r} in the config of this {facts['model_type']}"
            raise ConfigError(f"{where}: wanted a whole number of 1 or more.")


def _not_described(who: str, reason: str) -> ConfigError:
    return ConfigError(f"{who} is not described: {reason}, so no estimate is given. {_DESCRIBED}")
