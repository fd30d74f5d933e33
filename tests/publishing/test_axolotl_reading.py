"""Axolotl's YAML as settings: nothing in it is obeyed, dropped or passed over in silence."""

import pytest
import yaml

from ftkit.config import ALL_LINEAR
from ftkit.errors import ConfigError, FtkitError, FtkitWarning, MissingArtifact
from ftkit.lessons import axolotl_recipe
from ftkit.publishing import from_axolotl, to_axolotl

RECIPE = axolotl_recipe()  # often passed around


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
    assert "no such field" in {row[0]: row[2] for row in read.left}["type"]
    assert yaml.safe_load(to_axolotl(read.config, kept=read.kept).text)["type"] == "alpaca"


def test_lora_beside_4bit_is_named_because_axolotl_does_not_quantise_then():
    read = from_axolotl(RECIPE)
    assert "qlora" in {row[0]: row[2] for row in read.left}["adapter"]
    assert read.config.load_in_4bit


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
