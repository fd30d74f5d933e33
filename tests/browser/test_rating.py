"""The rating form as a person uses it, in JupyterLab in a browser: by mouse, by key, over a reload, to the end."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest

from ftkit import evaluation

pytestmark = pytest.mark.slow

PATIENCE_MS = 120_000
HOSTILE = '<img src=x onerror="window.broken = 1"><script>window.broken = 1</script></div><h1>I win</h1>\x1b[2J'
LONG = "A long answer goes on for many lines, each of which a person may want to read.\n" * 60
CELL = f"""from ftkit import evaluation
base = [{{"id": f"q{{i}}", "prompt": f"Question {{i}}?", "answer": f"Due are {{i}} euros."}} for i in range(8)]
tuned = [row | {{"answer": f"{{row['answer']}} Pay by Friday."}} for row in base]
for i, row in enumerate(tuned):
    row["answer"] = [row["answer"], {HOSTILE!r}, {LONG!r}, "no-blank-" * 80][i % 4]
systems = {{"baseline-7b": base, "finetuned-7b": tuned}}
form = evaluation.rating_form(systems, "ratings", rater="ana", kind="KIND")
form"""


@pytest.fixture
def shots(tmp_path):
    """Where pictures of the form go, to be looked at."""
    folder = Path(os.environ.get("FTKIT_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def opened(browser, lab, name, kind):
    """A notebook with the form in its only cell, which has run."""
    address, root = lab
    cell = nbformat.v4.new_code_cell(CELL.replace('"KIND"', repr(kind)).replace('"ratings"', repr(name)))
    python = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=python), root / f"{name}.ipynb")
    page = browser.new_page(viewport={"width": 1100, "height": 1300})
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{address}/doc/tree/{name}.ipynb")
    run(page)
    return page, root / name / "ana.jsonl"


def run(page):
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.get_by_text("| Idle").first.wait_for()
    page.locator(".jp-Cell .cm-content").first.click()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".ftkit-rating .ftkit-rating-text")


def rated(page, count, of=8):
    page.locator(".ftkit-rating-head b", has_text=f"{count} of {of}").wait_for()
    page.wait_for_timeout(350)  # so long a second answer does not count


def typed(page, key):
    page.locator(".ftkit-rating-key input").press_sequentially(key)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_are_rated_by_mouse_and_key_and_go_on_after_a_reload(browser, lab, shots):
    """Each rating is on disk at once, names stay hidden, no answer runs, and the whole file is read back."""
    page, path = opened(browser, lab, "pairs", "pair")
    page.locator(".ftkit-rating").screenshot(path=shots / "rating_1_opened.png")
    page.wait_for_timeout(350)
    page.get_by_role("button", name="left is better").click()
    rated(page, 1)
    assert [line["choice"] for line in lines(path)] == ["left"]

    page.keyboard.press("2")  # the click left the focus in the box
    rated(page, 2)
    typed(page, "3")
    rated(page, 3)
    page.locator(".ftkit-rating-note input").fill("both forget the date")
    page.locator(".ftkit-rating").screenshot(path=shots / "rating_2_noted.png")
    page.get_by_role("button", name="both bad").click()
    rated(page, 4)
    assert [line["choice"] for line in lines(path)] == ["left", "right", "tie", "both bad"]
    assert lines(path)[-1]["note"] == "both forget the date"

    typed(page, "b")
    page.locator(".ftkit-rating .mod-info", has_text="both bad").wait_for()
    page.locator(".ftkit-rating").screenshot(path=shots / "rating_3_back.png")
    page.wait_for_timeout(350)
    typed(page, "1")
    page.locator(".ftkit-rating .mod-info").wait_for(state="detached")
    rated(page, 4)
    assert len(lines(path)) == 5

    page.get_by_role("button", name=re.compile("^Save and create checkpoint")).first.click()
    page.wait_for_function("!document.querySelector('.jp-mod-dirty')")
    page.reload()  # the kernel lives: the form comes back by itself, and a cell that runs again goes on from the file
    rated(page, 4)
    typed(page, "s")
    page.get_by_text("number 6").wait_for()
    run(page)
    page.get_by_text("number 5").wait_for()
    rated(page, 4)
    for count in range(5, 9):
        page.locator(".ftkit-rating").screenshot(path=shots / f"rating_4_number_{count}.png")
        for text in page.locator(".ftkit-rating-answer .ftkit-rating-text").all():
            height, inside, width, across = text.evaluate(
                "e => [e.clientHeight, e.scrollHeight, e.clientWidth, e.scrollWidth]"
            )
            assert height <= 440
            assert across <= width
            assert inside > height or "A long answer" not in text.inner_text()
        typed(page, "12"[count % 2])
        rated(page, count)
    page.locator(".ftkit-rating-end").wait_for()
    page.locator(".ftkit-rating").screenshot(path=shots / "rating_5_end.png")

    assert page.evaluate("window.broken") is None
    assert page.locator(".ftkit-rating h1, .ftkit-rating img, .ftkit-rating script").count() == 0
    shown = page.locator(".ftkit-rating").inner_html()
    assert "baseline" not in shown
    assert "finetuned" not in shown
    found = evaluation.read_ratings(path)
    assert (len(found.rows), found.changed, found.cut) == (8, 1, 0)
    page.close()


def test_a_double_click_rates_one_answer_and_a_narrow_window_stacks_the_answers(browser, lab, shots):
    page, path = opened(browser, lab, "narrow", "pair")
    page.wait_for_timeout(350)
    page.get_by_role("button", name="tie").dblclick()
    rated(page, 1)
    assert len(lines(path)) == 1
    page.set_viewport_size({"width": 620, "height": 1300})
    page.locator(".ftkit-rating").screenshot(path=shots / "rating_6_narrow.png")
    left, right = (box.bounding_box() for box in page.locator(".ftkit-rating-answer").all())
    assert right["y"] >= left["y"] + left["height"]
    page.close()


def test_the_scale_shows_one_answer_at_a_time(browser, lab, shots):
    page, path = opened(browser, lab, "scale", "scale")
    page.wait_for_timeout(350)
    page.get_by_role("button", name="usable").click()
    rated(page, 1, of=16)
    page.keyboard.press("5")
    rated(page, 2, of=16)
    page.locator(".ftkit-rating").screenshot(path=shots / "rating_7_scale.png")
    assert [line["rating"] for line in lines(path)] == [3, 5]
    page.close()
