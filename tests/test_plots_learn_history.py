"""Figures, exercises and the record of a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit import evaluation, figures, lessons, training
from ftkit.cleaning.plots import plot_lengths
from ftkit.errors import DataError, MissingArtifact
from ftkit.lessons import exercises
from ftkit.training import History, HistoryPoint, read_points
from ftkit.training.history import COLUMNS, as_line, write_points
from ftkit.training.plots import live_loss

CURVE = [
    HistoryPoint(i, loss=2.0 / i, learning_rate=1e-4, tokens=100 * i, seconds=2.0 * i, memory_gib=1.0)
    for i in range(1, 11)
]
CURVE.append(HistoryPoint(10, val_loss=0.3, seconds=21.0, memory_gib=1.5))


def test_history_sums_up_its_points():
    history = History.of(CURVE)
    assert (history.steps, history.seconds, history.tokens, history.peak_memory_gib) == (10, 21.0, 1000, 1.5)
    assert history.tokens_per_s == pytest.approx(1000 / 21)
    assert history.val_losses == [(10, 0.3)]


number = st.one_of(st.none(), st.floats(1e-5, 1e5).map(lambda x: float(f"{x:.6g}")))


@given(
    st.lists(
        st.builds(
            HistoryPoint,
            step=st.integers(0, 10**6),
            loss=number,
            val_loss=number,
            tokens=st.one_of(st.none(), st.integers(0, 10**9)),
        )
    )
)
def test_written_points_read_back_equal(tmp_path_factory, points):
    path = tmp_path_factory.mktemp("history") / "h.csv"
    write_points(path, points)
    assert read_points(path) == points


def test_a_line_cut_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "h.csv"
    write_points(path, CURVE[:2])
    with path.open("a") as file:
        file.write(as_line(CURVE[2])[:-3])
    assert len(read_points(path)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b\n",
        ",".join(HistoryPoint.__dataclass_fields__) + "\n1,x,,,,,,\n",
        ",".join(HistoryPoint.__dataclass_fields__) + "\n1,2\n",
    ],
)
def test_what_is_no_history_names_the_line(tmp_path, text):
    path = tmp_path / "h.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"line [12]"):
        History.load(path)


def test_missing_history(tmp_path):
    with pytest.raises(MissingArtifact, match=r"training\.train"):
        History.load(tmp_path / "none.csv")


def test_loss_figure_has_units_and_both_curves():
    ax = training.plot_loss(History.of(CURVE), ax=figures.blank_axes())
    assert "nats" in ax.get_ylabel()
    assert [line.get_label() for line in ax.get_lines()] == ["training, each step", "training, smoothed", "validation"]


def test_lengths_figure_counts_what_would_be_cut():
    ax = plot_lengths([10, 20, 300], max_length=100, ax=figures.blank_axes())
    assert "1 of 3 rows cut" in ax.get_legend().get_texts()[0].get_text()


def test_scores_figure_draws_a_bar_for_each_model_with_its_interval():
    score = evaluation.Score(0.5, 0.4, 0.6)
    ax = evaluation.plot_scores(
        {"test": {"base": score, "tuned": score}, "unseen": {"tuned": score}}, ax=figures.blank_axes()
    )
    assert sorted(round(p.get_height()) for p in ax.patches) == [50, 50, 50]


def test_save_writes_a_whole_png(tmp_path):
    assert figures.save(figures.blank_axes(), tmp_path / "figures/x.png").read_bytes().startswith(b"\x89PNG")


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    assert figures.smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])


def test_live_figure_falls_back_to_a_bar_outside_a_notebook(capsys):
    live = live_loss()
    live.start(10)
    for i in range(1, 11):
        live.update(CURVE[:i], 10)
    live.finish(CURVE, 10)
    live.close()
    assert "10/10" in capsys.readouterr().err


@pytest.mark.parametrize(("guess", "mark"), [(None, "○"), (0.5, "✓"), (0.9, "✗")])
def test_prediction_answers_back(capsys, guess, mark):
    lessons.predict("share", guess).compare(0.52)
    assert capsys.readouterr().out.startswith(mark)


def test_prediction_shows_itself_without_a_front_end(capsys):
    lessons.predict("share")._ipython_display_()


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        (8, 8, True),
        (8.0000001, 8, True),
        (7, 8, False),
        (..., 8, False),
        (None, 8, False),
        ("a", "a", True),
        (3, lambda x: x > 2, True),
    ],
)
def test_check_says_whether_an_exercise_is_solved(capsys, answer, expected, right):
    assert lessons.check("exercise", answer, expected, hint="think") is right
    assert capsys.readouterr().out[0] in "✓✗○"


@pytest.mark.parametrize(("value", "seen"), [(0.1, True), (0.3, False), (float("nan"), False)])
def test_you_should_see_never_stops_the_notebook(capsys, value, seen):
    assert lessons.you_should_see("loss", value, 0, 0.2) is seen
    assert "loss" in capsys.readouterr().out


def test_explore_draws_once_with_the_defaults_without_a_person():
    drawn = []
    assert (
        lessons.explore(lambda r, kind: drawn.append((r, kind)) or "figure", r=([1, 2], 2), kind=(["a", "b"], "a"))
        == "figure"
    )
    assert drawn == [(2, "a")]


def test_explore_redraws_when_a_slider_moves(monkeypatch):
    """In a kernel with a front end each choice is a slider over its values."""
    monkeypatch.setattr(exercises, "front_end", lambda: True)
    drawn = []
    box = lessons.explore(lambda r: drawn.append(r), r=([1, 2, 4], 2))
    slider = box.children[0]
    assert (slider.value, list(slider.options)) == (2, [1, 2, 4])
    slider.value = 4
    assert drawn[-1] == 4


def test_a_history_from_before_updates_were_counted_is_read(tmp_path):
    (tmp_path / "h.csv").write_text(
        "step,loss,val_loss,learning_rate,grad_norm,tokens,seconds,memory_gib\n1,2.5,,0,1,9,1,1\n"
    )
    history = History.load(tmp_path / "h.csv")
    assert (history.losses, history.applied_updates) == ([(1, 2.5)], None)


def test_columns_that_are_not_known_are_refused(tmp_path):
    (tmp_path / "h.csv").write_text(",".join([*COLUMNS, "more"]) + "\n")
    with pytest.raises(DataError, match="line 1: wanted the columns"):
        History.load(tmp_path / "h.csv")
