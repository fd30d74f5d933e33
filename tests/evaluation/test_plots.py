"""A bar a model, with its interval."""

from ftkit import evaluation, figures


def test_scores_figure_draws_a_bar_for_each_model_with_its_interval():
    score = evaluation.Score(0.5, 0.4, 0.6)
    ax = evaluation.plot_scores(
        {"test": {"base": score, "tuned": score}, "unseen": {"tuned": score}}, ax=figures.blank_axes()
    )
    assert sorted(round(p.get_height()) for p in ax.patches) == [50, 50, 50]
