"""The widgets of the rating form. Shows what it is given and passes on what a person does; knows no system's name.

The keys go into a text box that takes one character: plain ipywidgets have no other key handler, a script would be
taken out of an untrusted page, and outside of a text box JupyterLab obeys the keys itself. Loads ipywidgets on use.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ftkit.tables import escaped

BUTTONS: dict[str, dict[str, tuple[str, str | int]]] = {
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
MOVES: dict[str, tuple[str, str | int]] = {"b": ("back", "back"), "s": ("skip", "skip")}
_QUESTIONS = {"pair": "Which answer is better?", "scale": "How good is this answer?"}


@dataclass(frozen=True)
class Card:
    """What is rated now: its number, prompt, answers from left to right, and what was said of it before."""

    number: int
    prompt: str
    answers: tuple[str, ...]
    chosen: str | int = ""
    note: str = ""


class RatingPanel:
    """Widgets of one form; `act(what, note)` is called with a choice, "back" or "skip"."""

    def __init__(self, kind: str, question: str, act: Callable[[str | int, str], None]) -> None:
        import ipywidgets

        self._w, self._act, self._silent = ipywidgets, act, False
        self._question = question or _QUESTIONS[kind]
        self._keys = BUTTONS[kind] | MOVES
        layout = ipywidgets.Layout
        wide = layout(width="100%")
        self.head, self.card = ipywidgets.HTML(layout=wide), ipywidgets.HTML(layout=wide)
        self.buttons = {what: self._button(key, text, what) for key, (text, what) in self._keys.items()}
        self.key = ipywidgets.Text(placeholder="or type a key here", layout=layout(width="150px"))
        self.note = ipywidgets.Text(placeholder="note (optional)", layout=layout(flex="1 1 220px", width="auto"))
        self.message = ipywidgets.HTML(layout=wide)
        self.key.add_class("ftkit-rating-key")
        self.note.add_class("ftkit-rating-note")
        self.key.observe(self._typed, names="value")
        style = resources.files("ftkit").joinpath("samples/rating.css").read_text(encoding="utf-8")
        sheet = ipywidgets.HTML(f"<style>\n{style}</style>", layout=layout(display="none"))
        row = layout(width="100%", flex_flow="row wrap", align_items="center")
        controls = ipywidgets.HBox(list(self.buttons.values()), layout=row)
        boxes = ipywidgets.HBox([self.key, self.note], layout=row)
        self.root = ipywidgets.VBox([sheet, self.head, self.card, controls, boxes, self.message])
        self.root.add_class("ftkit-rating")

    def _button(self, key: str, text: str, what: str | int) -> Any:
        button = self._w.Button(description=f"{key} · {text}", layout=self._w.Layout(width="auto"))
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

    def show(self, card: Card | None, given: int, total: int, left_s: float | None, path: str, message: str) -> None:
        """Show a card, or the end where there is none; how far the rater is, and what went wrong."""
        left = ""
        if left_s is not None and given < total:
            left = f" · about {max(1, round(left_s / 60))} min left"
        place = f" · number {card.number}" if card else ""
        words = f"<b>{given} of {total}</b> rated{left}{place}<span>saved in {escaped(path)}</span>"
        bar = f'<progress value="{given}" max="{total}"></progress>'
        self.head.value = f'<div class="ftkit-rating-head">{bar}<div>{words}</div></div>'
        self.card.value = _drawn(card, self._question)
        for what, button in self.buttons.items():
            chosen = card is not None and what == card.chosen
            button.button_style = "info" if chosen else ""
            button.disabled = card is None and what != "back"
        if not message:
            self.note.value = card.note if card else ""
        self.message.value = f'<div class="ftkit-rating-failed">{escaped(message)}</div>' if message else ""


def _drawn(card: Card | None, question: str) -> str:
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
