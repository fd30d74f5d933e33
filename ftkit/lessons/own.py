"""A reader's own file in a lesson: read with the columns that were typed, or left out with a sentence."""

from typing import Any

from ftkit import data
from ftkit.errors import DataError


def own_rows(my_file: str, my_columns: str = "") -> Any:
    """The rows of `my_file` as `messages`, or None with a sentence where it is empty.

    `my_columns` names the columns of prompt and answer, such as "question, answer"; empty where the file's own names
    say what they hold.

    Raises:
        DataError: a file that cannot be read, columns that it does not have, or more than two.
    """
    if not my_file:
        print("my_file is empty: nothing of your own is used.")
        return None
    columns = [name.strip() for name in my_columns.split(",") if name.strip()]
    if len(columns) > 2:
        raise DataError(f'my_columns="{my_columns}" names {len(columns)} columns; two are wanted: "prompt, answer".')
    return data.load_examples(my_file, mapping=dict(zip(("prompt", "answer"), columns, strict=False)) or None)
