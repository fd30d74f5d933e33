"""Models that do not fit, are not what the settings say, or give a loss that is none."""

from toys import A100, T4, finding

from ftkit import memory, models, preflight
from ftkit.config import TrainConfig
from ftkit.hardware import Hardware


def test_memory_too_small():
    """70 billion parameters on a T4: refused before a byte of them is loaded, with what to change, in order."""
    shape = memory.find("NousResearch/Llama-2-70b-hf")
    found = finding(
        preflight.check_settings(TrainConfig(dtype="fp16", load_in_4bit=False), T4, shape), "memory-too-small"
    )
    assert found.severity == "error"
    assert "Tesla T4 has 14.6 GiB; largest is weights" in found.evidence
    assert "load_in_4bit=True (saves " in found.fix
    assert found.field in TrainConfig.__dataclass_fields__


def test_memory_that_is_tight_is_a_warning_or_a_note():

    shape, config = memory.find("meta-llama/Llama-3.1-8B"), TrainConfig(dtype="fp16", backend="transformers")
    estimate = memory.estimate(shape, config, loss_path=memory.TRL_LOSS_PATH)
    for there, severity in (
        (estimate.high_gib - 0.05, "note"),
        (estimate.likely_gib - 0.05, "warning"),
        (estimate.low_gib - 0.1, "error"),
    ):
        card = Hardware("cuda", "a card", there, (7, 5), False, 2)
        assert finding(preflight.check_settings(config, card, shape), "memory-too-small").severity == severity


def test_memory_unknown(look, model):
    """An architecture that the estimate does not describe is said, not guessed."""
    model.config.num_local_experts = 8
    report = look()
    assert finding(report, "memory-unknown").severity == "note"
    assert "memory-too-small" in report.skipped


def test_target_modules_missing(look):
    found = finding(look(settings={"target_modules": ("q_proj", "c_attn")}), "target-modules-missing")
    assert (found.severity, found.field) == ("error", "target_modules")
    assert "c_attn" in found.title
    assert "gate_proj" in found.evidence


def test_model_differs(look, model, config):
    """An adapter that is there already stays as it is, whatever the settings say now."""
    adapted = models.add_lora(model.bfloat16(), config.replace(lora_r=4, target_modules=("q_proj",)))
    found = finding(look(model=adapted, settings={"load_in_4bit": True, "backend": "unsloth"}), "model-differs")
    for seen in (
        "not in 4-bit",
        "weights are bfloat16",
        "loaded by transformers",
        "lora_r=8, the adapter has 4",
        "sits on q_proj",
    ):
        assert seen in found.evidence
    assert found.severity == "warning"


def test_fp16_trainable(look, model, config):
    adapted = models.add_lora(model, config).half()
    found = finding(look(model=adapted, settings={"dtype": "fp16"}, hardware=T4), "fp16-trainable")
    assert "float16" in found.evidence


def test_accumulation_loss(look, model, config):
    model.accepts_loss_kwargs = False
    assert finding(look(), "accumulation-loss").field == "gradient_accumulation_steps"
    alone = look(settings={"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8})
    assert "accumulation-loss" in alone.passed


def test_model_split(look, model):
    assert "unused" in finding(look(hardware=A100), "model-split").evidence
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    assert "on 0, 1" in finding(look(hardware=A100), "model-split").evidence


def test_probe_loss_not_finite(look, model):
    import torch

    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    assert finding(look(probe=True), "probe-loss-not-finite").severity == "error"


def test_probe_loss_high(look, model):
    """A head whose rows belong to other tokens: sure of itself and wrong."""
    import torch

    with torch.no_grad():
        model.lm_head.weight.mul_(1_000)
    found = finding(look(probe=True), "probe-loss-high")
    assert "guessing gives 5.6" in found.evidence


def test_probe_loss_zero_and_probe_loss_differs(look, model):
    """A loss function that was replaced by one that sees nothing."""
    import torch

    model.loss_function = lambda **_: torch.tensor(0.0)
    report = look(probe=True)
    assert finding(report, "probe-loss-zero").severity == "error"
    assert finding(report, "probe-loss-differs").severity == "error"


def test_the_probe_changes_nothing(look, model):
    model.train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    look(probe=True)
    assert model.training
    assert all(p.grad is None and bool((p == before[name]).all()) for name, p in model.named_parameters())
