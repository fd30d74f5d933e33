"""Is it better? Scores with intervals, before and after."""

from ftkit.evaluation.metrics import Score, difference_interval, exact_match, exact_words, interval, token_f1
from ftkit.evaluation.plots import plot_scores
from ftkit.evaluation.scoring import compare, evaluate, perplexity, save_reports

__all__ = [
    "Score",
    "compare",
    "difference_interval",
    "evaluate",
    "exact_match",
    "exact_words",
    "interval",
    "perplexity",
    "plot_scores",
    "save_reports",
    "token_f1",
]
