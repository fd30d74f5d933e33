"""The questionnaire as a person fills it in: in JupyterLab, in a browser, with the keys and the mouse."""

import json
import os
from pathlib import Path

import pytest

from ftkit import decision

pytestmark = pytest.mark.slow

CELLS = [
    "from ftkit import decision\nform = decision.decision_form()\nform",
    "print('first:', form.recommendation.approaches)\nprint(form.value)",
]
ANSWERS = {"prompting": "not_enough", "need": "both", "format": "schema", "examples": "many", "budget": "some"}


@pytest.fixture
def page(browser, lab):
    """A notebook with the form, run down to it."""
    address, root = lab
    cells = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
        for i, source in enumerate(CELLS)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": cells}
    (root / "decide.ipynb").write_text(json.dumps(notebook))
    opened = browser.new_page(viewport={"width": 1250, "height": 1500})
    opened.set_default_timeout(300_000)
    opened.goto(f"{address}/doc/tree/decide.ipynb")
    opened.get_by_text("| Idle").first.wait_for()
    opened.locator(".jp-Cell").first.click()
    opened.keyboard.press("Escape")
    opened.keyboard.press("Shift+Enter")
    opened.locator(".ftkit-panel .ftkit-say").wait_for()
    yield opened
    opened.close()


def test_answers_change_the_recommendation_and_the_tree(page, tmp_path):
    """Each choice changes the picture, the last the sentence; the cell below the form reads what was chosen."""
    shots = Path(os.environ.get("FTKIT_SCREENSHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    panel, tree = page.locator(".ftkit-panel").first, page.locator(".ftkit-panel img")
    asked = json.loads((Path(decision.__file__).parents[1] / "samples/guide.json").read_text())["questions"]
    assert panel.locator("select").count() == len(asked)
    assert "write a careful prompt" in page.locator(".ftkit-say").inner_text()
    panel.screenshot(path=shots / "decision_1_opened.png")

    wanted = {}
    for name, option in ANSWERS.items():
        before = tree.get_attribute("src")
        page.locator(f".ftkit-ask-{name} select").select_option(label=asked[name]["options"][option]["label"])
        wanted |= {name: option}
        said = decision.recommend(wanted).say
        page.locator(".ftkit-say", has_text=said).wait_for()
        if name != "format":  # on this way the tree does not ask for it
            page.wait_for_function(f"document.querySelector('.ftkit-panel img').src !== {json.dumps(before)}")
    panel.get_by_text("Constrained decoding goes with every approach").wait_for()
    panel.get_by_text("Zhang et al. 2024, RAFT", exact=False).wait_for()
    panel.screenshot(path=shots / "decision_2_answered.png")

    page.get_by_text("form.recommendation.approaches").first.click()
    page.keyboard.press("Control+Enter")
    page.get_by_text("first: ('rag', 'fine_tune', 'constrained')").wait_for()
    page.get_by_text("'need': 'both'").first.wait_for()
