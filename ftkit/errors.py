"""Everything that ftkit raises on purpose.

Each class also inherits the built-in that a Python reader would expect, so `except ValueError` keeps working.

```text
FtkitError
├── ConfigError      (ValueError)         a setting, a config file
├── DataError        (ValueError)         rows, files, formats, templates
├── ModelError       (OSError)            a base model or adapter that cannot be had
├── PreflightError   (RuntimeError)       a run that cannot work
├── TrainingError    (RuntimeError)       a run that trained nothing, or no numbers
├── StorageError     (OSError)            a disk that is full, a folder that cannot be written
├── HubError         (OSError)            a model hub that refuses an upload or cannot be reached
├── MissingArtifact  (FileNotFoundError)  a run folder lacks what an earlier step writes
├── MissingExtra     (ImportError)        a package that is not installed
├── GateFailed       (AssertionError)     a model that lost what it could do before
└── NotebookError    (RuntimeError)       a notebook that is damaged or stopped at a cell
```

Messages quote rows, settings and file names of other people: none of their characters moves a terminal's cursor, and a
value of a million characters is cut.

`colab.ColabError` stands outside: `colab` runs before anything but the standard library is there.
"""

import re

from ftkit.tables import message

# Tokens of the Hub and of servers by their shape, the credentials in a URL, and values of what is called a secret.
_SECRETS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{10,}|(?:sk-|xox[abp]-|gh[oprsu]_|github_pat_|glpat-|AIza|AKIA)[\w-]{10,})"
    r"|(?<=://)[^\s/@'\"]+(?=@)"
    r"|(?i:(?P<name>(?:api_?key|(?:hf|access|auth)_token|\btoken|passw(?:or)?d|secret)(?:\"\s*:|=)\s*['\"]?"
    r"|\bbearer\s+(?=\S{8}))(?!None\b|null\b|True\b|False\b)[^\s&,;'\")\]}]+)"
)


def without_secrets(text: str) -> str:
    """The text with keys, tokens and passwords blotted out; no message, log or run.json repeats one."""
    return _SECRETS.sub(lambda found: (found["name"] or "") + "…", text)


class _Told(BaseException):
    """What a message of ours is before anybody reads it: without secrets, visible, and not endless."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(without_secrets(given) if isinstance(given, str) else given for given in arguments))

    def __str__(self) -> str:
        return message(super().__str__())


class FtkitWarning(_Told, UserWarning):
    """Something that a run survives and a reader should know."""


class FtkitError(_Told, Exception):
    """Base of all deliberate errors: the message names the value, the reason and the next step, and no secret."""


class ConfigError(FtkitError, ValueError):
    """A setting outside its range, a misspelt name, or a config file that does not parse."""


class DataError(FtkitError, ValueError):
    """Rows, files or formats that cannot become `messages`; names row numbers."""


class ModelError(FtkitError, OSError):
    """A base model, tokenizer or adapter that is unknown, gated, damaged or out of reach."""


class PreflightError(FtkitError, RuntimeError):
    """A run that would cost time and cannot work."""


class TrainingError(FtkitError, RuntimeError):
    """A run that changed no weight, or whose weights are no numbers any more."""


class StorageError(FtkitError, OSError):
    """A disk that is full or a folder that cannot be written."""


class HubError(FtkitError, OSError):
    """A model hub that refuses an upload, or cannot be reached; names the page or the permission that is missing."""


class MissingArtifact(FtkitError, FileNotFoundError):
    """A run folder lacks a file that an earlier step writes; names the step."""


class MissingExtra(FtkitError, ImportError):
    """A package that this step needs is not installed; names the command that installs it."""


class GateFailed(FtkitError, AssertionError):
    """A fine-tuned model lost more than is allowed; names the suites and the items."""


class NotebookError(FtkitError, RuntimeError):
    """A notebook cannot be read, or its cell raised; names the cell and its error."""
