"""A model with an adapter: loaded by either backend, saved, reloaded."""

import json
import subprocess
import sys

import pytest
from toys import LLAMA3

from ftkit import models
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitWarning, MissingArtifact, MissingExtra, ModelError
from ftkit.hardware import Hardware
from ftkit.models import generate, loading, sources
from ftkit.models.loading import SMALL_HUB_MODEL, _in_reach, choose_backend


@pytest.fixture
def base_folder(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.slow
def test_local_folder_loads(base_folder, toy_config):
    model, tokenizer = models.load(base_folder, toy_config)
    assert models.parameters(model)[1] > 0
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_lora_parameters_follow_the_formula(base_folder, toy_config):
    """Each target of shape d_out × d_in gets r × (d_in + d_out) (Hu et al. 2021)."""
    model, _ = models.load(base_folder, toy_config)
    shapes = [m.weight.shape for n, m in model.named_modules() if n.rsplit(".", 1)[-1] in toy_config.target_modules]
    trainable, _ = models.parameters(models.add_lora(model, toy_config))
    assert trainable == sum(toy_config.lora_r * (a + b) for a, b in shapes)


def test_unknown_targets_name_those_that_exist(base_folder, toy_config):
    model, _ = models.load(base_folder, toy_config)
    with pytest.raises(ConfigError, match=r"c_attn are not in this model.*q_proj"):
        models.add_lora(model, toy_config.replace(target_modules=("c_attn",)))


def test_pickled_weights_are_refused(base_folder, toy_config):
    (base_folder / "model.safetensors").rename(base_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="Pickled weights are not loaded"):
        models.load(base_folder, toy_config)


def test_a_pad_token_that_is_the_stop_token_is_replaced(base_folder, toy_config, tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(base_folder)
    _, loaded = models.load(base_folder, toy_config)
    assert loaded.pad_token == "<|endoftext|>"


def test_an_adapter_answers_under_the_template_that_it_was_trained_with(base_folder, toy_config):
    """The template is saved beside the weights; what the base model's folder says by then does not count."""
    model, tokenizer = models.load(base_folder, toy_config)
    tokenizer.chat_template = LLAMA3
    models.save_adapter(models.add_lora(model, toy_config), tokenizer, base_folder.parent / "adapter")
    _, loaded = models.load_adapter(base_folder.parent / "adapter", toy_config)
    assert loaded.chat_template == LLAMA3
    assert models.load(base_folder, toy_config)[1].chat_template != LLAMA3


def test_folder_without_an_adapter(tmp_path):
    with pytest.raises(MissingArtifact, match="holds no adapter"):
        models.load_adapter(tmp_path)


def test_merging_into_4bit_weights_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x"}))
    with pytest.raises(ConfigError, match="load_in_4bit=False"):
        models.load_adapter(tmp_path, TrainConfig(load_in_4bit=True), merge=True)


def test_plain_nf4_goes_to_bitsandbytes_directly():
    assert choose_backend(TrainConfig(bnb_4bit_use_double_quant=False)) == "transformers"
    with pytest.raises(ConfigError, match="double-quantises"):
        choose_backend(TrainConfig(bnb_4bit_use_double_quant=False, backend="unsloth"))


def test_a_backend_that_is_not_installed_names_the_command(monkeypatch):
    monkeypatch.setattr(loading, "backends", lambda: {"transformers": "5"})
    assert choose_backend(TrainConfig()) == "transformers"
    with pytest.raises(MissingExtra, match="make install"):
        choose_backend(TrainConfig(backend="unsloth"))


@pytest.mark.slow
def test_unsloth_imported_late_warns():
    script = (
        "import transformers, warnings; warnings.simplefilter('error', UserWarning)\n"
        "from ftkit.models import loading\nloading._import_unsloth()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "Unsloth is imported after transformers" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_bundled_model_knows_where_to_stop():
    """The GGUF's tokenizer names the wrong stop token; the converted one is right, and the model uses it."""
    config = TrainConfig(load_in_4bit=False, backend="transformers", dtype="bf16")
    model, tokenizer = models.load(models.BUNDLED, config)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|im_end|>", 2, 0)
    assert models.parameters(model)[1] == 134_515_008
    answer = generate(model, tokenizer, ["What is the capital of Japan? Answer in one sentence."], max_new_tokens=32)[0]
    assert answer.stopped
    assert "Tokyo" in answer.text


BACKEND = """
import json, sys
from ftkit import data, hardware, models
from ftkit.config import TrainConfig
from ftkit.runs import Run
from ftkit.training import train
config = TrainConfig.for_hardware(hardware.detect(), backend=sys.argv[1], max_steps=2, warmup_steps=0, eval_steps=0,
                                  save_steps=0, per_device_train_batch_size=4)
model, tokenizer = models.load(models.BUNDLED, config)
splits = data.split(data.load_examples("invoices"))
small = data.Splits(splits.train, splits.val.select(range(2)), splits.test)
history = train(model, tokenizer, small, config, Run.create(sys.argv[1], sys.argv[2]))
adapted, _ = models.load_adapter(Run.open(sys.argv[2] + "/" + sys.argv[1]) / "adapter")
print(json.dumps([models.backend_of(model), history.losses[0][1], models.parameters(adapted)]))
"""


@pytest.mark.slow
def test_both_backends_start_from_the_same_loss(tmp_path):
    """Unsloth and PEFT on bitsandbytes, each in its own process, 4-bit: the first loss agrees within 2 %."""
    results = {}
    for name in ("unsloth", "transformers"):
        done = subprocess.run([sys.executable, "-c", BACKEND, name, str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        results[name] = json.loads(done.stdout.splitlines()[-1])
    assert [r[0] for r in results.values()] == ["unsloth", "transformers"]
    assert results["unsloth"][1] == pytest.approx(results["transformers"][1], rel=0.02)
    assert {tuple(r[2]) for r in results.values()} == {tuple(results["unsloth"][2])}


def test_an_empty_name_is_refused_as_empty():
    with pytest.raises(ModelError, match="name is empty"):
        models.load("")


CARD = Hardware("cuda", "a card", 24.0, (8, 9), bf16=True, cores=4)


def test_the_default_model_suits_the_machine_and_may_be_asked_for_another(monkeypatch):
    """A card that is only described needs no download here."""
    monkeypatch.setattr(loading, "detect", lambda: Hardware("cpu", "a CPU", 16.0, None, bf16=True, cores=2))
    assert models.default_model() == models.BUNDLED
    assert models.default_model(CARD) == SMALL_HUB_MODEL


def test_a_card_without_the_hub_gets_the_bundled_model_and_is_told(monkeypatch):
    def out_of_reach(name):
        raise ModelError(f"{name} cannot be reached.")

    monkeypatch.setattr(loading, "detect", lambda: CARD)
    monkeypatch.setattr(sources, "resolve", out_of_reach)
    _in_reach.cache_clear()
    with pytest.warns(FtkitWarning, match=r"cannot be reached\. So .* is taken"):
        assert models.default_model() == models.BUNDLED
    _in_reach.cache_clear()
