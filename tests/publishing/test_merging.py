"""Merging: the folder is the adapter in its base, made once, and nothing that is there is harmed."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import LLAMA3

from ftkit import Run, files, models, publishing
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitWarning, MissingArtifact, ModelError, StorageError
from ftkit.publishing import merging, places

Usage = namedtuple("Usage", "total used free")
CONFIG = TrainConfig(backend="transformers", load_in_4bit=False, dtype="fp32")


@pytest.fixture(autouse=True)
def _untouched(untouched):
    """No test of this file changes the adapter, unless it does so itself."""


def test_the_merged_weights_are_the_base_and_the_scaled_product(run):
    """W + B·A·alpha/r, rounded to 16 bits once (Hu et al. 2021)."""
    merged = load_file(publishing.merge(run) / "model.safetensors")
    base = load_file(f"{models.base_of(run / 'adapter')}/model.safetensors")
    adapter = load_file(run / "adapter/adapter_model.safetensors")
    facts = json.loads((run / "adapter/adapter_config.json").read_text())
    name = "model.layers.0.self_attn.q_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"].float() for side in "AB")
    wanted = base[f"{name}.weight"].float() + b @ a * (facts["lora_alpha"] / facts["r"])
    assert torch.equal(wanted.to(torch.float16), merged[f"{name}.weight"])


def test_it_is_computed_in_as_the_base_is(run):
    """fp16 stores finer; to compute in it could overflow where the base's bf16 does not."""
    merged = publishing.merge(run)
    told = [json.loads(Path(folder, "config.json").read_text()) for folder in (models.base_of(run / "adapter"), merged)]
    assert told[0]["dtype"] == told[1]["dtype"] == "bfloat16"


def test_a_weight_beyond_fp16_is_kept_in_bf16(run):
    base = Path(models.base_of(run / "adapter"), "model.safetensors")
    written, weights = base.read_bytes(), load_file(base)
    weights["model.norm.weight"][0] = 1e6
    save_file(weights, base, {"format": "pt"})
    try:
        merged = load_file(publishing.merge(run) / "model.safetensors")
    finally:
        base.write_bytes(written)
    assert merged["model.norm.weight"].dtype == torch.bfloat16
    assert merged["model.norm.weight"][0] > 9e5


def test_tokenizer_and_template_go_along(run, tokenizer):
    _, loaded = models.load(publishing.merge(run), CONFIG)
    assert (loaded.chat_template, loaded.eos_token) == (tokenizer.chat_template, tokenizer.eos_token)


def test_it_stops_where_the_training_stopped(run):
    """The base may name another stop token than the tokenizer that the adapter was trained with."""
    base = Path(models.base_of(run / "adapter"), "generation_config.json")
    written = base.read_text()
    base.write_text(json.dumps(json.loads(written) | {"eos_token_id": 0}))
    try:
        made = publishing.merge(run)
    finally:
        base.write_text(written)
    assert json.loads((made / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_the_digest_is_noted_beside_it_and_in_the_run(run):
    merged = publishing.merge(run)
    digest = files.digest(merged / "model.safetensors")
    assert places.record(run / "export")["merged"]["sha256"] == run.facts["merge"]["sha256"] == digest
    assert run.facts["merge"]["adapter"] == files.digest(run / "adapter/adapter_model.safetensors")


def test_a_second_call_takes_what_is_there(run):
    written = (publishing.merge(run) / "model.safetensors").stat().st_mtime_ns
    assert (publishing.merge(run) / "model.safetensors").stat().st_mtime_ns == written


def test_a_merged_folder_that_was_changed_is_made_anew(run):
    """Nothing is exported from weights that nobody wrote."""
    weights = publishing.merge(run) / "model.safetensors"
    digest = files.digest(weights)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=r"model.safetensors does not have the digest.*publishing.merge again"):
        merging.check_merged(weights.parent)
    assert files.digest(publishing.merge(run) / "model.safetensors") == digest


def test_files_of_others_are_not_replaced(run):
    weights = publishing.merge(run) / "model.safetensors"
    (weights.parent / "notes.txt").write_text("mine")
    weights.write_bytes(b"broken")
    with pytest.raises(StorageError, match=r"did not write what is in it: notes.txt"):
        publishing.merge(run)
    assert (weights.parent / "notes.txt").read_text() == "mine"


def test_the_sample_run_is_not_written_to(run):
    with pytest.raises(ConfigError, match=r"--out exports/sample"):
        publishing.merge(Run.sample())


def test_no_adapter_names_who_writes_one(run, tmp_path):
    with pytest.raises(MissingArtifact, match=r"holds no adapter"):
        publishing.merge(tmp_path)
    with pytest.raises(MissingArtifact, match=r"training.train"):
        publishing.merge(Run.create("empty", tmp_path))


class TestPlace:
    """Room is looked for before a byte is written."""

    @pytest.fixture
    def free(self, monkeypatch):
        """Free bytes by a part of the path; elsewhere there is plenty."""
        known: dict[str, int] = {}

        def usage(path):
            size = next((size for part, size in known.items() if part in str(path)), 10**12)
            return Usage(10**12, 0, size)

        monkeypatch.setattr(places.shutil, "disk_usage", usage)
        return known

    def test_no_room_names_every_place_and_writes_nothing(self, run, free, monkeypatch, tmp_path):
        monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
        free |= {str(tmp_path): 1000}
        with pytest.raises(StorageError, match=r"(?s)No room for the merged model.*export has 0.00 GiB.*cache.*--out"):
            publishing.merge(run)
        assert not (run / "export").exists()

    def test_another_disk_with_room_is_taken_and_said(self, run, free, monkeypatch, tmp_path):
        monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
        free |= {str(run.path): 1000}
        with pytest.warns(FtkitWarning, match=r"it goes to .*cache"):
            merged = publishing.merge(run)
        assert merged == tmp_path / "cache/exports/toy/merged"
        assert publishing.merge(run) == merged

    def test_a_named_place_is_the_only_one(self, run, free, tmp_path):
        free |= {"small": 1000}
        (tmp_path / "small").mkdir()
        with pytest.raises(StorageError, match=r"small has 0\.00 GiB free"):
            publishing.merge(run, tmp_path / "small")

    def test_a_write_that_fails_leaves_nothing_and_a_second_call_goes_on(self, run, monkeypatch):
        """The disk may fill up by another program's doing, after the look."""

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched, pytest.raises(StorageError, match="disk is full"):
            patched.setattr("transformers.PreTrainedModel.save_pretrained", full)
            publishing.merge(run)
        assert [path.name for path in (run / "export").iterdir()] == []
        assert publishing.merge(run).is_dir()


class TestAdapter:
    """An adapter is looked at before its base is loaded."""

    @pytest.fixture
    def untouched(self):
        """These tests change a copy of the adapter themselves."""

    def test_one_that_was_changed_is_refused(self, run):
        weights = run / "adapter/adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        with pytest.raises(ModelError, match=r"adapter_model.safetensors does not have the digest"):
            publishing.merge(run)

    def test_another_template_is_another_merge(self, run):
        """With the same weights: what was mended must reach the export."""
        publishing.merge(run)
        (run / "adapter/chat_template.jinja").write_text(LLAMA3)
        files.seal(run / "adapter", {}, files.HIDDEN)
        assert (publishing.merge(run) / "chat_template.jinja").read_text() == LLAMA3

    def test_one_that_lost_a_file_is_refused(self, run):
        (run / "adapter/tokenizer.json").unlink()
        with pytest.raises(ModelError, match=r"tokenizer.json is missing"):
            publishing.merge(run)

    def test_one_of_another_base_is_refused(self, run, tmp_path):
        """Of the same shape: nothing else would notice."""
        other = tmp_path / "other"
        shutil.copytree(models.base_of(run / "adapter"), other)
        model, _ = models.load(other, CONFIG)
        torch.manual_seed(7)
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.02)
        model.save_pretrained(other)
        config = json.loads((run / "adapter/adapter_config.json").read_text())
        shutil.copytree(run / "adapter", tmp_path / "adapter")
        (tmp_path / "adapter/.ftkit.json").unlink()
        text = json.dumps(config | {"base_model_name_or_path": str(other)})
        (tmp_path / "adapter/adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match=r"trained on another base model.*64 of 64 compared"):
            publishing.merge(tmp_path / "adapter")

    def test_one_for_another_shape_is_refused(self, run, tmp_path):
        from transformers import LlamaConfig, LlamaForCausalLM

        base = models.base_of(run / "adapter")
        shape = json.loads(Path(base, "config.json").read_text()) | {"hidden_size": 16, "num_attention_heads": 2}
        shutil.copytree(base, tmp_path / "other")
        LlamaForCausalLM(LlamaConfig(**shape | {"head_dim": 8})).save_pretrained(tmp_path / "other")
        shutil.copytree(run / "adapter", tmp_path / "adapter")
        for name in (".ftkit.json", "base.json"):
            (tmp_path / f"adapter/{name}").unlink()
        config = json.loads((run / "adapter/adapter_config.json").read_text())
        text = json.dumps(config | {"base_model_name_or_path": str(tmp_path / "other")})
        (tmp_path / "adapter/adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match=r"could not be loaded|does not fit"):
            publishing.merge(tmp_path / "adapter")
