"""The report as text and as a page, and what it refuses."""

import re

import pytest
from toys import order_chat

from ftkit.errors import PreflightError
from ftkit.preflight import Finding, PreflightReport
from ftkit.preflight.report import SEVERITIES


def broken(look):
    return look(
        chats=[*map(order_chat, range(20)), order_chat(3)],
        settings={"max_length": 16, "packing": True, "save_steps": 50},
    )


def test_refuse_names_all_errors_at_once(look):
    with pytest.raises(PreflightError, match=r"(?s)3 errors would.*No train row.*No val row.*Packed examples"):
        broken(look).refuse()


def test_errors_come_first_in_every_form(look):
    report = broken(look)
    severities = [SEVERITIES.index(f.severity) for f in report.findings]
    assert severities == sorted(severities)
    assert set(severities) == {0, 1, 2}
    page, text = report._repr_html_(), str(report)
    for shown in (page, text):
        places = [shown.index(f.title[:30]) for f in report.findings]
        assert places == sorted(places)
    assert text.startswith("✗ Not ready to train: 3 errors, ")


def test_a_report_says_what_was_checked(look):
    report = look()
    for shown in (str(report), report._repr_html_()):
        assert "✓ Ready to train" in shown
        assert "✓ stop-token-untrained" in shown
        assert "probe=True" in shown


def test_evidence_is_escaped_in_html():
    report = PreflightReport((Finding("x", "note", "<b>", "<i>", "<u>", "<s>"),))
    assert not re.search(r"<(b|i|u|s)>(?!·|[✓✗○])", report._repr_html_().replace("<b style", "<q style"))
