"""A model behind an OpenAI-compatible server: questions in, replies out, none of them paid for twice.

Knows nothing of what is asked: a rubric, a comparison, and what a reply means belong to the caller.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from ftkit import files
from ftkit.errors import ConfigError, MissingExtra, ModelError

_ENDING = "A base_url usually ends in /v1."
_TOO_LONG = re.compile(r"context|too (?:long|large|many)|maximum|exceed", re.I)


@dataclass(frozen=True)
class Endpoint:
    """A model that is asked at temperature 0 over HTTP.

    Args:
        base_url: of the server's API, such as `http://127.0.0.1:8000/v1`.
        model: the name that the server knows it by.
        api_key: sent to that URL alone and never shown; a local server wants none. The environment is not searched.
        cache: a JSONL file, one line a reply, written as replies come: a second call, or one after a kill, asks only
            what is missing. It does not depend on `base_url`.
        concurrency: requests at once.
        timeout_s: of one request; the client tries three times, each time after a longer wait.
        max_tokens: at which a reply is cut.

    Raises:
        ConfigError: settings that cannot work.
        MissingExtra: the `openai` package is not installed.
    """

    base_url: str = field(repr=False)
    model: str
    api_key: str | None = field(default=None, repr=False)
    cache: str | Path | None = None
    concurrency: int = 1
    timeout_s: float = 60
    max_tokens: int = 300
    _known: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)  # replies by question

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 256:
            raise ConfigError(
                f"concurrency={self.concurrency} is outside 1 to 256 (requests at once). The default is 1."
            )
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url={self.base_url!r} is no URL: it starts with http:// or https://. {_ENDING}")
        _openai()

    def ask(
        self, questions: Sequence[str], *, noun: str = "question", usable: Callable[[str], bool] | None = None
    ) -> list[str]:
        """One reply a question, in order; "" where it holds no text. An empty question is not asked.

        Args:
            questions: texts; equal ones are asked once.
            noun: what an error calls a question: "row 3".
            usable: ask again where this is false of an earlier reply.

        Raises:
            ModelError: a server that cannot be reached, refuses the key, lacks the model or gives up; what it had
                answered until then is in the cache.
        """
        from tqdm.auto import tqdm

        self._known.update(_cached(self.cache))
        keys = [self._key(question) for question in questions]
        wanted: dict[str, int] = {}
        for number, (key, question) in enumerate(zip(keys, questions, strict=True)):
            known = self._known.get(key)
            if question and (known is None or (usable is not None and not usable(known))):
                wanted.setdefault(key, number)
        with (
            _openai().OpenAI(base_url=self.base_url, api_key=self.api_key or "none", timeout=self.timeout_s) as client,
            _journal(self.cache) as note,
            ThreadPoolExecutor(self.concurrency) as pool,
            tqdm(total=len(wanted), unit=noun, disable=len(wanted) <= 8, leave=False) as bar,
        ):

            def answer(key: str) -> None:
                """Ask one question and keep the reply."""
                number = wanted[key]
                try:
                    reply = self._reply(client, questions[number])
                except ModelError as error:
                    kept = "Give a cache file to keep earlier replies."
                    if self.cache:
                        kept = f"Earlier replies are in {self.cache}: the next call goes on from there."
                    raise ModelError(f"{noun.capitalize()} {number + 1} got no reply: {error} {kept}") from error
                self._known[key] = reply
                note({"key": key, "model": self.model, "reply": reply})

            for _ in pool.map(answer, wanted):  # the first error stops what has not begun; what is under way still ends
                bar.update()
        return [self._known[key] if question else "" for key, question in zip(keys, questions, strict=True)]

    def _key(self, question: str) -> str:
        """A digest of everything that the reply depends on but the server."""
        return hashlib.sha256(json.dumps([self.model, self.max_tokens, question]).encode()).hexdigest()

    def _reply(self, client: Any, question: str) -> str:
        turns = [{"role": "user", "content": question.encode("utf-8", "replace").decode()}]
        try:
            reply = client.chat.completions.create(
                model=self.model, messages=turns, temperature=0, max_tokens=self.max_tokens
            )
            choices = getattr(reply, "choices", None)
        except (_openai().OpenAIError, json.JSONDecodeError) as error:
            said = str(error).replace(self.api_key, "(api_key)") if self.api_key else str(error)
            raise ModelError(f"{self._reason(error)} What came back: {said[:300]}") from error
        if choices is None:
            raise ModelError(f"{self.base_url} answered, but not as an OpenAI-compatible server does. {_ENDING}")
        text = getattr(getattr(choices[0], "message", None), "content", None) if choices else None
        return text if isinstance(text, str) else ""

    def _reason(self, error: Exception) -> str:
        openai, url = _openai(), self.base_url.rstrip("/")
        reasons = {
            openai.APITimeoutError: f"{url} gave no answer within {self.timeout_s} s, three times. "
            "Raise timeout_s, or lower concurrency.",
            openai.APIConnectionError: f"{url} cannot be reached. Start the server, or correct base_url. {_ENDING}",
            (openai.AuthenticationError, openai.PermissionDeniedError): f"{url} refuses the key. Pass a valid api_key.",
            openai.NotFoundError: f"{url} knows no model {self.model!r}, or is not the API's address. "
            f"Names are listed at {url}/models. {_ENDING}",
            openai.RateLimitError: f"{url} takes no more requests for now, or the quota is used up. "
            "Lower concurrency, or go on later.",
            openai.InternalServerError: f"{url} failed while it answered. Look at its log, then go on.",
        }
        for kind, reason in reasons.items():  # a timeout is a connection error as well: the narrower stands first
            if isinstance(error, kind):
                return reason
        if _TOO_LONG.search(str(error)):
            way = "Leave it out or shorten it, or take a model with a longer context."
            return f"The text is longer than {self.model!r} at {url} can read. {way}"
        return f"{url} refuses the request for {self.model!r}. Check the model's name and what the server supports."


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingExtra(
            "Asking a model over HTTP needs the package openai. Run: pip install 'ftkit[judge]'"
        ) from error
    return openai


def _cached(path: str | Path | None) -> dict[str, str]:
    """Replies by key; the last line of a key counts, and lines that a kill cut short are passed over."""
    if path is None or not Path(path).exists():
        return {}
    replies: dict[str, str] = {}
    for line in Path(path).read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("reply"), str):
            replies[str(entry.get("key"))] = entry["reply"]
    return replies


@contextmanager
def _journal(path: str | Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that appends one line to the file and flushes it, from any thread."""
    if path is None:
        yield lambda entry: None
        return
    path, lock = Path(path), Lock()
    with files.disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            if file.read(1) not in (b"", b"\n"):
                file.write(b"\n")  # a kill cut the last line: do not add to it

            def note(entry: Mapping[str, Any]) -> None:
                """Append one line."""
                with lock:
                    file.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                    file.flush()

            yield note
