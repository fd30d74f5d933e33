"""Personal data in text: e-mail addresses, phone, card and account numbers, access keys.

Found by shape and checked by sum. A scan for obvious cases, not a guarantee: names and postal addresses have no shape
that a pattern could tell. We do it ourselves because the scanners that were tried want language models of their own, or
know neither the checksum of an account number nor access keys.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ftkit.cleaning.rules import Rule, Ruling
from ftkit.data import text_of
from ftkit.errors import ConfigError

ACTIONS = {
    "flag": ("flag", "reported"),
    "redact": ("change", "replaced by their kind"),
    "drop": ("drop", "rows with them dropped"),
}


def personal_data(action: str = "flag") -> Rule:
    """Report rows with personal data ("flag"), replace what was found ("redact"), or leave such rows out ("drop")."""
    if action not in ACTIONS:
        raise ConfigError(f"action={action!r} is not one of {', '.join(ACTIONS)}.")
    done, about = ACTIONS[action]

    def judge(at: int, row: Mapping[str, Any]) -> Ruling | None:
        """What of it is found in one row."""
        texts = [text_of([message]) for message in row["messages"]] or [row.get("text") or ""]
        kinds = [hit.kind for hit in itertools.chain.from_iterable(map(scan, texts))]
        if not kinds:
            return None
        named = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
        if action == "redact" and not row["messages"]:
            return Ruling(f"{named}; a document is left out, not redacted", float(len(kinds)), action="drop")
        turns = list(map(_redacted, row["messages"])) if action == "redact" else None
        return Ruling(named, float(len(kinds)), action=done, messages=turns)

    kinds = "e-mail addresses, phone, card and account numbers, access keys"
    return Rule("personal data", f"{kinds}: {about}", row=lambda: judge)


@dataclass(frozen=True)
class Hit:
    """One find: `text[start:end]` is of this kind."""

    kind: str
    start: int
    end: int


def scan(text: str) -> list[Hit]:
    """Find e-mail addresses, phone, card and account numbers and access keys, in order, not overlapping."""
    hits: list[Hit] = []
    for kind, pattern, valid in _KINDS:
        for match in pattern.finditer(text):
            forms = [match.group()]
            if kind == "iban":
                forms.append(match.group().rpartition(" ")[0])  # without a last group that may be the next word
            end = next((match.start() + len(form) for form in forms if form and (valid is None or valid(form))), None)
            if end is not None and not any(h.start < end and match.start() < h.end for h in hits):
                hits.append(Hit(kind, match.start(), end))
    return sorted(hits, key=lambda h: h.start)


def redact(text: str) -> str:
    """Put `[EMAIL]`, `[PHONE]`, `[CARD]`, `[IBAN]` or `[KEY]` in place of every find."""
    for hit in reversed(scan(text)):
        text = f"{text[: hit.start]}[{hit.kind.upper()}]{text[hit.end :]}"
    return text


def _redacted(message: Mapping[str, Any]) -> dict[str, Any]:
    turn = dict(message)
    for key in ("content", "reasoning_content"):
        if turn.get(key):
            turn[key] = redact(turn[key])
    if turn.get("tool_calls"):
        turn["tool_calls"] = json.dumps(_inside(json.loads(turn["tool_calls"])), ensure_ascii=False)
    return turn


def _inside(value: Any) -> Any:
    """A JSON value with every text and number in it redacted: the text of the JSON itself would not stay JSON."""
    if isinstance(value, dict):
        return {name: _inside(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_inside(part) for part in value]
    if isinstance(value, str):
        return redact(value)
    number = isinstance(value, int | float) and not isinstance(value, bool) and scan(str(value))
    return redact(str(value)) if number else value


def luhn(number: str) -> bool:
    """Whether the digits of a card number pass the Luhn checksum (ISO/IEC 7812-1)."""
    digits = [int(c) for c in number if c.isdigit()]
    doubled = [d if i % 2 == 0 else 2 * d - 9 * (d > 4) for i, d in enumerate(reversed(digits))]
    return len(digits) > 1 and sum(doubled) % 10 == 0


def iban_checksum(number: str) -> bool:
    """Whether an account number passes its checksum: rearranged and read as a number it is 1 modulo 97 (ISO 13616)."""
    plain = "".join(number.split()).upper()
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _phone(number: str) -> bool:
    """Nine to fifteen digits after a country code or with brackets, else nine to twelve in groups; and not a date."""
    if re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", number.strip()):  # an IP address
        return False
    groups = re.findall(r"\d+", number)
    digits = sum(map(len, groups))
    if not 9 <= digits <= 15 or _DATE.search(number):
        return False
    if number.startswith(("+", "00")) or "(" in number:
        return True
    return digits <= 12 and len(groups) >= 3 and min(map(len, groups)) >= 2


_DATE = re.compile(r"\b(19|20)\d\d[-./ ]\d\d?[-./ ]\d\d?\b|\b\d\d?[-./ ]\d\d?[-./ ](19|20)\d\d\b")
_KEYS = (
    r"sk-[A-Za-z0-9_-]{16,}",
    r"AKIA[0-9A-Z]{16}",
    r"gh[pousr]_[A-Za-z0-9]{20,}",
    r"hf_[A-Za-z0-9]{20,}",
    r"xox[abprs]-[A-Za-z0-9-]{10,}",
    r"AIza[0-9A-Za-z_-]{30,}",
    r"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
)
_EMAIL = r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,4}\.[A-Za-z]{2,24}\b"
_PHONE = r"(?<![\w.,-])(?:\+|00)?\(?\d{1,4}\)?(?:[ ./-]{0,2}\(?\d{1,5}\)?){1,6}(?![\w-])"

# kind, its shape, and what tells it from other things of that shape
_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool] | None], ...] = (
    ("key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), None),
    ("key", re.compile(rf"\b(?:{'|'.join(_KEYS)})"), None),
    ("email", re.compile(_EMAIL), None),
    ("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), iban_checksum),
    ("card", re.compile(r"(?<![\d.,-])(?:\d[ -]?){12,18}\d(?![\d-])"), luhn),
    ("phone", re.compile(_PHONE), _phone),
)
