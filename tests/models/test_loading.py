"""A model with an adapter: loaded by either backend, saved, reloaded."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import A100, LLAMA3, make_model, make_tokenizer

from ftkit import models
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitWarning, MissingArtifact, MissingExtra, ModelError, StorageError
from ftkit.hardware import Hardware
from ftkit.models import generate, loading, sources
from ftkit.models.loading import SMALL_HUB_MODEL, _in_reach, choose_backend


@pytest.fixture(scope="module")
def saved(tmp_path_factory, toy_config):
    """A base in a folder and an adapter on it whose B is not zero. Tests get copies, for they damage them."""
    folder, tokenizer = tmp_path_factory.mktemp("saved"), make_tokenizer()
    make_model().save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = models.add_lora(models.load(folder / "base", toy_config)[0], toy_config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    models.save_adapter(model, tokenizer, folder / "adapter")
    return folder


@pytest.fixture
def base_folder(saved, tmp_path):
    return shutil.copytree(saved / "base", tmp_path / "base")


def test_a_process_without_a_gpu_of_its_own_is_refused(base_folder, toy_config, monkeypatch):
    """Two of torchrun's on one card would only wait for each other."""
    monkeypatch.setattr(loading, "detect", lambda: A100)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"Process 1 of 2 has no GPU of its own: 1 visible.*--nproc_per_node 1"):
        models.load(base_folder, toy_config)


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


@pytest.fixture
def adapter(saved, tmp_path):
    return shutil.copytree(saved / "adapter", tmp_path / "adapter")


WEIGHTS = "adapter_model.safetensors"


def tensors(change):
    """An edit of the tensors in an adapter's file."""

    def edit(path):
        found = load_file(path / WEIGHTS)
        save_file(change(found), path / WEIGHTS)

    return edit


def facts(**changed):
    """An edit of an adapter's config."""

    def edit(path):
        known = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps(known | changed))

    return edit


def tokenizer_code(path):
    config = path / "tokenizer_config.json"
    known = json.loads(config.read_text()) | {
        "tokenizer_class": "Own",
        "auto_map": {"AutoTokenizer": ["own.Own", None]},
    }
    config.write_text(json.dumps(known))
    (path / "own.py").write_text("raise SystemExit('its code ran')")


def only_pickled(path):
    torch.save({"x": torch.zeros(1)}, path / "adapter_model.bin")
    (path / WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("edit", "error", "said"),
    [
        (lambda path: (path / WEIGHTS).unlink(), MissingArtifact, "has no adapter_model"),
        (lambda path: (path / WEIGHTS).write_bytes(b""), ModelError, "is damaged"),
        (lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-9]), ModelError, "is damaged"),
        (lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:40]), ModelError, "is damaged"),
        (only_pickled, ModelError, "pickled weights .* convert them once"),
        (tensors(lambda found: {}), ModelError, "holds no tensors"),
        (tensors(lambda found: dict(list(found.items())[1:])), ModelError, r"is missing \(1 of"),
        (tensors(lambda found: found | {"more.lora_A.weight": torch.ones(2)}), ModelError, "is of no use"),
        (tensors(lambda found: {f"x.{name}": t for name, t in found.items()}), ModelError, "is missing"),
        (tensors(lambda found: {n: t[:-1].contiguous() for n, t in found.items()}), ModelError, "size mismatch"),
        (tensors(lambda found: {n: t * float("nan") for n, t in found.items()}), ModelError, "no numbers"),
        (tensors(lambda found: {n: t * float("inf") for n, t in found.items()}), ModelError, "no numbers"),
        (tensors(lambda found: {n: t.to(torch.int8) for n, t in found.items()}), ModelError, "whole numbers"),
        *[(facts(lora_alpha=alpha), ModelError, "lora_alpha") for alpha in (float("nan"), 1e300, 0, "32")],
        (facts(r=2), ModelError, "size mismatch"),
        (facts(target_modules=["q_proj"]), ModelError, "is of no use"),
        (facts(target_modules=["nowhere"]), ModelError, "could not be loaded"),
        (facts(peft_type="UNHEARD"), ModelError, "could not be loaded"),
        (facts(base_model_name_or_path=None), ModelError, "is no model's name"),
        (facts(base_model_name_or_path="./nowhere"), ModelError, "no such folder"),
        (lambda path: (path / "adapter_config.json").write_text("[]"), ModelError, "is damaged"),
        (lambda path: (path / "adapter_config.json").write_text('{"r":'), ModelError, "is damaged"),
        (lambda path: (path / "adapter_config.json").write_bytes(b"\xff"), ModelError, "is damaged"),
        (lambda path: (path / "tokenizer.json").write_text("{"), ModelError, "could not be loaded"),
        (tokenizer_code, ModelError, "custom code"),
    ],
)
def test_an_adapter_that_is_not_what_it_seems_is_refused(adapter, toy_config, edit, error, said):
    """PEFT itself takes most of these: what is missing stays as it was made, and only a warning tells."""
    edit(adapter)
    with pytest.raises(error, match=said):
        models.load_adapter(adapter, toy_config)


def test_a_whole_adapter_loads(adapter, toy_config):
    model, _ = models.load_adapter(adapter, toy_config)
    assert all((weight == 0.5).all() for name, weight in model.named_parameters() if "lora_B" in name)


def base_code(path):
    known = json.loads((path / "config.json").read_text())
    known |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (path / "config.json").write_text(json.dumps(known))
    (path / "own.py").write_text("raise SystemExit('its code ran')")


def shards(named):
    """A model whose index names these files."""

    def edit(path):
        index = {"metadata": {}, "weight_map": {"model.norm.weight": named}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))

    return edit


def with_a_hole(path):
    found = load_file(path / "model.safetensors")
    found.pop("model.layers.1.mlp.up_proj.weight")
    save_file(found, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (base_code, "could not be loaded"),
        (tokenizer_code, "custom code"),
        (with_a_hole, "no weights for model.layers.1.mlp.up_proj.weight"),
        (shards("pytorch_model.bin"), "is no safetensors file in its folder"),
        (shards("../model.safetensors"), "is no safetensors file in its folder"),
        (shards("model-2-of-2.safetensors"), "is no safetensors file in its folder"),
        (lambda path: (path / "model.safetensors.index.json").write_text("[]"), "is damaged"),
        (lambda path: (path / "adapter_config.json").write_text("{}"), "Use models.load_adapter"),
        (lambda path: (path / "model.safetensors").write_bytes(b"cut"), "could not be loaded"),
        (lambda path: (path / "config.json").write_text("{"), "could not be loaded"),
        (lambda path: (path / "tokenizer.json").write_text("{"), "could not be loaded"),
    ],
)
def test_a_base_that_is_damaged_or_wants_its_own_code_is_refused(base_folder, toy_config, edit, said):
    edit(base_folder)
    with pytest.raises(ModelError, match=said):
        models.load(base_folder, toy_config)


@pytest.fixture
def with_code(saved, tmp_path):
    """Folders that want code of their own to run, that of the model and that of the tokenizer."""
    folders = []
    for edit in (base_code, tokenizer_code):
        folders.append(shutil.copytree(saved / "base", tmp_path / edit.__name__))
        edit(folders[-1])
    return folders


LOADING = """
import sys
from ftkit import models
from ftkit.config import TrainConfig
from ftkit.errors import ModelError
{before}
for folder in sys.argv[1:]:
    try:
        models.load(folder, TrainConfig(backend="{backend}", load_in_4bit=False, dtype="fp32"))
    except ModelError:
        print("refused")
"""


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["y\n", ""])
def test_no_code_from_a_folder_runs_whatever_stands_on_stdin(with_code, answer):
    script = LOADING.format(before="", backend="transformers")
    done = subprocess.run([sys.executable, "-c", script, *with_code], input=2 * answer, capture_output=True, text=True)
    assert done.stdout.split() == ["refused", "refused"], done.stderr[-2000:]
    assert "its code ran" not in done.stderr
    assert "[y/N]" not in done.stderr


@pytest.mark.slow
def test_unsloth_does_not_see_what_wants_its_own_code(with_code):
    watched = (
        "models.import_unsloth_first()\nimport unsloth\n"
        "unsloth.FastLanguageModel.from_pretrained = lambda *a, **k: print('Unsloth saw it')\n"
    )
    script = LOADING.format(before=watched, backend="unsloth")
    done = subprocess.run([sys.executable, "-c", script, *with_code], input="y\ny\n", capture_output=True, text=True)
    assert done.stdout.split()[-2:] == ["refused", "refused"], done.stderr[-2000:]
    assert "Unsloth saw it" not in done.stdout
    assert "its code ran" not in done.stderr


def test_targets_without_trainable_weights_are_an_error(base_folder, toy_config, monkeypatch):
    """A backend that passes a module over says nothing by itself."""
    attach = loading._adapted

    def forgetful(model, config):
        return attach(model, config.replace(target_modules=("q_proj",)))

    monkeypatch.setattr(loading, "_adapted", forgetful)
    with pytest.raises(ConfigError, match="target_modules up_proj got no trainable weights"):
        models.add_lora(
            models.load(base_folder, toy_config)[0], toy_config.replace(target_modules=("q_proj", "up_proj"))
        )


def test_an_unsloth_that_changed_nothing_is_an_error(base_folder, toy_config, monkeypatch):
    model, _ = models.load(base_folder, toy_config)
    attach = loading._adapted
    plain = attach(model, toy_config)
    monkeypatch.setattr(loading, "_adapted", lambda model, config: plain)
    monkeypatch.setattr(loading, "backend_of", lambda model: "unsloth")
    monkeypatch.setattr(loading, "is_adapted", lambda model: False)
    del model.peft_config
    with pytest.raises(ModelError, match="Unsloth left every layer"):
        models.add_lora(model, toy_config)
    space = {}
    exec(compile("def forward(self): pass", "/x/unsloth_compiled_cache/one.py", "exec"), space)
    monkeypatch.setattr(type(model), "forward", space["forward"])
    assert models.add_lora(model, toy_config) is plain


def test_an_adapter_is_not_saved_over_a_folder_of_somebody_else(model, tokenizer, toy_config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match=r"thesis\.txt"):
        models.save_adapter(models.add_lora(model, toy_config), tokenizer, tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").exists()


def test_other_base_weights_have_another_digest_and_an_adapter_changes_nothing(model, toy_config):
    before = models.base_digest(model)
    start = models.adapter_digest(models.add_lora(model, toy_config))
    adapted = model
    assert models.base_digest(adapted) == before
    with torch.no_grad():
        first = next(weight for name, weight in adapted.named_parameters() if "lora_A" in name)
        first[0, 0] += 1
    assert models.adapter_digest(adapted) != start
    with torch.no_grad():
        adapted.model.layers[0].mlp.up_proj.weight.add_(1e-3)
    assert models.base_digest(adapted) != before
