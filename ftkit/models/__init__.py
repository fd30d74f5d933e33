"""A base model with an adapter: load, extend, save, reload, generate; plain Hugging Face objects throughout."""

from ftkit.models.endpoint import Endpoint, LocalModel
from ftkit.models.generation import Answer, generate
from ftkit.models.likelihood import TokenRow, answer_logits, answer_nll, batches, context_tokens, evaluating, padded
from ftkit.models.loading import (
    adapter_digest,
    add_lora,
    backend_of,
    backends,
    base_digest,
    base_of,
    choose_attention,
    default_model,
    import_unsloth_first,
    is_adapted,
    keep_trainable,
    load,
    load_adapter,
    parameters,
    save_adapter,
)
from ftkit.models.quiet import quietly
from ftkit.models.sources import BUNDLED, HUB_ID, bundled_location, cache_root, pretrained, resolve

__all__ = [
    "BUNDLED",
    "HUB_ID",
    "Answer",
    "Endpoint",
    "LocalModel",
    "TokenRow",
    "adapter_digest",
    "add_lora",
    "answer_logits",
    "answer_nll",
    "backend_of",
    "backends",
    "base_digest",
    "base_of",
    "batches",
    "bundled_location",
    "cache_root",
    "choose_attention",
    "context_tokens",
    "default_model",
    "evaluating",
    "generate",
    "import_unsloth_first",
    "is_adapted",
    "keep_trainable",
    "load",
    "load_adapter",
    "padded",
    "parameters",
    "pretrained",
    "quietly",
    "resolve",
    "save_adapter",
]
