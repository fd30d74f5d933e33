"""An adapter merged into its 16-bit base: a folder that every Hugging Face loader reads, made once.

The adapter is only read. Whether the merged model answers as the adapter did is for `proof` to say.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftkit import chat, files, models
from ftkit.config import TrainConfig
from ftkit.errors import MissingArtifact, ModelError, StorageError
from ftkit.hardware import detect
from ftkit.publishing import places
from ftkit.runs import Run, versions

ORIGIN = "merged_from.json"


def merge(source: Run | str | Path, out: str | Path | None = None) -> Path:
    """Merge an adapter into its 16-bit base and save it with tokenizer and chat template in a folder `merged`.

    A whole one of the same adapter is taken as it is. The adapter is checked against its seal first, and never
    written to.

    Args:
        source: a run, or the folder of an adapter.
        out: where `merged` goes; by default `export` in the run, or the user's cache where only that has room.

    Returns:
        The folder; `export.json` beside it holds the digest.

    Raises:
        MissingArtifact: no adapter there.
        ModelError: the adapter was changed since it was saved, or does not belong to its base.
        StorageError: no room, or something else stands there. Nothing was harmed, and a second call goes on.
    """
    adapter = adapter_of(source)
    places.refuse_tampered(adapter, "Take it from a checkpoint or a copy, or train again.")
    origin = {
        "adapter": weights_digest(adapter),
        "base_model": models.base_of(adapter),
        "files": _files_digest(adapter),
    }
    folders = places.candidates(source if isinstance(source, Run) else adapter, out)
    there = [folder / places.MERGED for folder in folders if _is_whole(folder / places.MERGED, origin)]
    target = there[0] if there else _merge(adapter, origin, folders)
    digest = merged_digest(target)
    if places.record(target.parent).get(target.name, {}).get("sha256") != digest:
        places.note(target.parent, target.name, sha256=digest, **origin_of(target))
    if isinstance(source, Run) and source.path.resolve() != Run.sample().path.resolve():
        source.finish("merge", place=str(target.absolute()), sha256=digest, **origin)
    return target


def _is_whole(folder: Path, origin: Mapping[str, Any]) -> bool:
    return origin_of(folder).items() >= origin.items() and files.problem(folder) is None


def _merge(adapter: Path, origin: Mapping[str, Any], folders: list[Path]) -> Path:
    """Write the merged folder to the first place with room.

    Weights are stored in fp16, which rounds what the adapter adds eight times finer than bf16, as long as none is
    beyond its range; the config names the base's own format, so that it is computed in as the base is.
    """
    stored = _stored_format(origin["base_model"])
    for number_format in ("fp16", "bf16"):
        config = TrainConfig.for_hardware(detect(), load_in_4bit=False, backend="transformers", dtype=number_format)
        model, tokenizer = models.load_adapter(adapter, config, merge=True)
        if all(bool(weight.isfinite().all()) for weight in model.parameters()):
            break
    # the base may name another stop token than the adapter was trained to end on: then generation would not end
    stops = chat.stop_ids(tokenizer, model)
    model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    target = places.with_room(folders, needed, "the merged model") / places.MERGED
    with files.weight_errors_explained(target), files.folder(target) as working, models.quietly():
        model.save_pretrained(working)
        tokenizer.save_pretrained(working)
        told = json.loads((working / "config.json").read_text(encoding="utf-8"))
        files.write_json(working / "config.json", told | {"dtype": stored})  # what others compute in by default
        files.write_json(working / ORIGIN, {**origin, "number_format": number_format, "versions": versions()})
    return target


def _stored_format(base: str) -> str:
    """The 16-bit number format that a base model's config names: bfloat16, unless it is float16."""
    models.import_unsloth_first()
    from transformers import AutoConfig

    named = str(getattr(models.pretrained(AutoConfig, models.resolve(base)), "dtype", None))
    return "float16" if named.endswith("float16") and not named.endswith("bfloat16") else "bfloat16"


def adapter_of(source: Run | str | Path) -> Path:
    """The folder of a run's adapter, or the one that was given.

    Raises:
        MissingArtifact: it holds no adapter.
    """
    adapter = source.require("adapter") if isinstance(source, Run) else Path(source)
    if not (adapter / "adapter_config.json").is_file():
        raise MissingArtifact(f"{adapter} holds no adapter. training.train writes one; Run.sample() has one.")
    return adapter


def weights_digest(adapter: Path) -> str:
    """SHA-256 of an adapter's weights."""
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise MissingArtifact(f"{adapter} has no {weights.name}. Train or fetch the adapter again.")
    return files.digest(weights)


def _files_digest(adapter: Path) -> str:
    """One SHA-256 of all files of an adapter: a template that was mended is another export, with the same weights."""
    names = {name: path for name, path in files.inside(adapter).items() if name not in (files.SEAL, files.HIDDEN)}
    listed = "\n".join(f"{name} {files.digest(path)}" for name, path in names.items())
    return hashlib.sha256(listed.encode("utf-8", "replace")).hexdigest()


def origin_of(folder: Path) -> dict[str, Any]:
    """What a merged folder was made of; empty where it was not merged here."""
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return origin if isinstance(origin, dict) else {}


def merged_digest(folder: Path) -> str:
    """SHA-256 of the weights of a merged model; of several files, that of their digests in order."""
    sealed = (files.noted(folder) or {}).get("files", {})
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    digests = [sealed.get(name, {}).get("sha256") or files.digest(folder / name) for name in found]
    if not digests:
        raise ModelError(f"{folder} has no *.safetensors, so it is no merged model. publishing.merge makes one.")
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def check_merged(folder: str | Path) -> Path:
    """A folder with a model, after a look at its seal.

    Raises:
        MissingArtifact: no model is there.
        ModelError: it was changed since it was merged.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise MissingArtifact(f"{folder} holds no merged model: it has no config.json. publishing.merge makes one.")
    places.refuse_tampered(folder, "Remove the folder and call publishing.merge again: the adapter is untouched.")
    if not any(folder.glob("*.safetensors")):
        raise StorageError(f"{folder} has no *.safetensors. Call publishing.merge again.")
    return folder
