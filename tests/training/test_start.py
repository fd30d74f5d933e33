"""Going on from an adapter: the second training starts where the first ended, and nothing else is gone on from."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import make_model, make_tokenizer

from ftkit import data, training
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, MissingArtifact, ModelError
from ftkit.runs import Run
from ftkit.training.start import Start

# What is trained is validated as well, so that a first loss can be told beforehand: the check is passed over.
pytestmark = pytest.mark.filterwarnings("ignore::ftkit.errors.FtkitWarning")


def train(*given, **how):
    return training.train(*given, **how, preflight=False, watch=lambda *_: None)


def base(name="toy", *, seed=0):
    """A model of this name; with another seed its weights are others."""
    model = make_model()
    model.name_or_path = model.config._name_or_path = name
    if seed:
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.01)
    return model


@pytest.fixture(scope="module")
def parts():
    """All rows in one micro-batch, and the same rows to validate on: a first loss is then that of all of them."""
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {2 * i}."} for i in range(6)]
    rows = data.load_examples(rows)
    return data.Splits(rows, rows, rows)


@pytest.fixture
def config(toy_config):
    return toy_config.replace(per_device_train_batch_size=6, gradient_accumulation_steps=1, lora_alpha=8, eval_steps=0)


@pytest.fixture(scope="module")
def first(parts, tmp_path_factory):
    """A finished run of twenty updates."""
    settings = TrainConfig(
        backend="transformers",
        load_in_4bit=False,
        dtype="fp32",
        gradient_checkpointing=False,
        optim="adamw_torch",
        max_steps=20,
        warmup_steps=0,
        learning_rate=1e-2,
        lora_r=4,
        lora_alpha=8,
        eval_steps=0,
        save_steps=0,
        max_length=256,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=1,
    )
    run = Run.create("first", tmp_path_factory.mktemp("runs"))
    history = train(base(), make_tokenizer(), parts, settings, run)
    return run, history


@pytest.mark.slow
@pytest.mark.parametrize("named", ["run", "folder of the run", "folder of the adapter"])
def test_the_first_loss_is_where_the_first_training_ended(first, parts, config, tmp_path, named):
    run, before = first
    given = {"run": run, "folder of the run": str(run.path), "folder of the adapter": run / "adapter"}[named]
    second = Run.create("second", tmp_path)
    after = train(base(), make_tokenizer(), parts, config, second, init_from=given)
    assert after.losses[0][1] == pytest.approx(before.val_losses[-1][1], abs=1e-5)
    assert after.losses[0][1] < before.losses[0][1] - 0.1
    facts = second.facts["train"]
    assert facts["init_from"] == Start.find(run).digest
    assert run.facts["train"]["init_from"] == "none"


@pytest.mark.slow
def test_resume_refuses_another_start(first, parts, config, tmp_path):
    """A fresh one too: both would be another run."""
    run, _ = first
    second = Run.create("second", tmp_path)
    train(base(), make_tokenizer(), parts, config, second, init_from=run)
    second.reopen("train")
    with pytest.raises(
        ConfigError, match=rf"another adapter to begin with \({Start.find(run).digest} then, none now\)"
    ):
        train(base(), make_tokenizer(), parts, config, second)
    assert train(base(), make_tokenizer(), parts, config, second, init_from=run).steps == config.max_steps


@pytest.mark.slow
def test_settings_that_differ_are_named_with_both_values_and_what_to_do(first, parts, config, tmp_path):
    run, _ = first
    other = config.replace(lora_r=8, lora_alpha=16, use_rslora=True, target_modules=("q_proj", "v_proj"))
    with pytest.raises(ConfigError) as caught:
        train(model := base(), make_tokenizer(), parts, other, Run.create("second", tmp_path), init_from=run)
    said = str(caught.value)
    for told in ("lora_r (4 there, 8 here)", "lora_alpha (8 there, 16 here)", "use_rslora (False there, True here)"):
        assert told in said
    assert "target_modules" in said
    assert "config.replace(lora_r=4, lora_alpha=8, use_rslora=False, target_modules=(" in said
    advised = eval("other." + said[said.index("replace(") : said.index("). Without") + 1], {"other": other})
    history = train(model, make_tokenizer(), parts, advised, Run.create("third", tmp_path), init_from=run)
    assert history.steps == config.max_steps


@pytest.mark.slow
def test_another_base_model_is_refused(first, parts, config, tmp_path):
    """By its weights, whatever its name; the same weights under another name are the same model."""
    run, _ = first
    second = Run.create("second", tmp_path)
    for model, said in (
        (base("other", seed=1), r"trained on another base model than what 'other' is here: \d+ of 64 .* differ"),
        (base(seed=1), r"trained on another base model than what 'toy' is here"),
    ):
        with pytest.raises(ConfigError, match=said):
            train(model, make_tokenizer(), parts, config, second, init_from=run)
    assert not (second / "checkpoints").exists()
    assert train(base("moved"), make_tokenizer(), parts, config, second, init_from=run).steps == config.max_steps


@pytest.mark.slow
def test_an_adapter_without_noted_values_is_known_by_its_base_models_name(first, parts, config, tmp_path):
    run, _ = first
    copy = tmp_path / "adapter"
    shutil.copytree(run / "adapter", copy)
    (copy / "base.json").unlink()
    with pytest.raises(ConfigError, match=r"base model is 'toy', and this one is 'other'.*models.load\('toy'\)"):
        train(base("other"), make_tokenizer(), parts, config, Run.create("second", tmp_path), init_from=copy)


@pytest.mark.slow
def test_an_adapter_that_covers_other_layers_is_refused(first, parts, config, tmp_path):
    run, _ = first
    copy = tmp_path / "adapter"
    shutil.copytree(run / "adapter", copy)
    weights = load_file(copy / "adapter_model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1." not in name}
    save_file(kept, copy / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"14 of 28 matrices do not fit, such as model.layers.1.*absent there"):
        train(base(), make_tokenizer(), parts, config, Run.create("second", tmp_path), init_from=copy)


@pytest.mark.slow
def test_what_no_setting_says_is_refused(first, parts, config, tmp_path):
    run, _ = first
    copy = tmp_path / "adapter"
    shutil.copytree(run / "adapter", copy)
    facts = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(facts | {"rank_pattern": {"q_proj": 2}}))
    with pytest.raises(ConfigError, match=r"what no setting says: rank_pattern"):
        train(base(), make_tokenizer(), parts, config, Run.create("second", tmp_path), init_from=copy)


@pytest.mark.slow
def test_a_run_is_not_its_own_start(first, parts, config):
    """It would be replaced before it was gone on from."""
    run, _ = first
    with pytest.raises(ConfigError, match="lies in the run that would replace it"):
        train(base(), make_tokenizer(), parts, config, run, init_from=run, resume=False)
    assert run.finished("train")
    assert (run / "adapter/adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [
        ({}, MissingArtifact, "holds no adapter"),
        ({"config.yaml": "x"}, MissingArtifact, "has no adapter"),
        ({"adapter_config.json": '{"base_model_name_or_path": "toy"}'}, MissingArtifact, "has no adapter_model"),
        ({"adapter_config.json": "{"}, ModelError, "is damaged"),
    ],
)
def test_what_is_no_adapter_is_refused_before_anything_is_read(tmp_path, made, error, said):
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=said):
        Start.find(tmp_path)
