"""Which settings? A panel, what a setting means before it runs, a small search over run folders."""

from ftkit.tuning.consequences import learning_rate
from ftkit.tuning.form import config_form
from ftkit.tuning.plots import plot_rate_range, plot_schedules, plot_search
from ftkit.tuning.range_test import learning_rate_range
from ftkit.tuning.study import search, vary

__all__ = [
    "config_form",
    "learning_rate",
    "learning_rate_range",
    "plot_rate_range",
    "plot_schedules",
    "plot_search",
    "search",
    "vary",
]
