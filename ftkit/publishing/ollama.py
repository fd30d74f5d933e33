"""The Modelfile with which Ollama serves a GGUF: a template of its kind, and every stop token.

Ollama reads Go templates and no Jinja. What the tokenizer's template puts around the text of each role is found by
rendering marked chats, and what was found is compared with the template on other chats before it is written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit import chat, files, models
from ftkit.errors import DataError
from ftkit.publishing import merging, places

NAME = "Modelfile"
_MARK = "qz{}zq"
_SYSTEM, _TALK = ("system", "user"), ("user", "assistant", "user", "assistant")
_COMPARED = (("user",), _TALK[:3], _SYSTEM, ("system", *_TALK[:3]))


def modelfile(gguf: str | Path, merged: str | Path, trained_on: Any = None) -> Path:
    """Write `Modelfile` beside a GGUF: `ollama create NAME -f Modelfile` then serves it.

    It takes the likeliest token, as answers are evaluated here. Tools are not part of it: llama.cpp takes them, since
    it reads the tokenizer's own template out of the GGUF.

    Args:
        gguf: the file.
        merged: the folder that it was made of, for the tokenizer and the stop tokens.
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
    texts = [tokenizer.convert_ids_to_tokens(stop) for stop in stops if stop is not None]
    behind = pieces.around["assistant"][1].strip()
    texts += [token for token in _specials(tokenizer) if behind.startswith(token)][:1]
    lines = [f"FROM ./{gguf.name}", f'TEMPLATE """{pieces.template()}"""', "PARAMETER temperature 0"]
    lines += [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys(texts)]
    if system := _system(trained_on):
        lines.append(f'SYSTEM """{system}"""')
    path = gguf.parent / NAME
    written = files.write_text(path.with_name(f".{NAME}{files.TEMPORARY}"), "\n".join(lines) + "\n")
    try:
        places.put(written, path, of=gguf.name)
    finally:
        written.unlink(missing_ok=True)
    return path


def _specials(tokenizer: Any) -> list[str]:
    return sorted((str(t) for t in tokenizer.added_tokens_decoder.values() if t.special), key=len, reverse=True)


def _system(rows: Any) -> str:
    """The system text that every chat of the training has, or none."""
    chats = [row["messages"] for row in rows or ()]
    heads = {turns[0]["content"] if turns[0]["role"] == "system" else "" for turns in chats if turns}
    text = heads.pop() if len(heads) == 1 else ""
    return "" if '"""' in text else text


@dataclass(frozen=True)
class _Pieces:
    """What a template writes around each role's text, before a chat without a system turn, and to ask for an answer."""

    around: Mapping[str, tuple[str, str]]
    default: str
    ask: str

    @classmethod
    def of(cls, tokenizer: Any) -> "_Pieces":
        """Find the pieces in renderings of marked chats.

        Raises:
            DataError: put together again they are not what the template writes.
        """

        def written(roles: Sequence[str], ask: bool = False) -> str:
            """A marked chat as the template writes it, without the start token that a server adds by itself."""
            turns = [{"role": role, "content": _MARK.format(number)} for number, role in enumerate(roles)]
            text = chat.render(turns, tokenizer, add_generation_prompt=ask)
            adds = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
            return text.removeprefix(tokenizer.bos_token) if adds else text

        pieces = cls._cut(written)
        compared = [roles for roles in _COMPARED if roles[0] in pieces.around] if pieces else []
        if pieces is None or any(pieces.written(roles) != written(roles, ask=True) for roles in compared):
            raise DataError(
                "This chat template cannot be written for Ollama: it does not put the same text around every turn. "
                "Serve the GGUF with llama.cpp, which reads the template itself: llama-server -m FILE, or "
                "publishing.serve_gguf."
            )
        return pieces

    @classmethod
    def _cut(cls, written: Callable[..., str]) -> "_Pieces | None":
        """The pieces, as far as they can be told apart; None where they cannot."""
        talk, alone, asked = written(_TALK), _split(written(("user",)), 1), _split(written(("user",), True), 1)
        parts = _split(talk, len(_TALK))
        if not (parts and alone and asked) or not asked[1].startswith(alone[1]) or not parts[1].startswith(alone[1]):
            return None
        user_head, user_tail = _shared_end(parts[0], parts[2]), alone[1]
        around = {"user": (user_head, user_tail)}
        default = parts[0].removesuffix(user_head)
        around["assistant"] = (parts[1].removeprefix(user_tail), parts[2].removesuffix(user_head))
        try:
            ruled = _split(written(_SYSTEM), len(_SYSTEM))
        except DataError:  # a template without a system turn
            return cls(around, default, asked[1].removeprefix(user_tail))
        if ruled is None or not ruled[1].endswith(user_head):
            return None
        around["system"] = (ruled[0], ruled[1].removesuffix(user_head))
        return cls(around, default, asked[1].removeprefix(user_tail))

    def written(self, roles: Sequence[str]) -> str:
        """A marked chat put together of the pieces, up to where an answer begins."""
        text = "" if "system" in roles else self.default
        for number, role in enumerate(roles):
            head, tail = self.around[role]
            text += head + _MARK.format(number) + tail
        return text + self.ask

    def template(self) -> str:
        """The same for Go."""
        branches: list[str] = []
        for role, texts in self.around.items():
            head, tail = map(_literal, texts)
            word = "else if" if branches else "if"
            branches.append(f'{{{{ {word} eq .Role "{role}" }}}}{head}{{{{ .Content }}}}{tail}')
        default = f"{{{{ if not .System }}}}{_literal(self.default)}{{{{ end }}}}" if self.default else ""
        turns = f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}"
        return f"{default}{turns}{_literal(self.ask)}"


def _split(text: str, marks: int) -> list[str] | None:
    """The text between the marks of a chat, in order; None where a mark is missing or stands elsewhere."""
    parts = []
    for number in range(marks):
        part, found, text = text.partition(_MARK.format(number))
        if not found:
            return None
        parts.append(part)
    return [*parts, text]


def _shared_end(a: str, b: str) -> str:
    short = min(len(a), len(b))
    size = next((n for n in range(short) if a[-1 - n] != b[-1 - n]), short)
    return a[len(a) - size :]


def _literal(text: str) -> str:
    """Text that a Go template writes as it stands."""
    return text.replace("{", '{{ "{" }}')
