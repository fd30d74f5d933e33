"""Sliders, boxes and charts of the panel: every allowed value can be reached, typed and read back."""

import pytest

from ftkit.config import TrainConfig
from ftkit.training import HistoryPoint
from ftkit.tuning.consequences import as_text
from ftkit.tuning.panel import SPECS, Panel, parse, stops

NUMBERS = [name for name, spec in SPECS.items() if spec.metadata["low"] is not None]


@pytest.mark.parametrize("name", NUMBERS)
def test_sliders_end_where_the_setting_does(name):
    """Ends and default are on the slider, in order, and every stop is allowed."""
    values = stops(name)
    facts = SPECS[name].metadata
    assert (values[0], values[-1]) == (facts["low"], facts["high"])
    assert SPECS[name].default in values
    assert values == sorted(set(values))
    for value in values:
        TrainConfig().replace(**{name: value} | ({"eval_steps": 5} if name == "early_stopping_patience" else {}))


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_survive_being_written_and_typed(name):
    assert [parse(name, as_text(value)) for value in stops(name)] == stops(name)


def test_a_stopped_run_keeps_its_axis_and_loses_its_bar():
    """The curve does not stretch when the run ends."""
    panel = Panel((), trainable=True, act=print)
    points = [HistoryPoint(step, loss=1.0) for step in range(1, 9)]
    panel.progress(points, 400, "Update 8 of 400", running=True, failed=False)
    while_it_ran = panel.live.value
    assert "<progress" in panel.status.value
    panel.progress(points, 400, "Stopped at update 8", running=False, failed=False)
    assert panel.live.value == while_it_ran
    assert "<progress" not in panel.status.value
