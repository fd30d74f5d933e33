"""From a model's name to something that loads: the bundled model, a local folder, or a Hub id that can be reached."""

from pathlib import Path

from ftkit import bundled
from ftkit.errors import ModelError


def resolve(name: str) -> str:
    """A local folder's path, or a Hub id whose config can be read (from the cache when offline).

    Raises:
        ModelError: unknown, gated, unreachable, or without safetensors; says what to do.
    """
    if not name.strip():
        raise ModelError(
            f"The model's name is empty. Give a Hub id such as 'Qwen/Qwen2.5-1.5B-Instruct', or {bundled.NAME!r}."
        )
    if name == bundled.NAME:
        return str(bundled.folder())
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked_folder(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"{name!r}: no such folder. Give a Hub id such as 'Qwen/Qwen2.5-1.5B-Instruct', or {bundled.NAME!r}."
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
    offline = f"The bundled model {bundled.NAME!r} needs no network."
    try:
        hf_hub_download(name, "config.json")
    except HFValidationError as error:
        raise ModelError(f"{name!r} is no model name: a Hub id is 'owner/name'. {offline}") from error
    except GatedRepoError as error:
        raise ModelError(
            f"{name!r} is gated. Open {page}, accept its terms, then run `hf auth login` or set HF_TOKEN. "
            f"Ungated: 'Qwen/Qwen2.5-1.5B-Instruct', {bundled.NAME!r}."
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
