"""A toy run of this room: a Llama of two layers in 16 bit, and an adapter of it that changes every answer."""

import shutil

import pytest
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
