"""Examples as the trainer reads them: token ids and labels, in batches of like length."""

import random
import warnings
from collections.abc import Sequence
from typing import Any

from ftkit import template
from ftkit.errors import DataError, FtkitWarning

Row = dict[str, list[int]]


def read(name: str, examples: Any, tokenizer: Any) -> list[Row]:
    """Ids and labels of each row, uncut.

    Raises:
        DataError: the part called `name` has no rows.
    """
    if not len(examples):
        raise DataError(f"The {name} part has no rows.")
    return [template.tokenize(row, tokenizer) for row in examples]  # whole rows: a `tools` column belongs to the prompt


def cut(name: str, whole: list[Row], max_length: int) -> Any:
    """A Dataset of rows of at most `max_length` tokens; those in which nothing is trained then are left out, with a warning that numbers them.

    Raises:
        DataError: none has a trained token.
    """
    from datasets import Dataset

    rows = [{column: values[:max_length] for column, values in row.items()} for row in whole]
    empty = [number for number, row in enumerate(rows, 1) if all(label == template.IGNORED for label in row["labels"])]
    if empty:
        reason = f"have no trained token: the answer lies beyond max_length={max_length}"
        if len(empty) == len(rows):
            raise DataError(f"All {len(rows)} {name} rows {reason}. Raise max_length.")
        warnings.warn(
            f"{name} rows {_listed(empty)} {reason}; they are left out. Raise max_length to keep them.",
            FtkitWarning,
            stacklevel=3,
        )
    _warn_of_cuts(name, whole, max_length)
    dropped = set(empty)
    return Dataset.from_list([row for number, row in enumerate(rows, 1) if number not in dropped])


def length_batches(lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """An order of rows in which each `batch_size` neighbours are of like length, and the batches come shuffled.

    Transformers' own grouping puts the longest rows of 50 batches first: a run of 40 steps would never see a short one.
    """
    draw = random.Random(seed)
    order = list(range(len(lengths)))
    draw.shuffle(order)  # ties in length, and which rows a short run sees, are up to the seed
    order.sort(key=lambda i: lengths[i])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    draw.shuffle(batches)
    batches.sort(key=len, reverse=True)  # the one that is not full comes last, or all others would be cut differently
    return [i for batch in batches for i in batch]


def _warn_of_cuts(name: str, rows: list[Row], limit: int) -> None:
    """Name the rows whose answer loses tokens at `limit`: they also lose the stop token."""
    lost = {
        n: sum(label != template.IGNORED for label in row["labels"][limit:])
        for n, row in enumerate(rows, 1)
        if any(label != template.IGNORED for label in row["labels"][:limit])
    }
    if cut := [n for n, tokens in lost.items() if tokens]:
        message = f"{name} rows {_listed(cut)} are longer than max_length={limit}: their answers lose {sum(lost.values())} tokens, the stop token too."
        warnings.warn(message, FtkitWarning, stacklevel=4)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
