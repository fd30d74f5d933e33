"""Rounding by hand agrees with bitsandbytes, and what is counted is what the tensors hold."""

import pytest

from ftkit import lessons, models
from ftkit.config import TrainConfig
from ftkit.lessons.quantization import KINDS, levels_of


def packed_by_hand(blocks):
    """Codes of NF4 as the notebook writes them: nearest level, two to a byte."""
    import torch

    levels = levels_of("nf4")
    codes = torch.bucketize(blocks / blocks.abs().amax(dim=1, keepdim=True), (levels[1:] + levels[:-1]) / 2)
    return (codes[:, 0::2] * 16 + codes[:, 1::2]).to(torch.uint8)


def test_codes_equal_those_of_bitsandbytes_on_ten_thousand_blocks():
    import torch
    from bitsandbytes.functional import quantize_4bit

    blocks = torch.randn(10_000, 64, generator=torch.Generator().manual_seed(7))
    theirs, _ = quantize_4bit(blocks, blocksize=64, quant_type="nf4")
    assert torch.equal(packed_by_hand(blocks).reshape(-1), theirs.reshape(-1))


def test_levels_from_quantiles_equal_the_librarys_table():
    import torch

    assert torch.allclose(lessons.nf4_levels(), levels_of("nf4"), atol=1e-7, rtol=0)


def test_rounded_is_a_copy_whose_layers_are_rounded(model):
    """Embedding and norms stay, and so does the model that was given."""
    weight, embedding = model.model.layers[0].mlp.up_proj.weight, model.get_input_embeddings().weight
    before = weight.clone()
    other = lessons.rounded(model, "nf4")
    assert other.model.layers[0].mlp.up_proj.weight.equal(lessons.roundtrip(before, "nf4"))
    assert other.get_input_embeddings().weight.equal(embedding)
    assert weight.equal(before)
    assert len(lessons.projections(model)) == 7 * 2


def test_packed_codes_are_copies_of_the_bytes():
    import torch

    layer = torch.nn.Linear(4, 4)
    layer.codes = torch.nn.Parameter(torch.tensor([1, 2], dtype=torch.uint8), requires_grad=False)
    codes = lessons.packed_codes(layer)
    layer.codes.data += 1
    assert {name: tensor.tolist() for name, tensor in codes.items()} == {"codes": [1, 2]}


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_roundtrip_equals_bitsandbytes(kind):
    """Stored and read back, every weight comes out as the library would have it."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weights = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    theirs = dequantize_4bit(*quantize_4bit(weights, blocksize=64, quant_type=kind))
    assert torch.allclose(lessons.roundtrip(weights, kind), theirs, atol=1e-6)


def test_integers_round_to_whole_steps_of_the_absmax():
    import torch

    assert lessons.roundtrip(torch.tensor([7.0, 3.4, -7.0, 0.2]), "int4").tolist() == [7, 3, -7, 0]


def test_a_block_of_zeros_stays_zero():
    import torch

    for kind in KINDS:
        assert lessons.roundtrip(torch.zeros(3, 50), kind).abs().max() == 0


def test_shape_is_kept_and_a_last_block_may_be_short():
    import torch

    weights = torch.randn(3, 50)
    assert lessons.roundtrip(weights, "nf4", 64).shape == (3, 50)


def test_more_bits_and_smaller_blocks_lose_less():
    import torch

    weights = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    assert lessons.error(weights, "int8") < lessons.error(weights, "nf4") < lessons.error(weights, "fp4")
    assert lessons.error(weights, "nf4", 32) < lessons.error(weights, "nf4", 1024)


def test_one_scale_for_all_is_ruined_by_one_outlier():
    import torch

    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    weights[0, 0] = 100.0
    assert lessons.error(weights[1:], "nf4", None) < 0.2
    assert lessons.roundtrip(weights, "nf4", None)[1:].abs().max() < 1e-6


def test_an_unknown_format_is_refused():
    import torch

    with pytest.raises(ValueError, match="kind='nf3'"):
        lessons.roundtrip(torch.zeros(4), "nf3")


def test_stored_counts_tied_weights_once_and_bits_by_kind(model):
    """A model in fp32 holds 32 bits a parameter, whatever the layer."""
    found = lessons.stored(model)
    assert sum(count for count, _ in found.parts.values()) == sum(p.numel() for p in model.parameters())
    assert found.bits("all") == 32
    assert set(found.parts) == {"embedding, float32", "linear, float32", "norm, float32"}
    assert "embedding, float32" in str(found)
    assert "<table>" in found._repr_html_()


@pytest.mark.slow
@pytest.mark.parametrize(("double", "bits"), [(False, 4.5), (True, 4.127)])
def test_bits_of_the_bundled_model_in_nf4(double, bits):
    """4.500 bits a parameter with plain scales, 4.127 with double quantisation (Dettmers et al. 2023, section 3)."""
    config = TrainConfig(backend="transformers", dtype="bf16", bnb_4bit_use_double_quant=double)
    loaded, _ = models.load(models.BUNDLED, config)
    assert lessons.stored(loaded).bits("4-bit (nf4)") == pytest.approx(bits, abs=0.001)
