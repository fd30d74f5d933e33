"""Approaches are measured on the same prompts; what would void the comparison is refused before anything is spent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys import GEMMA, chat, dataset_of, make_model, make_tokenizer, order_chat

from ftkit import Run, data, decision, models
from ftkit.data import Splits
from ftkit.decision.approaches import compare_approaches
from ftkit.decision.asking import WAYS, made_prompts
from ftkit.errors import ConfigError, DataError, StorageError
from ftkit.models import Answer

ORDER = r"Order [0-9]+: [ -~]+"
FOUR = ("zero_shot", "few_shot", "few_shot_nearest", "rag")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The toy as a folder that `models.load` reads."""
    path = tmp_path_factory.mktemp("base")
    make_model().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def run(tmp_path):
    return Run.create("toy", tmp_path)


@pytest.fixture
def parts():
    """Orders, unlike one another: 24 to train, 6 to choose on, 10 to test."""
    rows = dataset_of([order_chat(i) for i in range(40)])
    return Splits(rows.select(range(24)), rows.select(range(24, 30)), rows.select(range(30, 40)))


@pytest.fixture
def settings(toy_config):
    return {
        "documents": ["Ada sells copper lamps at noon.", "Bo buys old maps."],
        "answer_format": ORDER,
        "config": toy_config,
        "embedder": None,
        "metric": "token_f1",
        "max_new_tokens": 8,
        "max_length": 512,
        "shots": 2,
        "timed": 0,
        "curve": (),
    }


@pytest.fixture
def asked(monkeypatch):
    """Every prompt that the model is asked from here on."""
    seen, real = [], models.generate

    def noted(model, tokenizer, prompts, **how):
        seen.extend(prompts)
        return real(model, tokenizer, prompts, **how)

    monkeypatch.setattr(models, "generate", noted)
    return seen


@pytest.fixture
def answering(monkeypatch):
    """Lets a function of the prompt's messages answer in the model's place."""

    def instead(answer):
        def generate(model, tokenizer, prompts, **how):
            return [Answer(answer(prompt["messages"]), 3, True) for prompt in prompts]

        monkeypatch.setattr(models, "generate", generate)

    return instead


def only(rows, *numbers):
    return rows.select(list(numbers))


class TestMeasuring:
    """What is measured, and how."""

    @pytest.mark.slow
    def test_every_approach_runs_and_the_table_and_the_folder_hold_all_of_it(self, base, parts, run, settings):
        found = compare_approaches(base, parts, run, **settings | {"curve": (0.5,), "timed": 1, "search_minutes": 0.02})
        assert [one.name for one in found.approaches] == list(decision.APPROACHES)
        assert [rows for rows, _ in found.curve] == [12, 24]
        assert found.left_out == {}
        tuned = [one for one in found.approaches if one.tuned]
        assert [one.name for one in tuned] == ["fine_tune", "rag_fine_tune"]
        assert all(one.setup_minutes > 0 for one in tuned)
        assert all(one.latency_s > 0 and one.minutes_per_1000 > 0 for one in found.approaches)
        assert all(one.name in str(found) for one in found.approaches)
        saved = json.loads((run / "decision/token_f1.json").read_text())
        assert saved["verdict"] == found.verdict()
        assert run.finished("decide")
        for plot in (decision.plot_approaches, decision.plot_cost, decision.plot_data_needed):
            assert plot(found).get_title(loc="left").endswith("?")

    def test_all_are_asked_the_same_test_rows_with_what_the_approach_adds(self, base, parts, run, settings, asked):
        compare_approaches(base, parts, run, approaches=FOUR, **settings)
        plain, shown, near, found = (asked[i : i + 10] for i in range(0, 40, 10))
        questions = [row["messages"][0]["content"] for row in parts.test]
        assert [prompt["messages"] for prompt in plain] == [[{"role": "user", "content": q}] for q in questions]
        assert all(prompt["messages"][-1]["content"] == q for prompt, q in zip(shown, questions, strict=True))
        assert {json.dumps(prompt["messages"][:-1]) for prompt in shown} == {json.dumps(shown[0]["messages"][:-1])}
        assert [turn["role"] for turn in near[0]["messages"]] == ["user", "assistant"] * 2 + ["user"]
        assert "[1] " in found[0]["messages"][0]["content"]
        assert questions[0] in found[0]["messages"][0]["content"]

    def test_the_nearest_example_stands_last(self, base, parts, run, settings, asked):
        train = dataset_of([order_chat(i) for i in range(8)] + [chat("Which bird hoots?", "The owl.")["messages"]])
        test = dataset_of([chat("Which bird hoots at night?", "The owl.")["messages"]])
        compare_approaches(base, Splits(train, parts.val, test), run, approaches=("few_shot_nearest",), **settings)
        assert asked[0]["messages"][-3]["content"] == "Which bird hoots?"

    def test_examples_that_do_not_fit_are_left_out(self, base, parts, run, settings, asked):
        compare_approaches(base, parts, run, approaches=("few_shot",), **settings | {"shots": 20, "max_length": 300})
        tokenizer = make_tokenizer()
        lengths = [
            len(tokenizer(tokenizer.apply_chat_template(p["messages"], tokenize=False))["input_ids"]) for p in asked
        ]
        assert max(lengths) <= 300
        assert all(len(prompt["messages"]) > 1 for prompt in asked)

    def test_a_system_turn_of_the_rows_own_stays_first(self, base, parts, run, settings, asked):
        rows = dataset_of([order_chat(i, system="Be short.") for i in range(40)])
        own = Splits(rows.select(range(24)), rows.select(range(24, 30)), rows.select(range(30, 40)))
        compare_approaches(base, own, run, approaches=("few_shot",), **settings)
        assert [turn["role"] for turn in asked[0]["messages"]] == ["system", *["user", "assistant"] * 2, "user"]

    def test_groups_are_shown_apart(self, base, parts, run, settings):
        test = parts.test.add_column("kind", ["easy"] * 4 + ["hard"] * 6)
        own = Splits(parts.train, parts.val, test)
        found = compare_approaches(base, own, run, approaches=("zero_shot",), groups="kind", **settings)
        assert "hard (6 rows)" in str(found)

    def test_answers_that_were_cut_are_counted(self, base, parts, run, settings):
        (one,) = compare_approaches(base, parts, run, approaches=("zero_shot",), **settings).approaches
        assert one.note == "10 of 10 answers were cut at 8 tokens."
        assert one.answer_tokens == 8

    @pytest.mark.parametrize("words", [2, 40, 200])
    def test_by_default_wanted_answers_fit_twice(self, base, run, settings, words):
        """At least 48 tokens, and at most half of what a prompt and its answer may take."""
        answer = " ".join(["noon"] * words)
        rows = dataset_of([chat(f"What says order {i}?", answer)["messages"] for i in range(2)])
        splits = Splits(rows.select([0]), rows.select([]), rows.select([1]))
        (one,) = compare_approaches(
            base, splits, run, approaches=("zero_shot",), **settings | {"max_new_tokens": None}
        ).approaches
        twice = 2 * len(make_tokenizer()(answer)["input_ids"])
        assert one.note == f"1 of 1 answers were cut at {min(max(48, twice), 256)} tokens."


class TestSearch:
    """A system prompt is chosen on val, never on test."""

    def test_what_does_best_on_val_is_asked_on_test(self, base, parts, run, settings, answering):
        """On val "magic" is right; on test, where another one would be, it is asked all the same."""
        val = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in parts.val}

        def answer(messages):
            system = messages[0]["content"] if messages[0]["role"] == "system" else ""
            return val.get(messages[-1]["content"], system) if "magic" in system else "no"

        answering(answer)
        prompts = {"system_prompts": ["plain", "magic", "other"], "search_minutes": 1.0}
        (one,) = compare_approaches(base, parts, run, approaches=("prompt",), **settings | prompts).approaches
        assert {row["answer"] for row in one.report.rows} == {"magic"}
        assert one.note.startswith(
            "3 of 3 system prompts tried on 6 val rows, all that there were; the best is “magic”"
        )

    def test_the_budget_ends_the_search(self, base, parts, run, settings, answering):
        def answer(messages):
            time.sleep(0.01)
            return "no"

        answering(answer)
        prompts = {"system_prompts": [f"prompt {i}" for i in range(50)], "search_minutes": 0.2 / 60}
        (one,) = compare_approaches(base, parts, run, approaches=("prompt",), **settings | prompts).approaches
        tried = int(one.note.split()[0])
        assert 0 < tried < 50
        assert "none did better than having none" in one.note

    def test_a_template_that_refuses_system_turns_gets_them_in_the_question(
        self, parts, run, settings, tmp_path, asked
    ):
        make_model().save_pretrained(tmp_path / "gemma")
        make_tokenizer(GEMMA).save_pretrained(tmp_path / "gemma")
        prompts = {"system_prompts": ["Be brief."], "search_minutes": 1.0}
        compare_approaches(str(tmp_path / "gemma"), parts, run, approaches=("prompt",), **settings | prompts)
        assert any(prompt["messages"][0]["content"].startswith("Be brief.\n\n") for prompt in asked)

    def test_prompts_are_made_of_the_task_and_of_solved_training_rows(self, parts):
        made = made_prompts("Say what the order says.", parts.train, seed=0)
        assert "Say what the order says." in made
        assert all("Say what the order says." in text for text in made)
        assert any(parts.train[0]["messages"][1]["content"] in text for text in made)
        assert len(made) == len(set(made)) > 40
        assert "" not in made_prompts("", parts.train.select([]), seed=0)


class TestRefused:
    """What voids a comparison stops it before a token is generated."""

    @pytest.fixture(autouse=True)
    def nothing_is_generated(self, monkeypatch):
        def generate(*_, **__):
            pytest.fail("an answer was generated")

        monkeypatch.setattr(models, "generate", generate)

    @pytest.mark.parametrize("part", ["train", "val"])
    def test_test_rows_that_stand_in_another_part(self, base, parts, run, settings, part):
        own = Splits(**{"train": parts.train, "val": parts.val, "test": parts.test} | {part: parts.test})
        with pytest.raises(DataError, match=f"test row 1 = {part} row 1"):
            compare_approaches(base, own, run, **settings)

    def test_test_rows_that_stand_in_the_documents_with_their_answers(self, base, parts, run, settings):
        question, answer = (turn["content"] for turn in parts.test[2]["messages"])
        pasted = {"documents": [f"FAQ\n\nQ: {question.upper()}\nA: {answer}"]}
        with pytest.raises(DataError, match=r"1 test rows stand word for word in the documents.*rows 3"):
            compare_approaches(base, parts, run, **settings | pasted)

    @pytest.mark.parametrize(
        ("documents", "said"),
        [([], "no documents"), ([" "], "is empty"), (["a\0b"], "is binary"), (["x" * (16 * 2**20 + 1)], "bytes")],
    )
    def test_documents_that_cannot_be_used(self, base, parts, run, settings, documents, said):
        with pytest.raises(DataError, match=said):
            compare_approaches(base, parts, run, **settings | {"documents": documents})

    def test_a_format_that_no_reference_keeps(self, base, parts, run, settings):
        pytest.importorskip("llguidance")
        with pytest.raises(DataError, match="No reference keeps answer_format"):
            compare_approaches(base, parts, run, **settings | {"answer_format": {"type": "integer"}})

    def test_prompts_without_room_for_an_answer(self, base, parts, run, settings):
        with pytest.raises(DataError, match=r"10 prompts leave no room for an answer of 8 tokens in 40"):
            compare_approaches(base, parts, run, approaches=("zero_shot",), **settings | {"max_length": 40})

    def test_no_test_rows(self, base, parts, run, settings):
        with pytest.raises(DataError, match="no examples"):
            compare_approaches(base, Splits(parts.train, parts.val, only(parts.test)), run, **settings)

    def test_settings_that_mean_nothing_are_named_together(self, base, parts, run, settings):
        wrong = settings | {"approaches": ("rga", "rag", "rag"), "curve": (2,), "shots": 0, "groups": "kind"}
        with pytest.raises(ConfigError) as refused:
            compare_approaches(base, parts, run, **wrong)
        for said in ("'rga' is no approach", "names one twice", "curve has 2", "shots=0", "groups='kind'"):
            assert said in str(refused.value)

    def test_a_folder_that_others_filled(self, base, parts, run, settings):
        (run / "decision/zero_shot").mkdir(parents=True)
        (run / "decision/zero_shot/thesis.txt").write_text("mine")
        with pytest.raises(StorageError, match=r"thesis\.txt"):
            compare_approaches(base, parts, run, approaches=("zero_shot",), **settings)


class TestLeftOut:
    """What cannot be measured is named with its reason."""

    def test_documents_format_val_and_training_rows_are_missed_where_they_are_needed(self, base, parts, run, settings):
        bare = settings | {"documents": None, "answer_format": None}
        own = Splits(only(parts.train), only(parts.val), parts.test)
        found = compare_approaches(base, own, run, **bare)
        assert [one.name for one in found.approaches] == ["zero_shot"]
        assert set(found.left_out) == set(WAYS) - {"zero_shot"}
        assert found.left_out["rag"] == "no documents were given."
        assert found.left_out["constrained"] == "no answer_format was given."
        assert found.left_out["few_shot"] == "there are no training rows."
        assert "no val rows" in found.left_out["prompt"]
        assert "Not measured: rag, as no documents were given." in str(found)

    def test_questions_in_documents_and_references_outside_the_format_are_said(self, base, parts, run, settings):
        pytest.importorskip("llguidance")
        question = parts.test[0]["messages"][0]["content"]
        told = settings | {"documents": [f"Somebody asked: {question}"], "answer_format": r"Order 5[0-9]+: [ -~]+"}
        found = compare_approaches(base, parts, run, approaches=("constrained", "rag"), **told)
        assert any("questions of 1 test rows stand word for word" in note for note in found.notes)
        assert any("does not allow the reference of 4 test rows" in note for note in found.notes)

    @pytest.mark.slow
    def test_a_training_that_fails_leaves_the_others(self, base, parts, run, settings):
        """At max_length=16 every answer is cut off, which preflight refuses."""
        short = settings | {"config": settings["config"].replace(max_length=16)}
        found = compare_approaches(base, parts, run, approaches=("zero_shot", "fine_tune"), **short)
        assert [one.name for one in found.approaches] == ["zero_shot"]
        assert found.left_out["fine_tune"].startswith("training it failed: ")


class TestKept:
    """What was answered is not answered again, unless something changed."""

    def test_nothing_is_asked_twice(self, base, parts, run, settings, asked):
        first = compare_approaches(base, parts, run, approaches=FOUR, **settings)
        asked.clear()
        again = compare_approaches(base, parts, run, approaches=FOUR, **settings)
        assert asked == []
        assert [one.report for one in again.approaches] == [one.report for one in first.approaches]
        assert str(again) == str(first)

    def test_another_metric_scores_what_is_there(self, base, parts, run, settings, asked):
        compare_approaches(base, parts, run, approaches=FOUR, **settings)
        asked.clear()
        found = compare_approaches(base, parts, run, approaches=FOUR, **settings | {"metric": "exact_match"})
        assert asked == []
        assert list(found.approaches[0].report.scores) == ["exact_match"]

    def test_only_what_changed_is_asked_again(self, base, parts, run, settings, asked):
        compare_approaches(base, parts, run, approaches=FOUR, **settings)
        asked.clear()
        compare_approaches(base, parts, run, approaches=FOUR, **settings | {"documents": ["What an order does say."]})
        assert len(asked) == 10
        assert all("What an order does say." in prompt["messages"][0]["content"] for prompt in asked)

    def test_another_base_is_asked_anew(self, base, parts, run, settings, asked, tmp_path):
        compare_approaches(base, parts, run, approaches=("zero_shot",), **settings)
        asked.clear()
        other = make_model()
        other.lm_head.weight.data += 1
        other.save_pretrained(tmp_path / "other")
        make_tokenizer().save_pretrained(tmp_path / "other")
        compare_approaches(str(tmp_path / "other"), parts, run, approaches=("zero_shot",), **settings)
        assert len(asked) == 10

    def test_a_changed_file_is_answered_anew(self, base, parts, run, settings, asked):
        compare_approaches(base, parts, run, approaches=("zero_shot",), **settings)
        kept = run / "decision/zero_shot/answers.jsonl"
        honest = kept.read_text()
        kept.write_text(honest.replace('"text": "', '"text": "Order '))
        asked.clear()
        compare_approaches(base, parts, run, approaches=("zero_shot",), **settings)
        assert len(asked) == 10
        assert kept.read_text() == honest

    @pytest.mark.slow
    def test_a_training_that_was_finished_is_not_repeated(self, base, parts, run, settings, monkeypatch):
        """Killed after the training and before its answers were kept."""
        from ftkit import training

        real, trained = models.generate, []
        train = training.train
        monkeypatch.setattr(training, "train", lambda *given, **how: trained.append(1) or train(*given, **how))

        def killed(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(models, "generate", killed)
        with pytest.raises(KeyboardInterrupt):
            compare_approaches(base, parts, run, approaches=("fine_tune",), **settings)
        monkeypatch.setattr(models, "generate", real)
        compare_approaches(base, parts, run, approaches=("fine_tune",), **settings)
        assert trained == [1]

    @pytest.mark.slow
    def test_a_kill_loses_at_most_the_approach_that_was_measured(self, base, parts, run, settings, asked, tmp_path):
        data.save(parts, run)
        script = tmp_path / "killed.py"
        script.write_text(
            "import sys, time\n"
            "from ftkit import Run, data, models\n"
            "from ftkit.config import TrainConfig\n"
            "from ftkit.decision import compare_approaches\n"
            "run, real = Run.open(sys.argv[2]), models.generate\n"
            "def slow(*given, **how):\n"
            "    if (run / 'decision/few_shot').exists():\n"
            "        time.sleep(60)\n"
            "    return real(*given, **how)\n"
            "models.generate = slow\n"
            "config = TrainConfig.load(run / 'config.yaml')\n"
            f"compare_approaches(sys.argv[1], data.load_splits(run), run, approaches={FOUR!r}, config=config,\n"
            "    documents=['Ada sells copper lamps at noon.', 'Bo buys old maps.'], embedder=None, curve=(),\n"
            "    max_new_tokens=8, max_length=512, shots=2, timed=0)\n"
        )
        settings["config"].save(run / "config.yaml")
        root = str(Path(decision.__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen([sys.executable, script, base, run.path], env={**os.environ, "PYTHONPATH": path})
        until = time.monotonic() + 120
        while not (run / "decision/few_shot").exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = compare_approaches(base, data.load_splits(run), run, approaches=FOUR, **settings)
        assert len(asked) == 20
        assert [one.name for one in found.approaches] == list(FOUR)
