"""Rows that should not be trained are dropped, each with its reason; rules, quality, balance, personal data.

`clean` runs rules and accounts for every row; `select` picks the best by a score beside a random draw; `mix` adds
general rows against forgetting. Beyond one machine, datatrove finds the same near-duplicates with what stands for it
in `at_scale`.
"""

from ftkit.cleaning.balancing import balance, diversity, mix
from ftkit.cleaning.cleaning import clean, default_rules
from ftkit.cleaning.plots import plot_before_after, plot_cleaned
from ftkit.cleaning.privacy import personal_data
from ftkit.cleaning.raters import rate, reward_model
from ftkit.cleaning.rules import Rule, Ruling, exact_duplicates, length, near_duplicates, quality
from ftkit.cleaning.scores import ifd, select

__all__ = [
    "Rule",
    "Ruling",
    "balance",
    "clean",
    "default_rules",
    "diversity",
    "exact_duplicates",
    "ifd",
    "length",
    "mix",
    "near_duplicates",
    "personal_data",
    "plot_before_after",
    "plot_cleaned",
    "quality",
    "rate",
    "reward_model",
    "select",
]
