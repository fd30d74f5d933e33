"""Is it better, by how much, and what did it forget?"""

from ftkit.evaluation.agreements import agreement, plot_ratings_needed, ratings_needed
from ftkit.evaluation.comparing import Difference, compare
from ftkit.evaluation.drift import forgetting
from ftkit.evaluation.human import rating_form
from ftkit.evaluation.judging import compare_pairs, judging_cost, rate
from ftkit.evaluation.lm_eval_tasks import standard_tasks
from ftkit.evaluation.metrics import (
    chrf,
    exact_match,
    exact_words,
    squad_normalise,
    token_f1,
)
from ftkit.evaluation.plots import plot_comparison, plot_forgetting, plot_scores
from ftkit.evaluation.public_sets import alpaca_eval, mt_bench
from ftkit.evaluation.ratings import read_ratings, save_preferences
from ftkit.evaluation.regression import binding, gate, noise_floor, read_verdict
from ftkit.evaluation.scoring import (
    METRICS,
    EvalReport,
    evaluate,
    evaluate_checkpoints,
    number_format,
    perplexity,
    save_reports,
    score_answers,
)
from ftkit.evaluation.statistics import (
    Score,
    detectable,
    detectable_loss,
    difference_interval,
    holm,
    interval,
    mcnemar,
    paired_test,
)
from ftkit.evaluation.suites import BUNDLED, SUITE_METRICS, mentions, suite
from ftkit.evaluation.win_rates import win_rate

__all__ = [
    "BUNDLED",
    "METRICS",
    "SUITE_METRICS",
    "Difference",
    "EvalReport",
    "Score",
    "agreement",
    "alpaca_eval",
    "binding",
    "chrf",
    "compare",
    "compare_pairs",
    "detectable",
    "detectable_loss",
    "difference_interval",
    "evaluate",
    "evaluate_checkpoints",
    "exact_match",
    "exact_words",
    "forgetting",
    "gate",
    "holm",
    "interval",
    "judging_cost",
    "mcnemar",
    "mentions",
    "mt_bench",
    "noise_floor",
    "number_format",
    "paired_test",
    "perplexity",
    "plot_comparison",
    "plot_forgetting",
    "plot_ratings_needed",
    "plot_scores",
    "rate",
    "rating_form",
    "ratings_needed",
    "read_ratings",
    "read_verdict",
    "save_preferences",
    "save_reports",
    "score_answers",
    "squad_normalise",
    "standard_tasks",
    "suite",
    "token_f1",
    "win_rate",
]
