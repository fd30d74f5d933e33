"""Settings: ranges, misspelt names, files edited by hand."""

import copy
import dataclasses
import itertools
import json
import pickle
import re
import time
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.config import EFFORTS, MACHINES, TrainConfig, preset, typed_value
from ftkit.errors import ConfigError, MissingArtifact
from ftkit.files import sample
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


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("cutoff_len", "max_length"),
        ("max_seq_len", "max_length"),
        ("sequence_len", "max_length"),
        ("lora_rank", "lora_r"),
        ("r", "lora_r"),
        ("lora_target", "target_modules"),
        ("lora_target_linear", "target_modules"),
        ("lora_target_modules", "target_modules"),
        ("num_epochs", "num_train_epochs"),
        ("micro_batch_size", "per_device_train_batch_size"),
        ("warmup_ratio", "warmup_steps"),
        ("bf16", "dtype: bf16"),
        ("finetuning_type", "load_in_4bit"),
        ("sample_packing", "packing"),
        ("peft_use_dora", "use_dora"),
        ("val_set_size", "data.split"),
        ("template", "chat template"),
        ("model_name_or_path", "--model"),
        ("dataset", "--data"),
        ("output_dir", "--run"),
        ("rl", "supervised fine-tuning alone"),
        ("wandb_project", "report_to"),
        ("image_max_pixels", "text alone"),
        ("--Max-Seq-Length", "max_length"),
        ("Learning-Rate", "learning_rate"),
        ("learningRate", "learning_rate"),
    ],
)
def test_a_name_of_another_tool_leads_to_ours(theirs, ours):
    """Of TRL, PEFT, Axolotl and LLaMA-Factory, however it is written."""
    with pytest.raises(ConfigError, match=f"{theirs} is no setting") as caught:
        TrainConfig(**{theirs: 1})
    assert ours in str(caught.value)


def settings_elsewhere():
    names = json.loads((resources.files("ftkit") / "samples/setting_names.json").read_text(encoding="utf-8"))
    return {ours: set(theirs) for ours, theirs in (names["same"] | names["instead"]).items()}


def test_the_table_of_names_leads_to_settings_and_hides_none():
    ours = {spec.name for spec in dataclasses.fields(TrainConfig)}
    table = settings_elsewhere()
    assert {name for name in table if " " not in name} <= ours
    assert [theirs & ours for theirs in table.values() if theirs & ours] == []
    listed = list(itertools.chain(*table.values()))
    assert len(listed) == len(set(listed))
    assert [name for name in listed if name != re.sub(r"[\W_]+", "_", name.lower())] == []
    for advice in table:  # what a sentence tells to write is a setting
        for name in re.findall(r"rite (\w+): ", advice):
            assert name in ours


@pytest.mark.slow
def test_every_setting_of_trl_and_peft_is_ours_or_leads_to_no_wrong_one():
    """A setting of theirs that has no counterpart gets no suggestion by likeness of letters."""
    from peft import LoraConfig
    from trl import SFTConfig

    known = set(
        itertools.chain({spec.name for spec in dataclasses.fields(TrainConfig)}, *settings_elsewhere().values())
    )
    for spec in (*dataclasses.fields(SFTConfig), *dataclasses.fields(LoraConfig)):
        if spec.name not in known:
            with pytest.raises(ConfigError, match=r"is no setting. help\(TrainConfig\) lists"):
                TrainConfig(**{spec.name: 1})


@pytest.mark.parametrize("name", ["lora_s", "lora_b", "load_in_16bit", "min_length", "train_in", "max_depth", "", "é"])
def test_a_likeness_of_letters_that_means_something_else_is_no_suggestion(name):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{name: 1})
    assert "Did you mean" not in str(caught.value)


@given(st.sampled_from(dataclasses.fields(TrainConfig)), st.data())
def test_two_swapped_letters_are_found(spec, data):
    """Of every name, at every place inside a word of four letters or more."""
    places = [m.start() + i for m in re.finditer(r"[a-z]{4,}", spec.name) for i in range(len(m.group()) - 1)]
    place = data.draw(st.sampled_from(places or [0]))
    typed = spec.name[:place] + spec.name[place : place + 2][::-1] + spec.name[place + 2 :]
    if places and typed != spec.name:
        with pytest.raises(ConfigError, match=f"Did you mean {spec.name}?"):
            TrainConfig(**{typed: 1})


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


def test_every_described_knob_is_a_setting():
    assert list(sample("knobs")) == [spec.name for spec in dataclasses.fields(TrainConfig)]


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


BOMB = "lora_r: &a [x, x]\n" + "".join(f"k{i}: &k{i} [{','.join(['*a'] * 9)}]\n" for i in range(9))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, r"line 2 has thousands of values, values in values, or \*names"),
        ("lora_r: " + "{a: " * 300, "line 1 has .* values in values"),
        ("- " * 20_000, "has .* values in values"),
        ("# " + "x" * 70_000, "holds more than"),
        ("".join(f"k{i}: 1\n" for i in range(7_000)), r"line \d+ has thousands of values"),
        ("lora_r: {" + "a," * 30_000 + "}", "line 1 has thousands of values"),
        ("target_modules: [" + "a," * 30_000 + "]", "line 1 has thousands of values"),
        ("lora_r: " + ":".join(["1"] * 30_000), "lora_r=a value of thousands of digits .* is outside"),
        ("\x00\x01", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        ("? [lora_r]\n: 8\n", "line 1: a list or mapping stands where a setting's name"),
        ("lora_r: !!python/object/apply:os.system [true]", "line 1: lora_r={…} cannot be read as a value"),
        ("lora_r: !!python/name:os.system x", "line 1: lora_r='x' cannot be read as a value"),
        ('lora_r: !!int ""', "line 1: lora_r='' cannot be read"),
        ("packing: !!bool perhaps", "line 1: packing='perhaps' cannot be read"),
        ("target_modules: [[q_proj]]", "line 1: target_modules=.* wants a list of names"),
        ("dtype: {a: 1}", "line 1: dtype={…} cannot be read"),
        ("dtype: " + "x" * 50_000, r"dtype='x{39}… \(50,002 characters\) is not one of"),
        ("x" * 900 + ": 1", r"x{40}… \(900 characters\) is no setting"),
        ("datasets:\n- path: rows.jsonl\n  type: alpaca\n", "line 1: datasets is no setting. .*--data FILE"),
        ("lora_r: 8\n---\nlora_r: 9\n", "is not YAML"),
        ("3: 4", "3 is no setting"),
    ],
    ids=range(22),
)
def test_a_file_of_whatever_kind_is_refused_soon_and_in_few_words(tmp_path, text, said):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    began = time.monotonic()
    with pytest.raises(ConfigError, match=said) as caught:
        TrainConfig.load(path)
    assert len(str(caught.value)) < 2_000
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_that_notepad_saved_is_read(tmp_path, encoding):
    path = tmp_path / "c.yaml"
    path.write_bytes("learning_rate: 2e-4\r\nlora_r: 8\r\n".encode(encoding))
    assert TrainConfig.load(path) == TrainConfig(lora_r=8)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_path_that_cannot_be_is_refused(name):
    with pytest.raises(ConfigError, match="cannot be read"):
        TrainConfig.load(name)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just("x" * 10**6),
    lambda inside: st.lists(inside) | st.tuples(inside) | st.dictionaries(st.text(), inside),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([s.name for s in dataclasses.fields(TrainConfig)]) | st.text(), ODD, max_size=4))
def test_whatever_is_given_is_a_config_or_refused_in_few_words(settings):
    try:
        config = TrainConfig(**settings)
    except ConfigError as error:
        assert len(str(error)) < 3_000
    else:
        assert config.replace(**settings) == config


@given(st.text(max_size=60) | st.sampled_from(["2001-99-99", "!!int ''", "[&a x, *a]", "2e-4", "[q_proj, 1]", "a: b"]))
def test_a_typed_value_is_plain_or_refused(text):
    """On the command line: papermill writes it into a notebook as Python, and a config compares it with a range."""
    try:
        value = typed_value(text)
    except ConfigError as error:
        assert "cannot be read" in str(error)
    else:
        assert isinstance(value, type(None) | bool | int | float | str | list)


@pytest.mark.parametrize(
    ("text", "value"),
    [("60", 60), ("2e-4", 2e-4), ("auto", "auto"), ("[a, 1]", ["a", 1]), ("", None), ("'a: b'", "a: b")],
)
def test_a_typed_value_is_what_a_config_file_would_hold(text, value):
    assert typed_value(text) == value
    assert type(typed_value(text)) is type(value)


def test_texts_of_numpy_are_plain_texts(tmp_path):
    """YAML can write them."""
    import numpy as np

    config = TrainConfig(dtype=np.str_("bf16"), optim=np.str_("sgd"))
    assert type(config.dtype) is str
    assert TrainConfig.load(config.save(tmp_path / "c.yaml")) == config


def test_folder_instead_of_a_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        TrainConfig.load(tmp_path)


@pytest.mark.parametrize("name", (*EFFORTS, *MACHINES))
def test_presets_are_valid_from_any_start(name):
    """A preset gives the same settings whatever was set before."""
    for start in (TrainConfig(), TrainConfig(lora_r=256, max_steps=5, learning_rate=1e-2, dtype="fp32")):
        settings = preset(name)["settings"]
        for setting, value in settings.items():
            assert getattr(start.replace(**settings), setting) == value


def test_efforts_touch_the_same_settings_and_machines_none_of_them():
    efforts = {frozenset(preset(name)["settings"]) for name in EFFORTS}
    assert len(efforts) == 1
    assert not any(set(preset(name)["settings"]) & set().union(*efforts) for name in MACHINES)


def test_an_unknown_preset_lists_those_that_exist():
    with pytest.raises(
        ConfigError, match=r"'H200' is no preset. There are: quick look, balanced, thorough, T4, L4, A100"
    ):
        preset("H200")
