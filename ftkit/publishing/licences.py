"""Under which licences a fine-tuned model stands: read from its base and its data, with the duties of the known ones.

A base is asked twice: its own card, on the Hub or in its folder, and a dated table of families by name
(`samples/licences.json`), since cards of fine-tunes often forget what their base demands. What neither tells is
unknown, and said to be. Knows names and cards, and nothing of uploads; a lawyer knows more.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ftkit import files, models, tables
from ftkit.runs import Run
from ftkit.tables import Table

_USES = ("free", "conditions", "research", "unknown")  # the later, the less is allowed
_MEANT = {
    "free": "free to publish",
    "conditions": "may be published, with duties",
    "research": "no commercial use, or research alone",
    "unknown": "unknown",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ENDS = r"\s`'\"|<>/\\"  # what ends the name of a folder in running text
_HOME = re.compile(rf"(?<!\w)(?:[A-Za-z]:)?[\\/](?:home|Users)[\\/][^{_ENDS}]+?(?=[.,;:)]*(?:[\s`'\"|<>]|$))")
_FOLDERS = re.compile(rf"(?<![\w/:.\\~])(?:~[\\/]|(?:[A-Za-z]:|\\)?[\\/](?:[^{_ENDS}]+[\\/]))(?:[^{_ENDS}]+[\\/])*")
_PATIENCE_S = 10  # with the Hub
_DATASETS = "https://huggingface.co/datasets/"


@dataclass(frozen=True)
class Terms:
    """What one licence, or several together, ask of somebody who publishes.

    Args:
        of: what stands under it: a base model or a dataset.
        id: the Hub's identifier, or "unknown"; several are joined by "and".
        title: its name.
        use: "free", "conditions", "research" or "unknown".
        source: how it is known.
        link: where its text is.
        duties: a sentence each.
        begins: how the name of a published model has to begin; "" where it may be called anything.
        shown: words that its page has to show.
        notice: the text of a notice file.
        copy: whether the text of the licence has to come with the weights.
        on_hub: whether the Hub has an identifier for it.
        doubt: why the licence may be another one; "" where nothing speaks against it.
    """

    of: str
    id: str
    title: str
    use: str
    source: str
    link: str = ""
    duties: tuple[str, ...] = ()
    begins: str = ""
    shown: str = ""
    notice: str = ""
    copy: bool = False
    on_hub: bool = True
    doubt: str = ""

    def fits(self, name: str) -> bool:
        """Whether a published model may bear this name."""
        return re.sub("[-_ ]", "", name).startswith(re.sub("[-_ ]", "", self.begins))

    def fitting(self, name: str) -> str:
        """The name, so that it begins as it has to."""
        rest = re.sub(rf"^(?:meta[-_ ]?)?{self.begins[:5]}[-_ ]?", "", name, flags=re.IGNORECASE) if self.begins else ""
        return name if self.fits(name) else f"{self.begins}-{rest}".rstrip("-")


@tables.shown
@dataclass(frozen=True)
class Licence:
    """The terms of a fine-tuned model: those of its base, and those of the data that it was trained on."""

    base: Terms
    data: Terms
    date: str

    @property
    def open_questions(self) -> tuple[str, ...]:
        """What somebody has to know, or to confirm, before the model is public."""
        asked = []
        for called, terms in (("base", self.base), ("data", self.data)):
            if terms.use == "unknown":
                way = f"State it where you know it: publishing.licence(run, {called}_licence=...)."
                asked.append(f"The licence of {terms.of} is unknown: {terms.source}. {way}")
            if terms.use == "research":
                asked.append(f"{terms.of} stands under the {terms.title}. {terms.duties[0]}")
            if terms.doubt:
                asked.append(terms.doubt)
        return tuple(asked)

    @property
    def duties(self) -> tuple[str, ...]:
        """What a publisher has to do, each duty once."""
        return tuple(dict.fromkeys((*self.base.duties, *self.data.duties)))

    def metadata(self) -> dict[str, str]:
        """The licence's fields in a card on the Hub; the stricter one counts, and beside a base with duties both."""
        base, data = self.base, self.data
        if _USES.index(data.use) <= max(1, _USES.index(base.use)):
            chosen, names = base, [base.id]
        elif base.use == "free":
            chosen, names = data, [data.id]
        else:
            chosen, names = base, [base.id, data.id]
        if "unknown" in names:
            return {"license": "unknown"}
        if chosen.on_hub and len(names) == 1 and " and " not in names[0]:
            return {"license": names[0]}
        return {"license": "other", "license_name": " and ".join(names).replace(" ", "-"), "license_link": chosen.link}

    def _parts(self) -> list[Table | str]:
        rows = [
            (called, terms.of, terms.title, _MEANT.get(terms.use, terms.use), terms.source)
            for called, terms in (("base model", self.base), ("training data", self.data))
        ]
        parts: list[Table | str] = [Table(("", "which", "licence", "use", "how it is known"), rows, prose=True)]
        if self.duties:
            parts.append(Table(("duty",), [(duty,) for duty in self.duties], prose=True))
        parts += [f"Open: {question}" for question in self.open_questions]
        return [*parts, f"By a table of {self.date}; the licences' own texts decide, and this is no legal advice."]


def licence(
    of: Run | str | Path,
    *,
    base_model: str | None = None,
    base_licence: str | None = None,
    data_licence: str | None = None,
) -> Licence:
    """Which licences bind what was trained in a run, or what would be trained on a base model of this name.

    The Hub is asked for the base's card where it can be reached.

    Args:
        of: a run with an adapter; or a base model, as `models.load` takes it.
        base_model: the base's Hub id, where the run knows it as a folder on this machine.
        base_licence: what you know it to be, by the Hub's identifier such as "llama3.2"; goes before what is read.
        data_licence: likewise of the training data; several are joined by " and ". For a bundled dataset, and one
            that the Hub's card describes, the run knows it.

    Raises:
        MissingArtifact: the run has no adapter, so nothing says what its base is.
        ModelError: its adapter_config.json is damaged.
    """
    run = of if isinstance(of, Run) else None
    name = base_model or (models.base_of(run.require("adapter")) if run else str(of))
    trained = run.facts.get("train") if run else None
    facts = trained if isinstance(trained, dict) else {}
    source = str(facts.get("data_source") or "the training data").removeprefix(_DATASETS)
    known, how = data_licence or facts.get("data_licence"), "stated by you" if data_licence else "its own facts"
    if not known:
        return Licence(_base(name, base_licence), _unknown(source, "nobody stated it"), _table()["date"])
    split = re.split(r" and |\n+", str(known))
    return Licence(
        _base(name, base_licence), _together([_terms(source, id, how) for id in split]), str(_table()["date"])
    )


def without_paths(text: str) -> str:
    """The text with folders cut off file names: they tell whose machine it was."""
    here = {str(Path.home()), str(Path.cwd())} - {Path.home().anchor}
    for folder in sorted(here, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return _FOLDERS.sub("", _HOME.sub("", text))


def _base(name: str, stated: str | None) -> Terms:
    """The terms of a base model."""
    called = models.HUB_ID if name == models.BUNDLED or Path(name) == models.bundled_location() else name
    shown = Path(called).name if Path(called).is_dir() or not _HUB_ID.fullmatch(called) else called
    if stated:
        return _terms(shown, stated, "stated by you")
    if called == models.HUB_ID:
        return _terms(shown, "apache-2.0", "it comes with ftkit")
    card, why = _card(called)
    family = _family(called, *card.get("base_model", ()))
    by_table = (
        _terms(shown, family["licence"], f"its name, by a table of {_table()['date']}; {why}") if family else None
    )
    if not card.get("license"):
        return by_table or _unknown(shown, why)
    own = _together([_terms(shown, id, "its own card") for id in card["license"]])
    official = family is not None and called.startswith(f"{family.get('owner')}/")
    if by_table is None or official or by_table.id == own.id or by_table.use in ("free", "unknown"):
        return own
    doubt = f"The card of {shown} says {own.id}, but its name or base speaks of {by_table.title}, which goes on to it."
    return replace(by_table, doubt=doubt)


def _card(name: str) -> tuple[dict[str, list[str]], str]:
    """License and bases as a model's own card tells them, and why it tells none."""
    import httpx
    from huggingface_hub import HfApi, ModelCard
    from huggingface_hub.errors import RepositoryNotFoundError

    readme = Path(name) / "README.md"
    try:
        if readme.is_file():
            found = ModelCard.load(str(readme), ignore_metadata_errors=True).data
        elif Path(name).is_dir() or not _HUB_ID.fullmatch(name):
            return {}, "its folder has no README.md" if Path(name).is_dir() else "it is no name of a model on the Hub"
        else:  # says it of gated models too, whose files nobody gets
            found = HfApi().model_info(name, timeout=_PATIENCE_S).card_data or ModelCard("").data
    except RepositoryNotFoundError:
        return {}, "the Hub has no such model, or a private one"
    except (httpx.HTTPError, OSError, ValueError):
        return {}, "the Hub could not be asked for its card"
    ids = _listed(found.get("license"))
    if ids == ["other"]:
        ids = _listed(found.get("license_name")) or ids
    return {"license": ids, "base_model": _listed(found.get("base_model"))}, "its card names no licence"


def _listed(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value]) if one]


def _family(*names: str) -> Mapping[str, str] | None:
    """The first family in the table that the first of these names belongs to, else that of the next."""
    for name in names:
        told = "/".join(Path(name).parts[-2:]).lower() if not Path(name).is_dir() else Path(name).name.lower()
        for family in _table()["families"]:
            if re.search(family["match"], told):
                return dict(family)
    return None


def _terms(of: str, id: str, source: str) -> Terms:
    known = _table()["licences"].get(id.strip().lower())
    if id.strip().lower() == "unknown":
        return _unknown(of, "nobody stated it")
    if known is None:
        return _unknown(of, f"{id.strip()!r}, from {source}, is not in the table of {_table()['date']}")
    kept = {key: known[key] for key in ("title", "use", "link", "begins", "shown", "notice", "copy") if key in known}
    duties = tuple(known["duties"])
    return Terms(of, id.strip().lower(), source=source, duties=duties, on_hub=known.get("hub", True), **kept)


def _unknown(of: str, why: str) -> Terms:
    return Terms(
        of, "unknown", "unknown", use="unknown", source=why, duties=tuple(_table()["licences"]["unknown"]["duties"])
    )


def _together(all_: Iterable[Terms]) -> Terms:
    """Several licences on one thing: the strictest use, and every duty."""
    each = sorted(all_, key=lambda terms: _USES.index(terms.use), reverse=True)
    first, ids = each[0], list(dict.fromkeys(terms.id for terms in each))
    if len(ids) == 1 or first.use == "unknown":
        return first
    duties = dict.fromkeys(itertools.chain.from_iterable(terms.duties for terms in each))
    titles = " and ".join(dict.fromkeys(terms.title for terms in each))
    return replace(first, id=" and ".join(ids), title=titles, duties=tuple(duties))


@cache
def _table() -> Any:
    return files.sample("licences")
