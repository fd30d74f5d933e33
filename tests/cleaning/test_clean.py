"""Cleaning: every row is kept or dropped with a reason; rules, reports, personal data, balance, leakage."""

import json
import random

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import altered, make_tokenizer, random_text

from ftkit import cleaning, data
from ftkit.chat import render
from ftkit.cleaning import clean, exact_duplicates, length, near_duplicates, quality
from ftkit.cleaning.balancing import diversity, resample
from ftkit.cleaning.cleaning import CleanReport, _Work
from ftkit.cleaning.privacy import redact, scan
from ftkit.errors import ConfigError, DataError, FtkitWarning


def chat(prompt: str, answer: str, **columns: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], **columns}


def chats(n: int, seed: int = 0, words: int = 60) -> list[dict[str, object]]:
    draw = random.Random(seed)
    return [chat(random_text(draw, words), random_text(draw, 20)) for _ in range(n)]


def rows_of(report: CleanReport, rule: str) -> list[int]:
    return [drop.row for drop in report.dropped if drop.rule == rule]


# ---- the books


NASTY = st.one_of(
    st.none(),
    st.text(max_size=20),
    st.sampled_from(["", " ", "\u200b", "🦜" * 3, "مرحبا", "\u202eabc", "x" * 2_000_000, "7"]),
    st.integers(),
    st.floats(allow_nan=True),
    st.booleans(),
    st.lists(st.none(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
    st.binary(max_size=4),
)


@given(st.lists(st.one_of(NASTY, st.fixed_dictionaries({"prompt": NASTY, "completion": NASTY})), max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_no_row_is_dropped_in_silence(rows):
    """Whatever stands in the rows: kept and dropped together are all of them, and kept rows keep their order."""
    rows = [{"prompt": "What is it?", "completion": "A thing of some kind."}, *rows]
    report = clean(
        rows,
        [exact_duplicates(), near_duplicates(), length(max_length=1000), quality(), cleaning.personal_data()],
        on_error="drop",
    )
    assert len(report.kept) + len(report.dropped) == len(rows) == report.total
    assert list(report.kept_rows) == sorted(set(range(len(rows))) - {drop.row for drop in report.dropped})
    assert all(drop.reason for drop in report.dropped)
    str(report), report._repr_html_(), report.worst(3)._repr_html_()


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_broken_rows_of_files_are_counted_where_the_format_allows(tmp_path, ending):
    """A broken line of JSONL or CSV is one dropped row; the others survive."""
    good = [{"prompt": f"What is number {i}?", "completion": f"It is the number {i}."} for i in range(5)]
    path = tmp_path / f"x.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join([json.dumps(good[0]), '{"prompt": "cut', *map(json.dumps, good[1:])]) + "\n")
    elif ending == "json":
        path.write_text(json.dumps([good[0], "no object", *good[1:]]))
    elif ending == "parquet":
        Dataset.from_list([good[0], {"prompt": None, "completion": "x y"}, *good[1:]]).to_parquet(str(path))
    else:
        mark = "," if ending == "csv" else "\t"
        lines = [mark.join(row.values()) for row in good]
        path.write_text("\n".join([mark.join(good[0]), lines[0], f"a{mark}b{mark}c", *lines[1:]]) + "\n")
    with pytest.raises(DataError, match="1 of 6 rows cannot be used"):
        clean(path, [])
    report = clean(path, [], on_error="drop")
    assert (len(report.kept), [drop.rule for drop in report.dropped]) == (5, ["well-formed"])
    assert report.dropped[0].row == 1
    assert report.dropped[0].place == {"jsonl": "line 2", "json": "row 2", "parquet": "row 2"}.get(ending, "line 3")


def test_a_column_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("prompt,completion,prompt\na,b,c\n")
    with pytest.raises(DataError, match="more than once"):
        clean(path, [], on_error="drop")


def test_a_megabyte_cell_is_read_and_dropped_for_its_length(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(f'prompt,completion\nWhat?,"{"word " * 250_000}"\nWho is it?,It is me again.\n')
    report = clean(path, [length(max_length=1000)])
    assert rows_of(report, "length") == [0]


def test_only_broken_rows_leave_nothing_to_clean():
    report = clean([3, None], [exact_duplicates()], on_error="drop")
    assert (report.total, len(report.dropped), len(report.kept)) == (2, 2, 0)


def test_rules_see_what_earlier_rules_left():
    """The near-duplicate of a dropped row stays: nothing better is there."""
    draw = random.Random(1)
    text = random_text(draw, 70)
    rows = [chat(text, "no"), chat(altered(text, draw, 1), "a real answer this time")]
    report = clean(rows, [length(min_answer_words=2), near_duplicates()])
    assert (rows_of(report, "length"), rows_of(report, "near-duplicates")) == ([0], [])


def test_rules_of_one_row_share_a_pass(monkeypatch):
    """Two such rules in a row read the data once."""
    passes = []
    kept = _Work.pass_over
    monkeypatch.setattr(_Work, "pass_over", lambda self, rules: (passes.append(len(rules)), kept(self, rules))[1])
    clean(chats(4), [exact_duplicates(), quality(), near_duplicates(), cleaning.personal_data()])
    assert passes == [2, 1]


def test_something_that_is_no_rule_is_refused():
    with pytest.raises(ConfigError, match="is no rule"):
        clean(chats(2), [length])


def test_columns_come_along():
    rows = [dict(row, task="a", n=i) for i, row in enumerate(chats(3))]
    assert clean(rows, [exact_duplicates()]).kept["n"][:] == [0, 1, 2]


def test_the_report_prints_saves_and_accounts(tmp_path):
    rows = [*chats(5), chats(5)[2], chat("Why is that so?", "ok")]
    report = clean(rows)
    assert report.ratios == {
        "kept": pytest.approx(5 / 7),
        "exact duplicates": pytest.approx(1 / 7),
        "near-duplicates": 0.0,
        "length": pytest.approx(1 / 7),
        "quality": 0.0,
        "personal data": 0.0,
    }
    saved = json.loads(report.save(tmp_path / "report.json").read_text())
    assert (saved["total"], saved["kept"], len(saved["dropped"])) == (7, 5, 2)
    assert saved["dropped"][0]["twin"] == 2
    assert "kept 5 of 7 rows" in str(report)


def test_worst_shows_the_drops_nearest_to_the_limit_beside_their_twins():
    draw = random.Random(2)
    texts = [random_text(draw, 90) for _ in range(3)]
    rows = [chat(t, "a fine answer") for t in texts] + [
        chat(altered(t, draw, n), "a fine answer") for t, n in zip(texts, (1, 3, 1), strict=True)
    ]
    worst = clean(rows, [near_duplicates(0.7)]).worst(1)
    assert (worst.drops[0].row, worst.drops[0].twin) == (4, 1)
    assert "changed" in str(worst) and "<b>changed" in worst._repr_html_()
    assert texts[1].split()[0] in worst.texts[0][1]


# ---- rules


def test_exact_duplicates_look_through_case_spaces_and_invisible_characters():
    rows = [
        chat("What is a Café?", "A place."),
        chat("what is  a cafe\u0301?", "A\u200b place. "),
        chat("What is a Café?", "A meal."),
    ]
    report = clean(rows, [exact_duplicates()])
    assert [(drop.row, drop.twin, drop.twin_place) for drop in report.dropped] == [(1, 0, "row 1")]


def test_the_same_words_in_other_roles_are_no_duplicate():
    a = {
        "messages": [
            {"role": "system", "content": "a b"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
        ]
    }
    b = chat("a b\x00c", "d")
    assert len(clean([a, b], [exact_duplicates()]).kept) == 2


def test_of_a_chain_of_near_duplicates_one_row_stays():
    """A ~ b ~ c with a and c further apart: one cluster, and the reason says how c hangs on it."""
    draw = random.Random(3)
    a = random_text(draw, 100)
    b = altered(a, draw, 2)
    c = altered(b, draw, 2)
    report = clean([chat(t, "a fine answer") for t in (a, b, c)], [near_duplicates(0.8)])
    assert [(d.row, d.twin) for d in report.dropped] == [(1, 0), (2, 0)]
    assert "linked through others" in report.dropped[1].reason


def test_the_longest_answer_of_a_cluster_can_stay():
    draw = random.Random(4)
    text = random_text(draw, 80)
    rows = [chat(text, "short answer"), chat(text, "a much longer and better answer")]
    assert rows_of(clean(rows, [near_duplicates(0.7, keep="longest")]), "near-duplicates") == [0]
    assert rows_of(clean(rows, [near_duplicates(0.7)]), "near-duplicates") == [1]


def test_near_duplicates_of_the_prompt_alone():
    draw = random.Random(5)
    text = random_text(draw, 40)
    rows = [chat(text, random_text(draw, 60)), chat(text, random_text(draw, 60))]
    assert len(clean(rows, [near_duplicates()]).kept) == 2
    assert len(clean(rows, [near_duplicates(on="prompt")]).kept) == 1


def test_length_counts_tokens_under_the_template():
    tokenizer = make_tokenizer()
    rows = [chat("abc", "d e"), chat("abc" * 40, "d e")]
    whole = len(tokenizer(render(rows[0], tokenizer), add_special_tokens=False)["input_ids"])
    report = clean(rows, [length(tokenizer, max_length=whole, outlier=None)])
    assert rows_of(report, "length") == [1]
    assert report.counts[1].notes["share beyond max_length"] == 0.5


def test_length_finds_one_word_answers_and_outliers_but_keeps_ordinary_variety():
    draw = random.Random(6)
    rows = [chat(random_text(draw, draw.randint(20, 90)), random_text(draw, draw.randint(5, 40))) for _ in range(60)]
    rows += [chat("Is it so?", "Yes"), chat("Why?", random_text(draw, 1900))]
    report = clean(rows, [length()])
    assert rows_of(report, "length") == [60, 61]
    assert "words: 'Yes'" in report.dropped[0].reason and "times the median" in report.dropped[1].reason


def test_one_word_answers_of_a_classifier_can_be_kept():
    assert len(clean([chat("Is it so?", "Yes"), chat("Is it so now?", "No")], [length(min_answer_words=1)]).kept) == 2


def test_quality_by_a_score_keeps_the_unscored_and_says_so():
    rows = chats(4)
    report = clean(rows, [quality(lambda m: [0.9, 0.1, None, 0.6], minimum=0.5)])
    assert rows_of(report, "quality") == [1]
    assert report.counts[1].notes["rows without a score"] == 1


def test_quality_by_share_shows_random_selection_beside_it():
    rows = chats(10)
    report = clean(rows, [quality(lambda m: [i / 10 for i in range(10)], keep=0.3)])
    assert list(report.kept_rows) == [7, 8, 9]
    assert report.counts[1].notes["mean score kept"] == pytest.approx(0.8)
    assert report.counts[1].notes["mean score of a random selection"] < 0.8


@pytest.mark.parametrize(
    "make",
    [
        lambda: quality(lambda m: [], minimum=0.1, keep=0.5),
        lambda: quality(lambda m: []),
        lambda: quality(keep=2),
        lambda: near_duplicates(1.5),
        lambda: near_duplicates(keep="best"),
        lambda: diversity(0.5),
        lambda: cleaning.personal_data("hide"),
        lambda: cleaning.balance("task", at_most=0),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(make):
    with pytest.raises(ConfigError):
        make()


def test_diversity_drops_what_adds_nothing_new():
    draw = random.Random(7)
    parts = [random_text(draw, 30) for _ in range(3)]
    rows = [
        chat(parts[0], parts[1]),
        chat(parts[2], "an answer of its own"),
        chat(parts[2], parts[0]),
        chat(random_text(draw, 40), "new"),
    ]
    assert rows_of(clean(rows, [diversity()]), "diversity") == [2]


def test_k_center_keeps_one_of_each_clump():
    import numpy as np

    rows = [chat(f"number {i} of its kind", "some answer") for i in range(9)]
    points = np.repeat(np.eye(3), 3, axis=0) + np.arange(9)[:, None] * 1e-3
    report = clean(rows, [diversity(keep=1 / 3, embed=lambda texts: points)])
    assert {row // 3 for row in report.kept_rows} == {0, 1, 2}
    assert all(drop.twin is not None and drop.twin // 3 == drop.row // 3 for drop in report.dropped)


def test_a_good_row_is_not_dropped_for_a_twin_that_goes_afterwards():
    """The default order drops bad rows first."""
    text = random_text(random.Random(21), 80)
    report = clean([chat(text, "no"), chat(text, "a real answer of some words")])
    assert list(report.kept_rows) == [1]


def test_the_score_of_a_chained_twin_is_its_likeness_to_the_row_that_stays():
    draw = random.Random(3)
    a = random_text(draw, 100)
    b = altered(a, draw, 2)
    report = clean([chat(t, "a fine answer") for t in (a, b, altered(b, draw, 2))], [near_duplicates(0.8)])
    assert report.dropped[1].score < 0.8 <= report.dropped[0].score


def test_a_second_change_sees_the_first():
    """A rule of one's own after redaction works on the redacted text."""

    def louder(at, row):
        turns = [m | {"content": m["content"].upper()} for m in row["messages"]]
        return cleaning.Ruling("louder", action="change", messages=turns)

    rule = cleaning.Rule("louder", "capitals", row=lambda: louder)
    rows = [chat("mail me: ana@shop.example", "We will do that soon.")]
    for rules in (
        [cleaning.personal_data("redact"), rule],
        [cleaning.personal_data("redact"), near_duplicates(), rule],
    ):
        assert clean(rows, rules).kept["messages"][0][0]["content"] == "MAIL ME: [EMAIL]"


@pytest.mark.parametrize("scores", [[0.5], [0.5] * 5])
def test_a_score_function_that_miscounts_is_refused(scores):
    with pytest.raises(DataError, match="scores for 4 rows"):
        clean(chats(4), [quality(lambda rows: scores, minimum=0.1)])


def test_a_score_that_is_no_number_counts_as_none():
    report = clean(chats(3), [quality(lambda rows: [float("nan"), 0.9, 0.1], minimum=0.5)])
    assert list(report.kept_rows) == [0, 1]


def test_calls_are_answers_and_schemas_tell_rows_apart():
    call = json.dumps([{"type": "function", "function": {"name": "look", "arguments": {"city": "Oslo"}}}])
    turns = [{"role": "user", "content": "Weather in Oslo?"}, {"role": "assistant", "content": "", "tool_calls": call}]
    rows = [
        {"messages": turns, "tools": json.dumps([{"type": "function", "function": {"name": n, "parameters": {}}}])}
        for n in ("look", "ask")
    ]
    assert len(clean(rows, [exact_duplicates(), quality()]).kept) == 2


@pytest.mark.parametrize("source", [{"train": [1]}, {"messages": []}])
def test_a_dictionary_of_parts_is_no_list_of_rows(source):
    with pytest.raises(DataError, match="is no list of rows"):
        clean(source, [])


def test_a_misspelt_mapping_is_refused_at_once():
    with pytest.raises(DataError, match="mapping wants"):
        clean([{"q": "a", "a": "b"}], [], mapping={"promt": "q", "answer": "a"}, on_error="drop")


def test_own_columns_of_any_kind_come_along():
    rows = [dict(row, big=2**63 + i, mixed=1 if i else 0.5) for i, row in enumerate(chats(2))]
    kept = clean(rows, []).kept
    assert kept["big"][:] == [str(2**63), str(2**63 + 1)] and kept["mixed"][:] == [0.5, 1.0]
    assert len(clean([dict(chats(1)[0], note="\ud83d"), *chats(1)], [], on_error="drop").dropped) == 1


# ---- balance


def labelled(sizes: dict[str, int]) -> Dataset:
    return data.load_examples(
        [dict(chat(f"{task} {i}", "fine then"), task=task) for task, n in sizes.items() for i in range(n)]
    )


def test_balance_caps_the_large_label_at_random_and_keeps_the_order():
    report = clean(labelled({"a": 30, "b": 10, "c": 10}), [cleaning.balance("task", at_most=12)])
    assert {t: report.kept["task"][:].count(t) for t in "abc"} == {"a": 12, "b": 10, "c": 10}
    assert list(report.kept_rows) == sorted(report.kept_rows) and list(report.kept_rows)[:12] != list(range(12))
    again = clean(labelled({"a": 30, "b": 10, "c": 10}), [cleaning.balance("task", at_most=12)])
    assert list(again.kept_rows) == list(report.kept_rows)


def test_balance_names_the_columns_that_are_there():
    with pytest.raises(DataError, match=r"no column 'topic'.*task"):
        clean(labelled({"a": 3}), [cleaning.balance("topic")])


def test_two_labels_are_balanced_and_rows_without_one_stay():
    rows = labelled({"a": 10, "b": 100}).to_list() + [
        dict(chat(f"none {i}", "fine then"), task=None) for i in range(30)
    ]
    kept = clean(rows, [cleaning.balance("task")]).kept["task"][:]
    assert [kept.count(label) for label in ("a", "b", None)] == [10, 15, 30]


@pytest.mark.parametrize(("power", "wanted"), [(1.0, [40, 10]), (0.0, [25, 25])])
def test_resample_moves_shares_towards_equal(power, wanted):
    drawn = resample(labelled({"a": 40, "b": 10}), "task", power=power)
    assert [drawn["task"][:].count(t) for t in "ab"] == wanted


def test_mix_reaches_the_share_and_says_so():
    mixed = cleaning.mix(labelled({"a": 92}), data.load_examples("general"), share=0.08)
    assert (mixed.counts, len(mixed.examples)) == ({"task": 92, "general": 8}, 100)
    assert mixed.share == pytest.approx(0.08)
    assert mixed.examples["source"][:].count("general") == 8 and mixed.examples["source"][:10] != ["task"] * 10


def test_mix_with_too_few_general_rows_warns_and_takes_all():
    with pytest.warns(FtkitWarning, match="there are 1, all are taken"):
        mixed = cleaning.mix(labelled({"a": 90}), labelled({"g": 1}), share=0.1)
    assert mixed.counts["general"] == 1


def test_parts_with_and_without_calls_can_be_mixed():
    call = json.dumps([{"type": "function", "function": {"name": "look", "arguments": {}}}])
    with_calls = data.load_examples(
        [
            {
                "messages": [
                    {"role": "user", "content": f"look {i}"},
                    {"role": "assistant", "content": "", "tool_calls": call},
                ]
            }
            for i in range(20)
        ]
    )
    assert len(cleaning.mix(with_calls, data.load_examples("general"), share=0.2).examples) == 25


# ---- personal data


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
    import time

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
    assert rows_of(clean(rows, [cleaning.personal_data("drop")]), "personal data") == [0]


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
