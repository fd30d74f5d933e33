"""The brief's table beside the kit's own ranges: nothing is typed twice, and what was not measured says so."""

import pytest

from ftkit import lessons
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError
from ftkit.lessons.claims import USUAL_RANGES, kits_range


@pytest.mark.parametrize("claim", USUAL_RANGES, ids=lambda claim: claim.setting)
def test_every_claim_is_about_something_that_a_config_has(claim):
    assert hasattr(TrainConfig(), claim.setting)
    assert claim.low < claim.high


def test_the_kits_ranges_come_from_the_settings_own_lines():
    assert kits_range("lora_r") == "8 to 64"
    assert kits_range("effective_batch_size") == "8 to 32 examples stand behind each update"


def test_what_was_not_measured_says_so():
    table = lessons.settings_table({"lora_r": "rank 64 was no better than 4"})
    assert "rank 64 was no better than 4" in str(table)
    assert "rank 64 was no better than 4" in table._repr_html_()
    assert len(table.unmeasured) == 5
    assert str(table).count("not measured here") == 5


def test_a_strange_setting_is_refused():
    with pytest.raises(ConfigError, match=r"lora_rank: not in the table. It has: learning_rate"):
        lessons.settings_table({"lora_rank": "?"})
