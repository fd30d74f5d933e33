"""Any table to `messages`: files, the Hub and bundled sets in, splits out; rows that cannot be read are named.

`load_examples` makes examples of a source, `split` cuts them so that no answer leaks, `save` puts them in a run's
folder; `near_pairs` and `leakage` find texts that are nearly the same. Past this room a chat is a list of `messages`,
whose turns may hold reasoning, calls, and `train` False for an answer that is context; a document is a row with no
messages and a `text`.
"""

from ftkit.data.formats import from_messages, to_messages
from ftkit.data.leaks import leakage
from ftkit.data.loading import Loaded, combined, load_examples, no_datasets_bars, read_rows
from ftkit.data.shingles import Texts, jaccard, normalise, text_of, word_shingles, words
from ftkit.data.similarity import SKETCH, THRESHOLD, close_pairs, distance, near_pairs, simhash
from ftkit.data.splits import FILES, Splits, digest, load_splits, prompt, save, split
from ftkit.data.turns import as_json, merge_turns, order_problem, parse_calls, parse_tools, plain

__all__ = [
    "FILES",
    "SKETCH",
    "THRESHOLD",
    "Loaded",
    "Splits",
    "Texts",
    "as_json",
    "close_pairs",
    "combined",
    "digest",
    "distance",
    "from_messages",
    "jaccard",
    "leakage",
    "load_examples",
    "load_splits",
    "merge_turns",
    "near_pairs",
    "no_datasets_bars",
    "normalise",
    "order_problem",
    "parse_calls",
    "parse_tools",
    "plain",
    "prompt",
    "read_rows",
    "save",
    "simhash",
    "split",
    "text_of",
    "to_messages",
    "word_shingles",
    "words",
]
