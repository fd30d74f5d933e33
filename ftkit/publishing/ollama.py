"""The Modelfile with which Ollama serves a GGUF: its own kind of template, made from the tokenizer's, and every stop token.

Ollama reads Go templates and no Jinja. What the tokenizer's template puts around each role is found by rendering a
probe, and what was found is compared with the template on whole chats before it is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit import chat, data, files, models
from ftkit.errors import DataError
from ftkit.publishing import merging, places

NAME = "Modelfile"
_MARK = "qz{}zq"
_ROLES = ("system", "user", "assistant")


def modelfile(gguf: str | Path, merged: str | Path, trained_on: Any = None) -> Path:
    """Write `Modelfile` beside a GGUF: `ollama create NAME -f Modelfile` then serves it.

    It asks greedily, as answers are evaluated here. Calls of tools are not part of it: llama.cpp takes them, since it
    reads the tokenizer's own template out of the GGUF.

    Args:
        gguf: the file.
        merged: the folder that it was made of, for tokenizer and stop tokens.
        trained_on: the rows of the training; a system text that all of them have becomes the Modelfile's.

    Raises:
        DataError: a template that cannot be written for Ollama; llama.cpp serves the file all the same.
        StorageError: a Modelfile stands there that ftkit did not write, or that was changed.
    """
    from transformers import AutoTokenizer, GenerationConfig

    gguf, merged = Path(gguf), merging.check_merged(merged)
    tokenizer = models.pretrained(AutoTokenizer, merged)
    pieces = _Pieces.of(tokenizer)
    stops = [tokenizer.eos_token_id]
    if (merged / "generation_config.json").is_file():
        named = models.pretrained(GenerationConfig, merged).eos_token_id
        stops += named if isinstance(named, list) else [named]
    told = [tokenizer.convert_ids_to_tokens(stop) for stop in dict.fromkeys(stops) if stop is not None]
    told += [pieces.stop] * (pieces.stop not in told and bool(pieces.stop))
    lines = [f"FROM ./{gguf.name}", f'TEMPLATE """{pieces.template()}"""']
    lines += [f'PARAMETER stop "{stop}"' for stop in told]
    lines.append("PARAMETER temperature 0")
    if system := _system(trained_on):
        lines.append(f'SYSTEM """{system}"""')
    path = gguf.parent / NAME
    places.refuse_foreign(path)
    files.write_text(path, "\n".join(lines) + "\n")
    places.note(path.parent, NAME, sha256=files.digest(path), bytes=path.stat().st_size, of=gguf.name)
    return path


def _system(rows: Any) -> str:
    """The system text that every row of the training has, or none."""
    if not rows:
        return ""
    heads = {turns[0]["content"] if turns[0]["role"] == "system" else "" for turns in rows["messages"][:] if turns}
    text = heads.pop() if len(heads) == 1 else ""
    return "" if '"""' in text else text


@dataclass(frozen=True)
class _Pieces:
    """What a template writes around the text of each role, before the first turn, and where an answer begins."""

    start: str
    default: str  # a system turn of the template's own, where the chat has none
    around: Mapping[str, tuple[str, str]]
    ask: str
    stop: str

    @classmethod
    def of(cls, tokenizer: Any) -> "_Pieces":
        """Find the pieces in renderings of marked chats, and compare them with the template on whole ones.

        Raises:
            DataError: the template does not write turn after turn.
        """
        refused = (
            "This chat template cannot be written for Ollama: it does not put the same text around each turn. Serve "
            "the GGUF with llama.cpp, which reads the template itself: llama-server -m FILE, or publishing.serve_gguf."
        )

        def written(roles: Sequence[str], ask: bool = False) -> str:
            turns = [{"role": role, "content": _MARK.format(n)} for n, role in enumerate(roles)]
            text = chat.render(turns, tokenizer, add_generation_prompt=ask)
            start = tokenizer.bos_token or ""
            begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]  # then llama.cpp and Ollama add it
            return text.removeprefix(start) if begins else text

        def between(text: str, first: int, second: int | None) -> str:
            _, found, rest = text.partition(_MARK.format(first))
            inner, also, _ = rest.partition(_MARK.format(second)) if second is not None else (rest, "-", "")
            if not (found and also):
                raise DataError(refused)
            return inner

        talk = written(("user", "assistant", "user", "assistant"))
        to_answer, to_question = between(talk, 0, 1), between(talk, 1, 2)
        asked = written(("user",), ask=True)
        ending = between(asked, 0, None)
        plain = between(written(("user",)), 0, None)
        if not ending.startswith(plain) or not to_answer.startswith(plain) or not ending.endswith(to_answer[len(plain) :]):
            raise DataError(refused)
        ask, answer_head = ending[len(plain) :], to_answer[len(plain) :]
        two = written(("user", "user")) if _takes(written, ("user", "user")) else ""
        user_head = between(two, 0, 1)[len(plain) :] if two else None
        head = talk[: talk.index(_MARK.format(0))]
        if user_head is None:
            user_head = _shared_end(head, to_question)
        if not to_question.endswith(user_head) or not head.endswith(user_head):
            raise DataError(refused)
        answer_tail, default = to_question[: len(to_question) - len(user_head)], head[: len(head) - len(user_head)]
        around = {"user": (user_head, plain), "assistant": (answer_head, answer_tail)}
        start = ""
        if _takes(written, ("system", "user")):
            ruled = written(("system", "user"))
            system_head, middle = ruled[: ruled.index(_MARK.format(0))], between(ruled, 0, 1)
            if not middle.endswith(user_head):
                raise DataError(refused)
            around["system"] = (system_head, middle[: len(middle) - len(user_head)])
        stop = next((t for t in _specials(tokenizer) if answer_tail.strip().startswith(t)), "")
        pieces = cls(start, default, around, ask, stop)
        for roles in (("user",), ("user", "assistant", "user"), ("system", "user"), ("system", "user", "assistant", "user")):
            if "system" in roles and "system" not in around:
                continue
            if pieces.written(roles) != written(roles, ask=True):
                raise DataError(refused)
        return pieces

    def written(self, roles: Sequence[str]) -> str:
        """A marked chat as the pieces write it, up to where an answer begins."""
        text = self.start + ("" if "system" in roles else self.default)
        for number, role in enumerate(roles):
            head, tail = self.around[role]
            text += head + _MARK.format(number) + tail
        return text + self.ask

    def template(self) -> str:
        """The Go template."""
        default = f"{{{{ if not .System }}}}{_literal(self.default)}{{{{ end }}}}" if self.default else ""
        branches = []
        for role in (role for role in _ROLES if role in self.around):
            head, tail = map(_literal, self.around[role])
            word = "else if" if branches else "if"
            branches.append(f'{{{{ {word} eq .Role "{role}" }}}}{head}{{{{ .Content }}}}{tail}')
        turns = f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}"
        return f"{_literal(self.start)}{default}{turns}{_literal(self.ask)}"


def _takes(written: Any, roles: Sequence[str]) -> bool:
    try:
        text = written(roles)
    except DataError:
        return False
    return all(_MARK.format(number) in text for number in range(len(roles)))


def _shared_end(a: str, b: str) -> str:
    size = next((n for n in range(min(len(a), len(b))) if a[-1 - n] != b[-1 - n]), min(len(a), len(b)))
    return a[len(a) - size :]


def _specials(tokenizer: Any) -> list[str]:
    return sorted((str(t) for t in tokenizer.added_tokens_decoder.values() if t.special), key=len, reverse=True)


def _literal(text: str) -> str:
    """Text that a Go template writes as it stands."""
    return text.replace("{{", '{{ "{{" }}')
