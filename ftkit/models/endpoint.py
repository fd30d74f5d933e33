"""A model that is asked, behind an OpenAI-compatible server or in this process: no reply is paid for twice.

Knows nothing of what is asked: a rubric, a comparison, and what a reply means belong to the caller.
"""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from ftkit import chat, files
from ftkit.errors import ConfigError, MissingExtra, ModelError
from ftkit.models.generation import generate
from ftkit.models.likelihood import answer_nll, context_tokens, next_token_nll

_ENDING = "A base_url usually ends in /v1."
_TOO_LONG = re.compile(r"context|too (?:long|large|many)|maximum|exceed", re.I)


Question = str | Sequence[Mapping[str, Any]]
_ENDLESS = "the answer did not end"
_LARGEST = 8 * 2**20  # bytes of one answer over HTTP
_ANOTHER_DRAW = 0.7  # temperature at which a greedy model is asked again: at 0 it would say the same


@dataclass(frozen=True)
class Endpoint:
    """A model that is asked over HTTP, greedily where nothing else is set.

    Args:
        base_url: of the server's API, such as `http://127.0.0.1:8000/v1`.
        model: the name that the server knows it by.
        api_key: sent to that URL alone and never shown; a local server wants none.
        cache: a JSONL file, one line a reply, written as replies come: a second call, or one after a kill, asks only
            what is missing. It does not depend on `base_url`.
        concurrency: requests at once.
        timeout_s: of one request; a request that fails on the way is sent again after a longer wait, or after as many
            seconds as the server asks for.
        max_tokens: at which a reply is cut.
        key_name: where to look for the key instead: an environment variable, or on Colab a secret, of this name. No
            other is searched.
        temperature: 0 takes the likeliest token; None leaves it to the server.
        top_p: None leaves it to the server.
        seed: of the draws, where the server knows one.
        max_retries: how often a failed request is sent again.

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
    key_name: str | None = None
    temperature: float | None = 0
    top_p: float | None = None
    seed: int | None = None
    max_retries: int = 2
    _known: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)  # replies by question
    _seconds: list[float] = field(default_factory=list, init=False, repr=False, compare=False)  # of every request

    def __post_init__(self) -> None:
        problems = _problems(self.temperature, self.top_p, self.max_tokens)
        if not 1 <= self.concurrency <= 256:
            problems.append(f"concurrency={self.concurrency} is outside 1 to 256 (requests at once). The default is 1.")
        if not 0 <= self.max_retries <= 20:
            problems.append(f"max_retries={self.max_retries} is outside 0 to 20. The default is 2.")
        if not isinstance(self.timeout_s, int | float) or not 0 < self.timeout_s <= 86_400:
            problems.append(
                f"timeout_s={self.timeout_s!r} is outside 0 to 86,400 (seconds a request). The default is 60."
            )
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable()):
            problems.append("api_key holds characters that no HTTP header can carry. Copy it again, without line ends.")
        if not str(self.base_url).startswith(("http://", "https://")):
            problems.append(f"base_url={self.base_url!r} is no URL: it starts with http:// or https://. {_ENDING}")
        if self.api_key and self.key_name:
            problems.append("api_key and key_name are both given. Give one: the key, or the name to find it by.")
        if problems:
            raise ConfigError("\n".join(problems))
        _openai()

    def ask(
        self,
        questions: Sequence[Question],
        *,
        noun: str = "question",
        usable: Callable[[str], bool] | None = None,
        draw: int = 0,
        skip_refused: bool = False,
        about: str = "",
        options: Sequence[Sequence[str]] | None = None,
    ) -> list[str]:
        """One reply a question, in order; "" where it holds no text. An empty question is not asked.

        Args:
            questions: texts, or messages of several turns; equal ones are asked once.
            noun: what an error calls a question: "row 3".
            usable: ask again where this is false of an earlier reply.
            draw: the number of the draw: another one is another reply, kept beside the first. A model that answers
                greedily draws at temperature 0.7 from draw 1 on.
            skip_refused: a question that the server refuses as it stands (too long, or not allowed) gets "" and is
                not kept; where it has answered none, that is an error.
            about: what the progress bar says before it moves.
            options: what may be replied to each question; only a `LocalModel` that chooses reads them.

        Raises:
            ModelError: a server that cannot be reached, refuses the key, lacks the model or gives up; what it had
                answered until then is in the cache.
        """
        from tqdm.auto import tqdm

        self._known.update(_cached(self.cache))
        keys = [self._key(question, draw) for question in questions]
        wanted: dict[str, int] = {}
        for number, (key, question) in enumerate(zip(keys, questions, strict=True)):
            known = self._known.get(key)
            if question and (known is None or (usable is not None and not usable(known))):
                wanted.setdefault(key, number)
        refused: dict[str, ModelError] = {}
        with (
            self._client() as client,
            _journal(self.cache) as note,
            ThreadPoolExecutor(self.concurrency) as pool,
            tqdm(total=len(wanted), desc=about or None, unit=noun, disable=len(wanted) <= 8, leave=False) as bar,
        ):

            def answer(key: str) -> None:
                """Ask one question and keep the reply."""
                number, began = wanted[key], time.monotonic()
                try:
                    reply = self._reply(client, questions[number], draw)
                except _Refused as error:
                    kept = "Give a cache file to keep earlier replies."
                    if self.cache:
                        kept = f"Earlier replies are in {self.cache}: the next call goes on from there."
                    told = ModelError(f"{noun.capitalize()} {number + 1} got no reply: {error} {kept}")
                    if skip_refused and error.alone:
                        refused[key] = told
                        return
                    raise told from None
                self._seconds.append(time.monotonic() - began)
                self._known[key] = reply
                note({"key": key, "model": self.model, "reply": reply})

            for _ in pool.map(answer, wanted):  # the first error stops what has not begun; what is under way still ends
                bar.update()
        if refused and draw == 0 and not any(key in self._known for key in keys):
            raise next(iter(refused.values()))
        return [self._known.get(key, "") if question else "" for key, question in zip(keys, questions, strict=True)]

    def missing(self, questions: Sequence[Question], draw: int = 0) -> list[Question]:
        """The questions that a call would ask: those without a reply in the cache, each once."""
        self._known.update(_cached(self.cache))
        return _missing(self._known, [self._key(question, draw) for question in questions], questions)

    def seconds_each(self) -> float | None:
        """What one reply has taken so far, with requests at once counted; None before the first."""
        return sum(self._seconds) / len(self._seconds) / self.concurrency if self._seconds else None

    def count_tokens(self, text: str) -> int:
        """About how many tokens a text has, by a rule of thumb for English: the server's tokenizer is not here."""
        return -(-len(text) // 4)

    def _key(self, question: Question, draw: int) -> str:
        """A digest of everything that the reply depends on but the server."""
        return _digest([self.model, self.max_tokens, self.temperature, self.top_p, self.seed, draw, _turns(question)])

    def _client(self) -> Any:
        openai = _openai()
        unsaid = openai.Omit()  # else the client would send what the environment says of another server's account
        return openai.OpenAI(
            base_url=self.base_url,
            api_key=self._secret() or "none",
            timeout=self.timeout_s,
            max_retries=self.max_retries,
            default_headers={"OpenAI-Organization": unsaid, "OpenAI-Project": unsaid},
            http_client=openai.DefaultHttpxClient(event_hooks={"response": [self._read]}),
        )

    def _read(self, response: Any) -> None:
        """Read an answer while it is within time and size: a server that never ends one would hold us for ever."""
        http = sys.modules[type(response).__module__.partition(".")[0]]  # the HTTP library that openai came with
        until, body = time.monotonic() + self.timeout_s, bytearray()
        for part in response.iter_raw():
            body += part
            if len(body) > _LARGEST or time.monotonic() > until:
                raise http.ReadTimeout(_ENDLESS)
        response.stream, response.is_stream_consumed, response.is_closed = http.ByteStream(bytes(body)), False, False

    def _secret(self) -> str | None:
        if self.key_name is None:
            return self.api_key
        if found := os.environ.get(self.key_name, "").strip() or _colab_secret(self.key_name):
            return found
        raise ConfigError(
            f"key_name={self.key_name!r}: no environment variable has this name, and no Colab secret that this "
            "notebook may read. Set it, or pass api_key."
        )

    def _reply(self, client: Any, question: Question, draw: int) -> str:
        openai = _openai()
        sampling = {"temperature": _temperature(self.temperature, draw), "top_p": self.top_p}
        sampling["seed"] = self.seed if draw == 0 else (self.seed or 0) + draw
        sampling = {name: value for name, value in sampling.items() if value is not None}
        try:
            reply = client.chat.completions.create(
                model=self.model, messages=_turns(question), max_tokens=self.max_tokens, **sampling
            )
            choices = getattr(reply, "choices", None)
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            alone = isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError)
            asked_to_wait = getattr(getattr(error, "response", None), "headers", {}).get("retry-after")
            wait = f" It asks to wait {asked_to_wait} s." if asked_to_wait and asked_to_wait.isdigit() else ""
            said = f"{self._reason(error)}{wait} What came back: {self._without_key(str(error), client)[:300]}"
            raise _Refused(said, alone) from None  # the client's own error would show the key in a traceback
        if not isinstance(choices, list):
            raise _Refused(f"{self.base_url} answered, but not as an OpenAI-compatible server does. {_ENDING}", False)
        text = getattr(getattr(choices[0], "message", None), "content", None) if choices else None
        return self._without_key(text, client) if isinstance(text, str) else ""

    def _without_key(self, text: str, client: Any) -> str:
        """The text without the key, should the server repeat it."""
        return text.replace(client.api_key, "(api_key)") if client.api_key != "none" else text

    def _reason(self, error: Exception) -> str:
        openai, url = _openai(), self.base_url.rstrip("/")
        reasons = {
            openai.APITimeoutError: f"{url} gave no answer within {self.timeout_s} s, "
            f"{_times(self.max_retries + 1)}. Raise timeout_s, or lower concurrency.",
            openai.APIConnectionError: f"{url} cannot be reached. Start the server, or correct base_url. {_ENDING}",
            (openai.AuthenticationError, openai.PermissionDeniedError): f"{url} refuses the key. Pass a valid api_key.",
            openai.NotFoundError: f"{url} knows no model {self.model!r}, or is not the API's address. "
            f"Names are listed at {url}/models. {_ENDING}",
            openai.RateLimitError: f"{url} takes no more requests for now, or the quota is used up. "
            "Lower concurrency, or go on later.",
            openai.InternalServerError: f"{url} failed while it answered. Look at its log, then go on.",
        }
        if str(error.__cause__) == _ENDLESS:
            return f"{url} gave an answer that did not end within {self.timeout_s} s and {_LARGEST >> 20} MiB."
        for kind, reason in reasons.items():  # a timeout is a connection error as well: the narrower stands first
            if isinstance(error, kind):
                return reason
        if _TOO_LONG.search(str(error)):
            way = "Leave it out or shorten it, or take a model with a longer context."
            return f"The text is longer than {self.model!r} at {url} can read. {way}"
        return f"{url} refuses the request for {self.model!r}. Check the model's name and what the server supports."


@dataclass(frozen=True)
class LocalModel:
    """A model in this process that is asked as an `Endpoint` is, its replies kept likewise.

    Args:
        model: any causal language model; on a CPU a 16-bit one.
        tokenizer: with a chat template.
        name: what replies are kept under; two models need two names.
        cache: as in `Endpoint`.
        batch_size: questions answered at once; after each batch the replies are kept.
        max_tokens: at which a reply is cut.
        temperature: 0 takes the likeliest token.
        seed: of the draws.
        choose: give the likeliest of the replies that a question allows instead of writing one: no reply is lost, and
            a model too small to keep a form can be asked.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    name: str
    cache: str | Path | None = None
    batch_size: int = 8
    max_tokens: int = 300
    temperature: float = 0
    seed: int = 0
    choose: bool = False
    _known: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    _seconds: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if problems := _problems(self.temperature, None, self.max_tokens):
            raise ConfigError("\n".join(problems))

    def ask(
        self,
        questions: Sequence[Question],
        *,
        noun: str = "question",
        usable: Callable[[str], bool] | None = None,
        draw: int = 0,
        skip_refused: bool = False,
        about: str = "",
        options: Sequence[Sequence[str]] | None = None,
    ) -> list[str]:
        """One reply a question, in order, as `Endpoint.ask`; with `skip_refused`, "" for what the model cannot read."""
        from tqdm.auto import tqdm

        self._known.update(_cached(self.cache))
        keys = [self._key(question, draw) for question in questions]
        if usable is not None:
            for key in {key for key in keys if not usable(self._known.get(key, ""))}:
                self._known.pop(key, None)
        wanted = _missing(self._known, keys, questions)
        if self.choose and options is None:
            raise ConfigError(
                f"{self.name!r} chooses among given replies (choose=True), and this {noun} may be answered in any "
                "words. Take a judge with choose=False, or compare pairs."
            )
        allowed = dict(zip(keys, options or (), strict=False))
        limit = context_tokens(self.model)
        too_long = [number for number, question in enumerate(wanted, 1) if limit and self._length(question) > limit]
        if too_long and not (skip_refused and (draw or len(too_long) < len(questions))):
            raise ModelError(
                f"{noun.capitalize()} {too_long[0]} and the reply need more than the {limit:,} tokens that "
                f"{self.name!r} can read. Shorten it, lower max_tokens, or take a model with a longer context."
            )
        wanted = [question for number, question in enumerate(wanted, 1) if number not in set(too_long)]
        heat = _temperature(self.temperature, draw) or 0.0
        with (
            _journal(self.cache) as note,
            tqdm(total=len(wanted), desc=about or None, unit=noun, disable=len(wanted) <= 8, leave=False) as bar,
        ):
            for start in range(0, len(wanted), self.batch_size):
                batch, began = wanted[start : start + self.batch_size], time.monotonic()
                of = [self._key(question, draw) for question in batch]
                if self.choose:
                    replies = self._likeliest(batch, [allowed[key] for key in of])
                else:
                    replies = self._written(batch, heat, self.seed + draw)
                self._seconds.append((time.monotonic() - began) / len(batch))
                for key, reply in zip(of, replies, strict=True):
                    self._known[key] = reply
                    note({"key": key, "model": self.name, "reply": reply})
                bar.update(len(batch))
        return [self._known.get(key, "") if question else "" for key, question in zip(keys, questions, strict=True)]

    def missing(self, questions: Sequence[Question], draw: int = 0) -> list[Question]:
        """The questions that a call would ask, each once."""
        self._known.update(_cached(self.cache))
        return _missing(self._known, [self._key(question, draw) for question in questions], questions)

    def seconds_each(self) -> float | None:
        """What one reply has taken so far; None before the first."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else None

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _written(self, questions: Sequence[Question], heat: float, seed: int) -> list[str]:
        """What the model writes to each question."""
        answers = generate(
            self.model,
            self.tokenizer,
            [_turns(question) for question in questions],
            max_new_tokens=self.max_tokens,
            batch_size=self.batch_size,
            temperature=heat,
            seed=seed,
        )
        return [answer.text for answer in answers]

    def _likeliest(self, questions: Sequence[Question], options: Sequence[Sequence[str]]) -> list[str]:
        """The reply to each question that the model finds likeliest among its options.

        Options that part at one token are told by it, which takes one reading of the question; others are read whole.
        """
        chosen, parted = [""] * len(questions), list[tuple[int, list[int], list[int]]]()
        for number, (question, allowed) in enumerate(zip(questions, options, strict=True)):
            said = [[*_turns(question), {"role": "assistant", "content": text}] for text in allowed]
            rows = [chat.tokenize(turns, self.tokenizer) for turns in said]
            columns = list(zip(*(row["input_ids"] for row in rows), strict=False))
            place = next((place for place, column in enumerate(columns) if len(set(column)) > 1), 0)
            if len(set(columns[place])) == len(allowed):
                parted.append((number, rows[0]["input_ids"][:place], list(columns[place])))
                continue
            surprise = [nll for nll, _ in answer_nll(self.model, rows, batch_size=self.batch_size)]
            chosen[number] = allowed[surprise.index(min(surprise))]
        starts, firsts_of = [start for _, start, _ in parted], [firsts for _, _, firsts in parted]
        found = next_token_nll(self.model, starts, firsts_of, batch_size=self.batch_size)
        for (number, _, _), surprise in zip(parted, found, strict=True):
            chosen[number] = options[number][surprise.index(min(surprise))]
        return chosen

    def _key(self, question: Question, draw: int) -> str:
        parts = ["local", self.name, self.max_tokens, self.temperature, self.seed, draw, _turns(question)]
        return _digest([*parts, "choose"] if self.choose else parts)

    def _length(self, question: Question) -> int:
        return self.max_tokens + self.count_tokens("".join(turn["content"] for turn in _turns(question)))


class _Refused(Exception):
    """No reply; `alone` where the server refuses this question as it stands, and not the caller."""

    def __init__(self, said: str, alone: bool) -> None:
        super().__init__(said)
        self.alone = alone


def _turns(question: Question) -> list[dict[str, str]]:
    """A question as messages; half a surrogate pair, which no server takes, becomes a question mark."""
    turns = [{"role": "user", "content": question}] if isinstance(question, str) else question
    return [{"role": turn["role"], "content": turn["content"].encode("utf-8", "replace").decode()} for turn in turns]


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _missing(known: Mapping[str, str], keys: Sequence[str], questions: Sequence[Question]) -> list[Question]:
    wanted = {key: question for key, question in zip(keys, questions, strict=True) if question and key not in known}
    return list(wanted.values())


def _temperature(temperature: float | None, draw: int) -> float | None:
    return _ANOTHER_DRAW if draw and temperature == 0 else temperature


def _times(count: int) -> str:
    return {1: "once", 2: "twice", 3: "three times"}.get(count, f"{count} times")


def _problems(temperature: float | None, top_p: float | None, max_tokens: int) -> list[str]:
    """What is wrong with sampling settings."""
    problems = []
    if temperature is not None and not (isinstance(temperature, int | float) and 0 <= temperature <= 2):
        problems.append(f"temperature={temperature!r} is outside 0 to 2. 0 takes the likeliest token.")
    if top_p is not None and not (isinstance(top_p, int | float) and 0 < top_p <= 1):
        problems.append(f"top_p={top_p!r} is outside 0 to 1. Leave it out to take the server's own.")
    if max_tokens < 1:
        problems.append(f"max_tokens={max_tokens} leaves no room for a reply. The default is 300.")
    return problems


def _colab_secret(name: str) -> str | None:
    """A secret of Colab's side bar, where this is Colab and the notebook was granted it."""
    try:
        from google.colab import userdata
    except ImportError:
        return None
    try:
        return str(userdata.get(name)).strip() or None
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        return None


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
    if Path(path).is_dir():
        raise ConfigError(
            f"cache={str(path)!r} is a folder. Name a file in it, such as {str(Path(path, 'judge.jsonl'))!r}."
        )
    replies: dict[str, str] = {}
    for line in Path(path).read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
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
