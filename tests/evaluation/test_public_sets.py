"""MT-Bench and AlpacaEval from files in the published formats: by path, by URL and from the Hub, on loopback."""

import contextlib
import hashlib
import http.server
import json
import math
import os
import re
import subprocess
import sys
import threading

import pytest
from toys import chat_server

from ftkit import evaluation
from ftkit.errors import ConfigError, DataError
from ftkit.models import Endpoint

pytest.importorskip("openai")

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write a blog.", "Start each sentence with A."]},
    {"question_id": 101, "category": "reasoning", "turns": ["Who is second?", "And last?"], "reference": ["You.", ""]},
    {"question_id": 111, "category": "math", "turns": ["What is 3 + 4?", "Times 2?"]},
]
INSTRUCTIONS = [
    {"instruction": f"Do {i}.", "output": "a baseline that talks", "generator": "base", "dataset": "d"}
    for i in range(4)
]


def answers(said, model="tuned"):
    """FastChat's file of a model's answers."""
    return [
        {"question_id": q["question_id"], "model_id": model, "choices": [{"index": 0, "turns": [said, f"{said} 2"]}]}
        for q in QUESTIONS
    ]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judge(body):
    """Likes what says good; grades the second turn lower; answers questions where it is asked any."""
    shown = body["messages"][-1]["content"]
    if not shown.startswith("==="):
        return 200, f"good reply {len(body['messages'])}"
    code = re.match(r"=== (\w+) ", shown)[1]
    if "answer_A" in shown:
        first = shown.split("answer_A begins")[1].split("answer_A ends")[0]
        return 200, f"Verdict {code}: {'A' if 'good' in first else 'B'}"
    return 200, f"quality {code}: fine | {7 if 'Second question' in shown else 9}"


@pytest.fixture
def server():
    with chat_server() as running:
        running.reply = judge
        yield running


@pytest.fixture
def asked(server):
    return Endpoint(server.url, "judge")


@contextlib.contextmanager
def served(files):
    """A web server on loopback: path to body and headers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body, headers = files.get(self.path.partition("?")[0], (None, {}))
            self.send_response(200 if body is not None else 404)
            for name, value in {"Content-Length": str(len(body or b"")), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()


def test_mt_bench_grades_each_turn_from_one_to_ten(asked, server, tmp_path):
    questions, said = jsonl(tmp_path / "question.jsonl", QUESTIONS), jsonl(tmp_path / "tuned.jsonl", answers("good"))
    references = jsonl(tmp_path / "gpt-4.jsonl", [{"question_id": 111, "choices": [{"index": 0, "turns": [7, "14"]}]}])
    result = evaluation.mt_bench(asked, said, questions, references=references, candidates=["tuned"])
    assert (result.overall.value, result.turns[1].value, result.turns[2].value) == (8, 9, 7)
    assert set(result.categories) == {"writing", "reasoning", "math"}
    shown = [body["messages"][-1]["content"] for body in server.asked]
    assert ["correct_answer" in text for text in shown] == [False, False, True, True, True, True]
    assert "Question 1: 7\n\nQuestion 2: 14" in shown[-1]
    assert "good 2" in shown[1]
    assert "Write a blog." in shown[1]
    assert "8.00" in str(result)


def test_mt_bench_compares_pairs_in_both_orders(asked):
    result = evaluation.mt_bench(asked, answers("good"), QUESTIONS, baseline=answers("bad", "base"))
    assert (result.overall.value, result.pairs.flips, result.ratings) == (1, 0, None)
    assert result.categories["math"].value == 1


def test_a_model_answers_both_turns_itself(asked, server):
    """The second question is asked after the model's own first answer."""
    result = evaluation.mt_bench(asked, Endpoint(server.url, "tuned"), QUESTIONS)
    second = [b["messages"] for b in server.asked if b["model"] == "tuned" and len(b["messages"]) == 3]
    assert second[0] == [
        {"role": "user", "content": "Write a blog."},
        {"role": "assistant", "content": "good reply 1"},
        {"role": "user", "content": "Start each sentence with A."},
    ]
    assert result.overall.value == 8
    assert not result.ratings.unchecked
    with pytest.raises(ConfigError, match="cannot be its own judge"):
        evaluation.mt_bench(asked, Endpoint(server.url, "judge"), QUESTIONS)


def test_alpaca_eval_runs_on_its_files(asked, tmp_path):
    questions = tmp_path / "alpaca_eval.json"
    questions.write_text(json.dumps(INSTRUCTIONS))
    outputs = [{"instruction": row["instruction"], "output": "good", "generator": "tuned"} for row in INSTRUCTIONS]
    result = evaluation.alpaca_eval(asked, outputs[::-1], questions)
    assert (result.win_rate.value, result.length_controlled.value, result.lost) == (1, 1, 0)
    assert result.rows[0]["baseline"] == "a baseline that talks"
    other = [{**row, "output": "also bad"} for row in outputs]
    assert evaluation.alpaca_eval(asked, outputs, questions, baseline=other).rows[0]["baseline"] == "also bad"


def test_the_leaderboards_table_gives_difficulty_and_anchors(tmp_path):
    table = tmp_path / "df_gamed.csv"
    rows = ["gpt4_verbose,0,1.5,-0.3,0.6,False", "gpt4_verbose,1,-2,0.4,0.2,False"]
    table.write_text(
        "\n".join(["model,index,instruction_difficulty,std_delta_len,preference,not_gamed_baseline", *rows])
    )
    assert evaluation.public_sets.alpaca_difficulty(table, 2) == ([1.5, -2.0], [(-0.3, 1.5, 0.6), (0.4, -2.0, 0.2)])
    with pytest.raises(DataError, match=r"no df_gamed.csv of AlpacaEval for 3"):
        evaluation.public_sets.alpaca_difficulty(table, 3)


def test_published_annotations_become_preferences():
    rows = [{"output_1": "base", "output_2": "mine", "preference": p} for p in (2, 1, 1.5, 0, None, 1.25)]
    preferences, lengths = evaluation.public_sets.alpaca_annotations(rows)
    assert preferences == [1, 0, 0.5, 0.5, None, 0.25]
    assert lengths[0] == ("mine", "base")


def test_files_come_by_url(asked):
    files = {"/q.jsonl": ("\n".join(map(json.dumps, QUESTIONS)).encode(), {}), "/page": (b"<html>no</html>", {})}
    with served(files) as url:
        assert evaluation.mt_bench(asked, answers("good"), f"{url}/q.jsonl").overall.value == 8
        with pytest.raises(DataError, match="It is a web page"):
            evaluation.mt_bench(asked, answers("good"), f"{url}/page")
        with pytest.raises(DataError, match=r"(?s)cannot be downloaded.*404"):
            evaluation.mt_bench(asked, answers("good"), f"{url}/gone.jsonl")


@pytest.mark.slow
def test_files_come_from_the_hub(tmp_path):
    """A Hub on loopback, asked by huggingface_hub itself."""
    body = json.dumps(INSTRUCTIONS).encode()
    headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": "a" * 40}
    script = "from ftkit.evaluation.public_sets import _rows; print(len(_rows('owner/set:a.json', 'instruction')))"
    with served({"/datasets/owner/set/resolve/main/a.json": (body, headers)}) as url:
        env = {
            **os.environ,
            "HF_ENDPOINT": url,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "4", done.stderr[-500:]


@pytest.mark.parametrize(
    ("questions", "said", "message"),
    [
        ([], answers("x"), "holds no rows"),
        ([{"question_id": 1}], answers("x"), "row 1: turns is missing"),
        ([{"question_id": 1, "turns": ["one"]}], answers("x"), "do not have two turns; the first is 1"),
        (QUESTIONS * 2, answers("x"), "3 question_ids stand there twice"),
        (QUESTIONS, answers("x")[:1], "no answer to 2 of 3 questions; the first is '101'"),
        (QUESTIONS, "nowhere.jsonl", "cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_named(asked, server, questions, said, message):
    with pytest.raises(DataError, match=message):
        evaluation.mt_bench(asked, said, questions)
    assert server.asked == []


@pytest.mark.parametrize("given", [math.nan, 7, "2", 0.5])
def test_a_published_preference_lies_between_the_two(given):
    with pytest.raises(DataError, match="Annotation 1"):
        evaluation.public_sets.alpaca_annotations([{"output_1": "a", "output_2": "b", "preference": given}])


@pytest.mark.parametrize("source", [None, {"a": 1}, 3])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(DataError, match="is no source"):
        evaluation.public_sets.alpaca_annotations(source)


@pytest.mark.parametrize("odd", [{"choices": [{}]}, {"choices": "x"}, {"turns": "xy"}, {"turns": 3}])
def test_turns_that_are_no_list_are_no_answers(odd):
    """The letters of a text are not its turns."""
    questions = [{"question_id": 1, "category": "math", "turns": ["a", "b"]}]
    with pytest.raises(DataError, match="has no answer to 1 of 1"):
        evaluation.mt_bench(Endpoint("http://127.0.0.1:1/v1", "judge"), [{"question_id": 1, **odd}], questions)
