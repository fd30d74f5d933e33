"""A reader's own file in a lesson: read with the columns that were typed, or left out with a sentence."""

from typing import Any

from ftkit import data
from ftkit.errors import DataError


def column_mapping(my_columns: str) -> dict[str, str] | None:
    """Columns of prompt and answer, typed as "question, answer"; None where none are typed.

    Raises:
        DataError: more than two.
    """
    columns = [name.strip() for name in my_columns.split(",") if name.strip()]
    if len(columns) > 2:
        raise DataError(f'my_columns="{my_columns}" names {len(columns)} columns; two are wanted: "prompt, answer".')
    return dict(zip(("prompt", "answer"), columns, strict=False)) or None


def own_rows(my_file: str, my_columns: str = "") -> Any:
    """The rows of `my_file` as `messages`, or None with a sentence where it is empty.

    `my_columns` goes to `column_mapping`; it is empty where the file's own names say what they hold.

    Raises:
        DataError: a file that cannot be read, columns that it does not have, or more than two.
    """
    if not my_file:
        print("my_file is empty: nothing of your own is used.")
        return None
    return data.load_examples(my_file, mapping=column_mapping(my_columns))
