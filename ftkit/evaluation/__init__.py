"""Is it better? Scores with intervals, before and after."""

from ftkit.evaluation.comparing import Comparison, Difference, compare
from ftkit.evaluation.metrics import (
    chrf,
    exact_match,
    exact_words,
    json_valid,
    keeps_schema,
    label_in,
    rouge_l,
    squad_normalise,
    token_f1,
    tool_calls,
)
from ftkit.evaluation.plots import plot_comparison, plot_scores
from ftkit.evaluation.scoring import (
    METRICS,
    EvalReport,
    evaluate,
    evaluate_checkpoints,
    perplexity,
    save_reports,
    score_answers,
)
from ftkit.evaluation.statistics import Score, detectable, difference_interval, holm, interval, mcnemar, paired_test

__all__ = [
    "METRICS",
    "Comparison",
    "Difference",
    "EvalReport",
    "Score",
    "chrf",
    "compare",
    "detectable",
    "difference_interval",
    "evaluate",
    "evaluate_checkpoints",
    "exact_match",
    "exact_words",
    "holm",
    "interval",
    "json_valid",
    "keeps_schema",
    "label_in",
    "mcnemar",
    "paired_test",
    "perplexity",
    "plot_comparison",
    "plot_scores",
    "rouge_l",
    "save_reports",
    "score_answers",
    "squad_normalise",
    "token_f1",
    "tool_calls",
]
