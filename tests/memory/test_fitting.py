"""Will it fit: cards, and what to change first."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit import memory
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError
from ftkit.memory.fitting import gpu_table

LARGE = memory.find("meta-llama/Llama-3.1-8B")
DEAR = TrainConfig(load_in_4bit=False, backend="transformers", gradient_checkpointing=False, optim="adamw_torch")


def test_an_8b_fits_a_t4_by_qlora_and_not_in_full():
    assert memory.fits(memory.estimate(LARGE, TrainConfig(dtype="fp16")))["T4"] == "fits"
    full = memory.fits(memory.estimate(LARGE, TrainConfig(optim="adamw_torch"), method="full"))
    assert full["T4"] == full["A100 40 GB"] == "does not fit"
    assert full["A100 80 GB"] == "tight"
    assert "fits" not in {row.verdict for row in full.rows}


# Longest context of Llama 3.1 8B by QLoRA, r=32 on all layers, batch 1: the README of unslothai/unsloth.
LONGEST = (
    (8, 2_972, None),
    (12, 21_848, 932),
    (16, 40_724, 2_551),
    (24, 78_475, 5_789),
    (40, 153_977, 12_264),
    (48, 191_728, 15_502),
    (80, 342_733, 28_454),
)


@pytest.mark.parametrize(("card_gb", "unsloth", "plain"), LONGEST)
def test_published_longest_contexts_lie_between_likely_and_high(card_gb, unsloth, plain):
    """At the longest row that a card took, the likely peak is below its memory and the high end near or above it."""
    for backend, length in (("unsloth", unsloth), ("transformers", plain)):
        if length:
            config = TrainConfig(per_device_train_batch_size=1, max_length=length, lora_r=32, backend=backend)
            found = memory.estimate(LARGE, config)
            assert found.likely_gib < card_gb
            assert found.high_gib > 0.75 * card_gb


def test_cards_come_smallest_first_below_their_nominal_size_with_a_source():
    cards = gpu_table()
    assert [card.usable_gib for card in cards] == sorted(card.usable_gib for card in cards)
    assert all(
        0.9 * card.nominal_gb * 1e9 / 2**30 < card.usable_gib < card.nominal_gb and card.source for card in cards
    )
    assert {"T4", "L4", "RTX 3060", "RTX 3090", "RTX 4090", "A100 40 GB", "A100 80 GB", "H100 80 GB"} <= {
        card.name for card in cards
    }


def test_an_unknown_card_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'T5' is not in the table\. There are: .*T4"):
        memory.gpu("T5")


@pytest.mark.parametrize(("room", "wanted"), [(1000.0, "fits"), (1.0, "does not fit")])
def test_verdicts(room, wanted):
    found = memory.estimate(LARGE)
    assert memory.verdict(found, room) == wanted
    assert wanted.split()[-1] in memory.advice(found, room)


def test_between_likely_and_high_it_is_tight():
    found = memory.estimate(LARGE, TrainConfig(backend="transformers"))
    room = (found.likely_gib + 0.5 + found.high_gib) / 2
    assert memory.verdict(found, room) == "tight"
    assert "tight" in memory.advice(found, room)


def test_what_is_taken_only_where_it_is_free_does_not_keep_a_run_from_fitting():
    """Unsloth's loss takes up to half of the free memory: on a smaller card it takes less."""
    found = memory.estimate(LARGE)
    assert found.elastic_gib > 0
    assert memory.verdict(found, found.high_gib - found.elastic_gib) == "fits"


def test_an_estimate_for_a_cpu_is_not_held_against_cards():
    with pytest.raises(ConfigError, match="device='cuda'"):
        memory.fits(memory.estimate(LARGE, device="cpu"))


def test_savings_come_by_cost_and_add_up():
    found = memory.savings(LARGE, DEAR, room_gib=14.56)
    costs = [row.cost.split(":")[0] for row in found.rows]
    assert costs == sorted(costs, key=["costs nothing", "costs time", "costs quality"].index)
    assert found.start.likely_gib - sum(row.gain_gib for row in found.rows) == pytest.approx(
        found.rows[-1].estimate.likely_gib
    )
    assert all(row.gain_gib > 0 for row in found.rows)


def test_savings_are_enough_exactly_where_it_fits():
    found = memory.savings(LARGE, DEAR, room_gib=14.56)
    assert memory.verdict(found.rows[found.enough - 1].estimate, 14.56) == "fits"
    assert memory.verdict(found.rows[found.enough - 2].estimate, 14.56) != "fits"
    assert f"after the first {found.enough}" in str(found)


def test_checkpointing_gains_most_on_long_rows():
    found = memory.savings(LARGE, DEAR.replace(max_length=8192))
    assert max(found.rows, key=lambda row: row.gain_gib).change == "gradient_checkpointing=True"


def test_the_effective_batch_size_stays():
    config = DEAR.replace(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    assert {row.config.effective_batch_size for row in memory.savings(LARGE, config).rows} == {16}


def test_too_little_room_asks_for_another_model():
    found = memory.savings(memory.find("NousResearch/Llama-2-70b-hf"), TrainConfig(), room_gib=14.56)
    assert found.enough is None
    assert "smaller model" in str(found)


def test_what_fits_needs_no_change():
    assert memory.savings(LARGE, TrainConfig(), room_gib=80).enough == 0
    assert "as it is" in memory.savings(LARGE, TrainConfig(), room_gib=80)._repr_html_()


def test_a_cpu_is_not_told_to_take_what_only_a_gpu_has():
    changes = [row.change for row in memory.savings(LARGE, DEAR, device="cpu").rows]
    assert not any("adamw_8bit" in change or "backend" in change for change in changes)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 16), st.sampled_from([256, 2048, 8192]), st.booleans(), st.sampled_from(["auto", "transformers"]))
def test_no_saving_makes_it_worse(batch, length, four, backend):
    config = TrainConfig(per_device_train_batch_size=batch, max_length=length, load_in_4bit=four, backend=backend)
    found = memory.savings(LARGE, config)
    ends = [found.start.likely_gib, *(row.estimate.likely_gib for row in found.rows)]
    assert ends == sorted(ends, reverse=True)


def test_reports_show_themselves():
    estimate = memory.estimate(LARGE)
    for report in (memory.fits(estimate), memory.savings(LARGE, DEAR)):
        assert "GiB" in str(report)
        assert report._repr_html_().startswith("<table>")
