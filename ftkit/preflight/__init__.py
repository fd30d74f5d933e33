"""Refuse a run that cannot work, before it starts, and say why."""

from ftkit.preflight.checks import check, check_settings
from ftkit.preflight.model import need
from ftkit.preflight.report import Finding, PreflightReport
from ftkit.preflight.settings import SETTINGS_CHECKS, updates_in

__all__ = [
    "SETTINGS_CHECKS",
    "Finding",
    "PreflightReport",
    "check",
    "check_settings",
    "need",
    "updates_in",
]
