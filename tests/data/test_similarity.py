"""Exact and MinHash search for near-duplicates, SimHash."""

import itertools
import random
import sys
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import altered, random_text

from ftkit import data
from ftkit.data.shingles import flat_shingles
from ftkit.data.similarity import band_keys, join
from ftkit.errors import ConfigError, MissingExtra


def planted(seed: int, originals: int, twins: int, changes: tuple[int, int] = (1, 4)) -> list[str]:
    draw = random.Random(seed)
    texts = [random_text(draw) for _ in range(originals)]
    return [*texts, *(altered(texts[i], draw, draw.randint(*changes)) for i in range(twins))]


def true_pairs(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    """All pairs that reach the threshold, of all that share anything."""
    shingles = [data.word_shingles(text).tolist() for text in texts]
    holders = defaultdict(list)
    for i, of_text in enumerate(shingles):
        for shingle in of_text:
            holders[shingle].append(i)
    shared = Counter(pair for rows in holders.values() for pair in itertools.combinations(rows, 2))
    sizes = list(map(len, shingles))
    return {(i, j) for (i, j), count in shared.items() if count / (sizes[i] + sizes[j] - count) >= threshold}


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95, 1.0])
def test_exact_search_finds_the_clusters_of_brute_force(threshold):
    texts = [*planted(1, 60, 40, changes=(0, 6)), "", "", "short one", "short one"]
    wanted = join(len(texts), true_pairs(texts, threshold))
    assert data.near_pairs(texts, threshold, method="exact").clusters() == wanted


@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=12).map(" ".join), max_size=12),
    st.sampled_from([0.3, 0.6, 0.8, 1.0]),
)
@settings(max_examples=100, deadline=None)
def test_exact_search_agrees_with_brute_force_on_boilerplate(texts, threshold):
    wanted = join(len(texts), true_pairs(texts, threshold))
    assert data.near_pairs(texts, threshold, method="exact").clusters() == wanted


def test_minhash_finds_nearly_all_and_nothing_false():
    """Every reported pair reaches the threshold; at Jaccard 0.8 and above at least 98 % are found."""
    texts = planted(2, 400, 300, changes=(1, 2))
    truth = true_pairs(texts, 0.8)
    found = data.near_pairs(texts, 0.8, method="minhash").rows
    assert found <= truth
    assert len(found) >= 0.98 * len(truth) > 150


@pytest.mark.parametrize("method", ["exact", "minhash"])
def test_a_chain_is_followed_past_the_member_that_came_first(method):
    """A ~ B ~ C with A and C unlike, where every shared rare shingle of B and C stands in A as well."""
    draw = random.Random(11)
    core, one, two = random_text(draw, 74), random_text(draw, 15), random_text(draw, 15)
    texts = [f"{core} {one} {two}", f"{core} {one}", core, *(f"{random_text(draw, 200)} {one} {two}" for _ in range(3))]
    assert true_pairs(texts, 0.8) == {(0, 1), (1, 2)}
    assert data.near_pairs(texts, 0.8, method=method).clusters() == [0, 0, 0, 3, 4, 5]


def test_across_meets_every_text_of_a_large_bucket():
    """Sixty-six texts share the rare end; the twin of the last one is still found."""
    draw = random.Random(12)
    end = random_text(draw, 20)
    train = [f"{random_text(draw, 60)} {end}" for _ in range(66)]
    assert data.near_pairs([*train, altered(train[-1], draw, 1)], 0.8, across=66).rows == {(65, 66)}


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7])
def test_minhash_bands_follow_the_threshold(threshold):
    """Below 0.8 the bands are wider, so that at least nine in ten pairs are found."""
    texts = planted(13, 300, 250, changes=(1, 5))
    truth = true_pairs(texts, threshold)
    found = data.near_pairs(texts, threshold, method="minhash").rows
    assert found <= truth and len(found) >= 0.9 * len(truth) > 80


def test_across_compares_only_the_two_parts_and_lists_every_pair():
    texts = planted(3, 30, 20, changes=(1, 1))
    both = [*texts[:30], texts[0], *texts[30:]]
    pairs = data.near_pairs(both, 0.8, across=30).pairs
    assert {(p.first, p.second) for p in pairs} == {(0, 30), *((i, 31 + i) for i in range(20))}
    assert all(p.first < 30 <= p.second for p in pairs)


@pytest.mark.parametrize("method", ["exact", "minhash"])
def test_apart_is_two_searches_in_one(method):
    """Texts on two sides are never compared, not even to learn that a third one resembles both."""
    one, two = planted(4, 40, 30, changes=(0, 4)), planted(4, 50, 20, changes=(0, 4))
    both = data.near_pairs([*one, *two], method=method, apart=len(one)).pairs
    first, second = (data.near_pairs(texts, method=method).clusters() for texts in (one, two))
    links = [(p.first, p.second) for p in both]
    assert join(len(one), [p for p in links if p[0] < len(one)]) == first
    assert join(len(two), [(a - len(one), b - len(one)) for a, b in links if a >= len(one)]) == second
    assert all((a < len(one)) == (b < len(one)) for a, b in links)


@pytest.mark.slow
def test_texts_full_of_boilerplate_end_in_reasonable_time():
    """A thousand texts that share 85 % of their words fall into the same buckets; what is left out is counted."""
    draw = random.Random(4)
    common = random_text(draw, 60)
    texts = [f"{common} {random_text(draw, 12)}" for _ in range(1000)]
    found = data.near_pairs(texts, 0.95, method="minhash")
    assert found.compared < 1000 * 64 * 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "method='magic'"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"threshold": 1.2}, "threshold=1.2"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        data.near_pairs(["a"], **arguments)


def test_without_rensa_the_message_names_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(MissingExtra, match="pip install rensa"):
        data.near_pairs(["a b"], method="minhash")


def test_an_empty_list_has_no_pairs():
    assert data.near_pairs([]).clusters() == data.near_pairs([], method="minhash").clusters() == []


def test_keys_of_empty_texts_resemble_nothing():
    keys = band_keys([flat_shingles(["", "", "a b c"])])
    assert not (keys[0] == keys[1]).any()


@pytest.mark.slow
def test_simhash_finds_fewer_of_the_same_pairs():
    """The lesson of notebook 07: at 3 bits SimHash misses most pairs that MinHash finds."""
    texts = planted(6, 300, 200)
    truth = true_pairs(texts, 0.8)
    simple = data.close_pairs(texts).rows
    sketched = data.near_pairs(texts, method="minhash").rows
    assert len(simple & truth) < 0.5 * len(sketched & truth)


@given(st.text(max_size=80), st.text(max_size=80))
@settings(max_examples=100, deadline=None)
def test_simhash_distance_is_symmetric_and_bounded(a, b):
    one, two = data.simhash(a), data.simhash(b)
    assert 0 <= data.distance(one, two) == data.distance(two, one) <= 64
    assert data.distance(one, one) == 0


def test_simhash_close_pairs_agree_with_brute_force():
    texts = planted(7, 80, 60, changes=(0, 2))
    prints = [data.simhash(t) for t in texts]
    wanted = {
        (i, j) for i, j in itertools.combinations(range(len(texts)), 2) if data.distance(prints[i], prints[j]) <= 3
    }
    assert data.close_pairs(texts).rows == wanted
