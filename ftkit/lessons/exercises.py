"""Exercises that answer back: predict before you run, check your own work, see what you should see.

Each says its line and goes on: a wrong answer, a missing one or a headless run never stops a notebook.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ftkit.figures import front_end
from ftkit.tables import escaped


class Prediction:
    """A reader's guess: a slider in a live notebook, None until it is moved, and never in the way of a headless run."""

    def __init__(self, question: str, guess: float | None, low: float, high: float) -> None:
        self.question, self.value, self.low, self.high = question, guess, low, high

    def compare(self, measured: float | None) -> None:
        """Print the guess beside the measurement; None is one that is too noisy to read."""
        if measured is None:
            print(f"○ {self.question}: too noisy to read here, so no guess is right or wrong.")
            return
        if self.value is None:
            print(f"○ {self.question}: measured {_short(measured)}.")
            return
        near = abs(self.value - measured) <= 0.1 * abs(self.high - self.low)
        mark, close = ("✓", ", which is close") if near else ("○", "")
        print(f"{mark} {self.question}: you said {_short(self.value)}, measured {_short(measured)}{close}.")

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(HTML(f"<i>Predict:</i> {escaped(self.question)}"))
        if not front_end():
            return
        import ipywidgets

        slider = ipywidgets.FloatSlider(
            value=self.low,
            min=self.low,
            max=self.high,
            step=(self.high - self.low) / 100,
            readout_format=".3g",
            description="my guess",
            continuous_update=False,
        )
        slider.observe(lambda change: setattr(self, "value", float(change["new"])), names="value")
        display(slider)


def predict(question: str, guess: float | None = None, *, low: float = 0.0, high: float = 1.0) -> Prediction:
    """Ask for a number before the cell that measures it; `.compare(measured)` answers.

    The question has its unit; `guess` is typed here, or made with the slider that a live notebook shows.
    """
    return Prediction(question, guess, low, high)


def check(name: str, answer: Any, expected: Any, *, hint: str = "", tolerance: float = 1e-6) -> bool:
    """Say whether an exercise is solved. `...` or None counts as not yet tried; nothing is raised.

    `expected` is a value, or a function of the answer that says yes or no; `tolerance` is relative, for numbers. The
    hint is shown when the answer is wrong.
    """
    if answer is ... or answer is None:
        print(f"○ {name}: not tried yet.")
        return False
    right = _agrees(answer, expected, tolerance)
    why = f": {hint}" if hint and not right else ""
    print(f"{'✓' if right else '✗'} {name}{why}")
    return right


def you_should_see(what: str, value: float, low: float, high: float) -> bool:
    """Check a number that a run produced against the range that is normal, and say so; nothing is raised."""
    seen, normal = low <= value <= high, f"{_short(low)} to {_short(high)}"
    if seen:
        print(f"✓ {what}: {_short(value)} (wanted {normal})")
    else:
        print(f"✗ {what}: {_short(value)}, but {normal} is normal. Look at the cells above before you go on.")
    return seen


def explore(draw: Callable[..., Any], **choices: tuple[Sequence[Any], Any]) -> Any:
    """Draw a figure that follows sliders; without a person before the kernel, draw it once with the defaults.

    `draw` takes each name of `choices` as an argument; a slider has the values that it offers, and the one that it
    starts at. Gives back the sliders with their figure, which it has displayed, or what `draw` returned.
    """
    if not front_end():
        return draw(**{name: default for name, (_, default) in choices.items()})
    import ipywidgets
    from IPython.display import display

    sliders = {
        name: ipywidgets.SelectionSlider(options=values, value=default, description=name, continuous_update=False)
        for name, (values, default) in choices.items()
    }
    box = ipywidgets.interactive(draw, **sliders)
    display(box)
    return box


def _agrees(answer: Any, expected: Any, tolerance: float) -> bool:
    try:
        if isinstance(expected, Callable):  # type: ignore[arg-type]
            return bool(expected(answer))
        if isinstance(answer, int | float) and isinstance(expected, int | float):
            return math.isclose(answer, expected, rel_tol=tolerance, abs_tol=tolerance)
        same = answer == expected
        return bool(same.all() if hasattr(same, "all") else same)  # arrays and tensors compare element by element
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError):
        return False  # an answer of another kind than the check wants is a wrong answer, not a crash


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
