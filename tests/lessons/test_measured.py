"""Public measurements: the numbers that the estimate promises, each point estimated without its own model."""

import importlib
from pathlib import Path
from statistics import mean, median

import pytest

from ftkit import lessons
from ftkit.errors import DataError
from ftkit.lessons import held_out
from ftkit.lessons.measured import fit_constants
from ftkit.memory import Constants, estimate_setup

ROOT = Path(__file__).parents[2]
POINTS = ROOT / "tests/published/vram_dev.csv"


@pytest.fixture(scope="module")
def points():
    return lessons.measurements()[0]


@pytest.fixture(scope="module")
def pairs(points):
    return held_out(points)


@pytest.fixture(scope="module")
def rules():
    """`benchmarks/memory.py`, which knows what others say for the same runs."""
    return of_benchmarks("memory")


@pytest.fixture(scope="module")
def table():
    """`benchmarks/memory_points.py`, which reads the published table."""
    return of_benchmarks("memory_points")


def of_benchmarks(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module(name)


@pytest.mark.slow
@pytest.mark.parametrize(("quality", "limit"), [("A", 0.05), ("B", 0.20)])
def test_mean_error_with_each_model_held_out(pairs, quality, limit):
    """The constants are refitted without the model that is estimated; A within 5 %, B within 20 %."""
    assert sum(point.quality == quality for point, _ in pairs) >= 17
    assert lessons.mean_error(pairs, quality) <= limit


def test_high_is_never_below_what_was_measured(points):
    """Neither the allocator's peak nor what the source reports, its reserve and the CUDA context included."""
    low = [p.id for p in points if estimate_setup(p.shape, p.setup).high_gib < max(p.allocated_gib, p.headline_gib)]
    assert low == []


@pytest.mark.slow
@pytest.mark.parametrize("quality", ["A", "B", ""])
def test_high_covers_every_run_with_its_model_held_out(pairs, quality):
    assert lessons.share_below_high(pairs, quality) == 1


def test_high_stays_useful(points):
    """Half of the points within 1.35 times the measurement, none above twice."""
    ratios = [estimate_setup(p.shape, p.setup).high_gib / max(p.allocated_gib, p.headline_gib) for p in points]
    assert median(ratios) < 1.35
    assert max(ratios) < 2


def test_low_is_seldom_above_what_was_measured(points):
    above = [p.id for p in points if estimate_setup(p.shape, p.setup).low_gib > p.allocated_gib]
    assert len(above) <= len(points) // 20


def test_the_constants_in_use_are_the_fitted_ones(points):
    """`benchmarks/memory_fit.py` finds what stands in `footprint.py`."""
    assert fit_constants(points) == Constants()


def test_points_of_the_package_are_those_of_the_table(table):
    packaged, left_out = lessons.measurements()
    assert (packaged, left_out) == table.read_points(POINTS)
    assert {row.model for row in left_out} == {"mistralai/Mixtral-8x7B-Instruct-v0.1", "bigcode/gpt_bigcode-santacoder"}


def test_trainable_parameters_are_those_that_the_sources_state(points):
    import csv

    with POINTS.open() as file:
        stated = {row["id"]: int(row["trainable_params"]) for row in csv.DictReader(file) if row["trainable_params"]}
    counted = {p.id: p.shape.lora_parameters(p.setup.r, p.setup.target_modules) for p in points if p.id in stated}
    assert len(counted) > 50
    assert counted == {id: stated[id] for id in counted}


@pytest.mark.slow
def test_it_is_better_than_rules_that_know_only_the_size(points, pairs, rules):
    """On the A points: the often repeated table, LLaMA-Factory's, accelerate's arithmetic."""
    ours = lessons.mean_error(pairs, "A")
    for rule in (rules.often_repeated, rules.llama_factory, rules.accelerate):
        said = [(rule(p.shape.parameters, p.setup.method), p.allocated_gib) for p in points if p.quality == "A"]
        assert mean(abs(number / gib - 1) for number, gib in said if number) > 5 * ours


def test_every_point_names_its_source(points):
    assert all(len(point.source) > 10 for point in points)


def test_a_missing_column_and_a_broken_number_are_named(table, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("id,model\nx,y\n")
    with pytest.raises(DataError, match="has no column method"):
        table.read_points(path)
    row = dict.fromkeys(table.COLUMNS, "") | {
        "id": "x1",
        "model": "HuggingFaceTB/SmolLM2-135M",
        "method": "lora",
        "quality": "A",
        "target_modules": "q,v",
        "tokens_per_step_fwd": "many",
        "micro_batch": "1",
    }
    path.write_text(",".join(row) + "\n" + ",".join(f'"{value}"' for value in row.values()) + "\n")
    with pytest.raises(DataError, match="Point x1"):
        table.read_points(path)


def test_a_row_that_does_not_say_enough_is_left_out_with_the_reason(table, tmp_path):
    row = dict.fromkeys(table.COLUMNS, "") | {
        "id": "x1",
        "model": "HuggingFaceTB/SmolLM2-135M",
        "method": "lora",
        "quality": "B",
    }
    path = tmp_path / "p.csv"
    path.write_text(",".join(row) + "\n" + ",".join(f'"{value}"' for value in row.values()) + "\n")
    found, left_out = table.read_points(path)
    assert found == []
    assert "tokens" in left_out[0].reason


def test_rules_give_their_own_numbers(rules):
    assert rules.often_repeated(8_030_261_248, "qlora") == 8
    assert rules.often_repeated(69_000_000_000, "lora") == 160
    assert rules.often_repeated(69_000_000_000, "full") is None
    assert rules.llama_factory(7_000_000_000, "full") == pytest.approx(60e9 / 2**30)


@pytest.mark.parametrize(("method", "dtype"), [("full", "bfloat16"), ("lora", "float16"), ("qlora", "int4")])
def test_accelerates_arithmetic_is_its_own(rules, method, dtype):
    """The same numbers as the command prints for a model of so many bytes in 32-bit."""
    from accelerate.commands.estimate import estimate_training_usage

    size = 4_000_000
    sizes = {"float16": size / 2, "int4": size / 8}
    wanted = max(estimate_training_usage(size, dtype).values()) if method == "full" else sizes[dtype]
    assert rules.accelerate(size // 4, method) == pytest.approx(wanted / 2**30)


def test_pairs_differ_in_the_method_alone():
    """Same model, card and length; a published 13B needs more without four bits than with them."""
    pairs = lessons.measured_pairs(lessons.measurements()[0])
    assert len(pairs) > 15
    assert [pair.parameters for pair in pairs] == sorted(pair.parameters for pair in pairs)
    assert all(0.5 < pair.ratio < 3 for pair in pairs)
    assert pairs[-1].ratio > 1.5
