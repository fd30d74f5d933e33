"""Personal data is told from what looks like it, and what was found can be redacted."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import chat, chats, rows_dropped

from ftkit import cleaning
from ftkit.cleaning import clean
from ftkit.cleaning.privacy import redact, scan


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to Ana.Maria+x@shop.example.org today", ["email"]),
        ("call +44 20 7946 0958 now", ["phone"]),
        ("(020) 7946 0958", ["phone"]),
        ("card 4111 1111 1111 1111 please", ["card"]),
        ("5555-5555-5555-4444", ["card"]),
        ("GB82 WEST 1234 5698 7654 32", ["iban"]),
        ("key sk-abcdEFGH1234567890abcd", ["key"]),
        ("AKIAIOSFODNN7EXAMPLE", ["key"]),
        ("-----BEGIN RSA PRIVATE KEY-----", ["key"]),
        ("ghp_" + "a1" * 18, ["key"]),
        ("order 4111 1111 1111 1112", []),
        ("version 10.0.19045.3803", []),
        ("on 2024-05-17 10:30", []),
        ("17.05.2024", []),
        ("it costs 1 299 999 now", []),
        ("a @ b", []),
        ("GB82 WEST 1234 5698 7654 33", []),
        ("1234567890123456", []),
        ("IBAN ES91 2100 0418 4502 0005 1332 BIC ABCD", ["iban"]),
        ("a@b.example and +1 202 555 0143", ["email", "phone"]),
    ],
)
def test_personal_data_is_told_from_what_looks_like_it(text, kinds):
    assert [hit.kind for hit in scan(text)] == kinds


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_scanning_any_text_ends_and_redacting_leaves_nothing(text):
    hits = scan(text)
    assert all(0 <= h.start < h.end <= len(text) for h in hits)
    assert redact("") == "" and (bool(hits) or redact(text) == text)


@pytest.mark.slow
def test_scanning_a_megabyte_of_digits_is_quick():
    began = time.perf_counter()
    for text in ("1" * 1_000_000, "1 " * 500_000, "a." * 500_000, "a@" * 500_000, "+1-" * 300_000):
        scan(text)
    assert time.perf_counter() - began < 20


def test_pii_reports_redacts_or_drops():
    rows = [chat("My mail is ana@shop.example, help me", "We wrote to ana@shop.example, done."), *chats(2)]
    flagged = clean(rows, [cleaning.personal_data()])
    assert ([d.row for d in flagged.flagged], flagged.flagged[0].reason, len(flagged.kept)) == ([0], "2 email", 3)
    redacted = clean(rows, [cleaning.personal_data("redact")])
    assert redacted.kept["messages"][0][1]["content"] == "We wrote to [EMAIL], done."
    assert (len(redacted.kept), [d.row for d in redacted.changed]) == (3, [0])
    assert rows_dropped(clean(rows, [cleaning.personal_data("drop")]), "personal data") == [0]


def test_redaction_keeps_calls_valid_json():
    call = json.dumps(
        [
            {
                "type": "function",
                "function": {"name": "pay", "arguments": {"card": 4111111111111111, "to": "a@b.example"}},
            }
        ]
    )
    row = {
        "messages": [{"role": "user", "content": "Pay it"}, {"role": "assistant", "content": "", "tool_calls": call}]
    }
    kept = clean([row], [cleaning.personal_data("redact")]).kept["messages"][0][1]["tool_calls"]
    assert json.loads(kept)[0]["function"]["arguments"] == {"card": "[CARD]", "to": "[EMAIL]"}


def test_an_ip_address_is_no_phone_number():
    assert redact("server 192.168.100.200 is down") == "server 192.168.100.200 is down"


def test_reasoning_is_redacted_and_a_document_is_left_out():
    """What is trained is looked through: the reasoning of an answer, and raw text."""
    secret = {"role": "assistant", "content": "Done.", "reasoning_content": "Ask ana@shop.example first."}
    report = clean([{"messages": [{"role": "user", "content": "Go"}, secret]}], [cleaning.personal_data("redact")])
    assert report.kept[0]["messages"][1]["reasoning_content"] == "Ask [EMAIL] first."
    documents = [{"text": "Ask ana@shop.example first."}, {"text": "Ask the miller first."}]
    report = clean(documents, [cleaning.personal_data("redact")])
    assert report.kept["text"][:] == ["Ask the miller first."]
