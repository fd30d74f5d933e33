"""A curve is read as a person would read it: made ones of each kind, real ones, and any at all without an error."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.config import TrainConfig
from ftkit.runs import Run
from ftkit.training import History, HistoryPoint, diagnose


def curve(losses, val=(), *, every=1, seed=0, noise=0.06, applied=None):
    """A history of `losses` with the noise of batches, and validation losses that are evenly spread."""
    draw = random.Random(seed)
    points = [
        HistoryPoint((i + 1) * every, loss * math.exp(draw.gauss(0, noise)), applied=applied and applied(i + 1))
        for i, loss in enumerate(losses)
    ]
    gap = len(losses) * every / max(1, len(val))
    points += [HistoryPoint(round((i + 1) * gap), val_loss=loss) for i, loss in enumerate(val)]
    return History.of(sorted(points, key=lambda p: p.step))


def falling(n, start=1.6, end=0.05, speed=5.0):
    return [end + (start - end) * math.exp(-speed * i / n) for i in range(n)]


CURVES = {
    "healthy": lambda n, s: curve(falling(n), (0.4, 0.15, 0.08), seed=s),
    "healthy, slow": lambda n, s: curve(falling(n, 2.0, 0.5, 3), (1.2, 0.9, 0.7), seed=s),
    "flat": lambda n, s: curve([1.6] * n, (1.6, 1.6), seed=s),
    "flat, noisy": lambda n, s: curve([1.6] * n, seed=s, noise=0.2),
    "flat, hardly moving": lambda n, s: curve([1.6 - 0.02 * i / n for i in range(n)], seed=s),
    "diverging": lambda n, s: curve(
        [*falling(n // 2, 1.6, 0.8), *[0.8 + 6 * i / n for i in range(n - n // 2)]], (1.0, 5.0), seed=s
    ),
    "diverging, at once": lambda n, s: curve([1.6 + 8 * (1 - math.exp(-5 * i / n)) for i in range(n)], seed=s),
    "overfitting": lambda n, s: curve(falling(n, end=0.01), (0.9, 0.6, 0.8, 1.1), seed=s),
    "overfitting, gently": lambda n, s: curve(falling(n, end=0.2), (0.9, 0.6, 0.62, 0.66), seed=s),
    "gap": lambda n, s: curve(falling(n, end=0.01), (1.6, 1.4, 1.4), seed=s),
    "levelled": lambda n, s: curve([0.9 + 0.8 * math.exp(-12 * i / n) for i in range(n)], (0.95, 0.9, 0.9), seed=s),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [16, 40, 300])
@pytest.mark.parametrize("kind", CURVES)
def test_made_curves_are_told_apart(kind, steps, seed):
    """Every kind, short and long, with the noise of batches: its reading comes first."""
    assert diagnose(CURVES[kind](steps, seed)).ids[0] == kind.split(",")[0]


@pytest.mark.parametrize("seed", range(5))
def test_spikes_are_found_where_they_are(seed):
    losses = falling(60)
    for step in (20, 31, 44):
        losses[step - 1] += 2
    found = diagnose(curve(losses, seed=seed))
    assert found.ids == ("spikes",)
    assert "step 20, 31, 44" in found.readings[0].evidence


def test_one_spike_that_passes_is_a_note_beside_a_healthy_curve():
    losses = falling(60)
    losses[29] += 2
    found = diagnose(curve(losses))
    assert (found.ids, found.healthy) == (("healthy", "spikes"), True)


def test_rows_known_by_heart_are_not_told_to_learn_faster():
    """A loss that ends noisy and low while validation rises: raising the rate would be the wrong advice."""
    losses = (0.9, 0.3, 0.26, 0.2, 0.09, 0.07, 0.33, 0.08, 0.28, 0.07, 0.21, 0.06, 0.3, 0.07, 0.17, 0.075, 0.25, 0.074)
    found = diagnose(curve(losses, (0.4, 0.37, 0.45, 0.5, 0.57), noise=0))
    assert found.ids == ("overfitting",)


def test_overfitting_names_the_step_from_which_it_runs():
    found = diagnose(curve(falling(40, end=0.01), (0.9, 0.6, 0.8, 1.1)))
    assert (found.readings[0].step, found.verdict) == (20, "Overfitting from step 20")


def test_a_loss_that_is_no_number_is_named_with_its_first_step():
    found = diagnose(curve([1.6, 1.5, math.nan, math.nan, 1.0]))
    assert (found.ids, found.readings[0].step, found.healthy) == (("nan",), 3, False)


@pytest.mark.parametrize("points", [0, 1, 3, 7])
def test_few_points_are_too_few(points):
    found = diagnose(curve(falling(points)))
    assert (found.ids, found.healthy) == (("too-early",), False)


def test_a_curve_that_explodes_is_seen_at_once():
    assert diagnose(curve([1.6, 1.7, 6.0, 9.0, 9.5, 9.0])).ids == ("diverging",)


def test_a_loss_of_zero_means_that_nothing_is_trained():
    assert diagnose(curve([0.0] * 10)).ids == ("nothing-trained",)


def test_a_zero_beside_a_gradient_that_is_no_number_is_a_hidden_nan():
    """Plain trainers write 0 for a loss that is no number."""
    points = [HistoryPoint(step, 0.0, grad_norm=math.nan) for step in range(1, 11)]
    found = diagnose(History.of(points))
    assert (found.ids, found.verdict) == (("nan",), "Not a number, logged as 0 from step 1")


def test_a_zero_beside_a_gradient_of_zero_is_nothing_trained():
    points = [HistoryPoint(step, 0.0, grad_norm=0.0) for step in range(1, 11)]
    assert diagnose(History.of(points)).ids == ("nothing-trained",)


def test_a_nan_beside_a_gradient_that_is_a_number_is_in_the_log_alone():
    """A plain Trainer sums losses up: after one batch without a trained token every later mean is NaN."""
    points = [HistoryPoint(step, 1.0 if step < 5 else math.nan, grad_norm=2.0) for step in range(1, 11)]
    found = diagnose(History.of(points))
    assert (found.ids, found.verdict) == (("nan",), "Not a number from step 5, in the log alone")


def test_a_mean_over_nothing_with_a_gradient_of_zero_is_nothing_trained():
    """TRL's loss where every label is masked, and no filter hides it."""
    points = [HistoryPoint(step, math.nan, grad_norm=0.0) for step in range(1, 11)]
    assert diagnose(History.of(points)).ids == ("nothing-trained",)


@pytest.mark.parametrize(("missing", "severity"), [(2, "note"), (30, "problem")])
def test_skipped_updates_are_counted(missing, severity):
    """A few at the start are fp16 finding its scale."""
    found = diagnose(curve(falling(40), applied=lambda step: max(0, step - missing)))
    skipped = next(r for r in found.readings if r.id == "skipped")
    assert (skipped.severity, skipped.step) == (severity, 1)
    assert skipped.evidence.startswith(f"{40 - missing} of 40 updates were applied")


def test_advice_names_the_value_and_its_usual_range():
    config = TrainConfig(learning_rate=1e-2)
    found = diagnose(CURVES["diverging"](40, 0), config)
    assert "learning_rate to three" not in str(found)
    assert "(now 0.01, usual 0.0001 to 0.0003)" in found.readings[0].advice


def test_it_shows_itself_in_a_terminal_and_on_a_page():
    found = diagnose(CURVES["flat"](40, 0))
    assert str(found).startswith("✗ Flat: training loss was")
    assert found._repr_html_().startswith("<p>✗ Flat: training loss was")


def test_a_history_shows_its_reading():
    assert str(CURVES["healthy"](40, 0)).splitlines()[-1].split() == ["reading", "Healthy"]


def test_the_sample_run_is_healthy():
    """A real run: the bundled model on the invoices."""
    assert diagnose(History.load(Run.sample() / "history.csv")).ids == ("healthy",)


REAL = {
    "diverging": (
        [2.15, 8.04, 10.97, 9.14, 9.52, 11.98, 6.96, 7.67, 13.61, 9.01, 8.03, 7.74, 6.79, 6.36, 27.98, 10.35],
        {16: 8.12},
    ),
    "flat": (
        [2.15, 1.93, 2.13, 2.01, 1.69, 1.73, 1.73, 1.92, 2.0, 2.03, 2.07, 1.78, 1.94, 1.97, 2.14, 2.03],
        {16: 2.0},
    ),
    "healthy": (
        [2.12, 2.4, 1.68, 0.75, 0.42, 0.29, 0.09, 0.05, 0.21, 0.08, 0.05, 0.05, 0.09, 0.04, 0.02, 0.01],
        {8: 0.03, 16: 0.01},
    ),
    "levelled": (
        [
            4.02,
            4.0,
            3.33,
            2.78,
            2.61,
            2.26,
            1.94,
            2.0,
            1.74,
            1.97,
            1.57,
            1.47,
            1.85,
            1.63,
            1.5,
            2.06,
            1.64,
            2.1,
            1.74,
            1.64,
            1.6,
            1.84,
            1.59,
            1.71,
        ],
        {8: 1.15, 16: 1.23, 24: 1.15},
    ),
}


def test_an_easy_first_batch_is_no_explosion():
    """A real curve of two examples a step at learning rate 1e-6: it began low by luck, and comes back there."""
    losses = [0.89, 1.98, 1.89, 0.7, 0.97, 1.8, 1.04, 2.04, 2.13, 2.0, 1.09, 1.95]
    assert diagnose(History.of([HistoryPoint(step, loss) for step, loss in enumerate(losses, 1)])).ids == ("flat",)


def test_a_loss_that_halved_is_not_flat():
    """Eight rows in small batches leap from easy to hard ones: chance would then be as large as what was learned."""
    losses = [
        0.5,
        0.4,
        0.18,
        0.05,
        0.17,
        0.05,
        0.2,
        0.05,
        0.17,
        0.04,
        0.16,
        0.03,
        0.15,
        0.02,
        0.14,
        0.03,
        0.02,
        0.13,
        0.003,
        0.03,
    ]
    assert diagnose(curve(losses, (0.6, 0.38, 0.42, 0.48, 0.54), noise=0)).ids == ("overfitting",)


@pytest.mark.parametrize("kind", REAL)
def test_real_curves_are_told_apart(kind):
    """The bundled model on invoices: learning rate 0.01 with alpha 512, 1e-6, a good one, and wrong answers."""
    losses, val = REAL[kind]
    points = [HistoryPoint(step, loss) for step, loss in enumerate(losses, 1)] + [
        HistoryPoint(step, val_loss=loss) for step, loss in val.items()
    ]
    assert diagnose(History.of(points)).ids[0] == kind


numbers = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 10))
points = st.builds(
    HistoryPoint,
    step=st.integers(-5, 10**9),
    loss=numbers,
    val_loss=numbers,
    grad_norm=numbers,
    applied=st.one_of(st.none(), st.integers(0, 10**9)),
)


@given(st.lists(points, max_size=60), st.booleans())
def test_no_history_whatever_makes_it_fail(listed, configured):
    found = diagnose(History.of(listed), TrainConfig() if configured else None)
    assert found.readings
    assert str(found)
    assert found._repr_html_()


@given(st.lists(st.floats(0.01, 10), min_size=8, max_size=60))
def test_what_follows_the_last_point_does_not_depend_on_the_unit_of_steps(losses):
    """Logging every tenth update reads the same curve."""
    one, ten = curve(losses, noise=0), curve(losses, noise=0, every=10)
    assert diagnose(one).ids == diagnose(ten).ids


def test_an_unfinished_history_is_read_too():
    half = curve(falling(12))
    assert diagnose(replace(half, stopped=True)).ids == ("healthy",)
