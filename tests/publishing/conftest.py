"""A toy run of this room, whose adapter changes every answer; the sample run in a folder of its own; a Hub."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from hub_server import Hub
from safetensors.numpy import save_file
from toys import make_model, make_tokenizer

from ftkit import Run, models
from ftkit.config import TrainConfig

CONFIG = TrainConfig(backend="transformers", load_in_4bit=False, dtype="fp32", lora_r=4)


def make_run(root, model, tokenizer):
    """A base model below `root` and a run whose adapter stands on it."""
    import torch

    model.to(torch.bfloat16).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    base, tokenizer = models.load(root / "base", CONFIG)
    adapted = models.add_lora(base, CONFIG)
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    run = Run.create("toy", root)
    models.save_adapter(adapted, tokenizer, run / "adapter")
    return run


@pytest.fixture
def made_of(tmp_path):
    """A function that makes such a run of another model and tokenizer."""
    return lambda model, tokenizer: make_run(tmp_path, model, tokenizer)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("publishing"), make_model(), make_tokenizer())


@pytest.fixture
def run(made_once, tmp_path):
    """A run of its own for each test, named toy."""
    shutil.copytree(made_once.path, tmp_path / "toy")
    return Run.open(tmp_path / "toy")


@pytest.fixture
def untouched(run):
    """The digests of the adapter's files, to compare with afterwards."""
    from ftkit import files

    def digests():
        return {name: files.digest(path) for name, path in files.inside(run / "adapter").items()}

    before = digests()
    yield
    assert digests() == before


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on loopback, a token for it, and no waiting between attempts."""
    import huggingface_hub.utils._http as client
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # Xet's store is no part of this server
    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_TOKEN", Hub.token)
    started = Hub().start()
    monkeypatch.setattr(constants, "ENDPOINT", started.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", started.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield started
    started.stop()


@pytest.fixture
def sample(tmp_path):
    """The sample run in a folder of its own, without its figures."""
    path = tmp_path / "sample"
    shutil.copytree(Run.sample().path, path, ignore=shutil.ignore_patterns("figures"))
    (path / ".ftkit-run").touch()
    return Run(path)


@pytest.fixture
def small_sample(tmp_path):
    """The same, with an adapter and a tokenizer of a few bytes, which are quick to send."""
    path = tmp_path / "invoices"
    large = ("adapter_model.safetensors", "tokenizer.json")
    shutil.copytree(Run.sample().path, path, ignore=shutil.ignore_patterns("figures", *large))
    (path / ".ftkit-run").touch()
    save_file({"base_model.model.lora_A": np.ones((4, 2), np.float32)}, path / "adapter" / large[0])
    (path / "adapter" / large[1]).write_text(json.dumps({"version": "1.0"}))
    return Run(path)


@pytest.fixture
def set_facts(small_sample):
    """Change what a run says of its training, and what its adapter names as its base."""

    def change(base=None, **facts):
        known = small_sample.facts
        known["train"] |= facts
        (small_sample / "run.json").write_text(json.dumps(known))
        if base:
            config = small_sample / "adapter/adapter_config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": base}))
        return small_sample

    return change
