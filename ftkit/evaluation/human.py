"""A form on which people rate answers without knowing whose they are. What they said is the business of `ratings`.

The keys go into a text box that takes one character: plain ipywidgets have no other key handler, a script would be
taken out of an untrusted page, and outside of a text box JupyterLab obeys the keys itself.
"""

import itertools
import random
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ftkit import figures, files, tables
from ftkit.errors import ConfigError, DataError, FtkitError
from ftkit.evaluation.ratings import (
    HIGHEST,
    LOWEST,
    Item,
    Kind,
    Rating,
    Ratings,
    Sample,
    Systems,
    rating_of,
    read_files,
)
from ftkit.tables import escaped

PREFERENCES = {"left": 1.0, "right": 0.0, "tie": 0.5, "both bad": 0.5}  # for what stands on the left
_TOO_SOON_S = 0.3  # the second half of a double click, a key held down: nobody has read anything
_BUTTONS: dict[str, dict[str, tuple[str, str | int]]] = {
    "pair": {
        "1": ("left is better", "left"),
        "2": ("right is better", "right"),
        "3": ("tie", "tie"),
        "4": ("both bad", "both bad"),
    },
    "scale": {
        "1": ("useless", 1),
        "2": ("poor", 2),
        "3": ("usable", 3),
        "4": ("good", 4),
        "5": ("excellent", 5),
    },
}
_MOVES: dict[str, tuple[str, str | int]] = {"b": ("back", "back"), "s": ("skip", "skip")}
_QUESTIONS = {"pair": "Which answer is better?", "scale": "How good is this answer?"}


def rating_form(
    systems: Systems,
    folder: str | Path,
    *,
    rater: str = "me",
    kind: Kind = "pair",
    question: str = "",
    seed: int = 0,
) -> "RatingForm":
    """A form on which a person rates answers without knowing whose they are; each rating is on disk at once.

    Order and sides are drawn from `seed` and the rater's name. Whoever calls it again goes on where they stopped.
    As the last line of a cell it is the form; `.ratings` is what is on file. Without a front end it is that alone, and
    `read_ratings` reads the same files later.

    Args:
        systems: `{name: rows}` or `{name: EvalReport}`; rows have `prompt`, `answer` and the same `id` in each system.
            In pairs there are two: the baseline, then the model.
        folder: where `<rater>.jsonl` is kept; people who rate the same sample share it.
        rater: whose ratings these are; the name stands in the file.
        kind: "pair" shows two answers side by side, "scale" one that gets 1 to 5.
        question: what to judge by, shown above the answers.
        seed: another one draws other sides.

    Raises:
        ConfigError: a name that cannot be a file's, an unknown kind, or pairs of more or fewer than two systems.
        DataError: rows that cannot be rated, or the file holds ratings of another sample.
    """
    sample = Sample.of(systems)
    if kind not in ("pair", "scale"):
        raise ConfigError(f"kind={kind!r} is unknown. Choose pair or scale.")
    if kind == "pair" and len(sample.systems) != 2:
        raise ConfigError(f"Pairs are of two systems, and here are {len(sample.systems)}. Take two, or kind='scale'.")
    if not re.fullmatch(r"\w[\w .-]{0,39}", str(rater)):
        raise ConfigError(f"rater={rater!r} is no name of a file: letters, digits, blanks, dots, up to 40 of them.")
    return RatingForm(sample, Path(folder) / f"{rater}.jsonl", rater, kind, question, seed)


@tables.shown
class RatingForm:
    """A sample being rated by one person. Made by `rating_form`."""

    def __init__(self, sample: Sample, path: Path, rater: str, kind: Kind, question: str, seed: int) -> None:
        self.path, self.rater, self.kind = path, rater, kind
        self._sample, self._question = sample, question
        self._shown = _drawn(sample, kind, f"{seed}/{rater}")
        self._rated: dict[tuple[str, str], Rating] = {}
        for rating in self.ratings.rows:
            if rating.rater != rater or bool(rating.system) != (kind == "scale"):
                raise DataError(f"{path} holds ratings of {rating.rater!r}, or of another kind. Choose another folder.")
            self._rated[rating.item, rating.system] = rating
        self._panel: _Panel | None = None
        self._at, self._since, self._message = 0, 0.0, ""
        self._go(self._next_unrated())

    @property
    def ratings(self) -> Ratings:
        """What is on file from this rater."""
        paths = [self.path] if self.path.is_file() else []
        return read_files(paths, self._sample)

    @property
    def done(self) -> bool:
        """Whether everything is rated."""
        return len(self._rated) == len(self._shown)

    def rate(self, choice: str | int, note: str = "") -> None:
        """Rate what is shown, as the buttons do: left, right, tie or both bad; on the scale 1 to 5.

        Raises:
            ConfigError: no such choice, or nothing is left to rate.
            StorageError: it cannot be written; then it does not count either.
        """
        options = list(PREFERENCES) if self.kind == "pair" else list(range(LOWEST, HIGHEST + 1))
        if isinstance(choice, bool) or choice not in options:
            raise ConfigError(f"{choice!r} is no choice. Choose one of: {', '.join(map(str, options))}.")
        if self._at >= len(self._shown):
            raise ConfigError("Everything is rated. back() shows the last one again.")
        item, order = self._shown[self._at]
        seconds = round(time.monotonic() - self._since, 1)
        row: dict[str, Any] = {"sample": self._sample.digest, "rater": self.rater, "item": item.id}
        left = self._sample.systems[order[0]]
        if self.kind == "pair":
            preference = PREFERENCES[str(choice)]
            if order[0] == 0:  # the baseline stands on the left
                preference = 1 - preference
            row |= {"choice": choice, "left": left, "preference": preference}
        else:
            row |= {"system": left, "rating": choice}
        row |= {"note": note, "seconds": seconds, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        files.append_jsonl(self.path, row)
        rating, _ = rating_of(row, self.rater, self._sample)
        assert rating is not None
        self._rated[rating.item, rating.system] = rating
        self._go(self._next_unrated(self._at + 1))

    def back(self) -> None:
        """Show the one before, to rate it again."""
        self._go(max(0, self._at - 1))

    def skip(self) -> None:
        """Leave this one for later."""
        self._go(self._next_unrated(self._at + 1))

    @property
    def panel(self) -> Any:
        """The widgets, made on first use."""
        if self._panel is None:
            self._panel = _Panel(self.kind, self._question, self._act)
            self._go(self._at)
        return self._panel.root

    def _next_unrated(self, start: int = 0) -> int:
        """Place of the next that is not rated, round the end; past the end where there is none."""
        places = [*range(start, len(self._shown)), *range(min(start, len(self._shown)))]
        return next((place for place in places if self._key(place) not in self._rated), len(self._shown))

    def _key(self, place: int) -> tuple[str, str]:
        item, order = self._shown[place]
        return item.id, "" if self.kind == "pair" else self._sample.systems[order[0]]

    def _act(self, what: str | int, note: str) -> None:
        """What a person did on the panel; a refusal becomes its message."""
        self._message = ""
        moves = {"back": self.back, "skip": self.skip}
        try:
            if what in moves:
                moves[str(what)]()
            elif time.monotonic() - self._since >= _TOO_SOON_S:
                self.rate(what, note)
        except FtkitError as error:
            self._message = str(error)
            self._show()

    def _go(self, place: int) -> None:
        self._at, self._since = place, time.monotonic()
        self._show()

    def _show(self) -> None:
        if self._panel is None:
            return
        card, given, total = None, len(self._rated), len(self._shown)
        if self._at < total:
            item, order = self._shown[self._at]
            earlier = self._rated.get(self._key(self._at))
            chosen: str | int = ""
            if earlier is not None:
                chosen = earlier.choice if self.kind == "pair" else int(earlier.value)
            texts = tuple(item.answers[system] for system in order)
            card = _Card(self._at + 1, _as_text(item.prompt), texts, chosen, earlier.note if earlier else "")
        spent = [rating.seconds for rating in self._rated.values() if rating.seconds is not None]
        left_s = statistics.median(spent) * (total - given) if len(spent) >= 3 else None
        self._panel.show(card, given, total, left_s, str(self.path), self._message)

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(self.panel if figures.front_end() else HTML(self._repr_html_()))  # type: ignore[attr-defined]

    def _parts(self) -> list[Any]:
        return [f"{len(self._rated)} of {len(self._shown)} are rated, in {self.path}.", *self.ratings._parts()]


def _drawn(sample: Sample, kind: Kind, seed: str) -> list[tuple[Item, tuple[int, ...]]]:
    """What is shown, in order: each item with its systems from left to right; each system is left in half the pairs."""
    lot, shown = random.Random(seed), list[tuple[Item, tuple[int, ...]]]()
    if kind == "scale":
        shown = [(item, (system,)) for item, system in itertools.product(sample.items, range(len(sample.systems)))]
    else:
        sides: list[tuple[int, ...]] = [(0, 1) if number % 2 else (1, 0) for number in range(len(sample.items))]
        lot.shuffle(sides)
        shown = list(zip(sample.items, sides, strict=True))
    lot.shuffle(shown)
    return shown


def _as_text(prompt: Any) -> str:
    """A prompt to be read: of messages each turn under its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"[{turn.get('role')}]\n{turn.get('content')}" for turn in prompt)


@dataclass(frozen=True)
class _Card:
    """What is rated now: its number, prompt, answers from left to right, and what was said of it before."""

    number: int
    prompt: str
    answers: tuple[str, ...]
    chosen: str | int = ""
    note: str = ""


class _Panel:
    """Widgets of one form; `act(what, note)` is called with a choice, "back" or "skip"."""

    def __init__(self, kind: str, question: str, act: Callable[[str | int, str], None]) -> None:
        import ipywidgets

        self._w, self._act, self._silent = ipywidgets, act, False
        self._question = question or _QUESTIONS[kind]
        self._keys = _BUTTONS[kind] | _MOVES
        layout = ipywidgets.Layout
        wide = layout(width="auto")  # not 100 %: margins would push it over the edge
        self.head, self.card = ipywidgets.HTML(layout=wide), ipywidgets.HTML(layout=wide)
        self.buttons = {what: self._button(key, text, what) for key, (text, what) in self._keys.items()}
        self.key = ipywidgets.Text(placeholder=f"keys: {' '.join(self._keys)}", layout=layout(width="150px"))
        self.note = ipywidgets.Text(placeholder="note (optional)", layout=layout(flex="1 1 220px", width="auto"))
        self.message = ipywidgets.HTML(layout=wide)
        self.key.add_class("ftkit-rating-key")
        self.note.add_class("ftkit-rating-note")
        self.key.observe(self._typed, names="value")
        style = resources.files("ftkit").joinpath("samples/rating.css").read_text(encoding="utf-8")
        sheet = ipywidgets.HTML(f"<style>\n{style}</style>", layout=layout(display="none"))
        row = layout(width="auto", flex_flow="row wrap", align_items="center")
        controls = ipywidgets.HBox(list(self.buttons.values()), layout=row)
        boxes = ipywidgets.HBox([self.key, self.note], layout=row)
        self.root = ipywidgets.VBox([sheet, self.head, self.card, controls, boxes, self.message])
        self.root.add_class("ftkit-rating")

    def _button(self, key: str, text: str, what: str | int) -> Any:
        button = self._w.Button(description=f"{key} · {text}", layout=self._w.Layout(width="auto"))
        if key in _MOVES:
            button.add_class("ftkit-rating-move")
        button.on_click(lambda _: self._done(what))
        return button

    def _typed(self, change: Any) -> None:
        """Obey the character that was typed last, and empty the box."""
        typed = change["new"].strip()[-1:].lower()
        if self._silent or not change["new"]:
            return
        self._silent = True
        self.key.value = ""
        self._silent = False
        if typed in self._keys:
            self._done(self._keys[typed][1])

    def _done(self, what: str | int) -> None:
        self._act(what, self.note.value)
        if hasattr(self.key, "focus"):  # since ipywidgets 8: after a click the keys work at once
            self.key.focus()

    def show(self, card: _Card | None, given: int, total: int, left_s: float | None, path: str, message: str) -> None:
        """Show a card, or the end where there is none; how far the rater is, and what went wrong."""
        left = ""
        if left_s is not None and given < total:
            minutes = round(left_s / 60)
            left = f" · about {minutes} min left" if minutes > 1 else " · a minute left"
        place = f" · number {card.number}" if card else ""
        words = f"<b>{given} of {total}</b> rated{left}{place}<span>saved in {escaped(path)}</span>"
        bar = f'<progress value="{given}" max="{total}"></progress>'
        self.head.value = f'<div class="ftkit-rating-head">{bar}<div>{words}</div></div>'
        self.card.value = _page(card, self._question)
        for what, button in self.buttons.items():
            chosen = card is not None and what == card.chosen
            button.button_style = "info" if chosen else ""
            button.disabled = card is None and what != "back"
        if not message:
            self.note.value = card.note if card else ""
        self.message.value = f'<div class="ftkit-rating-failed">{escaped(message)}</div>' if message else ""


def _page(card: _Card | None, question: str) -> str:
    """The prompt above the answers; every text escaped, each scrolling by itself."""
    if card is None:
        return '<div class="ftkit-rating-end">✓ Everything is rated. Thank you.</div>'
    names = ("Left", "Right") if len(card.answers) == 2 else ("Answer",)
    columns = ""
    for name, answer in zip(names, card.answers, strict=True):
        text = escaped(answer) if answer.strip() else "<i>(an empty answer)</i>"
        columns += f'<div class="ftkit-rating-answer"><h4>{name}</h4><div class="ftkit-rating-text">{text}</div></div>'
    asked = f'<h4>Prompt</h4><div class="ftkit-rating-text ftkit-rating-prompt">{escaped(card.prompt)}</div>'
    told = f'<div class="ftkit-rating-question">{escaped(question)}</div>'
    return f'{asked}<div class="ftkit-rating-answers">{columns}</div>{told}'
