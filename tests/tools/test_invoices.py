"""The bundled invoices and general questions: consistent, reproducible, and without leakage."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tools import make_invoices

SAMPLES = Path(__file__).parents[2] / "ftkit/samples"
PRODUCT = re.compile(r"- (?P<name>.+): (?:[$€£](?P<a>\d+\.\d\d)|(?P<b>\d+\.\d\d) [A-Z]{3}) \(×(?P<quantity>\d+)\)")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """All rows of the default seed."""
    return make_invoices.generate()


def question(row: dict[str, Any]) -> str:
    """The user's message."""
    return str(row["messages"][0]["content"])


def products(row: dict[str, Any]) -> list[re.Match[str]]:
    """The answer's product lines, parsed; a line in another form fails the test."""
    first, *lines = row["messages"][1]["content"].split("\n")
    assert first == "Products:"
    found = [PRODUCT.fullmatch(line) for line in lines]
    assert None not in found, lines
    return [match for match in found if match]


def read(name: str) -> list[dict[str, Any]]:
    """The rows of a committed sample."""
    return [json.loads(line) for line in (SAMPLES / name).read_text(encoding="utf-8").splitlines()]


def of(rows: list[dict[str, Any]], unseen: bool) -> list[dict[str, Any]]:
    """The rows of split `unseen`, or all others."""
    return [row for row in rows if (row["split"] == "unseen") is unseen]


@pytest.mark.parametrize("name, unseen", [("invoices.jsonl", False), ("invoices_unseen.jsonl", True)])
def test_committed_files_are_what_the_generator_gives(
    rows: list[dict[str, Any]], tmp_path: Path, name: str, unseen: bool
) -> None:
    """Byte for byte, so that nobody edits the files by hand."""
    make_invoices.write_jsonl(tmp_path / name, of(rows, unseen))
    assert (tmp_path / name).read_bytes() == (SAMPLES / name).read_bytes()


def test_seeds_reproduce_and_differ(rows: list[dict[str, Any]]) -> None:
    """The same seed gives the same rows; another one gives other invoices."""
    assert rows == make_invoices.generate(seed=0)
    assert not {question(row) for row in rows} & {question(row) for row in make_invoices.generate(seed=1)}


def test_split_sizes_and_ids(rows: list[dict[str, Any]]) -> None:
    """600, 100, 100 and 100 rows, each with its own id."""
    assert Counter(row["split"] for row in rows) == {"train": 600, "val": 100, "test": 100, "unseen": 100}
    assert [row["id"] for row in rows] == [f"inv-{n:04}" for n in range(1, 901)]


def test_no_prompt_comes_twice(rows: list[dict[str, Any]]) -> None:
    """Hence none is shared between splits either."""
    assert len({question(row) for row in rows}) == len(rows)


def test_every_prompt_begins_with_the_instruction_and_is_short(rows: list[dict[str, Any]]) -> None:
    """One instruction, a blank line, the invoice."""
    for row in rows:
        assert question(row).startswith(make_invoices.INSTRUCTION + "\n\n")
        assert len(question(row)) <= make_invoices.LONGEST


def test_answers_stand_in_the_invoice(rows: list[dict[str, Any]]) -> None:
    """Every product name, price figure and quantity of the answer can be read in the prompt."""
    for row in rows:
        text = question(row)
        for product in products(row):
            assert product["name"] in text
            assert re.search(rf"(?<![\d.]){re.escape(product['a'] or product['b'])}(?!\d)", text)
            assert re.search(rf"(?<!\d){product['quantity']}(?!\d)", text)


def test_products_keep_the_invoice_order(rows: list[dict[str, Any]]) -> None:
    """One to three products, in the order in which the invoice names them."""
    for row in rows:
        places = [question(row).index(product["name"]) for product in products(row)]
        assert places == sorted(places)
        assert 1 <= len(places) <= 3


def test_unseen_shares_no_layout_vendor_or_product(rows: list[dict[str, Any]]) -> None:
    """Not even one word of a product name."""
    seen, unseen = of(rows, unseen=False), of(rows, unseen=True)
    seen_text = "\n".join(question(row) for row in seen)
    assert not {row["layout"] for row in seen} & {row["layout"] for row in unseen}
    assert not [row["vendor"] for row in unseen if row["vendor"] in seen_text]
    words = {word for row in unseen for product in products(row) for word in product["name"].split()}
    assert not [word for word in words if re.search(rf"\b{re.escape(word)}\b", seen_text)]


def test_every_split_holds_its_layouts_evenly(rows: list[dict[str, Any]]) -> None:
    """Eight layouts in the seen splits, four in the unseen one, evenly up to one row."""
    for split, layouts in {"train": 8, "val": 8, "test": 8, "unseen": 4}.items():
        counts = Counter(row["layout"] for row in rows if row["split"] == split)
        assert len(counts) == layouts
        assert max(counts.values()) - min(counts.values()) <= 1


def test_a_symbol_goes_before_the_amount_and_a_code_after_it() -> None:
    """The one rule that makes prices comparable."""
    items = [make_invoices.Item("Widget Pro", 2, 2499)]
    assert make_invoices.answer("$", items) == "Products:\n- Widget Pro: $24.99 (×2)"
    assert make_invoices.answer("CHF", items) == "Products:\n- Widget Pro: 24.99 CHF (×2)"


def test_general_questions_accept_their_own_answers() -> None:
    """At least 80 questions, none twice; the reference answer holds an accepted text as whole words."""
    general = read("general.jsonl")
    assert len(general) >= 80
    assert len({question(row) for row in general}) == len(general)
    for row in general:
        answer = row["messages"][1]["content"]
        assert any(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", answer, re.IGNORECASE) for text in row["accept"])
