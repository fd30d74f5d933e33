"""Win rates, raw and at equal length: what must hold by definition, and what AlpacaEval's own code says."""

import math
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from ftkit.errors import ConfigError, DataError
from ftkit.evaluation import interval, win_rate


def simulated(seed, count=200, taste=0.0, bias=0.0, hard=False):
    """Preferences of a judge with a taste for the model and a bias for length, and the lengths of both answers."""
    draw = np.random.default_rng(seed)
    baseline = draw.lognormal(6, 0.6, count).astype(int) + 1
    model = (baseline * draw.lognormal(0.3, 0.5, count)).astype(int) + 1
    longer = np.tanh((model - baseline) / (model - baseline).std())
    chance = 1 / (1 + np.exp(-(taste + bias * longer)))
    preferences = (draw.random(count) < chance) if hard else chance
    return preferences.astype(float).tolist(), list(zip(model.tolist(), baseline.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_either_side_sees_the_same_match(seed):
    """WR(m, b) = 1 - WR(b, m), also of the interval, nearly, since it is drawn at random."""
    preferences, lengths = simulated(seed, taste=1, bias=1, hard=True)
    mine = win_rate(preferences, lengths, True)
    theirs = win_rate([1 - p for p in preferences], [(b, m) for m, b in lengths], True)
    assert mine.value == pytest.approx(1 - theirs.value, abs=1e-9)
    assert mine.low == pytest.approx(1 - theirs.high, abs=0.02)


@pytest.mark.parametrize("lengths", [[(7, 7)] * 4, [("same", "size"), ("a", "b"), ("", ""), (3, 3)]])
def test_equal_lengths_give_the_raw_rate(lengths):
    preferences = [1, 0.5, 0, 1]
    assert win_rate(preferences, lengths, True) == win_rate(preferences) == interval(preferences)


@pytest.mark.parametrize("bias", [1, 3])
def test_a_judge_that_sees_length_alone_comes_out_at_half(bias):
    preferences, lengths = simulated(0, count=400, bias=bias)
    assert win_rate(preferences).value > 0.54
    assert win_rate(preferences, lengths, True).value == pytest.approx(0.5, abs=0.005)


def test_a_taste_is_found_behind_a_bias():
    preferences, lengths = simulated(1, count=1000, taste=math.log(3), bias=2, hard=True)
    found = win_rate(preferences, lengths, True)
    assert found.value == pytest.approx(0.75, abs=0.05)
    assert found.low < found.value < found.high


def test_texts_are_measured_in_characters():
    preferences, lengths = simulated(2, count=40, bias=1, hard=True)
    texts = [("x" * mine, "y" * theirs) for mine, theirs in lengths]
    assert win_rate(preferences, texts, True) == win_rate(preferences, lengths, True)


def test_lost_verdicts_are_left_out():
    preferences, lengths = simulated(3, count=40, bias=1)
    more = [*preferences, None, None]
    assert win_rate(more, [*lengths, (9, 1), (5, 2)], True) == win_rate(preferences, lengths, True)
    assert win_rate([1, None, 0]) == win_rate([1, 0])


def test_items_of_one_prompt_widen_the_interval():
    preferences, lengths = simulated(4, count=60, taste=1, bias=1, hard=True)
    alone = win_rate(preferences * 4, lengths * 4, True)
    together = win_rate(preferences * 4, lengths * 4, True, clusters=[str(i) for i in range(60)] * 4)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), DataError, "no preference to average"),
        (([None, None],), DataError, "every verdict was lost"),
        (([1, math.nan],), DataError, "Preference 2 is nan: 0 to 1 is wanted"),
        (([2, 1],), DataError, "Preference 1 is 2"),
        (([1, 0], [(1, 2)], True), DataError, "2 preferences and 1 lengths"),
        (([1, 0], [(1, 2), (1, -3)], True), DataError, "Lengths 2 are"),
        (([1, 0], [(1, 2), (1, math.nan)], True), DataError, "Lengths 2 are"),
        (([1, 0], None, True), ConfigError, "needs lengths"),
    ],
)
def test_what_cannot_be_counted_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        win_rate(*arguments)


def oracle(tmp_path, preferences, lengths, difficulty=None, gamed=()):
    """AlpacaEval's own length-controlled win rate; its one download is replaced by a table of ours."""
    glm = pytest.importorskip("alpaca_eval.metrics.glm_winrate", reason="alpaca-eval is not installed")
    import pandas as pd

    count = len(preferences)
    known = [0.0] * count if difficulty is None else difficulty
    columns = ["model", "index", "instruction_difficulty", "std_delta_len", "preference", "not_gamed_baseline"]
    rows = [
        ("verbose", i % count, known[i % count], *row, False) for i, row in enumerate(gamed or [(0.1, 0.5)] * count)
    ]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "gamed.csv", index=False)
    frame = pd.DataFrame(
        {
            "preference": [1 + p for p in preferences],
            "output_1": ["x" * b for _, b in lengths],
            "output_2": ["x" * m for m, _ in lengths],
            "generator_1": "baseline",
            "generator_2": "model",
            "annotator": "judge",
        }
    )
    frame.index.name = "index"
    with mock.patch.object(glm, "hf_hub_download", lambda **_: str(tmp_path / "gamed.csv")):
        found = glm.get_length_controlled_winrate(
            frame,
            glm_name="length_controlled_v1" if gamed else "length_controlled_minimal",
            save_weights_dir=None,
            is_warn_extreme_changes=False,
        )
    return found["length_controlled_winrate"] / 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("taste", [-3, -1, 0, 2, 3])
@pytest.mark.parametrize("bias", [0, 1, 4])
def test_rates_are_alpaca_evals_own(tmp_path, taste, bias):
    """Within a point, also where nearly every pair is won or lost, of probabilities and of plain verdicts."""
    for hard in (False, True):
        preferences, lengths = simulated(7, count=805, taste=taste, bias=bias, hard=hard)
        ours = win_rate(preferences, lengths, True).value
        assert ours == pytest.approx(oracle(tmp_path, preferences, lengths), abs=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("taste", [-3, 0, 1])
def test_with_difficulty_and_anchors_rates_are_the_leaderboards(tmp_path, taste):
    draw = np.random.default_rng(taste + 9)
    preferences, lengths = simulated(8, count=805, taste=taste, bias=2)
    difficulty = draw.normal(0, 1.5, 805).tolist()
    logits = np.log(np.array(preferences) / (1 - np.array(preferences))) + np.array(difficulty)
    preferences = (1 / (1 + np.exp(-logits))).tolist()
    longer = draw.normal(-1, 1, 1610)
    gamed = [(d, 1 / (1 + math.exp(-(1.7 * math.tanh(d))))) for d in longer.tolist()]
    anchors = [(d, difficulty[i % 805], p) for i, (d, p) in enumerate(gamed)]
    ours = win_rate(preferences, lengths, True, difficulty=difficulty, anchors=anchors).value
    assert ours == pytest.approx(oracle(tmp_path, preferences, lengths, difficulty, gamed), abs=0.01)


ODD = {
    "texts for numbers": (["1", "0"], None),
    "a name": ("win", None),
    "a dict": ({"a": 1}, None),
    "nothing": (None, None),
    "a length is missing": ([1, 0], [(None, 1), (1, 2)]),
    "no pairs": ([1, 0], [3, 4]),
}


@pytest.mark.parametrize(("preferences", "lengths"), ODD.values(), ids=ODD)
def test_what_is_no_preference_or_length_is_refused(preferences, lengths):
    with pytest.raises(DataError, match="wanted"):
        win_rate(preferences, lengths, lengths is not None)


@pytest.mark.parametrize("anchors", [[(1, 2)], [(1, 2, math.nan)]])
def test_anchors_are_three_numbers(anchors):
    with pytest.raises(DataError, match="an anchor is three"):
        win_rate([1, 0], [(1, 2), (3, 4)], True, difficulty=[1, 2], anchors=anchors)


@pytest.mark.parametrize("difficulty", [[math.nan, 1], ["hard", 1]])
def test_difficulty_is_a_number(difficulty):
    with pytest.raises(DataError, match="difficulty is a number"):
        win_rate([1, 0], [(1, 2), (3, 4)], True, difficulty=difficulty)


def test_arrays_and_columns_of_a_table_are_read_in_their_order():
    """A pandas column may have any index; a numpy table of lengths has no truth value."""
    preferences, lengths = [1, 0, 0.5], [(1, 2), (3, 4), (6, 5)]
    told = win_rate(pd.Series(preferences, index=[7, 8, 9]), np.array(lengths), True)
    assert told == win_rate(preferences, lengths, True)
