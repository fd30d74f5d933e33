"""Run by the Python of Axolotl's own environment, never imported: what it makes of files.

`python inside_axolotl.py check FILE…` or `rows FILE` or `stored FILE` ends with one line of JSON. The schema is read
from the release that is installed, whichever that is.
"""

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def check(*paths: str) -> dict[str, Any]:
    """The names of the schema; of each file those that it does not know, and why it refuses the file, or ""."""
    import yaml
    from axolotl.cli.config import gpu_capabilities
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.config import AxolotlInputConfig

    names = {field.alias or name for name, field in AxolotlInputConfig.model_fields.items()}
    said = []
    for path in paths:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        refused = ""
        try:
            validate_config(DictDefault(given), *gpu_capabilities())
        except (ValueError, TypeError, DeprecationWarning) as error:
            refused = str(error)
        said.append({"unknown": sorted(set(given) - names), "refused": refused})
    return {"release": metadata.version("axolotl"), "fields": sorted(names), "files": said}


def rows(path: str) -> dict[str, Any]:
    """Token ids and labels of the rows that Axolotl would train."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets

    made = load_datasets(cfg=load_cfg(path)).train_dataset
    return {name: made[name][:] for name in ("input_ids", "labels")}


def stored(path: str) -> dict[str, Any]:
    """How many parameters of the loaded model are kept in which format."""
    from axolotl.cli.config import load_cfg
    from axolotl.loaders import ModelLoader, load_tokenizer

    cfg = load_cfg(path)
    model, _ = ModelLoader(cfg, load_tokenizer(cfg)).load()
    counts: dict[str, int] = {}
    for weight in model.parameters():
        packed = type(weight).__name__ == "Params4bit"  # its bytes hold two parameters each, whatever type they bear
        kind = "4-bit" if packed else str(weight.dtype).removeprefix("torch.")
        held = weight.numel() * weight.itemsize * 2 if packed else weight.numel()
        counts[kind] = counts.get(kind, 0) + held
    return counts


if __name__ == "__main__":
    name, *files = sys.argv[1:]
    made = check(*files) if name == "check" else {"rows": rows, "stored": stored}[name](files[0])
    print("\n" + json.dumps(made))
