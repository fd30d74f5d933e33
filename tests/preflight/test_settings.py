"""Settings that a machine cannot follow, or that a run of this length cannot use."""

import pytest
from toys import A100, CPU, T4, finding

from ftkit import preflight
from ftkit.config import TrainConfig
from ftkit.hardware import Hardware
from ftkit.preflight.settings import updates_in


def settings_finding(id, hardware=CPU, *, rows=None, **settings):
    return finding(preflight.check_settings(TrainConfig(**settings), hardware, rows=rows), id)


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("lora_r", 2, "little room"),
        ("lora_dropout", 0.5, "Unsloth"),
        ("learning_rate", 2e-5, "learns little"),
        ("learning_rate", 3e-3, "diverge"),
        ("num_train_epochs", 9.0, "by heart"),
        ("weight_decay", 0.5, "nothing"),
        ("max_grad_norm", 0.05, "cut short"),
        ("max_length", 64, "lose their ends"),
        ("warmup_steps", 0, "first updates"),
    ],
)
def test_unusual_setting(setting, value, reason):
    """Outside the usual range of its knob: the reason, the help text and a value to try."""
    found = settings_finding("unusual-setting", **{setting: value})
    assert (found.severity, found.field) == ("warning", setting)
    assert reason in found.title
    assert f"Try {setting}=" in found.fix


def test_a_small_max_length_is_fine_where_nothing_is_cut(config):
    found = preflight.check_settings(config.replace(max_length=256), CPU, longest=200)
    assert [f for f in found if f.field == "max_length"] == []


@pytest.mark.parametrize(("size", "summed"), [(1, 2), (16, 8)])
def test_effective_batch(size, summed):
    found = settings_finding("effective-batch", per_device_train_batch_size=size, gradient_accumulation_steps=summed)
    assert found.title.startswith(f"{size * summed} examples stand behind each update")


def test_alpha_ratio():
    assert settings_finding("alpha-ratio", lora_r=64, lora_alpha=8).field == "lora_alpha"


def test_bf16_unsupported():
    """By compute capability: a T4 has none, although torch emulates it."""
    found = settings_finding("bf16-unsupported", T4, dtype="bf16")
    assert (found.severity, found.field) == ("error", "dtype")
    assert "7.5" in found.evidence
    assert "dtype='fp16'" in found.fix
    old_cpu = Hardware("cpu", "an old CPU", 16.0, None, False, 2)
    assert settings_finding("bf16-unsupported", old_cpu, dtype="bf16").severity == "warning"


def test_fp16_on_cpu():
    assert settings_finding("fp16-on-cpu", dtype="fp16").severity == "error"


def test_fp32_on_gpu():
    assert "dtype='fp16'" in settings_finding("fp32-on-gpu", T4, dtype="fp32").fix


def test_optimizer_replaced():
    assert settings_finding("optimizer-replaced", optim="adamw_8bit").severity == "note"


def test_packing_leaks():
    assert settings_finding("packing-leaks", packing=True).severity == "error"


@pytest.mark.parametrize("settings", [{"load_in_4bit": True}, {"backend": "unsloth"}, {"report_to": "wandb"}])
def test_package_missing(settings, monkeypatch):
    monkeypatch.setattr("ftkit.preflight.settings.find_spec", lambda name: None)
    found = settings_finding("package-missing", **{"load_in_4bit": False, **settings})
    assert (found.severity, found.field) == ("error", next(iter(settings)))
    assert "pip install" in found.fix


def test_settings_that_suit_a_machine_have_no_error():
    for hardware in (CPU, T4, A100):
        errors = [
            f for f in preflight.check_settings(TrainConfig.for_hardware(hardware), hardware) if f.severity == "error"
        ]
        assert errors == []


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant_with_warmup", "constant"])
def test_warmup_ignored_exactly_where_the_schedule_ignores_it(kind):
    """The scheduler of transformers decides, and each way out that is advised leads to no such finding."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = get_scheduler(kind, optimizer, num_warmup_steps=5, num_training_steps=20)
    ignored = schedule.get_last_lr() == [1e-3]
    settings = {"lr_scheduler_type": kind, "warmup_steps": 5}
    found = preflight.check_settings(TrainConfig(**settings), CPU)
    assert ("warmup-ignored" in {f.id for f in found}) == ignored
    for way_out in ({"lr_scheduler_type": "constant_with_warmup"}, {"warmup_steps": 0}):
        found = preflight.check_settings(TrainConfig(**settings | way_out), CPU, rows=400)
        assert [f.id for f in found if f.id == "warmup-ignored"] == []
        assert [f for f in found if f.field == "warmup_steps" and kind == "constant"] == []


@pytest.mark.parametrize(("warmup", "severity"), [(50, "warning"), (30, "note")])
def test_warmup_too_long(warmup, severity):
    found = settings_finding("warmup-too-long", max_steps=40, warmup_steps=warmup)
    assert (found.severity, found.field) == (severity, "warmup_steps")


def test_save_never():
    assert settings_finding("save-never", max_steps=40, save_steps=50).severity == "note"


def test_eval_never():
    assert settings_finding("eval-never", max_steps=10, eval_steps=20).severity == "note"


def test_early_stopping_idle():
    found = settings_finding("early-stopping-idle", max_steps=40, eval_steps=20, early_stopping_patience=3)
    assert "2 validation losses in 40 updates" in found.evidence


@pytest.mark.parametrize(("dtype", "severity"), [("bf16", "note"), ("fp16", "warning")])
def test_few_updates(dtype, severity):
    assert settings_finding("few-updates", T4, max_steps=4, dtype=dtype).severity == severity


def test_fewer_rows_than_batch():
    assert settings_finding("fewer-rows-than-batch", rows=5).severity == "warning"


def test_too_many_epochs():
    found = settings_finding("too-many-epochs", rows=100, max_steps=130)
    assert "10.0 times" in found.title
    assert found.field == "max_steps"


def test_several_processes_make_fewer_updates_of_a_pass(monkeypatch):
    """100 rows, 2 x 4 an update: 13 updates in one process, 7 in two."""
    config = TrainConfig(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert updates_in(config, 100) == 13
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert updates_in(config, 100) == 7


def test_several_processes_stand_behind_an_update_together(monkeypatch):
    """2 x 2 is few in one process, and fine in two, as the check then says."""
    given = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert "4 examples stand behind" in settings_finding("effective-batch", **given).title
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "effective-batch" not in [found.id for found in preflight.check_settings(TrainConfig(**given), CPU)]
    monkeypatch.setenv("WORLD_SIZE", "16")
    found = settings_finding("effective-batch", **given)
    assert "64 examples stand behind" in found.title
    assert "× 16 processes" in found.evidence
