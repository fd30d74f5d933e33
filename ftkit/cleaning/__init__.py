"""Rows that should not be trained are dropped, each with its reason; rules, quality, balance, personal data.

`clean` runs rules and accounts for every row; `select` picks the best by a score beside a random draw; `mix` adds
general rows against forgetting. Beyond one machine, datatrove finds the same near-duplicates with what is handed out
for it here.
"""

from ftkit.cleaning.at_scale import DatatroveReader, datatrove_config, datatrove_words
from ftkit.cleaning.balancing import balance, diversity, mix
from ftkit.cleaning.cleaning import clean, default_rules
from ftkit.cleaning.plots import plot_before_after, plot_cleaned
from ftkit.cleaning.privacy import personal_data
from ftkit.cleaning.raters import load_reward_model, rate, reward_model
from ftkit.cleaning.rules import Rule, Ruling, exact_duplicates, length, near_duplicates, quality
from ftkit.cleaning.scores import ifd, select

__all__ = [
    "DatatroveReader",
    "Rule",
    "Ruling",
    "balance",
    "clean",
    "datatrove_config",
    "datatrove_words",
    "default_rules",
    "diversity",
    "exact_duplicates",
    "ifd",
    "length",
    "load_reward_model",
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
