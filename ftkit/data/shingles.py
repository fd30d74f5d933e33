"""Texts as sets of word 5-grams: normalisation, words, 64-bit hashes of shingles, Jaccard similarity."""

import itertools
import os
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

from ftkit.errors import ConfigError

PARTS = ("all", "prompt", "answer")
_TEXTS_BATCH = 1_000

WORDS = 5
_BATCH, _BATCH_CHARACTERS = 2_000, 250_000  # what fits a processor's cache is quicker
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_CJK = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7AF))  # no spaces: a character is a word
_CJK_CLASS = "".join(f"{chr(low)}-{chr(high)}" for low, high in _CJK)
_WORD = re.compile(f"[{_CJK_CLASS}]|[^\\W{_CJK_CLASS}]+")
_ASCII_WORDS = bytes(i if chr(i).isalnum() or chr(i) == "_" else 0 for i in range(128)) + bytes(128)  # 0 between them
_UNKNOWN = 255  # a code point whose kind was not looked up yet
_MULTIPLIER = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: folds words into shingles
_BASE = 0xD6E8FEB86659FD93  # odd; of the polynomial that hashes a word


class Texts(Sequence[str]):
    """The texts of a Dataset's rows, read when they are asked for; a million of them never stand in memory.

    With several parts, the texts of all rows come once for each part.
    """

    def __init__(self, examples: Any, *parts: str) -> None:
        if unknown := set(parts) - set(PARTS):
            raise ConfigError(f"on={min(unknown)!r} is not one of {', '.join(PARTS)}.")
        self._examples, self._parts = examples, parts or ("all",)

    def __len__(self) -> int:
        return len(self._examples) * len(self._parts)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[place] for place in range(*i.indices(len(self)))]
        return next(self.at([range(len(self))[i]]))

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            for messages, document in chats(self._examples):
                yield text_of(messages, part) if messages else document or ""

    def at(self, places: Sequence[int]) -> Iterator[str]:
        """The texts at these places, many fetched at once: one by one takes ten times as long."""
        for start in range(0, len(places), _TEXTS_BATCH):
            found = [divmod(place, len(self._examples)) for place in places[start : start + _TEXTS_BATCH]]
            rows = chats(self._examples.select([row for _, row in found]))
            for (messages, document), (part, _) in zip(rows, found, strict=True):
                yield text_of(messages, self._parts[part]) if messages else document or ""


def chats(examples: Any) -> Iterator[tuple[Sequence[Mapping[str, Any]], str | None]]:
    """The messages of each row, and its document where it has none; read in batches, ten times as fast."""
    columns = examples.select_columns([name for name in ("messages", "text") if name in examples.column_names])
    for start in range(0, len(columns), _TEXTS_BATCH):
        rows = columns[start : start + _TEXTS_BATCH]
        yield from zip(rows["messages"], rows.get("text", itertools.repeat(None)), strict=False)


def text_of(messages: Sequence[Mapping[str, Any]], part: str = "all") -> str:
    """The text of a chat: all turns, those before the last answer ("prompt"), or the last answer ("answer")."""
    turns = {"all": messages, "prompt": messages[:-1], "answer": messages[-1:]}[part]
    return "\n\n".join(map(_said, turns))


def _said(turn: Mapping[str, Any]) -> str:
    if not (turn.get("reasoning_content") or turn.get("tool_calls")):  # most turns of most files
        return str(turn.get("content") or "")
    return "\n".join(str(turn[key]) for key in ("reasoning_content", "content", "tool_calls") if turn.get(key))


def normalise(text: str) -> str:
    """Text for comparison: one Unicode form, no case, no invisible characters, single spaces."""
    return " ".join(_plain(text).split())


def _plain(text: str) -> str:
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return text.casefold()


def words(text: str) -> list[str]:
    """The words of a text without case and punctuation; in Chinese, Japanese and Korean each character is one."""
    return _WORD.findall(normalise(text))


def word_shingles(text: str) -> Any:
    """Sorted distinct 64-bit hashes (uint64) of all word 5-grams; a shorter text is one shingle, an empty one has none.

    Two unequal shingles among a million share a hash about once in 10^7 runs.
    """
    import numpy as np

    return np.unique(flat_shingles([text])[0])


def flat_shingles(texts: Sequence[str]) -> tuple[Any, Any]:
    """The shingles of many texts in one array, unsorted, with repetitions, and the `offsets` at which text i begins."""
    import numpy as np

    hashes, sizes = _word_hashes(texts)
    begins = np.cumsum(sizes) - sizes
    grams = np.where(sizes >= WORDS, sizes - WORDS + 1, np.minimum(sizes, 1))
    offsets = np.concatenate([[0], np.cumsum(grams)])
    starts = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - begins, grams)
    padded = np.concatenate([hashes, np.zeros(WORDS, dtype=np.uint64)])
    total = padded[: len(hashes)]
    for i in range(1, WORDS):
        total = total * np.uint64(_MULTIPLIER) + padded[i : len(hashes) + i]
    total = total[starts]
    for short in np.flatnonzero((sizes > 0) & (sizes < WORDS)):  # what follows a short text belongs to the next one
        folded = 0
        for value in hashes[begins[short] : begins[short] + sizes[short]].tolist():
            folded = (folded * _MULTIPLIER + value) % 2**64
        total[offsets[short]] = folded
    return _spread(total), offsets.astype(np.uint64)


def _word_hashes(texts: Sequence[str]) -> tuple[Any, Any]:
    """A 64-bit hash of every word of all texts, as `words` cuts them, and the number of words of each text.

    A word is the polynomial of its characters' values, taken at places of the whole batch and shifted back by the power
    of its first place: a few passes over one array, where a Python loop over words would cost five times as much.
    """
    import numpy as np

    plain = [_plain(text) for text in texts]
    ends = np.cumsum([len(text) + 1 for text in plain]) - 1
    joined = "\n".join(plain) + "\n"
    if joined.isascii():
        points = np.frombuffer(joined.encode("ascii").translate(_ASCII_WORDS), dtype=np.uint8)  # 0 between words
        inside = points > 0
        begins = inside.copy()
        begins[1:] &= ~inside[:-1]
    else:
        points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        kinds = _kinds(points)
        points = points * (kinds > 0)
        begins = kinds > 0
        begins[1:] &= (kinds[1:] == 2) | (kinds[:-1] != 1) | (kinds[1:] != 1)
    starts = np.flatnonzero(begins)
    sizes = np.diff(np.searchsorted(starts, ends), prepend=0)
    if len(starts) == 0:
        return np.zeros(0, dtype=np.uint64), sizes
    powers, back = _powers(1 << max(16, len(points) - 1).bit_length())
    values = np.multiply(points, powers[: len(points)], dtype=np.uint64)
    return _spread(np.add.reduceat(values, starts) * back[starts]), sizes


def _kinds(points: Any) -> Any:
    """For each code point: 0 between words, 1 in a word, 2 a word of its own (the same as `_WORD`)."""
    import numpy as np

    table = _known_kinds()
    kinds = table[points]
    unknown = kinds == _UNKNOWN
    if unknown.any():  # a text has few characters that none before it had
        for point in np.unique(points[unknown]).tolist():
            own = any(low <= point <= high for low, high in _CJK)
            table[point] = 2 if own else chr(point).isalnum() or point == ord("_")
        kinds = table[points]
    return kinds


@cache
def _known_kinds() -> Any:
    """What `_kinds` has looked up so far, by code point."""
    import numpy as np

    return np.full(0x110000, _UNKNOWN, dtype=np.uint8)


@cache
def _powers(size: int) -> tuple[Any, Any]:
    """Powers of an odd base modulo 2**64, and of its inverse."""
    import numpy as np

    bases = (_BASE, pow(_BASE, -1, 2**64))
    powers = [np.multiply.accumulate(np.full(size, base, dtype=np.uint64)) for base in bases]
    return powers[0], powers[1]


def _spread(values: Any) -> Any:
    """Mix the bits of 64-bit values, one to one (the finaliser of splitmix64, Steele et al. 2014)."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def jaccard(a: Any, b: Any) -> float:
    """Share of the shingles of two texts that both have, 0 to 1; two empty texts are not alike."""
    import numpy as np

    if len(a) == 0 or len(b) == 0:
        return 0.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def batches(items: Iterable[Any], limit: int = _BATCH_CHARACTERS) -> Iterator[list[Any]]:
    """Texts or lists in lists of bounded length; what they hold together is bounded by `limit`."""
    batch: list[Any] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item)
        if len(batch) == _BATCH or size >= limit:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def shingled(texts: Iterable[str]) -> Iterator[tuple[Any, Any]]:
    """`flat_shingles` of all texts, batch by batch in their order, worked out ahead on a thread for each core.

    Most of the work is in array operations, which let other threads run; a few batches are in memory at once.
    """
    workers = max(1, os.cpu_count() or 1)
    waiting: deque[Future[tuple[Any, Any]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for batch in batches(texts):
            waiting.append(pool.submit(flat_shingles, batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
