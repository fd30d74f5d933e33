"""Often repeated numbers, recomputed: which are too low, which are best cases, and what was measured."""

import pytest

from ftkit import files, lessons
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError

CONFIG = TrainConfig(backend="transformers", per_device_train_batch_size=1)


@pytest.fixture(scope="module")
def points():
    return lessons.measurements()[0]


@pytest.fixture(scope="module")
def table(points):
    return lessons.hardware_table(CONFIG, points)


def test_every_cell_of_the_table_is_there(table):
    assert len(table.cells) == 12
    assert table["70B", "full"].says_gib is None
    assert table["7B to 8B", "qlora"].says_gib == 8


def test_full_fine_tuning_of_an_8b_wants_8_bit_adam_to_fit_60_gb(table):
    """60 GB is less than 10 bytes per parameter, and than the nearest measurement of that class."""
    cell = table["7B to 8B", "full"]
    assert cell.verdict == "a best case: 8-bit Adam"
    assert cell.lean.likely_gib < 60 < cell.usual.likely_gib
    assert cell.nearest.allocated_gib > 60


def test_a_number_that_is_right_when_rounded_is_not_called_wrong(table):
    assert table["13B", "full"].verdict == "likely enough, not surely"


def test_qlora_numbers_are_best_cases(table):
    assert table["70B", "qlora"].verdict == "a best case: short rows" or table["70B", "qlora"].usual.likely_gib <= 40
    long = lessons.hardware_table(CONFIG.replace(max_length=16384))
    for size in ("1B to 3B", "7B to 8B", "13B", "70B"):
        assert long[size, "qlora"].verdict == "a best case: short rows"


def test_the_nearest_measurement_is_of_the_same_class_and_method(table):
    for cell in table.cells:
        if cell.nearest:
            assert cell.nearest.setup.method == cell.method
            assert cell.size.holds(cell.nearest.shape)


def test_a_measurement_without_checkpointing_says_so(table):
    assert "no checkpointing" in str(table)


def test_each_claim_stands_beside_a_computed_value(points):
    computed = {row[0]: row[2] for row in lessons.memory_claims(points).rows}
    assert (
        "27 GB with Adam's averages in 8-bit, 40 in 16-bit, 67 in 32-bit"
        in computed["gradients and optimiser states of a 7B"]
    )
    assert "75 GiB for an 8B all in 16-bit, 49 with Adam in 8-bit" in computed["7B to 8B, full fine-tuning"]
    assert "measured 62 to 63" in computed["QLoRA of a 70B"]
    assert "(to 76)" in computed["QLoRA of a 70B"]
    assert "0.373" in computed["double quantisation saves"]


def test_tables_show_themselves(table, points):
    for report in (table, lessons.memory_claims(points)):
        assert "a best case" in str(report)
        assert report._repr_html_().startswith("<table>")


@pytest.mark.parametrize("row", files.sample("often_repeated")["settings"], ids=lambda row: row["setting"])
def test_every_range_is_of_something_that_a_config_has(row):
    assert hasattr(TrainConfig(), row["setting"])
    assert row["low"] < row["high"]


def test_the_kits_ranges_come_from_the_settings_own_lines():
    text = str(lessons.settings_table())
    assert "8 to 64: higher has more capacity; for complex tasks try 32 to 64" in text
    assert "8 to 32 examples stand behind each update" in text


def test_what_was_not_measured_says_so():
    table = lessons.settings_table({"lora_r": "rank 64 was no better than 4"})
    assert "rank 64 was no better than 4" in str(table)
    assert "rank 64 was no better than 4" in table._repr_html_()
    assert str(table).count("not measured here") == 5


def test_a_strange_setting_is_refused():
    with pytest.raises(ConfigError, match=r"lora_rank: not in the table. It has: learning_rate"):
        lessons.settings_table({"lora_rank": "?"})
