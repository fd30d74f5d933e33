"""A run's adapter, or what was made of it, to the Hub: unless told otherwise a rehearsal, and private.

What goes is listed by name; a card, a notice and the licence's text come along. Nothing on this machine is written or
changed. Uploading itself, its retries and what need not be sent again, is `huggingface_hub`'s business; here its errors
become words, and a public upload that breaks what `licences` knows is refused.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ftkit import files, tables
from ftkit.errors import ConfigError, HubError, MissingArtifact, without_secrets
from ftkit.publishing import merging, places
from ftkit.publishing.card import CARD, is_edited, placeholder, render
from ftkit.publishing.licences import Licence, licence, without_paths
from ftkit.runs import Run
from ftkit.tables import Table

_NAMES = {  # what is uploaded of a folder, by what it holds; nothing else is
    "adapter": ("adapter_config.json", "adapter_model*.safetensors", "base.json"),
    "merged": ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    "gguf": ("*.gguf", "Modelfile"),
}
_TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model"),
    "chat_template*",
)
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
_PATIENCE_S = 10  # with the Hub, where an answer can do without
_SMALL = 2**20  # bytes up to which a text file is looked through for folders of this machine
_LOGIN = "Run `hf auth login`, set HF_TOKEN, or on Colab add a secret HF_TOKEN and let the notebook read it"
_CONFIRM = "Where you have read them and may publish, say confirm_licence=True; private=True needs no confirmation."


@tables.shown
@dataclass(frozen=True)
class Push:
    """What was uploaded, or would be.

    Args:
        repo_id: where to.
        private: whether only its owners see it.
        files: name and size in bytes of each file.
        url: of the commit; "" where nothing was uploaded.
        signed_in: whether a token was found.
    """

    repo_id: str
    private: bool
    files: tuple[tuple[str, int], ...]
    url: str
    signed_in: bool

    def _parts(self) -> list[Table | str]:
        seen = "private" if self.private else "PUBLIC"
        rows = [(name, f"{size:,}") for name, size in self.files]
        parts: list[Table | str] = [Table(("file", "bytes"), rows, caption=f"{self.repo_id} ({seen})")]
        if self.url:
            return [*parts, f"Uploaded: {self.url}"]
        login = "" if self.signed_in else f" No token was found: {_LOGIN[0].lower()}{_LOGIN[1:]}."
        return [*parts, f"A rehearsal: nothing was uploaded. dry_run=False uploads.{login}"]


def push(
    run: Run,
    repo_id: str,
    terms: Licence | None = None,
    *,
    what: str | Path | None = None,
    private: bool = True,
    dry_run: bool = True,
    confirm_licence: bool = False,
    endpoint: str | None = None,
) -> Push:
    """Upload a run's adapter with its card; by default only say what would go.

    The token is the one of `HF_TOKEN`, of `hf auth login`, or of Colab's secret `HF_TOKEN`; it is sent to the Hub and
    neither shown nor kept. All files appear in one commit or none does. After a failure the same call goes on: what has
    arrived is not sent again.

    Args:
        run: whose adapter.
        repo_id: "owner/name"; made where it is missing.
        terms: from `licence`, where you know more of base or data than the run does.
        what: the folder of a merged model, or a GGUF file (with the Modelfile beside it), instead of the adapter.
        private: whether only the owners see it; False makes it public.
        dry_run: False uploads.
        confirm_licence: publish although a licence is unknown or for research alone: you have read it, and it allows
            what you do. A duty that ftkit can check is no matter of confirmation.
        endpoint: of another Hub than `HF_ENDPOINT` says.

    Raises:
        ConfigError: a public upload that a licence forbids or leaves open, a name that it does not allow, a base model
            that nobody else could find, a merged model or a GGUF whose `parity` did not pass, or a card with a secret
            in it. All reasons at once.
        MissingArtifact: nothing to upload.
        ModelError: what is to be uploaded was changed since it was written.
        HubError: the Hub refuses or cannot be reached; says which page or permission is missing.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    name = _checked_name(repo_id)
    terms = terms or licence(run)
    chosen, kind = _chosen(run, what)
    contents = _contents(run, terms, repo_id, chosen, kind)
    problems = [*_problems(run, terms, kind, contents), *_unproved(chosen, kind)]
    if not private:
        problems += _public_problems(run, terms, name, contents)
        problems += [] if confirm_licence or not terms.open_questions else [*terms.open_questions, _CONFIRM]
    if problems:
        raise ConfigError("\n".join([f"{repo_id} was not uploaded.", *problems]))
    listed = tuple((path, len(of) if isinstance(of, bytes) else of.stat().st_size) for path, of in contents.items())
    with _explained(repo_id, endpoint):
        token = get_token()
    if dry_run:
        return Push(repo_id, private, listed, "", token is not None)
    if token is None:
        raise HubError(f"No token was found, so {repo_id} was not uploaded. {_LOGIN}; a token is made at {_page()}.")
    with _explained(repo_id, endpoint):
        api = HfApi(endpoint=endpoint, token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        hidden = bool(api.repo_info(repo_id).private)
    if private and not hidden:
        raise ConfigError(
            f"{repo_id} is there already, and it is public. Nothing was uploaded. Say private=False to publish, or "
            "choose another name."
        )
    operations = [CommitOperationAdd(path, str(of) if isinstance(of, Path) else of) for path, of in contents.items()]
    with _explained(repo_id, endpoint):
        made = api.create_commit(repo_id, operations, commit_message=f"Upload {kind} with ftkit")
    return Push(repo_id, hidden, listed, str(made.commit_url), True)


def _checked_name(repo_id: str) -> str:
    """The name within the owner's namespace."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    owner, _, name = str(repo_id).partition("/")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"repo_id={repo_id!r} is no name on the Hub: {error}") from error
    if not owner or not name:
        raise ConfigError(f"repo_id={repo_id!r} does not say whose it is. Write 'owner/name', such as 'your-name/x'.")
    return name


def _chosen(run: Run, what: str | Path | None) -> tuple[list[Path], str]:
    """The files to upload, and what they are together."""
    place = Path(what) if what is not None else run.require("adapter")
    if place.is_file() and place.suffix == ".gguf":
        return [place, *(path for path in [place.parent / "Modelfile"] if path.is_file())], "gguf"
    for kind, marker in (("adapter", "adapter_config.json"), ("merged", "config.json")):
        if (place / marker).is_file():
            places.refuse_tampered(place, "Take it from a copy, or make it again.")
            wanted = (*_NAMES[kind], *_TOKENIZER)
            there = [path for path in sorted(place.iterdir()) if path.is_file() and path.name[0] != "."]
            chosen = [path for path in there if any(fnmatch(path.name, pattern) for pattern in wanted)]
            if not any(path.suffix == ".safetensors" for path in chosen):
                raise MissingArtifact(f"{place} has no *.safetensors, so there is nothing to upload. Make it again.")
            return chosen, kind
    raise MissingArtifact(
        f"{place} holds nothing to upload: wanted an adapter's folder, a merged model's folder or a .gguf file."
    )


def _contents(run: Run, terms: Licence, repo_id: str, chosen: list[Path], kind: str) -> dict[str, Path | bytes]:
    """What is uploaded under which name: files as they stand, or bytes that are written for the Hub."""
    contents: dict[str, Path | bytes] = {}
    for path in chosen:
        contents[path.name] = path
        if path.suffix == ".json" and path.stat().st_size < _SMALL:
            contents[path.name] = _for_others(path, terms.base.of)
    if is_edited(run):
        text = (run / CARD).read_text(encoding="utf-8").replace(placeholder(run), repo_id)
    else:
        text = render(run, terms, repo_id, kind)
    contents["README.md"] = text.encode()
    if terms.base.notice:
        said = f"{terms.base.notice}\n\nThe weights here were changed: {terms.base.of} was fine-tuned.\n"
        contents["NOTICE"] = said.encode()
    if terms.base.copy and (agreement := _agreement(run, chosen[0].parent, terms.base.of)):
        contents["LICENSE"] = agreement
    return contents


def _for_others(path: Path, base: str) -> Path | bytes:
    """A JSON file as others need it: it names the base as the Hub does, and no folder of this machine."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MissingArtifact(f"{path} is damaged: it is no JSON. Make it again.") from error
    if not isinstance(facts, dict):
        return path
    public = {key: _public(value) for key, value in facts.items()}
    if "base_model_name_or_path" in facts and "/" in base:
        public["base_model_name_or_path"] = base
    return path if public == facts else (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()


def _public(value: Any) -> Any:
    """A value of a config; where it is a folder on this machine, its last part."""
    is_place = isinstance(value, str) and Path(value).is_absolute() and Path(value).parent.is_dir()
    return Path(value).name if is_place and len(Path(value).parts) > 2 else value


def _agreement(run: Run, folder: Path, base: str) -> Path | None:
    """The text of the base's licence: from the run, from beside the weights, or from the base's own repository."""
    import httpx
    from huggingface_hub import HfApi, hf_hub_download

    here = [run / name for name in _LICENCE_FILES] + [folder / name for name in _LICENCE_FILES]
    if found := next((path for path in here if path.is_file()), None):
        return found
    try:
        there = {of.rfilename for of in HfApi().model_info(base, timeout=_PATIENCE_S).siblings or ()}
        name = next((name for name in _LICENCE_FILES if name in there), None)
        return Path(hf_hub_download(base, name)) if name else None
    except (httpx.HTTPError, OSError, ValueError):
        return None


def _problems(run: Run, terms: Licence, kind: str, contents: dict[str, Path | bytes]) -> list[str]:
    """Why nobody should get these files, not even their owner."""
    found = []
    if kind == "adapter" and "/" not in terms.base.of:
        found.append(
            f"The adapter names its base as a folder on this machine ({terms.base.of}), which nobody else has. Say "
            "where the Hub has it: terms=publishing.licence(run, base_model='owner/name')."
        )
    for name, of in contents.items():
        if isinstance(of, Path) and (of.suffix not in (".json", ".md", ".txt", "") or of.stat().st_size > _SMALL):
            continue
        text = of.decode() if isinstance(of, bytes) else of.read_text(encoding="utf-8", errors="replace")
        if without_secrets(text) != text:
            found.append(f"{name} holds what looks like a key or a token. Take it out, and make the key invalid.")
        if name == "README.md" and without_paths(text) != text:
            found.append(f"{run / CARD} names a folder of this machine. Take it out.")
    return found


def _unproved(chosen: list[Path], kind: str) -> list[str]:
    """Why nobody knows that a merged model or a GGUF answers as what it was made of."""
    if kind == "adapter":
        return []
    made = chosen[0] if kind == "gguf" else chosen[0].parent
    known = places.record(made.parent).get(made.name, {})
    proved = known.get("parity", {})
    now = files.digest(made) if kind == "gguf" else merging.merged_digest(made)
    if now != (known.get("sha256") if kind == "gguf" else proved.get("of")):
        proved = {}
    if proved.get("passed"):
        return []
    way = f"publishing.parity({'merged' if kind == 'gguf' else 'run'}, {str(made)!r})"
    if proved:
        return [f"{made.name} did not answer as what it was made of: see {way}."]
    return [f"Nobody has proved that {made.name} answers as what it was made of. Compare them: {way}."]


def _public_problems(run: Run, terms: Licence, name: str, contents: dict[str, Path | bytes]) -> list[str]:
    """Which duties that can be checked a public upload would break."""
    from huggingface_hub import ModelCard

    base, found = terms.base, []
    card = contents["README.md"]
    text = card.decode() if isinstance(card, bytes) else ""
    if not base.fits(name):
        found.append(
            f"The {base.title} wants the name of a published model to begin with {base.begins!r}: {name!r} does not. "
            f"{base.fitting(name)!r} would do."
        )
    if base.shown and base.shown not in text:
        found.append(f'The {base.title} wants "{base.shown}" on the model\'s page. Put it into {run / CARD}.')
    if base.copy and "LICENSE" not in contents:
        found.append(
            f"The {base.title} wants its text to go with the weights, and it could not be fetched. Save it from "
            f"{base.link} as {run / 'LICENSE'}."
        )
    wanted, said = terms.metadata()["license"], ModelCard(text, ignore_metadata_errors=True).data.get("license")
    if said != wanted and wanted != "unknown":
        found.append(f"{run / CARD} says license: {said}, and base and data make it {wanted}. Correct it.")
    return found


def _page(endpoint: str | None = None) -> str:
    from huggingface_hub import constants

    return f"{(endpoint or constants.ENDPOINT).rstrip('/')}/settings/tokens"


@contextmanager
def _explained(repo_id: str, endpoint: str | None) -> Iterator[None]:
    """Turn what `huggingface_hub` raises into a HubError that says what to do."""
    import httpx
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except (httpx.HTTPError, OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        reason = "" if isinstance(error, OfflineModeIsEnabled) else _reason(error, repo_id, endpoint)
        offline = "HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it and restart the kernel."
        # their own errors hold the request with its token
        raise HubError(f"{repo_id} was not uploaded; the files here are as they were. {reason or offline}") from None


def _reason(error: BaseException, repo_id: str, endpoint: str | None) -> str:
    """What went wrong in an upload, and what to do."""
    owner, page = repo_id.partition("/")[0], _page(endpoint)
    again = "Call push again later: what has arrived is not sent again."
    response: Any = None
    chain: BaseException | None = error
    while chain is not None and response is None:  # an error of a thread that uploads stands below another
        response, chain = getattr(chain, "response", None), chain.__cause__ or chain.__context__
    if response is None:
        told = " ".join(str(error).split())[:200] or type(error).__name__
        return f"The Hub cannot be reached, or broke off: {without_secrets(told)}. {again}"
    status = response.status_code
    reasons = {
        400: "The Hub does not take a file or the card.",
        401: f"The Hub does not know the token: it is wrong, or no longer valid. Make one at {page}. {_LOGIN}.",
        402: f"The Hub wants payment: {owner}'s storage is used up. Free some at {page.rpartition('/')[0]}/billing.",
        403: f"The token may not write to {owner}. Make one with the role Write, or with write access to the "
        f"repositories of {owner}, at {page}.",
        404: f"There is no {repo_id} that this token may see. Is {owner} your name, or an organisation that you "
        f"belong to? The token's rights stand at {page}.",
        409: f"Something else is being changed in {repo_id} at this moment. {again}",
        412: f"{repo_id} was changed meanwhile. {again}",
        413: "A file is larger than the Hub takes.",
        429: f"The Hub takes no more requests for now. {again}",
    }
    failed = f"The Hub failed (status {status}). {again}"
    said = " ".join(str(getattr(error, "server_message", None) or "").split())[:200]
    asked = f" It said: {without_secrets(said)}" if said else ""
    return f"{reasons.get(status, failed)}{asked}"
