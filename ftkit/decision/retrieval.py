"""The passages of documents that a question is about, by its words and by its meaning, and the prompt that cites them.

BM25 comes from `bm25s`; vectors from a small embedder that pip brings, or from any other. Knows no chat model.
"""

import functools
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftkit import chat, evaluation, files, tables
from ftkit.data import prompt
from ftkit.decision.documents import Chunk, Document, cut, read_documents
from ftkit.decision.embedding import EMBEDDER, embed
from ftkit.errors import ConfigError, DataError, MissingArtifact
from ftkit.tables import Table

RRF_K = 60
WAYS = ("bm25", "dense", "fused")
INSTRUCTION = (
    "Answer the question from the numbered passages, in as few words as possible. "
    "If they do not hold the answer, say that you do not know."
)
CITE = " End with the number of the passage that holds the answer, such as [1]."
_CITED = re.compile(r"\s*\[(\d{1,4})\]")
_TOKEN = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
_NAMES = ("documents.jsonl", "index.json", "vectors.safetensors")


@dataclass(frozen=True)
class Hit:
    """A chunk that was found, the higher its score the better, and its rank from 1 in each way of searching."""

    chunk: Chunk
    score: float
    ranks: dict[str, int]


@tables.shown
@dataclass(frozen=True, eq=False)
class Index:
    """Documents cut into chunks, to be searched. Made by `Index.build` or `Index.load`."""

    documents: tuple[Document, ...]
    chunk_words: int
    overlap_words: int
    embedder: str
    chunks: tuple[Chunk, ...]
    vectors: Any = field(default=None, repr=False)  # (chunks, width), float32, each of length 1

    @classmethod
    def build(
        cls,
        source: Any,
        *,
        embedder: str | None = EMBEDDER,
        chunk_words: int = 160,
        overlap_words: int = 30,
        on_error: str = "raise",
    ) -> "Index":
        """Read, cut and index documents.

        Args:
            source: a folder, a file, a list or the bundled "handbook"; see `read_documents`.
            embedder: what makes vectors of chunks and questions: the bundled all-MiniLM-L6-v2 (English), a folder, a
                Hub id, or None for words alone. Texts go to it as they are: one that wants "query: " before them loses
                by it.
            chunk_words: most words of a chunk.
            overlap_words: words that a chunk repeats of the one before it.
            on_error: "skip" leaves out documents that cannot be used, and warns.

        Raises:
            ConfigError: sizes that do not fit.
            DataError: no documents, or some that cannot be used.
            ModelError: no such embedder, or one of another kind.
        """
        _check_sizes(chunk_words, overlap_words)
        documents = read_documents(source, on_error=on_error)
        chunks = _cut_all(documents, chunk_words, overlap_words)
        vectors = embed([chunk.whole for chunk in chunks], embedder) if embedder else None
        return cls(documents, chunk_words, overlap_words, embedder or "", chunks, vectors)

    @property
    def ways(self) -> tuple[str, ...]:
        """How this index can be searched; `search` takes the last where none is named."""
        return WAYS if self.embedder else WAYS[:1]

    @property
    def digest(self) -> str:
        """SHA-256 of the documents and of all that made chunks and vectors of them."""
        told = [[document.id, document.title, document.text] for document in self.documents]
        settings = [self.chunk_words, self.overlap_words, self.embedder]
        return hashlib.sha256(json.dumps([told, settings]).encode()).hexdigest()

    def search(self, question: str, k: int = 3, *, way: str | None = None) -> list[Hit]:
        """The `k` best chunks, the best first; fewer where only some share a word with the question.

        Args:
            question: any text.
            k: how many.
            way: "bm25" (Lucene's variant), "dense" (cosine), or "fused": the sum of 1 / (60 + rank) over both (Cormack,
                Clarke and Buettcher 2009). By default the last of `ways`.

        Raises:
            DataError: an empty question, or an index with other vectors than its embedder makes.
        """
        way = way or self.ways[-1]
        if way not in self.ways or k < 1:
            raise ConfigError(f"way={way!r}, k={k}: this index has {', '.join(self.ways)}, and k begins at 1.")
        if not question.strip():
            raise DataError("The question is empty: there is nothing to search for.")
        scores: dict[str, Any] = {}
        if way != "dense":
            scores["bm25"] = self._bm25.get_scores(tokens) if (tokens := _tokens([question])[0]) else None
        if way != "bm25":
            scores["dense"] = self._vectors @ embed([question], self.embedder)[0]
        ranks: dict[int, dict[str, int]] = {}
        for name, found in scores.items():
            for rank, i in enumerate(_order(found, positive=name == "bm25"), 1):
                ranks.setdefault(i, {})[name] = rank
        if way == "fused":
            fused = {i: sum(1 / (RRF_K + rank) for rank in places.values()) for i, places in ranks.items()}
        else:
            fused = {i: float(scores[way][i]) for i in ranks}
        best = sorted(fused, key=lambda i: (-fused[i], i))[:k]
        return [Hit(self.chunks[i], fused[i], ranks[i]) for i in best]

    @functools.cached_property
    def _bm25(self) -> Any:
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to tell every step
        found = bm25s.BM25()
        found.index(_tokens(chunk.whole for chunk in self.chunks), show_progress=False)
        return found

    @functools.cached_property
    def _vectors(self) -> Any:
        """The vectors, once the embedder has been seen to make the first of them again."""
        again = embed([self.chunks[0].whole], self.embedder)[0]
        if again.shape != self.vectors[0].shape or float(again @ self.vectors[0]) < 0.99:
            raise DataError(f"{self.embedder!r} makes other vectors than it made for this index. Build the index anew.")
        return self.vectors

    def save(self, path: str | Path) -> Path:
        """Write the index as a folder, whole or not at all: documents, settings, vectors; nothing that is pickled.

        What BM25 counts is counted anew at the first search, which takes seconds for ten thousand chunks.
        """
        about = {
            "chunk_words": self.chunk_words,
            "overlap_words": self.overlap_words,
            "embedder": self.embedder,
            "digest": self.digest,
        }
        documents, settings, vectors = _NAMES
        with files.weight_errors_explained(Path(path)), files.folder(path) as working:
            files.write_jsonl(working / documents, [dict(vars(document)) for document in self.documents])
            files.write_json(working / settings, about)
            if self.vectors is not None:
                from safetensors.numpy import save_file

                save_file({"vectors": self.vectors}, working / vectors)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, source: Any = None) -> "Index":
        """Read what `save` wrote; with `source` only if the documents there are still the same.

        Raises:
            MissingArtifact: no such folder.
            DataError: the folder is another thing, was changed, or is of other documents.
        """
        path = Path(path)
        if not path.is_dir():
            raise MissingArtifact(f"{path} holds no index. Build one: Index.build(documents).save({str(path)!r}).")
        refused = f"{path} is no index as Index.save leaves it"
        anew = "Build it anew from the documents: Index.build(documents)."
        if (why := files.problem(path)) is not None or (why := ", ".join(files.strangers(path))):
            raise DataError(f"{refused}: {why}. {anew}")
        try:
            about = json.loads((path / _NAMES[1]).read_text(encoding="utf-8"))
            rows = [json.loads(line) for line in (path / _NAMES[0]).read_text(encoding="utf-8").split("\n") if line]
            documents = tuple(Document(str(row["id"]), str(row["title"]), str(row["text"])) for row in rows)
            words, overlap, embedder = int(about["chunk_words"]), int(about["overlap_words"]), str(about["embedder"])
            _check_sizes(words, overlap)
            chunks = _cut_all(documents, words, overlap)
            found = cls(documents, words, overlap, embedder, chunks, _read_vectors(path, len(chunks), embedder))
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(f"{refused}: {error}. {anew}") from error
        if found.digest != about.get("digest"):
            raise DataError(f"{refused}: its digest is of other documents or settings. {anew}")
        if source is not None and (there := read_documents(source, on_error="skip")) != documents:
            changed = len(set(there) ^ set(documents))
            raise DataError(f"{path} is of other documents: {changed} were added, changed or removed. {anew}")
        return found

    def _parts(self) -> list[Table | str]:
        how = ", ".join(self.ways) + (f" ({self.embedder})" if self.embedder else "")
        rows = [("documents", len(self.documents)), ("chunks", len(self.chunks)), ("searched by", how)]
        return [Table((), [*rows, ("digest", self.digest[:12])])]


@tables.shown
@dataclass(frozen=True)
class Recall:
    """How often a search finds the document that answers; `rows` holds the rank for each question, None for not found.

    `scores` has, by the way of searching and by k, the share of questions whose document is among the first k chunks.
    """

    scores: dict[str, dict[int, evaluation.Score]]
    rows: tuple[dict[str, Any], ...]

    def _parts(self) -> list[Table | str]:
        ks = list(next(iter(self.scores.values())))
        head = ("search", *(f"recall@{k} [95 %]" for k in ks))
        best = list(self.scores)[-1]
        missed = [row["question"] for row in self.rows if row[best] is None]
        said = f"{len(self.rows)} questions; {best} does not find {len(missed)} of them among the first {max(ks)}"
        return [Table(head, [(way, *by_k.values()) for way, by_k in self.scores.items()]), f"{said}{_few(missed)}."]


@tables.shown
@dataclass(frozen=True)
class CitedPrompt:
    """A question with the numbered passages that fit: `messages` is what a model is asked, of `tokens` tokens."""

    messages: list[dict[str, str]]
    tokens: int
    hits: tuple[Hit, ...]
    dropped: tuple[Hit, ...]

    def cited(self, answer: str) -> tuple[str, tuple[Chunk, ...]]:
        """An answer without its [numbers], and the passages that they name; other numbers name nothing."""
        numbers = [int(number) - 1 for number in dict.fromkeys(_CITED.findall(answer))]
        named = tuple(self.hits[i].chunk for i in numbers if 0 <= i < len(self.hits))
        return _CITED.sub("", answer).strip(), named

    def _parts(self) -> list[Table | str]:
        rows = [(f"[{n}]", hit.chunk.document, hit.chunk.title) for n, hit in enumerate(self.hits, 1)]
        left = _few([hit.chunk.title for hit in self.dropped])
        dropped = f"; {len(self.dropped)} least relevant passages did not fit{left}" if self.dropped else ""
        return [Table(("passage", "document", "title"), rows), f"{self.tokens} tokens{dropped}."]


def recall(index: Index, questions: Iterable[Mapping[str, Any]], ks: Sequence[int] = (1, 3, 5)) -> Recall:
    """Search for each question in every way that the index has.

    Args:
        index: what is searched.
        questions: rows with `messages` (the last user turn is asked) or `question`, and `answered_by`: the name of the
            document that holds the answer, or a list of names any of which does.
        ks: how many chunks are looked at.

    Raises:
        DataError: no questions, or rows that lack one or name documents that the index has not.
    """
    known = {document.id for document in index.documents}
    asked: list[tuple[str, set[str]]] = []
    faults = []
    for number, row in enumerate(questions, 1):
        turns = prompt(row)["messages"] if "messages" in row else []
        question = str((turns[-1]["content"] if turns else row.get("question")) or "")
        named = row.get("answered_by") or []
        wanted = {named} if isinstance(named, str) else set(map(str, named))
        if not question.strip():
            faults.append(f"row {number} has no question")
        if not wanted or wanted - known:
            unknown = ", ".join(sorted(map(repr, wanted - known)))
            faults.append(f"row {number} names {unknown or 'nothing'} in answered_by")
        asked.append((question, wanted))
    if faults or not asked or not ks:
        raise DataError(f"Recall wants questions, each with a document of this index: {'; '.join(faults) or 'none'}.")
    rows: list[dict[str, Any]] = []
    for question, wanted in asked:
        ranks: dict[str, int | None] = {}
        for way in index.ways:
            hits = index.search(question, max(ks), way=way)
            ranks[way] = next((n for n, hit in enumerate(hits, 1) if hit.chunk.document in wanted), None)
        rows.append({"question": question, "answered_by": sorted(wanted), **ranks})
    scores: dict[str, dict[int, evaluation.Score]] = {}
    for way in index.ways:
        found = [row[way] or max(ks) + 1 for row in rows]
        scores[way] = {k: evaluation.interval([float(rank <= k) for rank in found]) for k in ks}
    return Recall(scores, tuple(rows))


def cited_prompt(
    question: str,
    hits: Sequence[Hit],
    tokenizer: Any,
    *,
    max_length: int = 2048,
    max_new_tokens: int = 128,
    instruction: str = INSTRUCTION,
    cite: bool = True,
) -> CitedPrompt:
    """Put the passages before the question, numbered from 1, the most relevant first.

    Passages that do not fit are dropped, the least relevant first; the result says which. Control tokens of the
    tokenizer that stand in a passage or in the question are broken up, so that no document ends the user's turn.

    Args:
        question: as it is asked.
        hits: what `Index.search` found.
        tokenizer: the chat model's.
        max_length: most tokens of prompt and answer together.
        max_new_tokens: how many of them the answer may take.
        instruction: what stands first.
        cite: ask for the number of the passage; `CitedPrompt.cited` reads it.

    Raises:
        DataError: not even the best passage fits.
    """
    control = sorted((token.content for token in tokenizer.added_tokens_decoder.values() if token.special), key=len)

    def safe(text: str) -> str:
        """The text without control tokens: <|im_end|> becomes < |im_end|>."""
        for token in control:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    kept = list(hits)
    while True:
        passages = [f"[{n}] {safe(hit.chunk.whole)}" for n, hit in enumerate(kept, 1)] or ["(No passage was found.)"]
        told = [instruction + (CITE if cite and kept else ""), *passages, f"Question: {safe(question)}"]
        messages = [{"role": "user", "content": "\n\n".join(told)}]
        text = chat.render(messages, tokenizer, add_generation_prompt=True)
        tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        if tokens + max_new_tokens <= max_length:
            return CitedPrompt(messages, tokens, tuple(kept), tuple(hits[len(kept) :]))
        if len(kept) < 2:
            raise DataError(
                f"The question{' with its best passage' if kept else ''} takes {tokens} tokens, and "
                f"max_length={max_length} leaves {max_length - max_new_tokens} beside an answer of {max_new_tokens}. "
                "Raise max_length, or build the index with fewer chunk_words."
            )
        kept.pop()


def _check_sizes(chunk_words: int, overlap_words: int) -> None:
    if not (8 <= chunk_words <= 100_000 and 0 <= overlap_words <= chunk_words // 4):
        raise ConfigError(
            f"chunk_words={chunk_words} and overlap_words={overlap_words}: wanted 8 to 100,000 words, of which at most "
            "a quarter overlaps. The defaults are 160 and 30."
        )


def _cut_all(documents: Iterable[Document], chunk_words: int, overlap_words: int) -> tuple[Chunk, ...]:
    cuts = (cut(document, chunk_words, overlap_words) for document in documents)
    return tuple(itertools.chain.from_iterable(cuts))


def _tokens(texts: Iterable[str]) -> Any:
    """Words in lower case; none is a stop word, since BM25 gives frequent ones little weight in any language."""
    import bm25s

    listed = list(texts)
    return bm25s.tokenize(listed, token_pattern=_TOKEN, stopwords=[], return_ids=False, show_progress=False)


def _order(scores: Any, *, positive: bool) -> list[int]:
    """Places from the best to the worst, equals in order; with `positive` without those that score nothing."""
    if scores is None:
        return []
    found = (-scores).argsort(kind="stable")
    return [int(i) for i in found if not positive or scores[i] > 0]


def _read_vectors(path: Path, rows: int, embedder: str) -> Any:
    """The vectors of a saved index, one a chunk."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not embedder:
        return None
    try:
        found = load_file(path / _NAMES[2])["vectors"]
    except SafetensorError as error:
        raise ValueError(f"{_NAMES[2]} is damaged ({error})") from error
    if found.dtype != np.float32 or found.ndim != 2 or len(found) != rows or not np.isfinite(found).all():
        raise ValueError(f"{_NAMES[2]} does not hold one vector a chunk")
    return found


def _few(texts: Sequence[str]) -> str:
    shown = "; ".join(f"“{text}”" for text in texts[:3])
    more = f"; and {len(texts) - 3} more" if len(texts) > 3 else ""
    return f": {shown}{more}" if texts else ""
