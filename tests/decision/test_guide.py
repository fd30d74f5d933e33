"""The guide can say "do not fine-tune", gives reasons with sources, and the form says what the function says."""

import itertools

import pytest

from ftkit import decision, figures, files
from ftkit.decision import decision_form, plot_guide, recommend
from ftkit.errors import ConfigError

GUIDE = files.sample("guide")
OPTIONS = {name: list(question["options"]) for name, question in GUIDE["questions"].items()}
FALLS_SHORT = {"prompting": "not_enough"}
TRAINABLE = {"examples": "many", "budget": "some"}


def every_way():
    """Every combination of answers."""
    return [dict(zip(OPTIONS, chosen, strict=True)) for chosen in itertools.product(*OPTIONS.values())]


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ({}, ("prompt", "few_shot")),
        ({"prompting": "enough"} | TRAINABLE, ("prompt",)),
        (FALLS_SHORT | TRAINABLE | {"need": "knowledge", "freshness": "daily"}, ("rag",)),
        (FALLS_SHORT | TRAINABLE | {"need": "knowledge", "format": "schema"}, ("rag", "constrained")),
        (FALLS_SHORT | TRAINABLE | {"need": "behaviour", "format": "schema"}, ("constrained", "few_shot")),
        (FALLS_SHORT | TRAINABLE | {"need": "behaviour", "format": "style"}, ("fine_tune",)),
        (FALLS_SHORT | TRAINABLE | {"need": "behaviour", "examples": "few"}, ("few_shot",)),
        (FALLS_SHORT | TRAINABLE | {"need": "behaviour", "budget": "none"}, ("few_shot",)),
        (FALLS_SHORT | TRAINABLE | {"need": "both"}, ("rag", "fine_tune")),
        (FALLS_SHORT | TRAINABLE | {"need": "both", "examples": "few"}, ("rag", "few_shot")),
    ],
)
def test_what_it_recommends(answers, wanted):
    made = recommend(answers)
    assert made.approaches == wanted
    assert made.fine_tune == ("fine_tune" in wanted) == ("Do not fine-tune" not in made.say)


def test_every_combination_of_answers_leads_somewhere():
    """The sentence and the approaches agree, each answer has its reason, and each question changes something."""
    made = [(answers, recommend(answers)) for answers in every_way()]
    assert {m.fine_tune for _, m in made} == {True, False}
    for answers, m in made:
        assert m.answers == answers
        assert m.fine_tune == (not m.say.startswith("Do not fine-tune"))
        assert len(m.reasons) >= len(OPTIONS)
        assert set(m.approaches) | set(m.rivals) <= set(GUIDE["approaches"])
        assert not m.fine_tune or answers["budget"] == "some"
    by_answers = {tuple(answers.values()): (m.say, m.approaches, m.rivals, m.reasons) for answers, m in made}
    for place, (name, options) in enumerate(OPTIONS.items()):
        first = FALLS_SHORT | {"need": "both"} | TRAINABLE
        told = [first.get(other, values[0]) for other, values in OPTIONS.items()]
        results = {repr(by_answers[(*told[:place], option, *told[place + 1 :])]) for option in options}
        assert len(results) == len(options), name


def test_what_is_not_answered_is_said():
    made = recommend({"need": "knowledge"})
    assert made.assumed == tuple(name for name in OPTIONS if name != "need")
    assert "Not answered, so the first option was taken: prompting, freshness" in str(made)
    assert "Not answered" not in str(recommend(every_way()[0]))


def test_reasons_carry_dated_sources_and_the_last_word_is_to_measure():
    text = str(recommend(FALLS_SHORT | {"need": "knowledge"}))
    assert "Ovadia et al. 2023, Fine-Tuning or Retrieval?" in text
    assert "arXiv:2312.05934" in text
    assert "Measure a careful prompt, RAG and few-shot on your own held-out questions" in text


def test_every_source_is_used_and_every_used_one_exists():
    used = set()

    def walk(node):
        used.update(node.get("sources", []) if isinstance(node, dict) and isinstance(node.get("sources"), list) else [])
        for below in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
            walk(below)

    walk(GUIDE)
    assert used == set(GUIDE["sources"])


def test_all_that_is_wrong_with_answers_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        recommend({"ned": "knowledge", "need": "facts", "budget": ["none"], 7: None})
    for part in ("no question 'ned'", "no question 7", "need='facts' is none of knowledge,", "budget=['none'] is none"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="answers is str, wanted a dict"):
        recommend("knowledge")


@pytest.mark.parametrize("answers", [{}, FALLS_SHORT | TRAINABLE | {"need": "both"}], ids=["short", "long"])
def test_the_tree_draws_the_path_thick(answers):
    """As many thick lines as answers on the path, bold names at their ends; all told without colour."""
    made = recommend(answers)
    ax = figures.blank_axes(11, 4)
    assert plot_guide(made, ax) is ax
    thick = [line for line in ax.lines if line.get_linewidth() > 1]
    bold = [text for text in ax.texts if text.get_fontweight() == "bold"]
    assert (len(thick), len(bold)) == (len(made.path), len(made.path) + 1)


def test_names_of_the_tree_do_not_overlap():
    ax = plot_guide(recommend(FALLS_SHORT), figures.blank_axes(decision.guide._WIDTH, decision.guide._HEIGHT))
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_the_recommendation_shows_its_tree_on_a_page_and_its_path_in_a_terminal():
    made = recommend(FALLS_SHORT | {"need": "knowledge"})
    assert "a good prompt? falls short → what is wrong? facts" in str(made)
    assert 'src="data:image/png;base64,' in made._repr_html_()


class TestForm:
    """The same questions with widgets."""

    def test_headless_it_is_the_recommendation(self):
        form = decision_form(FALLS_SHORT)
        assert form.value == recommend(FALLS_SHORT).answers
        assert str(form) == str(recommend(FALLS_SHORT))
        assert recommend(form.value).say == form.recommendation.say

    def test_picking_changes_sentence_reasons_and_tree(self):
        form = decision_form()
        assert form.panel is form.panel
        before = (form._say.value, form._tree.value, form._why.value)
        form.pickers["prompting"].value = "enough"
        assert form.value["prompting"] == "enough"
        after = (form._say.value, form._tree.value, form._why.value)
        assert all(a != b for a, b in zip(after, before, strict=True))
        assert "keep the prompt" in after[0]

    def test_assigning_answers_moves_the_pickers(self):
        form = decision_form()
        _ = form.panel
        form.value = FALLS_SHORT | {"need": "knowledge"}
        assert form.pickers["need"].value == "knowledge"
        assert "retrieve the facts" in form._say.value
        with pytest.raises(ConfigError, match="need='x'"):
            form.value = {"need": "x"}

    def test_a_form_that_a_person_filled_in_assumes_nothing(self):
        form = decision_form()
        _ = form.panel
        form.pickers["prompting"].value = "enough"
        assert form.recommendation.assumed == ()
