"""A bar a model, or a dot a difference, with its interval."""

import pytest

from ftkit import evaluation, figures
from ftkit.errors import DataError
from ftkit.evaluation.drift import Forgetting


def test_scores_figure_draws_a_bar_for_each_model_with_its_interval():
    score = evaluation.Score(0.5, 0.4, 0.6)
    ax = evaluation.plot_scores(
        {"test": {"base": score, "tuned": score}, "unseen": {"tuned": score}}, ax=figures.blank_axes()
    )
    assert sorted(round(p.get_height()) for p in ax.patches) == [50, 50, 50]


def test_a_comparison_is_a_dot_a_system_and_metric_and_filled_where_it_is_told():
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes"}]} for i in range(20)
    ]
    said = {"base": ["no"] * 20, "same": ["no"] * 20, "better": ["yes"] * 20}
    reports = [evaluation.score_answers(answers, rows, name=name) for name, answers in said.items()]
    ax = evaluation.plot_comparison(evaluation.compare(*reports), ax=figures.blank_axes())
    dots = [line for line in ax.lines if line.get_marker() in "os"]
    assert [float(dot.get_xdata()[0]) for dot in dots] == [0, 100, 0, 100]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [True, False, True, False]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["same", "better"]
    assert "95 % interval" in ax.get_xlabel()


@pytest.mark.parametrize("groups", [{}, {"exact match": {}}])
def test_nothing_to_draw_is_an_error(groups):
    with pytest.raises(DataError, match="no scores to draw"):
        evaluation.plot_scores(groups)


def test_forgetting_is_a_dot_an_adapter_and_filled_where_it_can_be_told():
    changes = {"gentle": evaluation.Score(0.0, -0.1, 0.1), "harsh": evaluation.Score(1.0, 0.8, 1.2)}
    reports = {name: Forgetting(2.0, 2.0 + change.value, change, ()) for name, change in changes.items()}
    ax = evaluation.plot_forgetting(reports, ax=figures.blank_axes())
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [float(dot.get_xdata()[0]) for dot in dots] == [0.0, 1.0]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [True, False]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["gentle", "harsh"]
