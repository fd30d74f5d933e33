"""Rows that should not be trained are dropped, each with its reason; rules, quality, balance, personal data."""

from ftkit.cleaning.balancing import balance, mix
from ftkit.cleaning.cleaning import clean
from ftkit.cleaning.plots import plot_before_after, plot_cleaned
from ftkit.cleaning.privacy import personal_data
from ftkit.cleaning.rules import Rule, Ruling, exact_duplicates, length, near_duplicates, quality
from ftkit.cleaning.scores import ifd, select

__all__ = [
    "Rule",
    "Ruling",
    "balance",
    "clean",
    "exact_duplicates",
    "ifd",
    "length",
    "mix",
    "near_duplicates",
    "personal_data",
    "plot_before_after",
    "plot_cleaned",
    "quality",
    "select",
]
