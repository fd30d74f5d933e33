"""The estimate: parts that add up, a range that holds public measurements, and more of anything never needs less."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit import memory
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError
from ftkit.hardware import GIB
from ftkit.runs import Run
from ftkit.training import History, HistoryPoint

SMALL, LARGE = memory.find("HuggingFaceTB/SmolLM2-360M"), memory.find("meta-llama/Llama-3.1-8B")
NAMES = ("HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen2.5-7B-Instruct", "google/gemma-2-9b", "NousResearch/Llama-2-70b-hf")

configs = st.builds(
    TrainConfig,
    backend=st.sampled_from(["auto", "unsloth", "transformers"]),
    load_in_4bit=st.booleans(),
    bnb_4bit_use_double_quant=st.booleans(),
    dtype=st.sampled_from(["bf16", "fp16", "fp32"]),
    gradient_checkpointing=st.booleans(),
    lora_r=st.integers(1, 128),
    use_dora=st.booleans(),
    per_device_train_batch_size=st.integers(1, 16),
    gradient_accumulation_steps=st.integers(1, 4),
    optim=st.sampled_from(["adamw_8bit", "adamw_torch", "sgd"]),
    max_length=st.integers(8, 8192),
)
shapes = st.sampled_from(NAMES).map(memory.find)
stacks = st.fixed_dictionaries(
    {
        "loss_path": st.sampled_from([None, "full", "fast", "chunked"]),
        "method": st.sampled_from([None, "full", "lora", "qlora"]),
        "attention": st.sampled_from(["sdpa", "eager"]),
        "device": st.sampled_from(["cuda", "cpu"]),
        "mixed_precision": st.booleans(),
        "upcast": st.booleans(),
    }
)


@given(shapes, configs, stacks)
def test_parts_add_up_and_the_range_is_in_order(shape, config, how):
    found = memory.estimate(shape, config, **how)
    assert sum(part.gib for part in found.parts) == pytest.approx(found.likely_gib)
    assert 0 < found.low_gib <= found.likely_gib <= found.high_gib
    assert 0 <= found.elastic_gib <= found.high_gib - found.likely_gib
    assert found.dominant in {part.name for part in found.parts}
    assert all(part.gib > 0 for part in found.parts)


@given(
    shapes,
    configs,
    stacks,
    st.sampled_from(["max_length", "per_device_train_batch_size", "lora_r"]),
    st.integers(1, 4096),
)
def test_more_never_needs_less(shape, config, how, name, more):
    """More length, rank or batch: low, likely and high all stay or rise, on any stack."""
    limit = {"max_length": 1_048_576, "per_device_train_batch_size": 512, "lora_r": 256}[name]
    larger = config.replace(**{name: min(limit, getattr(config, name) + more)})
    before, after = memory.estimate(shape, config, **how), memory.estimate(shape, larger, **how)
    for end in ("low_gib", "likely_gib", "high_gib"):
        assert getattr(after, end) >= getattr(before, end) - 1e-9


@given(shapes, configs)
def test_each_saver_saves(shape, config):
    """Checkpointing, 4-bit, double quantisation, 8-bit Adam and a chunked loss never need more."""
    for dear, cheap in (
        ({"load_in_4bit": False}, {"load_in_4bit": True}),
        ({"optim": "adamw_torch"}, {"optim": "adamw_8bit"}),
        ({"bnb_4bit_use_double_quant": False}, {"bnb_4bit_use_double_quant": True}),
        ({"gradient_checkpointing": False}, {"gradient_checkpointing": True}),
    ):
        first, second = (
            memory.estimate(shape, config.replace(backend="transformers", **change)) for change in (dear, cheap)
        )
        assert second.likely_gib <= first.likely_gib + 1e-9
    full, fast, chunked = (
        memory.estimate(shape, config, loss_path=path).likely_gib for path in ("full", "fast", "chunked")
    )
    assert fast <= full
    assert chunked <= full


def test_by_hand_for_a_7b():
    """Weights of 6.74 billion parameters in 16-bit, and the adapter's 16 bytes a parameter."""
    shape = memory.find("meta-llama/Llama-2-7b-hf")
    found = memory.estimate(
        shape, TrainConfig(load_in_4bit=False, optim="adamw_torch", lora_r=8, target_modules=("q_proj", "v_proj"))
    )
    assert found["weights"] == pytest.approx(2 * 6_738_415_616 / GIB)
    assert found["adapter and its gradients"] + found["optimiser states"] == pytest.approx(16 * 4_194_304 / GIB)
    assert found.trainable == 4_194_304


def test_full_fine_tuning_in_pure_bf16_is_ten_bytes_a_parameter():
    found = memory.estimate(LARGE, TrainConfig(optim="adamw_torch", max_length=512), method="full")
    assert found.likely_gib == pytest.approx(10 * 8_030_261_248 / GIB)
    assert 67 < found.low_gib < found.likely_gib < 75


def test_long_rows_decide_where_full_fine_tuning_would_not():
    """Once activations outgrow the update, they are the peak; earlier gradients wait when batches accumulate."""
    config = TrainConfig(
        optim="adamw_torch", max_length=65_536, gradient_accumulation_steps=1, per_device_train_batch_size=1
    )
    once = memory.estimate(LARGE, config, method="full", backend="transformers")
    many = memory.estimate(LARGE, config.replace(gradient_accumulation_steps=2), method="full", backend="transformers")
    assert once["logits and their loss"] > 0
    assert once["gradients"] == 0
    assert many.likely_gib - once.likely_gib == pytest.approx(2 * LARGE.parameters / GIB)


def test_mixed_precision_adds_master_weights_and_wide_states():
    """2 bytes of weights, 4 of master weights, 8 of Adam; gradients and optimiser are then 10 bytes a parameter."""
    found = memory.estimate(LARGE, TrainConfig(optim="adamw_torch"), method="full", mixed_precision=True)
    assert found["master weights"] == pytest.approx(4 * LARGE.parameters / GIB)
    assert found["gradients"] + found["optimiser states"] == pytest.approx(10 * LARGE.parameters / GIB)


def test_backends_choose_their_own_loss_and_adapter_width():
    """Unsloth computes the loss in parts and moves layers' inputs to the computer's RAM."""
    unsloth, plain = (
        memory.estimate(LARGE, TrainConfig(backend=name, optim="adamw_torch")) for name in ("unsloth", "transformers")
    )
    assert "loss chunked" in unsloth.about
    assert "loss full" in plain.about
    assert unsloth["inputs of layers"] < plain["inputs of layers"]


def test_trl_casts_a_qlora_adapter_to_bf16_and_no_other():
    """Seen in this kit's runs; Adam's states follow. LoRA on 16-bit weights keeps 32 bits, as does Unsloth on a GPU."""
    config = TrainConfig(optim="adamw_torch", backend="transformers")

    def states(config, device="cuda"):
        return memory.estimate(LARGE, config, device=device)["optimiser states"]

    assert states(config.replace(load_in_4bit=False)) == pytest.approx(2 * states(config))
    assert states(config.replace(backend="unsloth")) == pytest.approx(2 * states(config))
    assert states(config.replace(backend="unsloth"), "cpu") == pytest.approx(states(config, "cpu"))


def test_upcasting_for_k_bit_training_costs_embedding_stream_and_logits():
    found, upcast = (memory.estimate(LARGE, TrainConfig(backend="transformers"), upcast=flag) for flag in (False, True))
    for part in ("embedding, head, norms", "inputs of layers"):
        assert upcast[part] == pytest.approx(2 * found[part])
    assert upcast["logits and their loss"] > found["logits and their loss"]


def test_auto_takes_transformers_for_plain_nf4():
    """As `models.choose_backend` does: Unsloth always quantises the scales too."""
    assert "transformers" in memory.estimate(LARGE, TrainConfig(bnb_4bit_use_double_quant=False)).about
    assert "unsloth" in memory.estimate(LARGE).about


def test_a_cpu_counts_the_libraries_and_no_8_bit_adam():
    found = memory.estimate(SMALL, TrainConfig(optim="adamw_8bit", load_in_4bit=False), device="cpu")
    assert found["Python and its libraries"] > 0.5
    assert found["optimiser states"] == pytest.approx(8 * found.trainable / GIB)


def test_short_rows_need_less_than_the_limit_allows():
    config = TrainConfig(max_length=4096)
    assert memory.estimate(LARGE, config, longest=300) == memory.estimate(LARGE, config.replace(max_length=300))
    assert memory.estimate(LARGE, config, longest=9000) == memory.estimate(LARGE, config)


@pytest.mark.parametrize(
    ("bad", "wanted"),
    [
        ({"backend": "jax"}, "backend='jax' is not one of unsloth, transformers"),
        ({"loss_path": "none"}, "loss_path='none' is not one of"),
        ({"method": "prefix"}, "method='prefix' is not one of"),
        ({"attention": "linear"}, "attention='linear'"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"longest": 0}, "longest=0"),
        ({"longest": 2.5}, "longest=2.5"),
    ],
)
def test_what_does_not_exist_is_refused(bad, wanted):
    with pytest.raises(ConfigError, match=wanted):
        memory.estimate(LARGE, TrainConfig(), **bad)


def test_two_mistakes_are_told_at_once():
    with pytest.raises(ConfigError, match=r"(?s)backend='jax'.*device='tpu'"):
        memory.estimate(LARGE, TrainConfig(), backend="jax", device="tpu")


def test_target_modules_that_the_model_lacks_are_refused():
    with pytest.raises(ConfigError, match="fc1 are not in"):
        memory.estimate(LARGE, TrainConfig(target_modules=("fc1",)))


def test_an_estimate_shows_itself():
    found = memory.estimate(LARGE)
    assert found.dominant in str(found)
    assert f"{found.likely_gib:.2f}" in found._repr_html_()


def test_beside_takes_a_number_a_history_and_a_run(tmp_path):
    found = memory.estimate(SMALL)
    run = Run.create("r", tmp_path)
    run.finish("train", peak_memory_gib=found.likely_gib)
    history = History.of([HistoryPoint(1, loss=1.0, memory_gib=found.likely_gib)])
    for measured in (found.likely_gib, history, run):
        row = memory.beside(found, measured)
        assert row.error == pytest.approx(0)
        assert row.within
    assert not memory.beside(found, 10 * found.high_gib).within
    assert "outside" in str(memory.beside(found, 10 * found.high_gib))
    assert "measured" in row._repr_html_()


@pytest.mark.parametrize("measured", [0, -1.0, float("nan"), "3", None])
def test_beside_refuses_what_is_no_measurement(measured):
    with pytest.raises(ConfigError, match="measured="):
        memory.beside(memory.estimate(SMALL), measured)


def test_beside_refuses_a_run_that_did_not_train(tmp_path):
    with pytest.raises(ConfigError, match="finished"):
        memory.beside(memory.estimate(SMALL), Run.create("r", tmp_path))


def test_estimates_are_values():
    """Frozen, equal when equal, and quick: a slider asks for hundreds."""
    found = memory.estimate(LARGE)
    assert found == memory.estimate(LARGE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.likely_gib = 0


# Peak resident GiB of runs of the bundled model by this kit, four updates, r=16 on all layers, 2026-11-25, 2 cores:
# backend, 4-bit, rows at once, tokens of the longest row, peak.
ON_CPU = [
    ("unsloth", True, 4, 370, 3.04),
    ("transformers", True, 4, 370, 2.87),
    ("unsloth", False, 8, 370, 4.82),
    ("transformers", False, 4, 178, 1.97),
    ("unsloth", True, 4, 177, 2.38),
]


@pytest.mark.parametrize(("backend", "four", "batch", "longest", "peak"), ON_CPU)
def test_runs_on_a_cpu_lie_within_the_range(backend, four, batch, longest, peak):
    config = TrainConfig(
        backend=backend,
        load_in_4bit=four,
        per_device_train_batch_size=batch,
        max_length=512,
        gradient_checkpointing=False,
    )
    found = memory.estimate(memory.find("smollm2-135m-instruct"), config, device="cpu", longest=longest)
    assert memory.beside(found, peak).within
    assert abs(memory.beside(found, peak).error) < 0.25
