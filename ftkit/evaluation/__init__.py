"""Is it better? Scores with intervals, before and after."""

from ftkit.evaluation.agreements import agreement, plot_ratings_needed, ratings_needed
from ftkit.evaluation.human import rating_form
from ftkit.evaluation.metrics import Score, difference_interval, exact_match, exact_words, interval, token_f1
from ftkit.evaluation.plots import plot_scores
from ftkit.evaluation.ratings import read_ratings, save_preferences
from ftkit.evaluation.scoring import compare, evaluate, perplexity, save_reports

__all__ = [
    "Score",
    "agreement",
    "compare",
    "difference_interval",
    "evaluate",
    "exact_match",
    "exact_words",
    "interval",
    "perplexity",
    "plot_ratings_needed",
    "plot_scores",
    "rating_form",
    "ratings_needed",
    "read_ratings",
    "save_preferences",
    "save_reports",
    "token_f1",
]
