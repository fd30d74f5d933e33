"""Documents are read or named with the reason, and cut where a reader would cut them."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.decision import Document, Index, read_documents
from ftkit.decision.documents import MOST_BYTES, WORD, cut
from ftkit.errors import ConfigError, DataError, FtkitWarning


@pytest.fixture
def folder(tmp_path):
    """Three documents in the three kinds of files, one of them in a folder below."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below/rules.md").write_text("# House rules #\n\nNo shoes.\n")
    (tmp_path / "open_hours.txt").write_text("Open at nine.", encoding="utf-8-sig")
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "x", "title": "Ex", "text": "A\u2028line."}) + "\n\n")
    return tmp_path


def test_a_folder_of_text_markdown_and_jsonl(folder):
    """A heading at the top is the title, else the name of the file; hidden files are not looked at."""
    (folder / ".hidden.txt").write_bytes(b"\0")
    (folder / ".git").mkdir()
    (folder / ".git/notes.txt").write_text("no document")
    assert {document.id: (document.title, document.text) for document in read_documents(folder)} == {
        "x": ("Ex", "A\u2028line."),
        "open_hours": ("open hours", "Open at nine."),
        "below/rules": ("House rules", "# House rules #\n\nNo shoes.\n"),
    }


def test_one_file_and_a_list(folder):
    assert read_documents(folder / "open_hours.txt")[0].id == "open_hours"
    made = read_documents(["One.", {"text": "Two.", "id": 2}, Document("c", "C", "Three.")])
    assert [(document.id, document.title) for document in made] == [
        ("document-1", "document 1"),
        ("2", "2"),
        ("c", "C"),
    ]


def test_two_files_of_one_stem_keep_their_endings(folder):
    (folder / "below/rules.txt").write_text("Other rules.")
    assert {"below/rules.md", "below/rules.txt"} < {document.id for document in read_documents(folder)}


def test_all_that_cannot_be_used_is_named_at_once_with_its_reason(folder):
    """Binary, empty, twice, huge, broken: nothing is silently left out, and the advice works."""
    (folder / "binary.txt").write_bytes(b"\x89PNG\xff\xfe")
    (folder / "nul.txt").write_bytes(b"a\0b")
    (folder / "empty.md").write_text(" \n")
    (folder / "twin.txt").write_text("open  AT nine.")
    (folder / "rows.jsonl").write_text('{"text": "y", "id": "x"}\nnot JSON\n{"body": 1}\n{"text": "\\ud800"}\n')
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(DataError) as caught:
        read_documents(folder)
    said = str(caught.value)
    for part in (
        "9 of 12 documents cannot be used",
        "binary.txt is binary or not in UTF-8",
        "nul.txt is binary (it holds a NUL)",
        "empty.md is empty",
        "twin.txt says the same as open_hours.txt",
        "rows.jsonl line 1 has the name 'x', as another document has",
        "rows.jsonl line 2 is no JSON",
        "rows.jsonl line 3 is dict without a text",
        "rows.jsonl line 4 holds half a character",
        f"huge.txt has {MOST_BYTES + 1:,} bytes, and at most",
        "on_error='skip'",
    ):
        assert part in said
    with pytest.warns(FtkitWarning, match="Left out: 9 of 12"):
        assert len(read_documents(folder, on_error="skip")) == 3


def test_files_of_other_kinds_are_named_in_a_warning(folder):
    (folder / "guide.pdf").write_bytes(b"%PDF")
    with pytest.warns(FtkitWarning, match=r"1 files are not read.*guide\.pdf"):
        assert len(read_documents(folder)) == 3


@pytest.mark.parametrize("source", [[], 7, b"text", {"text": "one"}, ["", " "], "no/such/folder"], ids=str)
def test_no_documents_are_refused(source):
    with pytest.raises(DataError, match=r"documents|exist"):
        read_documents(source)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="There are no documents in"):
        read_documents(tmp_path)


def test_a_short_document_is_one_chunk_without_the_heading_that_is_its_title():
    (chunk,) = cut(Document("a", "Dogs", "# Dogs\n\nThey bark.\nThey sleep.\n"), 100, 10)
    assert (chunk.title, chunk.text) == ("Dogs", "They bark.\nThey sleep.")


def test_cuts_stand_at_headings_then_paragraphs_then_sentences():
    """The heading that a chunk stands under is in its title, and no words overlap across a heading."""
    before, after = " ".join(f"a{i}" for i in range(30)), " ".join(f"b{i}" for i in range(40))
    document = Document("d", "T", f"# T\n\n{before}\n\n{before}.\n\n## Late\n\n{after}. {after}.\n\n{after}")
    chunks = list(cut(document, 50, 5))
    assert [chunk.title for chunk in chunks] == ["T", "T", "T › Late", "T › Late", "T › Late"]
    assert (chunks[0].text, chunks[2].text) == (before, f"{after}.")
    assert chunks[3].text == f"b35 b36 b37 b38 b39. {after}."


def test_a_hash_inside_a_code_block_is_no_heading():
    (chunk,) = cut(Document("d", "T", "Run:\n```\n# not a heading\nls\n```\n"), 100, 0)
    assert chunk.title == "T"


@given(
    st.lists(st.sampled_from([" ", "\n", "\n\n", ". ", "\n# ", "猫", "\n```\n"]), max_size=120),
    st.integers(8, 30),
    st.integers(0, 2),
)
def test_no_word_is_lost_and_no_chunk_is_too_long(gaps, size, overlap):
    text = "w" + "".join(f"{gap}w{i}" for i, gap in enumerate(gaps))
    chunks = list(cut(Document("d", "T", text), size, overlap))
    assert all(len(WORD.findall(chunk.text)) <= size for chunk in chunks)
    held = " ".join(f"{chunk.title}\n{chunk.text}" for chunk in chunks)
    assert set(re.findall(r"w\d*", text)) <= set(re.findall(r"w\d*", held))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="chunk_words=10 and overlap_words=5"):
        Index.build(["text"], embedder=None, chunk_words=10, overlap_words=5)
