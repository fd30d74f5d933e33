"""A base model with an adapter: load, attach LoRA, save, reload, merge.

The only module that knows Unsloth. Models and tokenizers are plain Hugging Face objects. Weights come from
safetensors alone, and no code from a model's repository is ever run.
"""

import functools
import gc
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit import files, runs
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitWarning, MissingArtifact, MissingExtra, ModelError
from ftkit.hardware import Hardware, detect, launch
from ftkit.models import sources
from ftkit.models.quiet import quietly
from ftkit.models.sources import BUNDLED, pretrained

_PLAIN_ATTENTION_TOKENS = 256
_WEIGHTS = "adapter_model.safetensors"
_BASE = "base.json"  # a few values of the base, by which an adapter knows it again
_BASE_VALUES = 64
_LARGEST_ALPHA = 1_000_000
SMALL_HUB_MODEL = "Qwen/Qwen2.5-1.5B-Instruct"


def default_model(hardware: Hardware | None = None) -> str:
    """A base model that suits the machine: a small ungated Hub model on a GPU, the bundled one on a CPU.

    Also the bundled one, with a warning, on a GPU from which the Hub is out of reach.
    """
    here = detect()
    if (hardware or here).device != "cuda":
        return BUNDLED
    return _in_reach(SMALL_HUB_MODEL) if here.device == "cuda" else SMALL_HUB_MODEL  # a card described by hand


@functools.cache  # an unreachable Hub takes seconds to say so, and once is enough
def _in_reach(name: str) -> str:
    try:
        return sources.resolve(name)
    except ModelError as error:
        warnings.warn(f"{error} So {BUNDLED!r} is taken.", FtkitWarning, stacklevel=3)
        return BUNDLED


def backends() -> dict[str, str]:
    """The backends that are installed, with their versions; the first is what `backend="auto"` takes."""
    versions = runs.versions()
    needed = {"unsloth": ("unsloth", "peft", "trl"), "transformers": ("transformers", "peft", "trl")}
    return {name: versions[name] for name, packages in needed.items() if all(p in versions for p in packages)}


def load(name: str | Path = BUNDLED, config: TrainConfig | None = None) -> tuple[Any, Any]:
    """Load a base model and its tokenizer, in 4-bit where `config.load_in_4bit` says so.

    Args:
        name: `BUNDLED`, a Hub id, or a local folder with safetensors.
        config: who loads it, in which number format; by default what suits this machine.

    Returns:
        The model, without an adapter, and its tokenizer with distinct stop and pad tokens where it has both.

    Raises:
        ModelError: unknown, gated, out of reach or without safetensors; says what to do.
        MissingExtra: the chosen backend is not installed.
        ConfigError: of several processes this one has no GPU of its own.
    """
    config = config or TrainConfig.for_hardware(detect())
    # oneDNN keeps compiled kernels for each new width; a thousand of them, its default, is over a GiB
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    backend = choose_backend(config)
    _refuse_shared_gpu()
    # A wrong name is refused before the seconds of an import; converting the bundled one would import transformers.
    known = None if str(name) == BUNDLED else sources.resolve(str(name))
    if backend == "unsloth":
        _import_unsloth()
    import_unsloth_first()
    source = known or sources.resolve(BUNDLED)
    with quietly(enabled=Path(source).is_dir()):  # a download keeps its progress bar
        model, tokenizer = (_load_unsloth if backend == "unsloth" else _load_transformers)(source, config)
    keep_trainable(model)
    _distinct_pad(tokenizer)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.max_length = None  # Unsloth sets it on a GPU; beside max_new_tokens every answer would warn
    return model, tokenizer


def _refuse_shared_gpu() -> None:
    """Processes that torchrun started want a GPU each: two on one would only wait for each other."""
    import torch

    here, there = launch(), torch.cuda.device_count()
    if detect().device == "cuda" and here.local >= there:
        raise ConfigError(
            f"Process {here.rank} of {here.processes} has no GPU of its own: {there} visible. Use torchrun "
            f"--nproc_per_node {there}, or hide them with CUDA_VISIBLE_DEVICES= to train on the CPU."
        )


def choose_backend(config: TrainConfig) -> str:
    """The backend that `config` gets on this machine: `"unsloth"` or `"transformers"`."""
    available = backends()
    # Unsloth always quantises the scales too: a config that asks for plain NF4 goes to bitsandbytes directly.
    plain_nf4 = config.load_in_4bit and not config.bnb_4bit_use_double_quant
    wanted = config.backend
    if wanted == "auto":
        wanted = "unsloth" if "unsloth" in available and not plain_nf4 else "transformers"
    if wanted not in available:
        raise MissingExtra(
            f"backend={wanted!r} is not installed; there are: {', '.join(available) or 'none'}. "
            "Run: make install, or in Colab ftkit.colab.install()."
        )
    if wanted == "unsloth" and plain_nf4:
        raise ConfigError(
            "bnb_4bit_use_double_quant=False: Unsloth always double-quantises. Use backend='transformers'."
        )
    return wanted


def add_lora(model: Any, config: TrainConfig) -> Any:
    """Attach a fresh LoRA adapter; the base weights freeze. A model that has an adapter comes back as it is.

    Raises:
        ConfigError: `target_modules` that the model does not have (names the ones it has) or that get no trainable
            weights, or a base model whose layers already carry an adapter from an earlier call.
        ModelError: Unsloth was to speed it up, and changed nothing.
    """
    if is_adapted(model):
        return model
    if hasattr(model, "peft_config"):
        raise ConfigError(
            "This base model already carries an adapter from an earlier add_lora or train. Go on with the model "
            "that add_lora returned, or call models.load again for a fresh one."
        )
    there = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if "Linear" in type(module).__name__}
    if missing := [name for name in config.target_modules if name not in there]:
        raise ConfigError(
            f"target_modules {', '.join(missing)} are not in this model. It has: {', '.join(sorted(there))}."
        )
    adapted = _adapted(model, config)
    trained = [name.split(".") for name, weight in adapted.named_parameters() if weight.requires_grad]
    if without := [target for target in config.target_modules if not any(target in parts for parts in trained)]:
        raise ConfigError(
            f"target_modules {', '.join(without)} got no trainable weights from {backend_of(model)}. "
            "Leave them out, or take another backend."
        )
    if backend_of(model) == "unsloth" and not any(_is_by_unsloth(module.forward) for module in adapted.modules()):
        raise ModelError(
            "Unsloth left every layer of this model as it was, so it would be neither faster nor smaller. Restart the "
            "kernel and load it before other Hugging Face imports, or use backend='transformers'."
        )
    return adapted


def _is_by_unsloth(function: Any) -> bool:
    """Whether a method, or what it wraps, was written by Unsloth or compiled into its cache."""
    function = getattr(function, "__func__", function)
    while function is not None:
        if "unsloth" in getattr(getattr(function, "__code__", None), "co_filename", ""):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _adapted(model: Any, config: TrainConfig) -> Any:
    settings: dict[str, Any] = {
        "r": config.lora_r,
        "target_modules": list(config.target_modules),
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "bias": "none",
        "use_rslora": config.use_rslora,
        **({"use_dora": True} if config.use_dora else {}),
    }
    if backend_of(model) == "unsloth":
        from unsloth import FastLanguageModel

        with quietly():
            return FastLanguageModel.get_peft_model(
                model,
                random_state=config.seed,
                use_gradient_checkpointing="unsloth" if config.gradient_checkpointing else False,
                max_seq_length=config.max_length,
                **settings,
            )
    import torch
    from peft import LoraConfig, get_peft_model

    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    torch.manual_seed(config.seed)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))


def choose_attention(model: Any, longest: int) -> None:
    """On a CPU, compute attention plainly while all rows are short: torch's fused one has a slow backward there.

    Plain ("eager") attention keeps longest² numbers a head and layer, so longer rows stay with the fused one.
    """
    if detect().device == "cpu" and longest <= _PLAIN_ATTENTION_TOKENS:
        model.set_attn_implementation("eager")


def save_adapter(model: Any, tokenizer: Any, path: str | Path) -> Path:
    """Write LoRA weights, tokenizer and chat template to a folder that appears whole or not at all.

    The adapter names the bundled model by its short name, so that the folder works on another machine.
    """
    path = Path(path)
    with files.weight_errors_explained(path), files.folder(path) as working:
        model.save_pretrained(working, safe_serialization=True)
        tokenizer.save_pretrained(working)
        facts = json.loads((working / "adapter_config.json").read_text(encoding="utf-8"))
        if Path(facts["base_model_name_or_path"] or "") == sources.bundled_location():
            facts["base_model_name_or_path"] = BUNDLED
            files.write_json(working / "adapter_config.json", facts)
        (working / "README.md").unlink(missing_ok=True)  # PEFT's empty card; publish writes a true one
        files.write_json(working / _BASE, _base_values(model))
    return path


def _base_values(model: Any) -> dict[str, Any]:
    """Evenly spaced values of the embedding, which no number format of training changes: 4-bit leaves it alone."""
    weight = model.get_input_embeddings().weight.detach()
    flat = weight.reshape(-1)
    picked = flat[:: max(1, flat.numel() // _BASE_VALUES)][:_BASE_VALUES]
    return {"shape": list(weight.shape), "values": picked.float().tolist()}


def refuse_other_base(path: Path, model: Any, name: str) -> bool:
    """Let no adapter be put on another base of the same shape: its answers would be wrong without an error.

    Returns:
        Whether the adapter's folder has values to compare; one from elsewhere has none.

    Raises:
        ModelError: they are another base's.
    """
    try:
        known = json.loads((path / _BASE).read_text(encoding="utf-8"))
        shape, values = list(known["shape"]), [float(value) for value in known["values"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False  # from elsewhere, or from before this was noted
    here = _base_values(model)
    # bf16 rounds what fp32 stores by up to 2**-8, and fp16 once more; another base differs by more, nearly everywhere
    pairs = list(zip(values, here["values"], strict=False))
    apart = sum(abs(a - b) > 1e-6 + 5e-3 * abs(a) for a, b in pairs)
    if shape != here["shape"] or apart:
        raise ModelError(
            f"{path} was trained on another base model than what {name!r} is here: {apart} of {len(pairs)} compared "
            f"values of the embedding differ (shape {shape}, here {here['shape']}). Name the base that it was trained "
            "on in its adapter_config.json, or fetch that base again."
        )
    return True


def load_adapter(path: str | Path, config: TrainConfig | None = None, *, merge: bool = False) -> tuple[Any, Any]:
    """Load an adapter on its base model, in 16-bit unless `config` says otherwise.

    With `merge=True` the adapter is added into the base weights: fast to run, and no longer trainable.

    Raises:
        MissingArtifact: the folder holds no adapter, or not its weights.
        ModelError: it is damaged, holds pickled weights or values that are no numbers, or does not fit its base model.
        ConfigError: `merge` into 4-bit weights, which would round the adapter away.
    """
    from peft import PeftModel, get_peft_model_state_dict

    path = Path(path)
    config = config or TrainConfig.for_hardware(detect(), load_in_4bit=False, backend="transformers")
    if merge and config.load_in_4bit:
        raise ConfigError(
            "merge=True with load_in_4bit=True: 4-bit weights would round the adapter away. "
            "Use config.replace(load_in_4bit=False)."
        )
    known = adapter_facts(path)
    name, shapes = known.base, known.shapes
    model, tokenizer = load(name, config)
    refuse_other_base(path, model, name)
    if merge and getattr(model, "is_loaded_in_4bit", False):
        raise ConfigError(
            f"{name} stores 4-bit weights: merging would round the adapter away. "
            "Train on the 16-bit repository of the same model."
        )
    whole = set(model.state_dict())
    with quietly(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # told below, as an error
        model = pretrained(PeftModel, path, model)
        if (path / "tokenizer_config.json").exists():
            from transformers import AutoTokenizer

            tokenizer = pretrained(AutoTokenizer, path)
            if name == BUNDLED:  # earlier versions saved it as Transformers reads it from the GGUF
                sources.as_published(tokenizer)
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    extra = [key for key in shapes.keys() - wanted.keys() if key.removeprefix("base_model.model.") not in whole]
    if odd := sorted(wanted.keys() - shapes.keys()) + sorted(extra):
        raise ModelError(
            f"{path / _WEIGHTS} does not fit {name!r} and its own adapter_config.json: {odd[0]} is "
            f"{'missing' if odd[0] in wanted else 'of no use'} ({len(odd)} of {len(wanted)} tensors). Train or fetch "
            "the adapter again, or name the base model that it was trained on."
        )
    return (model.merge_and_unload() if merge else model), tokenizer


def base_of(path: Path) -> str:
    """The base model that an adapter's config names.

    Raises:
        ModelError: the config is damaged, or names none.
    """
    return str(_adapter_settings(path / "adapter_config.json")["base_model_name_or_path"])


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter's folder says: the name of its base model, PEFT's settings, and the shape of each tensor."""

    base: str
    settings: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the matrices A and B, as `{"model.layers.0.self_attn.q_proj.lora_A": (16, 576)}`."""
        short = {key.removeprefix("base_model.model.").removesuffix(".weight"): of for key, of in self.shapes.items()}
        return {name: shape for name, shape in short.items() if name.endswith((".lora_A", ".lora_B"))}

    @property
    def targets(self) -> tuple[str, ...]:
        """Modules that it adapts, such as `("q_proj", "v_proj")`, in the order of the alphabet."""
        return tuple(sorted({name.split(".")[-2] for name in self.matrices}))


def adapter_facts(path: Path) -> AdapterFacts:
    """Read an adapter's folder without its base model.

    Raises:
        MissingArtifact: the folder holds no adapter, or not its weights.
        ModelError: it is damaged, or holds pickled weights or values that are no numbers.
    """
    if not (path / "adapter_config.json").exists():
        raise MissingArtifact(f"{path} holds no adapter. training.train writes one; Run.sample() / 'adapter' has one.")
    settings = _adapter_settings(path / "adapter_config.json")
    return AdapterFacts(settings["base_model_name_or_path"], settings, _adapter_shapes(path))


def _adapter_settings(config: Path) -> dict[str, Any]:
    """What an adapter's config says, after a look at its base model and alpha."""
    try:
        facts = json.loads(config.read_text(encoding="utf-8"))
        name, alpha = facts["base_model_name_or_path"], facts.get("lora_alpha", 1)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{config} is damaged: wanted JSON that names base_model_name_or_path. Train or fetch the adapter again."
        ) from error
    if not isinstance(name, str) or not name:
        raise ModelError(f"{config}: base_model_name_or_path={name!r} is no model's name. Write it there.")
    if not isinstance(alpha, int | float) or not 0 < alpha < _LARGEST_ALPHA:
        raise ModelError(
            f"{config}: lora_alpha={alpha!r} is no number above 0 and below {_LARGEST_ALPHA:,}, so the adapter does "
            "nothing or spoils every answer. Train or fetch the adapter again."
        )
    return dict(facts)


def _adapter_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in an adapter's file, after a look at whether all are numbers."""
    import torch
    from safetensors import SafetensorError, safe_open

    weights = path / _WEIGHTS
    if not weights.is_file():
        if any(path.glob("*.bin")) or any(path.glob("*.pt")):
            raise ModelError(
                f"{path} has pickled weights and no {_WEIGHTS}. Pickles are not loaded, because they can run code: "
                "convert them once with peft's save_pretrained on a machine that you trust."
            )
        raise MissingArtifact(f"{path} has no {_WEIGHTS}. Train or fetch the adapter again.")
    shapes = {}
    try:
        with safe_open(weights, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
                tensor = file.get_tensor(name)
                shapes[name] = tuple(tensor.shape)
                if not tensor.is_floating_point():
                    raise ModelError(
                        f"{weights}: {name} holds whole numbers ({tensor.dtype}), and LoRA weights are none. Train "
                        "or fetch the adapter again."
                    )
                if not torch.isfinite(tensor.float()).all():
                    raise ModelError(
                        f"{weights}: {name} holds values that are no numbers (NaN or infinite). Take an earlier "
                        "checkpoint, or train again with a lower learning_rate."
                    )
    except (SafetensorError, RuntimeError, OSError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{weights} is damaged ({error}). Train or fetch the adapter again.") from error
    if not shapes:
        raise ModelError(f"{weights} holds no tensors. Train or fetch the adapter again.")
    return shapes


def adapter_digest(model: Any) -> str:
    """Twelve hex digits that change with any trainable weight; "" where one of them is no number."""
    import torch

    running = hashlib.sha256()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            values = weight.detach().float()
            if not torch.isfinite(values).all():
                return ""
            running.update(name.encode())
            running.update(values.cpu().numpy().data)
    return running.hexdigest()[:12]


def base_digest(model: Any) -> str:
    """Twelve hex digits that tell the weights below the adapter of a model from others of the same name.

    Up to 1,024 values of every tensor, evenly spaced, whatever their number format: other weights differ nearly
    everywhere, and all values of a large model would take seconds. Taken from memory and not from files, so that a
    model that was changed after it was loaded, or never had files, is known as well.
    """
    import torch

    running = hashlib.sha256()
    for name, weight in model.named_parameters():
        if "lora_" not in name and "modules_to_save" not in name:
            flat = weight.detach().reshape(-1)
            picked = flat[:: max(1, flat.numel() // 1024)]
            running.update(str(tuple(weight.shape)).encode())
            running.update((picked if picked.dtype == torch.uint8 else picked.float()).cpu().contiguous().numpy().data)
    return running.hexdigest()[:12]


def backend_of(model: Any) -> str:
    """The backend that loaded this model."""
    by_unsloth = "unsloth" in sys.modules and hasattr(model, "for_training")
    return "unsloth" if by_unsloth else "transformers"


def is_adapted(model: Any) -> bool:
    """Whether the model is PEFT's wrapper around a base model with an adapter."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def parameters(model: Any) -> tuple[int, int]:
    """Trainable and total parameter counts; a 4-bit weight counts as the parameters that it stores."""
    if is_adapted(model):
        trainable, total = model.get_nb_trainable_parameters()
        return int(trainable), int(total)
    counts = {True: 0, False: 0}
    for weight in model.parameters():  # a byte of a 4-bit weight holds two of them
        counts[weight.requires_grad] += weight.numel() * (2 if type(weight).__name__ == "Params4bit" else 1)
    return counts[True], sum(counts.values())


def import_unsloth_first() -> None:
    """Import Unsloth where it is installed and Transformers is not yet here: later it could not patch."""
    if "unsloth" in backends() and "transformers" not in sys.modules:
        _import_unsloth()


def _import_unsloth() -> None:
    late = [name for name in ("transformers", "trl", "peft") if name in sys.modules]
    if late and "unsloth" not in sys.modules:
        warnings.warn(
            f"Unsloth is imported after {', '.join(late)} and may patch only part of them: slower training, more "
            "memory. Restart the kernel and call models.load, or `import unsloth`, before other Hugging Face imports.",
            FtkitWarning,
            stacklevel=3,
        )
    collecting = gc.isenabled()
    gc.disable()  # a million objects come that stay: looking for garbage among them takes a fifth of the time
    try:
        with quietly():
            import unsloth  # noqa: F401
    finally:
        if collecting:
            gc.enable()


def _load_unsloth(source: str, config: TrainConfig) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer
    from unsloth import FastLanguageModel

    pretrained(AutoConfig, source)  # what wants code of its own is refused before Unsloth sees it
    pretrained(AutoTokenizer, source)
    model, tokenizer = pretrained(
        FastLanguageModel,
        source,
        max_seq_length=config.max_length,
        dtype=_torch_dtype(config),
        load_in_4bit=config.load_in_4bit,
        use_gradient_checkpointing="unsloth" if config.gradient_checkpointing else False,
        use_exact_model_name=True,  # else a 4-bit copy from another repository would be taken in its place
    )
    return model, tokenizer


def _load_transformers(source: str, config: TrainConfig) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    dtype = _torch_dtype(config)
    double = config.bnb_4bit_use_double_quant
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double, "bnb_4bit_compute_dtype": dtype}
    tokenizer = pretrained(AutoTokenizer, source)
    model, told = pretrained(
        AutoModelForCausalLM,
        source,
        dtype=dtype,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, **nf4) if config.load_in_4bit else None,
        device_map={"": launch().local} if detect().device == "cuda" else "cpu",
        output_loading_info=True,
    )
    if missing := sorted(told["missing_keys"]):
        raise ModelError(
            f"{source!r} has no weights for {', '.join(missing[:3])}: they would be random. Fetch the model again."
        )
    return model, tokenizer


def _torch_dtype(config: TrainConfig) -> Any:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[config.dtype]


def keep_trainable(model: Any) -> None:
    """Stop bitsandbytes repacking 4-bit weights for inference on a CPU: the repacked layout has no right backward."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _distinct_pad(tokenizer: Any) -> None:
    """Give the tokenizer a pad token that is not its stop token, where its vocabulary has one."""
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        spare = ("<|finetune_right_pad_id|>", "<|vision_pad|>", "<pad>", "[PAD]", "<|endoftext|>", tokenizer.unk_token)
        there = tokenizer.get_vocab().keys() - {tokenizer.eos_token}
        tokenizer.pad_token = next((token for token in spare if token in there), tokenizer.eos_token)
