"""Several GPUs: what each must hold, and what was published of their speed."""

import pytest

from ftkit import files, lessons, memory
from ftkit.config import TrainConfig


@pytest.fixture
def need():
    return memory.estimate(memory.find("meta-llama/Llama-3.1-8B"), TrainConfig(max_length=1024))


@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_ddp_keeps_everything_on_each_gpu(need, gpus):
    assert lessons.per_gpu_gib(need, gpus, shard=False) == need.likely_gib


def test_fsdp_shares_out_what_does_not_grow_with_tokens(need):
    """The rest stays on each, however many there are."""
    assert lessons.per_gpu_gib(need, 1, shard=True) == pytest.approx(need.likely_gib)
    grows = sum(part.gib for part in need.parts if part.grows)
    assert lessons.per_gpu_gib(need, 1_000_000, shard=True) == pytest.approx(grows, abs=1e-3)
    two, four = (lessons.per_gpu_gib(need, gpus, shard=True) for gpus in (2, 4))
    assert (two - grows) == pytest.approx(2 * (four - grows))


def test_published_runs_name_their_source_and_begin_at_a_whole_share():
    series = files.sample("several_gpus")["series"]
    assert all(one["url"].startswith("https://") and one["source"] for one in series)
    table = lessons.published_scaling()
    assert len(table.rows) == sum(len(one["measured"]) for one in series)
    assert sum(row[3] == "100%" for row in table.rows) >= len(series)


def test_a_share_is_what_a_gpu_does_of_what_it_did_among_fewer():
    """Qwen-7B: 8 rows in 5.2 s on one, 32 in 9.25 s on four, so each keeps 56 %."""
    assert ("4", "3.46", "56%") in [row[1:4] for row in lessons.published_scaling().rows]
