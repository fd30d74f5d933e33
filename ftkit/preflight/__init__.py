"""Refuse a run that cannot work, before it starts, and say why."""

from ftkit.preflight.checks import check, check_settings
from ftkit.preflight.model import need
from ftkit.preflight.report import CHECKS, Finding, PreflightReport
from ftkit.preflight.rows import Rows, tokenize_splits
from ftkit.preflight.settings import updates_in

__all__ = [
    "CHECKS",
    "Finding",
    "PreflightReport",
    "Rows",
    "check",
    "check_settings",
    "need",
    "tokenize_splits",
    "updates_in",
]
