"""Shapes: exact parameter counts from a config alone, and refusals by name."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ftkit import memory
from ftkit.errors import ConfigError, ModelError
from ftkit.memory import ModelShape

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/published"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 100,
}


def rows(name):
    with (DATA / name).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", rows("model_shapes.csv"), ids=lambda row: row["model"])
def test_parameters_are_the_published_ones(row):
    """All models of the table; the one that differs in the table counts its tied head twice."""
    shape = memory.find(row["model"])
    assert int(row["params_computed"]) == shape.parameters
    if row["match"] == "True":
        assert int(row["params_published"]) == shape.parameters


@pytest.mark.parametrize("row", rows("lora_param_counts.csv"), ids=lambda row: row["source"][-40:])
def test_adapters_are_as_large_as_published(row):
    names = [f"{name}_proj" for name in row["targets"].split("|")]
    counted = memory.find(row["model"]).split().lora_parameters(int(row["r"]), names)
    assert int(row["formula_value"]) == counted
    assert (int(row["published_trainable_params"]) == counted) is (row["match"] == "True")


def test_dora_adds_one_magnitude_a_row_of_output():
    """PEFT's own log of a DoRA run."""
    published = next(
        int(row["published_trainable_params"])
        for row in rows("lora_param_counts.csv")
        if row["source"].endswith("dora.json") and "bdlora" not in row["source"]
    )
    assert published == memory.find("meta-llama/Llama-3.2-3B").lora_parameters(32, ("q_proj", "v_proj"), use_dora=True)


SMALLEST = (
    "HuggingFaceTB/SmolLM2-135M",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "unsloth/Qwen3-0.6B",
    "mistralai/Mistral-7B-v0.1",
    "google/gemma-2b",
    "google/gemma-2-2b",
    "ibm/PowerLM-3b",
    "microsoft/Phi-3-mini-4k-instruct",
    "microsoft/phi-1_5",
    "stabilityai/stablelm-base-alpha-3b",
)


@pytest.mark.parametrize("name", SMALLEST)
def test_listed_numbers_are_those_of_a_model_that_transformers_builds(name, monkeypatch):
    """The smallest listed one of each family, built without memory, as any model that is not listed is."""
    import transformers  # noqa: F401  # or Unsloth would be imported first

    listed = dict(json.loads((ROOT / "ftkit/samples/model_shapes.json").read_text())["models"][name])
    counts = {key: listed.pop(key) for key in ("matrices", "other_parameters", "rms_norm")}
    monkeypatch.setattr("ftkit.memory.shapes._by_widths", dict)
    built = ModelShape.from_config(listed, name)
    assert {matrix.name: [matrix.inputs, matrix.outputs] for matrix in built.matrices} == counts["matrices"]
    assert (built.other_parameters, built.rms_norm) == (counts["other_parameters"], counts["rms_norm"])
    assert built.feed_forwards == memory.find(name).feed_forwards


@pytest.mark.parametrize("kind", ["gemma3_text", "olmo2", "smollm3", "starcoder2"])
def test_a_family_that_is_not_listed_is_counted_as_transformers_builds_it(kind):
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    facts = {key: value for key, value in LLAMA.items() if key != "model_type"}
    config = CONFIG_MAPPING[kind](**facts, head_dim=16, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = ModelShape.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {matrix.name for matrix in shape.matrices} == linear - {"lm_head"}


def test_a_listed_model_is_quick_and_its_tuned_copy_as_well():
    """The panel asks on every move of a slider: no torch is loaded for a name, nor for a config with listed widths."""
    script = (
        "import sys; from ftkit import memory; shape = memory.find('Qwen/Qwen2.5-7B-Instruct'); "
        "memory.estimate(shape); "
        "tuned = memory.ModelShape.from_config({'model_type': 'qwen2', 'hidden_size': 3584, 'num_hidden_layers': 28, "
        "'num_attention_heads': 28, 'num_key_value_heads': 4, 'intermediate_size': 18944, 'vocab_size': 152064, "
        "'tie_word_embeddings': False}, 'mine'); sys.exit(tuned.matrices != shape.matrices or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_model_that_is_not_listed_is_built_once(monkeypatch):
    import transformers

    first = ModelShape.from_config(LLAMA | {"vocab_size": 101})
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", None)
    assert ModelShape.from_config(LLAMA | {"vocab_size": 101}) == first


@pytest.mark.parametrize("bias", ["attention_bias", "mlp_bias"])
def test_biases_count_where_the_config_asks_for_them(bias):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**LLAMA, bias: True})
    with torch.device("meta"):
        built = sum(p.numel() for p in LlamaForCausalLM(config).parameters())
    assert built == ModelShape.from_config(config).parameters


def test_dict_object_file_and_folder_give_the_same_shape(tmp_path):
    from transformers import LlamaConfig

    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    of_dict = ModelShape.from_config(LLAMA, "a")
    assert of_dict == ModelShape.from_config(LlamaConfig(**LLAMA), "a") == ModelShape.from_config(path, "a")
    assert of_dict == ModelShape.from_config(tmp_path, "a")
    assert memory.find(tmp_path).parameters == of_dict.parameters


def test_the_bundled_model_is_found_under_its_own_name():
    assert memory.find("smollm2-135m-instruct").parameters == 134_515_008


def test_listed_models_come_smallest_first():
    counts = [memory.find(name).parameters for name in memory.names()]
    assert len(counts) >= 55
    assert counts == sorted(counts)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, r"\(mixtral\) is a mixture of experts"),
        (
            {"model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8},
            r"\(qwen3_moe\) is a mixture of experts",
        ),
        ({"model_type": "deepseek_v3", "n_routed_experts": 256}, r"\(deepseek_v3\) is a mixture of experts"),
        ({"model_type": "gemma3", "vision_config": {"hidden_size": 1}}, r"\(gemma3\) also reads pictures or sound"),
        ({"model_type": "t5", "is_encoder_decoder": True}, r"\(t5\) is an encoder with a decoder"),
        ({"model_type": "mamba"}, r"\(mamba\) is not described: its matrices do not add up"),
        ({"model_type": "helium", "head_dim": 8}, r"\(helium\) is not described: its matrices do not add up"),
        ({"model_type": "invented"}, r"\(invented\) is not described: transformers builds no language model"),
        ({"model_type": "gpt_bigcode"}, r"\(gpt_bigcode\) is not described: its 4-bit runs"),
        ({"model_type": None}, r"\(no model_type\) is not described"),
    ],
)
def test_what_is_not_described_is_refused_by_name(change, wanted):
    with pytest.raises(ConfigError, match=wanted):
        ModelShape.from_config(LLAMA | change)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"vocab_size": None}, "vocab_size=None"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers='32'"),
        ({"num_key_value_heads": -1}, "num_key_value_heads=-1"),
        ({"intermediate_size": True}, "intermediate_size=True"),
    ],
)
def test_a_damaged_config_names_the_value(change, wanted):
    with pytest.raises(ConfigError, match=wanted):
        ModelShape.from_config(LLAMA | change)


def test_what_is_no_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="no JSON"):
        ModelShape.from_config(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        ModelShape.from_config(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="not a int"):
        ModelShape.from_config(7)


def test_an_unknown_name_says_why_without_a_network():
    with pytest.raises(ModelError):
        memory.find("nobody/none-such-model")


def test_wrong_targets_list_those_that_there_are():
    with pytest.raises(ConfigError, match=r"query are not in .*It has: q_proj, k_proj"):
        memory.find("unsloth/Llama-3.1-8B").targets(["query"])


def test_a_fused_model_is_taken_apart_without_changing_its_size():
    fused = memory.find("microsoft/Phi-3-mini-4k-instruct")
    assert fused.split().parameters == fused.parameters
    assert next(matrix.name for matrix in fused.split().matrices) == "q_proj"


def test_it_shows_itself():
    shape = memory.find("unsloth/Llama-3.1-8B")
    assert "8,030,261,248" in str(shape)
    assert "8,030,261,248" in shape._repr_html_()
