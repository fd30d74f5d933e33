"""Settings in Axolotl's words and back: nothing lost, nothing taken in silence."""

import dataclasses
import json
from importlib import resources

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ftkit.config import ALL_LINEAR, TrainConfig
from ftkit.errors import ConfigError, FtkitError, FtkitWarning, MissingArtifact
from ftkit.files import sample
from ftkit.publishing import from_axolotl, to_axolotl
from ftkit.runs import Run

RECIPE = (resources.files("ftkit") / "samples/axolotl_recipe.yml").read_text()  # often passed around
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


def test_the_recipe_becomes_settings():
    config = from_axolotl(RECIPE).config
    expected = {
        "load_in_4bit": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "max_length": 4096,
        "packing": True,
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 50,
        "optim": "adamw_8bit",
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert set(config.target_modules) == set(ALL_LINEAR)


def test_each_field_of_the_recipe_is_said_to_be_taken_or_left():
    read = from_axolotl(RECIPE)
    assert {row[0] for row in (*read.pairs, *read.left)} == set(yaml.safe_load(RECIPE))
    assert read.base_model == "meta-llama/Llama-3.1-8B-Instruct"
    assert read.datasets == (("my-org/my-instruction-dataset", "alpaca"),)


def test_a_recipe_that_lost_its_indentation_loses_no_field():
    """Copied from a page, `type` stands beside `datasets`: it is named, and written again."""
    flat = RECIPE.replace("    type: alpaca", "type: alpaca").replace("  - ", "- ")
    read = from_axolotl(flat)
    assert "no such field" in dict((row[0], row[2]) for row in read.left)["type"]
    assert yaml.safe_load(to_axolotl(read.config, kept=read.kept).text)["type"] == "alpaca"


def test_lora_beside_4bit_is_named_because_axolotl_does_not_quantise_then():
    why = {row[0]: row[2] for row in from_axolotl(RECIPE).left}
    assert "qlora" in why["adapter"]
    assert written(TrainConfig(load_in_4bit=True))["adapter"] == "qlora"
    assert written(TrainConfig(load_in_4bit=False))["adapter"] == "lora"


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


def test_what_a_file_does_not_say_is_what_axolotl_would_do():
    config = from_axolotl("base_model: m\nlearning_rate: 2e-4\n").config
    assert (config.weight_decay, config.per_device_train_batch_size, config.max_length) == (0.0, 1, 512)
    assert (config.load_in_4bit, config.gradient_checkpointing, config.optim) == (False, False, "adamw_torch_fused")


def test_what_a_file_leaves_open_is_listed():
    assumed = {row[0] for row in from_axolotl("base_model: m\n").assumed}
    assert {"learning_rate", "lora_r", "warmup_steps", "eval_steps", "dtype", "adapter"} <= assumed


def test_a_ratio_that_was_kept_takes_the_place_of_the_steps():
    """Axolotl refuses both beside each other."""
    read = from_axolotl(RECIPE.replace("warmup_steps: 50", "warmup_ratio: 0.1"))
    file = to_axolotl(read.config, kept=read.kept)
    back = yaml.safe_load(file.text)
    assert (back["warmup_ratio"], "warmup_steps" in back) == (0.1, False)
    assert "warmup_steps" in {row[0] for row in file.lacking}


@pytest.mark.parametrize(
    ("line", "setting", "value"),
    [
        ("learning_rate: 2e-4", "learning_rate", 2e-4),
        ("lora_alpha: 32.0", "lora_alpha", 32),
        ("lora_target_modules: q_proj", "target_modules", ("q_proj",)),
        ("gradient_checkpointing: offload", "gradient_checkpointing", True),
        ("bf16: auto", "dtype", "bf16"),
        ("bf16: full", "dtype", "bf16"),
        ("fp16: true", "dtype", "fp16"),
        ("bf16: false", "dtype", "fp32"),
        ("float32: true", "dtype", "fp32"),
        ("eval_strategy: 'no'", "eval_steps", 0),
        ("save_strategy: 'no'", "save_steps", 0),
        ("use_wandb: true", "report_to", "wandb"),
    ],
)
def test_other_ways_to_say_it_are_read(line, setting, value):
    read = from_axolotl(f"base_model: m\n{line}\n")
    assert getattr(read.config, setting) == value
    field, said = line.split(": ", 1)
    back = yaml.safe_load(to_axolotl(read.config, train="t.jsonl", kept=read.kept).text)
    assert back[field] == yaml.safe_load(line)[field] or float(back[field]) == float(said)


@pytest.mark.parametrize(
    "line",
    [
        "optimizer: muon",
        "lr_scheduler: one_cycle",
        "save_steps: 0.1",
        "lora_r: sixteen",
        "learning_rate: 0.5",
        "lora_target_modules: .*_proj",
    ],
)
def test_a_value_that_ftkit_refuses_is_warned_about_kept_and_written_again(line):
    field, _ = line.split(": ", 1)
    with pytest.warns(FtkitWarning, match="defaults stand instead"):
        read = from_axolotl(f"base_model: m\n{line}\n")
    assert field in {row[0] for row in read.left}
    back = yaml.safe_load(to_axolotl(read.config, train="t.jsonl", val="v.jsonl", kept=read.kept).text)
    assert back[field] == yaml.safe_load(line)[field]


@pytest.mark.parametrize("line", ["deepspeed: zero3.json", "rl: dpo", "load_in_8bit: true", "neftune_noise_alpha: 5"])
def test_a_field_that_ftkit_has_nothing_for_is_named_with_what_to_do(line):
    read = from_axolotl(f"base_model: m\n{line}\n")
    field, _ = line.split(": ")
    assert [row[2].startswith("ftkit") for row in read.left if row[0] == field] == [True]
    assert field in read.kept


def test_misspelt_fields_are_refused_all_at_once():
    """Axolotl would pass over them in silence, and train with its defaults."""
    with pytest.raises(ConfigError) as caught:
        from_axolotl("base_model: m\nlearnig_rate: 1.0e-4\nlora_aplha: 64\n")
    assert [line.rpartition("Did you mean ")[2] for line in str(caught.value).splitlines()] == [
        "learning_rate?",
        "lora_alpha?",
    ]


def test_a_field_that_is_like_no_other_is_named_as_unknown():
    """It may be one of a newer release or of a plugin."""
    read = from_axolotl("base_model: m\nliger_rope: true\n")
    assert "no such field" in {row[0]: row[2] for row in read.left}["liger_rope"]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base_model: m\n\tlora_r: 16\n", "not YAML"),
        ("base_model: &m x\ntokenizer_config: *m\n", "names for them"),
        (BOMB, "names for them"),
        ("base_model: !!python/object/apply:os.system ['echo hi']\n", "tag"),
        ("base_model: !!python/name:os.system\n", "cannot be read"),
        ("plugins: !!python/object:ftkit.runs.Run {path: x}\n", "tag"),
        ("lora_r: 8\nlora_r: 16\n", "lora_r is set twice"),
        ("datasets:\n  - path: a\n    path: b\n", "path is set twice"),
        ("? [a, b]\n: c\n", "a name is wanted"),
        ("- base_model: m\n", "no Axolotl file"),
        ("datasets: my-org/rows\nlora_r: 8\n", "no list of mappings"),
        ("datasets: [a, b]\nlora_r: 8\n", "no list of mappings"),
        ("a: " + "[" * 50 + "]" * 50 + "\n", "values in values"),
        ("a: " + "[" * 5000 + "]" * 5000 + "\n", "values in values"),
        ("x: 1\n" * 3000, "thousands of values"),
        ("x: " + "y" * 10**6 + "\n", "more than"),
        ("start: 2026-01-01\n\n", "cannot be read"),
        ("{base_model: \n", "not YAML"),
        ("base_model: \x00\n", "not YAML"),
        ("base_model: \ud800\n", "not YAML"),
    ],
    ids=lambda text: text[:30].encode("ascii", "replace").decode(),
)
def test_what_is_no_plain_yaml_is_refused_with_its_reason(text, said):
    """Nothing in it is obeyed or unfolded."""
    with pytest.raises(ConfigError, match=said):
        from_axolotl(text)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.yml").touch()
    with pytest.raises(ConfigError, match="no Axolotl file"):
        from_axolotl(tmp_path / "empty.yml")


def test_a_path_that_leads_nowhere_is_an_error_of_ours(tmp_path):
    with pytest.raises(MissingArtifact, match="does not exist"):
        from_axolotl(tmp_path / "none.yml")
    with pytest.raises(ConfigError, match="cannot be read"):
        from_axolotl(tmp_path)
    with pytest.raises(FtkitError):
        from_axolotl("none.yml\x00")


def test_a_file_is_read_as_its_text(tmp_path):
    (tmp_path / "config.yml").write_text(RECIPE)
    assert from_axolotl(tmp_path / "config.yml") == from_axolotl(str(tmp_path / "config.yml"))
    assert from_axolotl(tmp_path / "config.yml").config == from_axolotl(RECIPE).config


def test_text_of_others_cannot_leave_its_field():
    """What stands in a file that was read stays a value in the one that is written."""
    nasty = 'base_model: "m\\nlora_r: 1 # x"\n"odd\\nname": 1\n'
    read = from_axolotl(nasty)
    back = yaml.safe_load(to_axolotl(read.config, train="t.jsonl\nlora_r: 2", kept=read.kept).text)
    assert back["base_model"] == "m\nlora_r: 1 # x"
    assert (back["odd\nname"], back["lora_r"]) == (1, 16)


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


def test_a_run_brings_its_model_and_its_rows(tmp_path):
    run = Run.create("mine", tmp_path)
    TrainConfig(lora_r=4).save(run / "config.yaml")
    with pytest.raises(MissingArtifact, match="has no data"):
        to_axolotl(run)
    (run / "data").mkdir()
    run.finish("train", base_model="org/model")
    back = yaml.safe_load(to_axolotl(run).text)
    assert (back["base_model"], back["lora_r"]) == ("org/model", 4)
    assert back["datasets"][0]["path"] == str(run / "data/train.jsonl")
    assert back["test_datasets"][0]["path"] == str(run / "data/val.jsonl")
    assert back["output_dir"] == str(run / "axolotl")


def test_a_file_appears_whole(tmp_path):
    file = to_axolotl(TrainConfig(), **NAMED)
    assert file.save(tmp_path / "new/axolotl.yml").read_text() == file.text


def test_the_names_of_the_schema_are_in_order():
    fields = sample("axolotl")["fields"]
    assert fields == sorted(set(fields))
    assert json.dumps(fields)
