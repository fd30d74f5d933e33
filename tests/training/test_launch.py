"""Files for several GPUs: each is read here by the program that it is written for."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, MissingArtifact
from ftkit.training import accelerate_config, fsdp_qlora, share_among, skypilot_task

SKYPILOT = Path(__file__).parents[2] / ".venv-skypilot/bin/python"


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    turns = '{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}'
    path.write_text(f'{{"messages": [{turns}]}}\n' * 4)
    return path


def test_shared_settings_keep_the_batch():
    config = TrainConfig(per_device_train_batch_size=2, gradient_accumulation_steps=8)
    assert share_among(config, 4) == config.replace(gradient_accumulation_steps=2)
    assert share_among(config, 1) == config


@pytest.mark.parametrize("processes", [0, -1, 3, 16])
def test_what_cannot_be_shared_is_refused_and_the_advice_holds(processes):
    config = TrainConfig(per_device_train_batch_size=2, gradient_accumulation_steps=8)
    with pytest.raises(ConfigError, match=rf"gradient_accumulation_steps=8 cannot be .* {processes} processes") as told:
        share_among(config, processes)
    size, summed = map(int, re.findall(r"_size=(\d+) and gradient_accumulation_steps=(\d+)", str(told.value))[0])
    assert size * summed == config.effective_batch_size
    if processes == 16:
        advised = config.replace(per_device_train_batch_size=size, gradient_accumulation_steps=summed)
        assert share_among(advised, 16).effective_batch_size * 16 == config.effective_batch_size


@pytest.mark.parametrize(("shard", "kind"), [(False, "MULTI_GPU"), (True, "FSDP")])
def test_accelerate_reads_its_config(tmp_path, shard, kind):
    """Keys that it does not know would stop its launcher."""
    from accelerate.commands.config.config_args import load_config_from_file

    path = accelerate_config(tmp_path / "accelerate.yaml", TrainConfig(dtype="fp16"), gpus=4, shard=shard)
    read = load_config_from_file(str(path))
    assert (read.distributed_type, read.num_processes, read.use_cpu) == (kind, 4, False)
    assert read.mixed_precision == ("no" if shard else "fp16")


def test_every_key_of_fsdp_is_an_option_of_the_launcher(tmp_path):
    from accelerate.commands.launch import launch_command_parser

    path = accelerate_config(tmp_path / "accelerate.yaml", TrainConfig(), shard=True)
    options = {name for action in launch_command_parser()._actions for name in action.option_strings}
    assert {f"--{name}" for name in yaml.safe_load(path.read_text())["fsdp_config"]} <= options


@pytest.mark.parametrize("gpus", [1, 0, "2", True])
def test_one_gpu_needs_no_launcher(tmp_path, gpus):
    with pytest.raises(ConfigError, match="2 GPUs or more"):
        accelerate_config(tmp_path / "accelerate.yaml", TrainConfig(), gpus=gpus)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "storage"), [("bf16", "bfloat16"), ("fp16", "float32")])
def test_trl_reads_the_arguments_of_its_script(tmp_path, rows, monkeypatch, dtype, storage):
    """4-bit weights are stored in the number format that the rest of the model has, or FSDP could not shard them."""
    from trl.scripts.sft import make_parser

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    config = TrainConfig(dtype=dtype, lora_r=8, target_modules=("q_proj", "v_proj"), learning_rate=1e-4)
    command = fsdp_qlora(tmp_path / "fsdp", config, base_model="owner/model", rows=rows)
    assert re.fullmatch(r"accelerate launch --config_file \S+ -m trl.scripts.sft --config \S+", command)
    settings = yaml.safe_load((tmp_path / "fsdp/sft.yaml").read_text())
    on_cpu = tmp_path / "cpu.yaml"
    on_cpu.write_text(yaml.safe_dump(settings | {"use_cpu": True, "bf16": False, "fp16": False}))
    _, arguments, model, dataset = make_parser().parse_args_and_config(
        ["--config", str(on_cpu)], fail_with_unknown_args=True
    )
    assert settings[dtype] is True
    assert (model.lora_r, model.lora_target_modules, model.use_peft) == (8, ["q_proj", "v_proj"], True)
    assert model.bnb_4bit_quant_storage == model.dtype == storage
    assert (arguments.learning_rate, arguments.assistant_only_loss) == (1e-4, True)
    assert dataset.datasets[0].data_files == str(rows)


def test_sharding_is_for_4_bit(tmp_path, rows):
    with pytest.raises(ConfigError, match="load_in_4bit=True"):
        fsdp_qlora(tmp_path, TrainConfig(load_in_4bit=False), base_model="owner/model", rows=rows)
    assert not (tmp_path / "sft.yaml").exists()


def test_a_task_divides_the_settings_among_its_gpus(tmp_path, rows):
    path = skypilot_task(tmp_path / "task.yaml", TrainConfig(gradient_accumulation_steps=8), rows, gpus="A100:4")
    task = yaml.safe_load(path.read_text())
    settings = TrainConfig.load(task["file_mounts"]["~/config.yaml"])
    assert settings.gradient_accumulation_steps == 2
    assert task["resources"] == {"accelerators": "A100:4", "use_spot": False}


@pytest.mark.parametrize("gpus", ["", ":2", "T4:none", "T4:0"])
def test_gpus_of_another_form_are_refused(tmp_path, rows, gpus):
    with pytest.raises(ConfigError, match=r"such as 'T4:2'"):
        skypilot_task(tmp_path / "task.yaml", TrainConfig(), rows, gpus=gpus)
    assert list(tmp_path.iterdir()) == [rows]


def test_rows_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(MissingArtifact, match="is no file"):
        skypilot_task(tmp_path / "task.yaml", TrainConfig(), tmp_path / "none.jsonl")


def test_the_command_of_a_task_can_be_given(tmp_path, rows):
    """What stands after `-m ftkit` is what the command line takes, and torchrun takes none of it for its own."""
    from torch.distributed.run import parse_args

    from ftkit.__main__ import _parser

    named = rows.rename(rows.with_name("my rows.jsonl"))
    task = skypilot_task(tmp_path / "task.yaml", TrainConfig(), named, base_model="owner/model", name="mine")
    command = yaml.safe_load(task.read_text())["run"].replace("$SKYPILOT_NUM_GPUS_PER_NODE", "2")
    started = parse_args(shlex.split(command)[1:])
    given = started.training_script_args
    assert (started.nproc_per_node, started.module, started.training_script) == ("2", True, "ftkit")
    options = _parser().parse_args(given)
    assert (options.config, options.data, options.run_name) == ("~/config.yaml", "~/my rows.jsonl", "mine")
    assert options.model == "owner/model"


@pytest.mark.slow
@pytest.mark.skipif(
    not SKYPILOT.exists(), reason="SkyPilot is not installed: make test-skypilot does it, in .venv-skypilot"
)
@pytest.mark.parametrize("store", ["", "s3://my-runs"])
def test_skypilot_reads_the_task(tmp_path, rows, store):
    """By its own parser, which refuses what it does not know."""
    path = skypilot_task(tmp_path / "task.yaml", TrainConfig(), rows, gpus="T4:2", store=store)
    script = (
        "import sys, sky; task = sky.Task.from_yaml(sys.argv[1]); resources = list(task.resources)[0]\n"
        "print(task.name, resources.accelerators, resources.use_spot, sorted(task.file_mounts), [*task.storage_mounts])"
    )
    ask = [SKYPILOT, "-c", script, path]
    done = subprocess.run(ask, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    mounts = "['~/runs']" if store else "[]"
    assert done.stdout.strip() == f"ftkit {{'T4': 2}} {bool(store)} ['~/config.yaml', '~/rows.jsonl'] {mounts}"
    broken = tmp_path / "broken.yaml"
    broken.write_text(path.read_text().replace("use_spot", "use_spott"))
    assert "use_spott" in subprocess.run([*ask[:-1], broken], capture_output=True, text=True, timeout=120).stderr
