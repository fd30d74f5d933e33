"""People's ratings: blind, kept at once, gone on with, read back; and what is refused."""

import json
import subprocess
import sys

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit import data, evaluation, headless
from ftkit.errors import ConfigError, DataError, StorageError
from ftkit.evaluation.human import PREFERENCES, _drawn
from ftkit.evaluation.ratings import Sample


def answers(by, n=6):
    return [{"id": f"q{i}", "prompt": f"Question {i}?", "answer": f"{by} says {i}"} for i in range(n)]


@pytest.fixture
def systems():
    return {"base": answers("base"), "tuned": answers("tuned")}


@pytest.fixture
def form(systems, tmp_path):
    return evaluation.rating_form(systems, tmp_path, rater="ana")


def on_file(form):
    return [json.loads(line) for line in form.path.read_text().splitlines()]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_preference_is_for_the_model_on_whichever_side_it_stands(form):
    """Left and right become 1 for the model or 0, tie and both bad a half."""
    for choice in ["left", "right", "tie", "both bad", "left", "right"]:
        form.rate(choice)
    for row in on_file(form):
        if row["choice"] in ("tie", "both bad"):
            expected = 0.5
        else:
            model_is_left = row["left"] == "tuned"
            expected = float((row["choice"] == "left") == model_is_left)
        assert row["preference"] == expected
    assert form.done


def test_each_system_stands_left_in_half_of_the_pairs_and_items_are_shuffled(systems):
    shown = _drawn(Sample.of(systems), "pair", "0/ana")
    assert sorted(order for _, order in shown) == [(0, 1)] * 3 + [(1, 0)] * 3
    assert [item.id for item, _ in shown] != [row["id"] for row in systems["base"]]
    assert shown == _drawn(Sample.of(systems), "pair", "0/ana")
    assert shown != _drawn(Sample.of(systems), "pair", "0/ben")


def test_the_scale_shows_every_answer_once(systems, tmp_path):
    form = evaluation.rating_form(systems, tmp_path, kind="scale")
    for number in range(12):
        form.rate(1 + number % 5)
    assert form.done
    rated = {(row["item"], row["system"]) for row in on_file(form)}
    assert rated == {(f"q{i}", system) for i in range(6) for system in systems}


def test_it_goes_on_where_it_stopped(form, systems, tmp_path):
    form.rate("tie")
    form.rate("tie")
    again = evaluation.rating_form(systems, tmp_path, rater="ana")
    for _ in range(4):
        again.rate("left")
    assert again.done
    assert len({row["item"] for row in on_file(again)}) == 6


def test_going_back_replaces_the_rating_and_the_file_keeps_both(form):
    form.rate("left")
    form.back()
    form.rate("tie")
    assert [row["choice"] for row in on_file(form)] == ["left", "tie"]
    assert (len(form.ratings.rows), form.ratings.changed) == (1, 1)
    assert form.ratings.rows[0].choice == "tie"


def test_what_is_skipped_comes_again(form):
    form.skip()
    for _ in range(6):
        form.rate("tie")
    assert form.done
    with pytest.raises(ConfigError, match="Everything is rated"):
        form.rate("tie")


def test_raters_have_a_file_each_and_are_read_together(form, systems, tmp_path):
    form.rate("left")
    evaluation.rating_form(systems, tmp_path, rater="Ben O.").rate("right")
    found = evaluation.read_ratings(tmp_path, systems)
    assert {rating.rater for rating in found.rows} == {"ana", "Ben O."}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Ben O..jsonl", "ana.jsonl"]


def test_preferences_are_averaged_over_raters(tmp_path, systems):
    rows = [{"rater": r, "item": "q1", "preference": p} for r, p in (("a", 1.0), ("b", 0.5))]
    found = evaluation.read_ratings(write(tmp_path / "x.jsonl", *rows), systems)
    assert found.preferences() == {"q0": None, "q1": 0.75, "q2": None, "q3": None, "q4": None, "q5": None}
    assert evaluation.read_ratings(tmp_path / "x.jsonl").preferences() == {"q1": 0.75}


def test_mean_ratings_have_intervals_within_the_scale(tmp_path, systems):
    """Where every rating is 5 the interval does not claim certainty."""
    rows = [
        {"item": f"q{i}", "system": s, "rating": 5 if s == "tuned" else 1 + i % 3} for i in range(6) for s in systems
    ]
    found = evaluation.read_ratings(write(tmp_path / "x.jsonl", *rows), systems)
    means = found.means()
    assert means["tuned"].value == 5 == means["tuned"].high
    assert 3 < means["tuned"].low < 5
    assert means["base"].value == pytest.approx(2)
    assert 1 <= means["base"].low < 2 < means["base"].high <= 4
    with pytest.raises(DataError, match="from 1 to 5, not preferences"):
        found.preferences()


def test_ratings_of_another_sample_are_refused(form, tmp_path):
    """One changed answer is another sample, and so are swapped systems: the preference would point the wrong way."""
    form.rate("left")
    changed = {"base": answers("base"), "tuned": answers("other")}
    swapped = {"tuned": answers("tuned"), "base": answers("base")}
    for other in (changed, swapped):
        with pytest.raises(DataError, match=r"ana.jsonl line 1: is of another sample"):
            evaluation.read_ratings(tmp_path, other)
        with pytest.raises(DataError, match="another sample"):
            evaluation.rating_form(other, tmp_path, rater="ana")


def test_all_that_is_wrong_in_a_file_is_said_at_once(tmp_path, systems):
    rows = [
        {"item": "q0", "preference": float("nan")},
        {"item": "q1", "preference": 1.5},
        {"item": "q2", "preference": True},
        {"item": "q99", "preference": 1},
        {"preference": 1},
        ["q3", 1],
    ]
    with pytest.raises(DataError) as caught:
        evaluation.read_ratings(write(tmp_path / "x.jsonl", *rows), systems)
    said = str(caught.value)
    for number, part in enumerate(["nan", "1.5", "True", "no item 'q99'", "wanted an object", "wanted an object"], 1):
        assert f"x.jsonl line {number}: " in said
        assert part in said.splitlines()[number]


def test_ratings_out_of_range_and_unknown_systems_are_refused(tmp_path, systems):
    rows = [{"item": "q0", "system": "tuned", "rating": 6}, {"item": "q0", "system": "who", "rating": 3}]
    with pytest.raises(DataError, match=r"6 of item 'q0' is no number from 1 to 5(?s:.)*no system 'who'"):
        evaluation.read_ratings(write(tmp_path / "x.jsonl", *rows), systems)


def test_preferences_and_ratings_do_not_mix(tmp_path):
    rows = [{"item": "q0", "system": "tuned", "rating": 3}, {"item": "q0", "preference": 1}]
    with pytest.raises(DataError, match="read either alone"):
        evaluation.read_ratings(write(tmp_path / "x.jsonl", *rows))


def test_files_of_different_samples_are_not_read_together(tmp_path):
    rows = [{"item": "q0", "preference": 1, "sample": "aa"}, {"item": "q1", "preference": 1, "sample": "bb"}]
    with pytest.raises(DataError, match="2 different samples"):
        evaluation.read_ratings(write(tmp_path / "x.jsonl", *rows))


@given(kept=st.integers(0, 4), cut=st.integers(1, 40))
@settings(max_examples=20)
def test_a_line_that_a_kill_cut_loses_itself_alone(tmp_path_factory, kept, cut):
    """Whatever was whole is kept, what comes next does not grow onto the half, and the loss is counted."""
    folder = tmp_path_factory.mktemp("cut")
    systems = {"base": answers("base"), "tuned": answers("tuned")}
    form = evaluation.rating_form(systems, folder, rater="ana")
    for _ in range(kept + 1):
        form.rate("tie")
    written = form.path.read_bytes()
    whole = b"".join(written.splitlines(keepends=True)[:kept])
    form.path.write_bytes(written[: len(whole) + cut])
    again = evaluation.rating_form(systems, folder, rater="ana")
    assert (len(again.ratings.rows), again.ratings.cut) == (kept, 1)
    again.rate("left")
    assert (len(again.ratings.rows), again.ratings.cut) == (kept + 1, 1)


def test_a_page_is_no_file_of_ratings(tmp_path):
    (tmp_path / "x.jsonl").write_text("<html>\nnot found\n</html>\n")
    with pytest.raises(DataError, match="no line of JSON"):
        evaluation.read_ratings(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="No file"):
        evaluation.read_ratings(tmp_path / "y.jsonl")


def test_all_that_cannot_be_rated_is_said_at_once():
    base = [{"id": "a", "prompt": "p", "answer": float("nan")}, {"id": "a", "prompt": "p", "answer": "x"}]
    tuned = [{"id": "b", "prompt": "p", "answer": "x"}]
    with pytest.raises(DataError) as caught:
        evaluation.rating_form({"base": base, "tuned": tuned}, "nowhere")
    for part in ("answer is nan", "'a' stands there twice", "did not answer the same prompts: 'a', 'b'"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("more", "match"),
    [({"rater": "../ana"}, "no name of a file"), ({"rater": ""}, "no name of a file"), ({"kind": "stars"}, "unknown")],
)
def test_settings_that_make_no_form_are_refused(systems, tmp_path, more, match):
    with pytest.raises(ConfigError, match=match):
        evaluation.rating_form(systems, tmp_path, **more)


def test_pairs_are_of_two_systems(tmp_path):
    with pytest.raises(ConfigError, match="here are 1"):
        evaluation.rating_form({"base": answers("base")}, tmp_path)


@pytest.mark.parametrize("row", ["text", {"prompt": ["hi"], "answer": "x"}, {"prompt": None, "answer": "x"}])
def test_rows_of_another_shape_are_refused(row):
    with pytest.raises(DataError, match="'base' row 1"):
        evaluation.rating_form({"base": [row], "tuned": [row]}, "nowhere")


def test_a_chat_is_shown_turn_by_turn_and_kept_as_one(tmp_path):
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    systems = {name: [{"id": 1, "prompt": chat, "answer": name}] for name in ("a", "b")}
    form = evaluation.rating_form(systems, tmp_path)
    assert form.panel is not None
    assert "[system]\nBe kind.\n\n[user]\nHi" in form._panel.card.value
    evaluation.save_preferences([1], systems, tmp_path / "p.jsonl")
    assert json.loads((tmp_path / "p.jsonl").read_text())["prompt"] == chat


def test_no_answers_are_no_sample():
    with pytest.raises(DataError, match="there are no answers"):
        evaluation.rating_form({"base": [], "tuned": []}, "nowhere")


@pytest.mark.parametrize("choice", ["Left", 1, True, "", None])
def test_another_choice_is_refused(form, choice):
    with pytest.raises(ConfigError, match="is no choice"):
        form.rate(choice)
    assert not form.path.exists()


def test_what_cannot_be_written_does_not_count(form, tmp_path):
    """The panel says so, and the same answer is shown again."""
    assert form.panel is not None
    form.path.mkdir()
    form._since -= 1
    form._panel.buttons["left"].click()
    assert "Cannot write" in form._panel.message.value
    form.path.rmdir()
    form._since -= 1
    form._panel.buttons["left"].click()
    assert form._panel.message.value == ""
    assert len(on_file(form)) == 1
    form.path.unlink()
    form.path.mkdir()
    with pytest.raises(StorageError):
        form.rate("left")


def press(form, key):
    form._since -= 1  # as if a moment had passed
    form._panel.key.value = key


def test_keys_rate_go_back_and_skip(form):
    """The box takes the last character and is empty again; what means nothing does nothing."""
    assert form.panel is not None
    for key in ("1", "x", "2", "b", "4", "S"):
        press(form, key)
        assert form._panel.key.value == ""
    assert [row["choice"] for row in on_file(form)] == ["left", "right", "both bad"]
    assert "<b>2 of 6</b> rated" in form._panel.head.value


def test_a_second_answer_at_once_does_not_count(form):
    """The other half of a double click would rate an answer that nobody has read."""
    assert form.panel is not None
    press(form, "1")
    form._panel.key.value = "1"
    assert len(on_file(form)) == 1


def test_the_note_goes_with_its_rating(form):
    assert form.panel is not None
    form._panel.note.value = "no date"
    press(form, "1")
    assert form._panel.note.value == ""
    press(form, "b")
    assert form._panel.note.value == "no date"
    assert on_file(form)[0]["note"] == "no date"


def test_the_page_holds_no_name_and_obeys_no_answer(tmp_path):
    """Answers are other people's text: shown, never obeyed; whose they are is not on the page."""
    hostile = [{"prompt": "<b>p</b>", "answer": "</div><script>alert(1)</script>\x1b[2J"}]
    systems = {"secret-base": hostile, "secret-tuned": hostile}
    form = evaluation.rating_form(systems, tmp_path)
    assert form.panel is not None
    page = form._panel.card.value + form._panel.head.value
    assert "secret" not in page
    assert "<script" not in page
    assert "<b>p" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;" in page


def test_without_a_front_end_it_says_what_is_on_file(form):
    form.rate("left")
    assert "1 of 6 are rated" in str(form)
    assert "Preference for tuned" in str(form)


@pytest.mark.slow
def test_a_run_without_a_person_does_not_wait(form, tmp_path):
    """Under papermill the cell ends at once and shows what is on file."""
    form.rate("left")
    rows = {"base": answers("base"), "tuned": answers("tuned")}
    code = f"from ftkit import evaluation\nevaluation.rating_form({rows!r}, {str(tmp_path)!r}, rater='ana')"
    cell = nbformat.v4.new_code_cell(code)
    python = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=python), tmp_path / "n.ipynb")
    page = headless.execute(tmp_path / "n.ipynb", tmp_path / "out", {}).html.read_text()
    assert "1 of 6 are rated" in page


def test_the_module_loads_no_widgets():
    script = "import sys; from ftkit import evaluation; evaluation.rating_form; sys.exit('ipywidgets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_reports_are_rated_as_they_are(tmp_path):
    examples = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "x"}]} for q in "pq"]
    before, after = (evaluation.score_answers(given, examples) for given in (["a", "b"], ["c", "d"]))
    form = evaluation.rating_form({"base": before, "tuned": after}, tmp_path)
    form.rate("tie")
    assert on_file(form)[0]["item"] in {row["id"] for row in before.rows}


def test_rows_without_ids_have_their_numbers(tmp_path):
    rows = [{"prompt": "p", "answer": "x"}, {"prompt": "p", "answer": "y"}]
    form = evaluation.rating_form({"base": rows, "tuned": rows}, tmp_path)
    form.rate("tie")
    assert on_file(form)[0]["item"] in ("1", "2")


def test_preferred_pairs_are_chosen_and_rejected(systems, tmp_path):
    """Ties, equal answers and lost verdicts are left out and counted."""
    systems["tuned"][4] = systems["base"][4]
    found = evaluation.save_preferences([1, 0, 0.5, None, 1, 0.75], systems, tmp_path / "p.jsonl")
    assert (found.pairs, found.ties, found.unscored) == (3, 2, 1)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows] == [
        ("tuned says 0", "base says 0"),
        ("base says 1", "tuned says 1"),
        ("tuned says 5", "base says 5"),
    ]
    assert rows[0]["prompt"] == [{"role": "user", "content": "Question 0?"}]


def test_the_chosen_answers_can_be_trained(systems, tmp_path):
    """`data` reads the file with the mapping that the docstring names."""
    evaluation.save_preferences([1, 0, 0.5, 0, 1, 1], systems, tmp_path / "p.jsonl")
    loaded = data.load_examples(tmp_path / "p.jsonl", mapping={"prompt": "prompt", "answer": "chosen"})
    assert [turn["content"] for turn in loaded[0]["messages"]] == ["Question 0?", "tuned says 0"]


@pytest.mark.slow
def test_dpo_reads_the_pairs(systems, tmp_path):
    """TRL takes them for conversational preferences with a prompt of their own."""
    from trl.data_utils import is_conversational, maybe_extract_prompt

    evaluation.save_preferences([1, 0, 0.5, 0, 1, 1], systems, tmp_path / "p.jsonl")
    row = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert is_conversational(row)
    assert maybe_extract_prompt(row)["prompt"] == row["prompt"]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([1, 0], "2 preferences and 6 items"),
        ({"q9": 1}, "no item 'q9'"),
        ({"q1": float("nan")}, "nan is no number from 0 to 1"),
        ({"q1": 1.2}, "no number from 0 to 1"),
    ],
)
def test_preferences_that_fit_nothing_are_refused(systems, tmp_path, given, match):
    with pytest.raises(DataError, match=match):
        evaluation.save_preferences(given, systems, tmp_path / "p.jsonl")
    assert not (tmp_path / "p.jsonl").exists()


def test_every_choice_has_its_opposite():
    """Seen from the other side a choice says the same."""
    assert PREFERENCES["left"] == 1 - PREFERENCES["right"]
    assert PREFERENCES["tie"] == PREFERENCES["both bad"] == 0.5
