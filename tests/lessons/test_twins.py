"""Searches for near-duplicates beside the truth: MinHash misses none of these, SimHash names one that it missed."""

from ftkit import lessons

LETTER = " ".join(f"word{i}" for i in range(80))


def test_copies_are_found_and_counted():
    search = lessons.search_twins([LETTER, LETTER.replace("word79", "other"), "nothing like the two at all here"])
    assert search.pairs == 1
    assert search.searches["MinHash, 16 bands of 8"] == (1, 0)
    assert "80% of their runs" in str(search)


def test_a_missed_pair_is_shown_with_the_words_that_differ():
    """One word in the middle of ninety leaves more than 0.8 alike, and often more than three bits apart."""
    letters = [" ".join(f"{name}{i}" for i in range(90)) for name in "abcdefgh"]
    copies = [letter.replace(f"{letter[0]}45", "changed") for letter in letters]
    search = lessons.search_twins([*letters, *copies])
    found, _ = search.searches["SimHash, 3 of 64 bits"]
    assert found < search.pairs == 8
    assert search.missed.endswith("changed.")


def test_without_twins_nothing_is_missed():
    search = lessons.search_twins(["one short text with six words", "another text that says something else"])
    assert search.pairs == 0
    assert search.missed == "SimHash missed no pair."
