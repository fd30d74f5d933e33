"""Settings in Axolotl's words and back: nothing lost, nothing taken in silence."""

import dataclasses
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ftkit import files
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, MissingArtifact
from ftkit.files import sample
from ftkit.lessons import axolotl_recipe
from ftkit.publishing import from_axolotl, to_axolotl
from ftkit.runs import Run

RECIPE = axolotl_recipe()  # often passed around
NAMED = {"base_model": "org/model", "train": "train.jsonl", "val": "val.jsonl"}


def written(config, **named):
    return yaml.safe_load(to_axolotl(config, **(NAMED | named)).text)


def again(config):
    """The config that is read from what is written of this one."""
    return from_axolotl(to_axolotl(config, **NAMED).text).config


@pytest.mark.parametrize("field", yaml.safe_load(RECIPE))
def test_every_field_of_the_recipe_survives_the_round_trip(field):
    """Read and written again it says the same, also what ftkit has no setting for."""
    read = from_axolotl(RECIPE)
    back = yaml.safe_load(to_axolotl(read.config, kept=read.kept).text)
    assert back[field] == yaml.safe_load(RECIPE)[field]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dtype": "fp16"},
        {"dtype": "fp32", "load_in_4bit": False, "optim": "adamw_torch"},
        {"bnb_4bit_use_double_quant": False},
        {"gradient_checkpointing": False, "packing": True, "group_by_length": True},
        {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.05, "use_rslora": True, "use_dora": True},
        {"target_modules": ("q_proj", "v_proj")},
        {"learning_rate": 1e-5, "lr_scheduler_type": "linear", "warmup_steps": 0},
        {"max_steps": 10, "num_train_epochs": 0.5, "seed": 7, "weight_decay": 0.1, "max_grad_norm": 0.3},
        {"eval_steps": 0, "save_steps": 0, "save_total_limit": 1, "logging_steps": 5},
        {"eval_steps": 20, "save_steps": 40, "early_stopping_patience": 3},
        {"report_to": "wandb"},
        {"report_to": "trackio"},
        {"report_to": "tensorboard"},
    ],
    ids=str,
)
def test_settings_come_back_as_they_were(settings):
    config = TrainConfig(**settings)
    assert again(config) == config


@given(
    st.integers(1, 256),
    st.floats(1e-6, 1e-2),
    st.floats(0.01, 100),
    st.integers(0, 10_000),
    st.sampled_from(["bf16", "fp16", "fp32"]),
    st.booleans(),
)
def test_any_numbers_come_back_to_the_last_digit(rank, rate, epochs, warmup, dtype, quantised):
    config = TrainConfig(
        lora_r=rank,
        learning_rate=rate,
        num_train_epochs=epochs,
        warmup_steps=warmup,
        dtype=dtype,
        load_in_4bit=quantised,
    )
    assert again(config) == config


def test_what_axolotl_lacks_stands_in_the_file_as_a_comment():
    config = TrainConfig(backend="unsloth", max_eval_examples=7, train_on="answers", warmup_steps=1)
    file = to_axolotl(config, **NAMED)
    for name in ("backend: unsloth", "max_eval_examples: 7", "train_on: answers", "warmup_steps: 1"):
        assert f"\n#   {name}. " in file.text
    assert {row[0] for row in file.lacking} == {"backend", "max_eval_examples", "train_on", "warmup_steps"}


def test_every_setting_is_written_or_named():
    file = to_axolotl(TrainConfig(max_steps=5, early_stopping_patience=1, save_steps=20, report_to="wandb"), **NAMED)
    told = {row[0] for row in file.pairs} | {row[0] for row in file.lacking}
    silent = {spec.name for spec in dataclasses.fields(TrainConfig)} - told
    assert silent == {"bnb_4bit_use_double_quant", "train_on"}  # both stand at what Axolotl does anyhow


def test_every_field_that_is_written_is_one_of_axolotls():
    config = TrainConfig(max_steps=5, packing=True, report_to="wandb", bnb_4bit_use_double_quant=False)
    fields = set(written(config, adapter="there", output_dir="out", on_cpu=True))
    assert fields <= set(sample("axolotl")["fields"])


def test_four_bits_are_asked_for_by_the_word_that_axolotl_obeys():
    assert written(TrainConfig(load_in_4bit=True))["adapter"] == "qlora"
    assert written(TrainConfig(load_in_4bit=False))["adapter"] == "lora"


def test_answers_alone_are_trained_with_their_stop_token_and_marks_are_obeyed():
    rows = written(TrainConfig())["datasets"][0]
    assert rows["type"] == "chat_template"
    assert (rows["roles_to_train"], rows["train_on_eos"]) == (["assistant"], "turn")
    assert (rows["field_messages"], rows["message_field_training"]) == ("messages", "train")
    assert written(TrainConfig())["train_on_inputs"] is False


def test_long_rows_are_cut_as_ftkit_cuts_them_and_dropped_where_the_file_had_it_so():
    assert written(TrainConfig())["excess_length_strategy"] == "truncate"
    read = from_axolotl(RECIPE)
    assert read.kept["excess_length_strategy"] == "drop"  # Axolotl's default
    assert "excess_length_strategy" in {row[0] for row in read.assumed}


def test_text_of_others_cannot_leave_its_field():
    """What stands in a file that was read stays a value in the one that is written."""
    nasty = 'base_model: "m\\nlora_r: 1 # x"\n"odd\\nname": 1\n'
    read = from_axolotl(nasty)
    back = yaml.safe_load(to_axolotl(read.config, train="t.jsonl\nlora_r: 2", kept=read.kept).text)
    assert back["base_model"] == "m\nlora_r: 1 # x"
    assert (back["odd\nname"], back["lora_r"]) == (1, 16)


def test_what_yaml_cannot_write_is_refused():
    with pytest.raises(ConfigError, match="cannot write"):
        to_axolotl(TrainConfig(), **NAMED, kept={"plugins": object()})


def test_a_model_and_rows_have_to_be_named():
    with pytest.raises(ConfigError, match="base_model and datasets"):
        to_axolotl(TrainConfig())


@pytest.mark.parametrize("settings", [{"eval_steps": 20, "save_steps": 50}, {"eval_steps": 20, "save_steps": 0}])
def test_early_stopping_that_axolotl_would_refuse_is_refused_here(settings):
    with pytest.raises(ConfigError, match="multiple of eval_steps"):
        written(TrainConfig(early_stopping_patience=2, **settings))


def test_without_validation_rows_nothing_is_measured_and_that_is_said():
    file = to_axolotl(TrainConfig(), base_model="m", train="t.jsonl")
    assert "eval_steps" not in yaml.safe_load(file.text)
    assert "eval_steps" in {row[0] for row in file.lacking}


def test_rows_that_are_named_now_win_over_those_that_were_kept():
    read = from_axolotl(RECIPE)
    back = yaml.safe_load(to_axolotl(read.config, kept=read.kept, train="t.jsonl", val="v.jsonl").text)
    assert back["datasets"][0]["path"] == "t.jsonl"
    assert ("val_set_size" in back, back["test_datasets"][0]["path"]) == (False, "v.jsonl")


def test_on_a_cpu_it_computes_in_fp32_without_kernels_of_a_gpu():
    file = to_axolotl(TrainConfig(), **NAMED, on_cpu=True)
    back = yaml.safe_load(file.text)
    assert (back["bf16"], back["attn_implementation"], back["optimizer"]) == (False, "eager", "adamw_torch")
    assert [name for name in back if name.endswith("_kernel") and back[name]] == []
    assert {"dtype", "optim"} <= {row[0] for row in file.lacking}


def test_a_run_brings_its_model_and_its_rows_wherever_axolotl_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run.create("mine", "runs")
    TrainConfig(lora_r=4).save(run / "config.yaml")
    with pytest.raises(MissingArtifact, match="has no data"):
        to_axolotl(run)
    for name in ("train", "val"):
        files.write_text(run / f"data/{name}.jsonl", "")
    run.finish("train", base_model="org/model")
    back = yaml.safe_load(to_axolotl(run).text)
    assert (back["base_model"], back["lora_r"]) == ("org/model", 4)
    assert back["datasets"][0]["path"] == str(tmp_path / "runs/mine/data/train.jsonl")
    assert back["test_datasets"][0]["path"] == str(tmp_path / "runs/mine/data/val.jsonl")
    assert back["output_dir"] == str(tmp_path / "runs/mine/axolotl")


def test_a_file_appears_whole(tmp_path):
    file = to_axolotl(TrainConfig(), **NAMED)
    assert file.save(tmp_path / "new/axolotl.yml").read_text() == file.text


def test_the_names_of_the_schema_are_in_order():
    fields = sample("axolotl")["fields"]
    assert fields == sorted(set(fields))
    assert json.dumps(fields)
