"""The bundled messy mail: reproducible, and every listed defect is what it says, with none unlisted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tools import make_messy

SAMPLES = Path(__file__).parents[2] / "ftkit/samples"
FIELDS = {"instruction", "input", "output", "task"}
KINDS = {
    "imbalance": 1,
    "exact-duplicate": 12,
    "near-duplicate": 18,
    "look-alike": 6,
    "short-answer": 10,
    "outlier": 2,
    "pii": 9,
    "decoy": 3,
    "low-quality": 10,
    "broken": 3,
    "leak-exact": 2,
    "leak-near": 1,
}
PII = {
    "e-mail": re.compile(r"[\w.]+@[\w.]+\.\w+"),
    "phone": re.compile(r"(?<![\w#/-])[+(]\d[\d ()-]{7,}\d"),
    "card": re.compile(r"(?<!\d)\d{4}([ -]?)\d{4}\1\d{4}\1\d{4}(?!\d)"),
    "API key": re.compile(r"\bsk-\w{20,}|\bAKIA[A-Z0-9]{16}\b"),
    "IBAN": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,}(?: ?[A-Z0-9]{1,3})?\b"),
}
QUALITY = {
    "repeats": lambda row: row["output"] == row["input"],
    "refusal": lambda row: "as an ai language model" in row["output"].lower(),
    "Placeholders": lambda row: re.search(r"\[insert \w+\]|\{\{\w+\}\}", row["output"]),
    "Mojibake": lambda row: re.search(r"Ã.|â€", row["output"]),
    "loop": lambda row: max(Counter(re.findall(r"[^.!?]+[.!?]", row["output"])).values(), default=0) >= 4,
    "HTML": lambda row: re.search(r"</\w+>|&\w+;", row["output"]),
    "Cut off": lambda row: len(row["output"].split()) > 1 and row["output"][-1] not in ".!?",
}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The committed training file."""
    return (SAMPLES / "messy.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def test_rows() -> list[dict[str, str]]:
    """The committed test file."""
    return [json.loads(line) for line in (SAMPLES / "messy_test.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def listing() -> dict[str, Any]:
    """The committed list of defects."""
    return dict(json.loads((SAMPLES / "messy_defects.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def defects(listing: dict[str, Any]) -> list[dict[str, Any]]:
    return list(listing["defects"])


@pytest.fixture(scope="module")
def rows(lines: list[str], defects: list[dict[str, Any]]) -> dict[int, dict[str, str]]:
    """Rows that can be used, by line number from 1."""
    broken = {defect["line"] for defect in of(defects, "broken")}
    return {number: json.loads(line) for number, line in enumerate(lines, 1) if number not in broken}


@pytest.fixture(scope="module")
def clean(rows: dict[int, dict[str, str]], defects: list[dict[str, Any]]) -> dict[int, dict[str, str]]:
    """Rows that no defect names; originals of copies are among them."""
    named = {defect["line"] for defect in defects if not defect["kind"].startswith("leak")}
    return {number: row for number, row in rows.items() if number not in named}


def of(defects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    """The defects of these kinds."""
    return [defect for defect in defects if defect["kind"] in kinds]


def shingles(row: dict[str, str], answer: bool) -> frozenset[tuple[str, ...]]:
    """What `messy_defects.json` defines, written a second time."""
    text = row["instruction"] + "\n\n" + row["input"] + ("\n" + row["output"] if answer else "")
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return frozenset(zip(*(words[start:] for start in range(5)), strict=False))


def jaccard(a: dict[str, str], b: dict[str, str], answer: bool) -> float:
    one, other = shingles(a, answer), shingles(b, answer)
    return len(one & other) / len(one | other)


def alike(rows: dict[Any, dict[str, str]], answer: bool) -> dict[tuple[Any, Any], float]:
    """The Jaccard index of every pair that shares a shingle, by an inverted index."""
    sets = {key: shingles(row, answer) for key, row in rows.items()}
    index: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    found = {}
    for key, marks in sets.items():
        shared = Counter(other for mark in marks for other in index[mark])
        for other, count in shared.items():
            found[other, key] = count / (len(marks) + len(sets[other]) - count)
        for mark in marks:
            index[mark].append(key)
    return found


def normal(text: str) -> str:
    """Text without what cannot be seen: width, case, format characters and runs of blanks."""
    seen = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return " ".join(seen.casefold().split())


def luhn(digits: str) -> bool:
    """Whether the check digit of a card number is right."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 * (number > 9) for number in doubled) % 10 == 0


def private(row: dict[str, str]) -> set[str]:
    """Which private details a row holds; a card number has to pass Luhn."""
    text = f"{row['instruction']}\n{row['input']}\n{row['output']}"
    found = {name for name, pattern in PII.items() if pattern.search(text)}
    cards = [re.sub(r"\D", "", match[0]) for match in PII["card"].finditer(text)]
    return found if any(map(luhn, cards)) else found - {"card"}


@pytest.mark.parametrize("hash_seed", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_committed_files_are_what_the_generator_gives(tmp_path: Path, hash_seed: str) -> None:
    """Byte for byte, so that nobody edits the files by hand, and in any process: no set decides an order."""
    script = "import pathlib, sys; from tools import make_messy; make_messy.write(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(tmp_path)]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["messy.jsonl", "messy_defects.json", "messy_test.jsonl"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (SAMPLES / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_another_seed_gives_other_mails(lines: list[str]) -> None:
    assert not set(make_messy.generate(seed=1).lines) & set(lines)


def test_defects_are_listed_in_full(listing: dict[str, Any], defects: list[dict[str, Any]], lines: list[str]) -> None:
    """Kinds, counts and line numbers; no line but a leaked one or an original is named twice."""
    assert Counter(defect["kind"] for defect in defects) == KINDS == listing["counts"]
    named = [d["line"] for d in defects if d["kind"] != "imbalance" and "leak" not in d["kind"]]
    assert len(set(named)) == len(named)
    assert set(named) <= set(range(1, len(lines) + 1))
    assert all(defect["why"] for defect in defects)
    assert {d["kind"] for d in defects if d["keep"]} == {"look-alike", "decoy"}
    assert {d["kind"] for d in defects if not d["keep"]} == set(KINDS) - {"look-alike", "decoy"}


def test_originals_are_clean_and_each_is_used_once(
    defects: list[dict[str, Any]], clean: dict[int, dict[str, str]]
) -> None:
    """Copies stand before and after their original."""
    copies = [d for d in defects if d["original"]]
    used = [d["original"] for d in copies] + [d["line"] for d in of(defects, "leak-exact", "leak-near")]
    assert len(set(used)) == len(used) == 39
    assert set(used) <= set(clean)
    assert 9 <= sum(d["line"] > d["original"] for d in copies) <= 27


def test_clean_rows_have_the_stated_sizes(clean: dict[int, dict[str, str]], test_rows: list[dict[str, str]]) -> None:
    """660 clean rows; mails of 55 to 110 words, answers of 12 to 70, in every test row too."""
    assert Counter(row["task"] for row in clean.values()) == {"reply": 390, "extract": 90, "summarise": 90, "route": 90}
    for row in [*clean.values(), *test_rows]:
        assert set(row) == FIELDS
        assert 55 <= len(row["input"].split()) <= 110
        assert 12 <= len(row["output"].split()) <= 70


def test_lines_are_rows_of_four_texts(rows: dict[int, dict[str, str]]) -> None:
    for row in rows.values():
        assert set(row) == FIELDS
        assert all(isinstance(value, str) and value for value in row.values())


def test_clean_answers_stand_in_the_mail(clean: dict[int, dict[str, str]]) -> None:
    """Order number, product and amounts of an answer are the mail's; nothing of the grammar is left over."""
    for row in clean.values():
        assert not re.search(r"[\[\]{}|<>]|=>|//", "".join(row.values()))
        assert set(re.findall(r"\d+\.\d\d", row["output"])) <= set(re.findall(r"\d+\.\d\d", row["input"]))
        assert set(re.findall(r"\d{6}", row["output"])) <= set(re.findall(r"\d{6}", row["input"]))
        if row["task"] == "extract":
            order, product, problem = row["output"].split("\n")
            assert order.removeprefix("Order number: ") in row["input"]
            assert product.removeprefix("Product: ") in row["input"]
            assert problem.startswith("Problem: ")
        if row["task"] == "route":
            assert re.search(r"the (Returns desk|Parts desk|Order desk|\w+ team), (because|since|as) ", row["output"])


def test_a_few_clean_rows_hold_unusual_letters(clean: dict[int, dict[str, str]]) -> None:
    """Emoji, accents, and right-to-left or CJK words."""
    texts = [row["input"] for row in clean.values()]
    for letters in ("[\U0001f300-\U0001faff]", "[éïñ]", "[\u0590-\u06ff]", "[\u4e00-\u9fff]"):
        assert 5 <= sum(bool(re.search(letters, text)) for text in texts) <= 300


@pytest.mark.parametrize("answer", [True, False])
def test_only_listed_pairs_are_alike(
    rows: dict[int, dict[str, str]], test_rows: list[dict[str, str]], defects: list[dict[str, Any]], answer: bool
) -> None:
    """Every pair of all rows at 0.5 or above is a listed one; clean rows stay below 0.4 with their answers."""
    listed = {frozenset((d["line"], d["original"])) for d in defects if d["original"]}
    leaked = {frozenset((d["line"], -d["test_line"])) for d in of(defects, "leak-exact", "leak-near")}
    everything = {**rows, **{-number: row for number, row in enumerate(test_rows, 1)}}
    found = {frozenset(pair): value for pair, value in alike(everything, answer).items()}
    assert {pair for pair, value in found.items() if value >= 0.5} == listed | leaked
    copies = {d["line"] for d in defects if d["original"]}
    leaks = {-d["test_line"] for d in of(defects, "leak-exact", "leak-near")}
    rest = [value for pair, value in found.items() if not pair & (copies | leaks)]
    assert max(rest) < (0.4 if answer else 0.45)


def test_exact_duplicates_differ_only_in_what_cannot_be_seen(
    defects: list[dict[str, Any]], rows: dict[int, dict[str, str]], lines: list[str]
) -> None:
    """Four are the same bytes, the others are so after normalisation only."""
    kinds = Counter()
    for defect in of(defects, "exact-duplicate"):
        copy, original = rows[defect["line"]], rows[defect["original"]]
        assert {name: normal(text) for name, text in copy.items()} == {n: normal(t) for n, t in original.items()}
        same = lines[defect["line"] - 1] == lines[defect["original"] - 1]
        assert same == ("byte for byte" in defect["why"])
        assert jaccard(copy, original, answer=True) >= 0.8
        kinds[defect["why"].rpartition("up to ")[2]] += 1
    assert sorted(kinds.values()) == [2, 2, 2, 2, 4]


def test_near_duplicates_swap_one_to_three_words(
    defects: list[dict[str, Any]], rows: dict[int, dict[str, str]], test_rows: list[dict[str, str]]
) -> None:
    """The index lies in 0.82 to 0.97 for the prompt alone and with the answer."""
    pairs = [(rows[d["line"]], rows[d["original"]]) for d in of(defects, "near-duplicate")]
    pairs += [(rows[d["line"]], test_rows[d["test_line"] - 1]) for d in of(defects, "leak-near")]
    swapped = Counter()
    for a, b in pairs:
        assert 0.82 <= jaccard(a, b, answer=True) <= 0.97
        assert 0.82 <= jaccard(a, b, answer=False) <= 0.97
        assert {name for name in FIELDS if a[name] != b[name]} == {"input"}
        swapped[sum(x != y for x, y in zip(a["input"].split(), b["input"].split(), strict=True))] += 1
    assert set(swapped) == {1, 2, 3}


def test_look_alikes_are_other_cases(defects: list[dict[str, Any]], rows: dict[int, dict[str, str]]) -> None:
    """The index lies in 0.55 to 0.72, and another customer writes about another order."""
    for defect in of(defects, "look-alike"):
        a, b = rows[defect["line"]], rows[defect["original"]]
        assert 0.55 <= jaccard(a, b, answer=True) <= 0.72
        assert 0.55 <= jaccard(a, b, answer=False) <= 0.72
        assert not set(re.findall(r"\d{6}", a["input"])) & set(re.findall(r"\d{6}", b["input"]))
        assert a["input"].split()[-1] != b["input"].split()[-1]


def test_leaks_are_test_rows_that_training_holds(
    defects: list[dict[str, Any]], rows: dict[int, dict[str, str]], test_rows: list[dict[str, str]]
) -> None:
    """Two to the byte and one nearly, beside ten clean test rows a task."""
    for defect in of(defects, "leak-exact"):
        assert rows[defect["line"]] == test_rows[defect["test_line"] - 1]
    leaked = {d["test_line"] for d in of(defects, "leak-exact", "leak-near")}
    assert len(leaked) == 3
    own = [row for number, row in enumerate(test_rows, 1) if number not in leaked]
    assert Counter(row["task"] for row in own) == dict.fromkeys(make_messy.CLEAN, 10)


def test_broken_lines_cannot_be_used(defects: list[dict[str, Any]], lines: list[str]) -> None:
    """One is torn within a string, one has null for an answer, one has none."""
    found = {defect["why"]: lines[defect["line"] - 1] for defect in of(defects, "broken")}
    with pytest.raises(json.JSONDecodeError, match="Unterminated string"):
        json.loads(found.pop("The JSON ends within a string."))
    assert json.loads(found.pop("The output is null."))["output"] is None
    assert set(json.loads(found.pop("There is no output."))) == FIELDS - {"output"}
    assert not found


def test_short_answers_are_one_word_and_outliers_are_long(
    defects: list[dict[str, Any]], rows: dict[int, dict[str, str]]
) -> None:
    short = {rows[defect["line"]]["output"] for defect in of(defects, "short-answer")}
    assert len(short) == 10
    assert all(len(text.split()) == 1 for text in short)
    first, second = sorted((rows[d["line"]] for d in of(defects, "outlier")), key=lambda row: len(row["input"]))
    assert 2800 <= len(first["output"].split()) <= 3200
    assert 2300 <= len(second["input"].split()) <= 2700


def test_imbalance_is_measured(defects: list[dict[str, Any]], lines: list[str]) -> None:
    """More than half of the lines ask for a reply."""
    (defect,) = of(defects, "imbalance")
    assert defect["line"] is None
    assert defect["count"] == sum('"task": "reply"}' in line for line in lines)
    assert defect["share"] == pytest.approx(defect["count"] / len(lines), abs=0.001)
    assert defect["share"] > 0.5


def test_private_details_are_where_the_list_says(
    defects: list[dict[str, Any]], rows: dict[int, dict[str, str]], test_rows: list[dict[str, str]]
) -> None:
    """Each planted one is found by its pattern, and no other row holds any, the decoys included."""
    planted = {defect["line"]: defect for defect in of(defects, "pii")}
    for line, defect in planted.items():
        (name,) = private(rows[line])
        assert re.search(rf"\b{name}\b", defect["why"])
    assert Counter(name for line in planted for name in private(rows[line])) == {
        "e-mail": 2,
        "phone": 2,
        "card": 2,
        "API key": 2,
        "IBAN": 1,
    }
    assert [line for line, row in rows.items() if private(row) and line not in planted] == []
    assert [row for row in test_rows if private(row)] == []


def test_the_iban_has_right_check_digits(defects: list[dict[str, Any]], rows: dict[int, dict[str, str]]) -> None:
    """It would pass a bank's form, as the documented example does."""
    (line,) = [d["line"] for d in of(defects, "pii") if "IBAN" in d["why"]]
    iban = PII["IBAN"].search(rows[line]["input"])[0].replace(" ", "")
    assert int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


def test_decoys_would_fool_a_careless_pattern(defects: list[dict[str, Any]], rows: dict[int, dict[str, str]]) -> None:
    """A number of 16 digits that fails Luhn, and two with the shape of an IP address."""
    texts = [rows[defect["line"]]["input"] for defect in of(defects, "decoy")]
    numbers = [match[0] for text in texts if (match := PII["card"].search(text))]
    assert [luhn(number.replace(" ", "")) for number in numbers] == [False]
    assert sum(bool(re.search(r"\b\d+\.\d+\.\d+\.\d+\b", text)) for text in texts) == 2


def test_low_quality_answers_are_what_the_list_says(
    defects: list[dict[str, Any]], rows: dict[int, dict[str, str]], clean: dict[int, dict[str, str]]
) -> None:
    """Each shows its own flaw, and no clean answer shows any."""
    seen = Counter()
    for defect in of(defects, "low-quality"):
        (flaw,) = [name for name in QUALITY if name in defect["why"].replace("A refusal", "refusal")]
        assert QUALITY[flaw](rows[defect["line"]]), defect
        seen[flaw] += 1
    assert set(seen) == set(QUALITY)
    for row in clean.values():
        assert [name for name, shows in QUALITY.items() if shows(row)] == []
