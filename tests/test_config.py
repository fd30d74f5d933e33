"""Settings: ranges, misspelt names, files edited by hand."""

import copy
import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, MissingArtifact
from ftkit.hardware import Hardware

T4 = Hardware("cuda", "Tesla T4", 14.7, (7, 5), False, 2)
A100 = Hardware("cuda", "A100", 79.0, (8, 0), True, 12)
OLD_CPU = Hardware("cpu", "old", 8.0, None, False, 2)


@pytest.mark.parametrize("value", [-1, 0, 257, 3.5, "16", True, None])
def test_out_of_range_names_value_reason_and_default(value):
    """A bad value is refused with its name, its range and the default."""
    with pytest.raises(ConfigError, match=r"lora_r=.*rank.*default is 16"):
        TrainConfig(lora_r=value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1e-4, 1.0])
def test_learning_rate_refuses_nan_and_nonsense(value):
    with pytest.raises(ConfigError, match="learning_rate"):
        TrainConfig(learning_rate=value)


def test_all_problems_are_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        TrainConfig(lora_r=0, dtype="int8", learning_rate=2.0)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("wrong", "right"), [("learnin_rate", "learning_rate"), ("lr", "learning_rate"), ("epochs", "num_train_epochs")]
)
def test_misspelt_name_gets_a_suggestion(wrong, right):
    with pytest.raises(ConfigError, match=f"{wrong} is no setting. Did you mean {right}"):
        TrainConfig(**{wrong: 1})


def test_t4_computes_in_fp16_and_4bit():
    """bfloat16 is emulated on compute capability 7.5."""
    config = TrainConfig.for_hardware(T4)
    assert (config.dtype, config.load_in_4bit) == ("fp16", True)


def test_newer_gpu_computes_in_bf16():
    assert TrainConfig.for_hardware(A100).dtype == "bf16"


def test_cpu_without_bf16_computes_in_fp32_without_checkpointing():
    config = TrainConfig.for_hardware(OLD_CPU)
    assert (config.dtype, config.gradient_checkpointing) == ("fp32", False)


def test_given_settings_win_over_the_hardware():
    assert TrainConfig.for_hardware(T4, dtype="fp32").dtype == "fp32"


@pytest.mark.slow
@given(
    learning_rate=st.floats(1e-6, 1e-2),
    lora_r=st.integers(1, 256),
    targets=st.lists(st.sampled_from(["q_proj", "v_proj", "up_proj"]), min_size=1, unique=True),
    packing=st.booleans(),
)
def test_saved_config_loads_equal(tmp_path_factory, learning_rate, lora_r, targets, packing):
    """What is written is what is read, for any valid setting."""
    config = TrainConfig(learning_rate=learning_rate, lora_r=lora_r, target_modules=tuple(targets), packing=packing)
    assert TrainConfig.load(config.save(tmp_path_factory.mktemp("config") / "c.yaml")) == config


def test_file_edited_by_hand_names_line_and_field(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("lora_r: 0\nlearnin_rate: 2e-4\nlora_r: 8\n")
    with pytest.raises(ConfigError) as caught:
        TrainConfig.load(path)
    lines = str(caught.value).splitlines()
    assert ["line 1" in lines[0], "line 2" in lines[1], "line 3" in lines[2]] == [True] * 3


def test_scientific_notation_that_yaml_reads_as_text_is_a_number(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("learning_rate: 2e-4\n")
    assert TrainConfig.load(path).learning_rate == 2e-4


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "a: [1,", "lora_r: &x [*x]\n"])
def test_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        TrainConfig.load(path)


def test_missing_file_says_how_to_write_one(tmp_path):
    with pytest.raises(MissingArtifact, match="save"):
        TrainConfig.load(tmp_path / "none.yaml")


def test_config_is_frozen_and_survives_copies():
    config = TrainConfig(lora_r=8)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lora_r = 4


def test_changed_lists_only_what_differs():
    assert TrainConfig(lora_r=8, seed=42).changed() == {"lora_r": 8}


def test_digest_moves_with_any_setting():
    digests = {TrainConfig().digest(), TrainConfig(lora_r=8).digest(), TrainConfig(packing=True).digest()}
    assert len(digests) == 3


def test_every_knob_has_help_and_a_group():
    for spec in dataclasses.fields(TrainConfig):
        assert spec.metadata["help"]
        assert spec.metadata["group"]


def test_early_stopping_without_validation_is_refused():
    """It would wait for losses that are never measured."""
    with pytest.raises(ConfigError, match=r"early_stopping_patience=2 with eval_steps=0"):
        TrainConfig(early_stopping_patience=2, eval_steps=0)


@pytest.mark.parametrize("name", ["lora_r", "learning_rate", "seed"])
@pytest.mark.parametrize("value", [10**400, -(10**5000)], ids=["hundreds of digits", "thousands"])
def test_number_too_large_for_a_float_is_out_of_range(name, value):
    """Python's whole numbers have no end; the message stays one line."""
    with pytest.raises(ConfigError, match=f"{name}=.{{,70}} is outside"):
        TrainConfig(**{name: value})


def test_numpy_float_becomes_a_plain_one(tmp_path):
    """YAML can write it, and the digest is the same."""
    import numpy as np

    config = TrainConfig(learning_rate=np.float64(1e-4))
    assert type(config.learning_rate) is float
    assert TrainConfig.load(config.save(tmp_path / "c.yaml")) == config


def test_misspelt_name_beside_a_list_of_modules_is_the_only_problem():
    """YAML and JSON have no tuples."""
    with pytest.raises(ConfigError) as caught:
        TrainConfig(new_knob=1, target_modules=["q_proj"])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["2001-99-99", "!!int abc", "!!timestamp abc", "9" * 5000])
def test_value_that_yaml_cannot_build_names_line_and_field(tmp_path, text):
    """These break YAML's own constructors, with errors that name neither."""
    path = tmp_path / "c.yaml"
    path.write_text(f"lora_r: 8\nmax_steps: {text}\n")
    with pytest.raises(ConfigError, match="line 2: max_steps="):
        TrainConfig.load(path)


def test_file_of_nested_brackets_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("lora_r: " + "[" * 3000)
    with pytest.raises(ConfigError, match="is not YAML"):
        TrainConfig.load(path)


def test_folder_instead_of_a_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        TrainConfig.load(tmp_path)
