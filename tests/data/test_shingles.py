"""Texts as sets of word 5-grams: what counts as a word, and hashes that never depend on company or process."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import chats

from ftkit import data
from ftkit.data.shingles import _word_hashes, flat_shingles


@given(st.lists(st.text(max_size=60), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_hashes_follow_the_words_of_any_text(texts):
    """Cutting all texts at once gives as many words a text as `words` does, and equal words equal hashes."""
    hashes, sizes = _word_hashes(texts)
    words = [data.words(text) for text in texts]
    assert [len(part) for part in words] == sizes.tolist()
    known: dict[str, int] = {}
    for word, value in zip(itertools.chain(*words), hashes.tolist(), strict=True):
        assert known.setdefault(word, value) == value
    assert len(set(known.values())) == len(known)


@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_a_text_has_the_same_shingles_alone_and_in_company(texts):
    flat, offsets = flat_shingles(texts)
    for i, text in enumerate(texts):
        assert np.unique(flat[offsets[i] : offsets[i + 1]]).tolist() == data.word_shingles(text).tolist()


def test_case_spaces_punctuation_and_unicode_form_do_not_count():
    plain = data.word_shingles("the café is open today, isn't it")
    assert data.word_shingles("The  CAFE\u0301 is\u200b open TODAY isn't it!").tolist() == plain.tolist()


def test_scripts_without_spaces_are_cut_into_characters():
    assert data.words("今天天气ok很好") == ["今", "天", "天", "气", "ok", "很", "好"]


def test_short_texts_are_one_shingle_and_empty_ones_none():
    assert [len(data.word_shingles(t)) for t in ("", " \n!", "one", "one two three four", "a b c d e f")] == [
        0,
        0,
        1,
        1,
        2,
    ]
    assert data.jaccard(data.word_shingles(""), data.word_shingles("")) == 0.0


def test_jaccard_counts_shared_shingles():
    """Ten words make six 5-grams; a new last word replaces one of them: 5 of 7 are shared."""
    text = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
    a, b = data.word_shingles(" ".join(text)), data.word_shingles(" ".join([*text[:-1], "z"]))
    assert data.jaccard(a, b) == pytest.approx(5 / 7)


def test_hashes_are_the_same_in_every_process():
    code = "from ftkit import data; print(data.word_shingles('one two three four five six').tolist())"
    elsewhere = {"PYTHONHASHSEED": "1"}  # this process has another one
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=elsewhere, check=True)
    assert done.stdout == f"{data.word_shingles('one two three four five six').tolist()}\n"


def test_texts_of_several_parts_follow_one_another():
    examples = data.load_examples(chats(3))
    texts = data.Texts(examples, "prompt", "all")
    wanted = [*data.Texts(examples, "prompt"), *data.Texts(examples)]
    assert list(texts) == [texts[i] for i in range(6)] == texts[0:6] == wanted
    assert texts[-1] == wanted[-1]
