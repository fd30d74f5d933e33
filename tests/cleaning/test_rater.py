"""Models that judge: an LLM behind a real HTTP server on loopback, and a reward model with two layers."""

import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftkit import cleaning, data, models
from ftkit.cleaning.raters import RUBRIC, llm_rater, load_reward_model, parse, reward_model
from ftkit.errors import ConfigError, MissingExtra, ModelError

openai = pytest.importorskip("openai")


def chat(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


SHORT_RUBRIC = """Rate how good the last answer is, from 1 (useless) to 5 (very good). Reply with the rating alone.

<example>
[user]
What is the capital of France?
[assistant]
Paris is the capital of France.
</example>
Rating: 5

<example>
[user]
Name a colour.
[assistant]
Seven.
</example>
Rating: 1"""  # two examples graded: a model of 135 M parameters copies a form better than it follows one
ROWS = [chat(f"Add {i} and 1.", f"{i + 1}.") for i in range(4)]


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Clear and right.\nRating: 4", 4),
        ("Rating: 2, no: better.\nRating: 5.", 5),
        ("**Rating:** 4", 4),
        ("**Rating**: [3]", 3),
        ("_rating_ = 2", 2),
        ('{"reason": "short", "rating": 3}', 3),
        ("Rating (1 to 5): 4/5", 4),
        ("Rating:\n 1", 1),
        ("Rating: 4.0 out of 5", 4),
        ("Rating: 4\nRating: N", None),
        ("Rating: 4/10", None),
        ("Rating: 4.5", None),
        ("Rating: 45", None),
        ("Rating: 0", None),
        ("Rating: 6", None),
        ("Rating: -3", None),
        ("Rating: 1-5", None),
        ("Rating: 1 to 5", None),
        ("A rating of 4 seems fair.", None),
        ("", None),
    ],
)
def test_the_last_rating_counts_when_it_is_one_to_five(text, rating):
    assert parse(text) == rating


@given(
    st.lists(st.sampled_from(["Rating", ":", " ", "\n", "4", "5", "0", "/", ".", "-", "*", "(", "to", "９"]))
    | st.text()
)
def test_any_reply_gives_a_rating_or_none(pieces):
    assert parse("".join(pieces)) in (None, 1, 2, 3, 4, 5)


@given(st.text(), st.integers(1, 5))
def test_what_stands_before_the_last_line_does_not_matter(reason, rating):
    assert parse(f"{reason}\nRating: {rating}") == rating


@pytest.fixture
def judge():
    """A server that speaks chat completions; `reply` maps a request's body to a status and the text or error it answers with."""
    state = SimpleNamespace(
        asked=[], headers=[], reply=lambda body: (200, "Fine.\nRating: 4"), most_at_once=0, at_once=0
    )

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            state.at_once += 1
            state.most_at_once = max(state.most_at_once, state.at_once)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(body)
            state.headers.append((self.path, self.headers))
            status, text = state.reply(body)
            state.at_once -= 1
            good = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            }
            answer = (
                text
                if isinstance(text, bytes)
                else json.dumps(good if status == 200 else {"error": {"message": text}}).encode()
            )
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if answer.startswith(b"<") else "application/json")
            self.send_header("retry-after-ms", "1")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that was killed is no failure of the server
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    server.shutdown()
    server.server_close()


def sent(body):
    return body["messages"][-1]["content"]


def by_number(body):
    """Rate a row by the number in its question, so that the order of the answers shows."""
    return 200, f"Rating: {int(sent(body).split('Add ')[1][0]) + 1}"


def test_every_row_is_rated_in_order_at_temperature_0(judge):
    judge.reply = by_number
    assert llm_rater(judge.url, "tiny")(ROWS) == [1, 2, 3, 4]
    assert {(body["model"], body["temperature"], len(body["messages"])) for body in judge.asked} == {("tiny", 0, 1)}
    assert all(sent(body).startswith(RUBRIC) for body in judge.asked)
    assert all(row[1]["content"] in sent(body) for row, body in zip(ROWS, judge.asked, strict=True))


def test_only_the_key_that_was_given_is_sent(judge, monkeypatch):
    """A key in the environment belongs to another server."""
    monkeypatch.setenv("OPENAI_API_KEY", "of-another-server")
    llm_rater(judge.url, "tiny")(ROWS[:1])
    llm_rater(judge.url, "tiny", api_key="mine")(ROWS[:1])
    assert [headers["Authorization"] for _, headers in judge.headers] == ["Bearer none", "Bearer mine"]
    assert {path for path, _ in judge.headers} == {"/v1/chat/completions"}


def test_requests_at_once_keep_the_order(judge):
    def slowly(body):
        time.sleep(0.2)
        return by_number(body)

    judge.reply = slowly
    assert llm_rater(judge.url, "tiny", concurrency=4)(ROWS) == [1, 2, 3, 4]
    assert 1 < judge.most_at_once <= 4


def test_cached_rows_ask_the_server_nothing(judge, tmp_path):
    """Neither in a second call, nor for another address of the same model; a repeated row is asked once."""
    cache = tmp_path / "deep" / "ratings.jsonl"
    first = llm_rater(judge.url, "tiny", cache=cache)([*ROWS, *ROWS])
    assert (first, len(judge.asked)) == ([4] * 8, 4)
    assert llm_rater("http://127.0.0.1:9/v1", "tiny", cache=cache)(ROWS) == [4] * 4
    lines = [json.loads(line) for line in cache.read_text().splitlines()]
    assert [(line["rating"], line["text"]) for line in lines] == [(4, "Fine.\nRating: 4")] * 4


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"rubric": "Grade. End with Rating: N"}, {"rows": [chat("Add 0 and 1.", "2.")]}]
)
def test_another_model_rubric_or_answer_is_asked_anew(judge, tmp_path, change):
    cache = tmp_path / "ratings.jsonl"
    llm_rater(judge.url, "tiny", cache=cache)(ROWS[:1])
    llm_rater(judge.url, change.get("model", "tiny"), rubric=change.get("rubric", RUBRIC), cache=cache)(
        change.get("rows", ROWS[:1])
    )
    assert len(judge.asked) == 2


def test_a_reply_without_a_rating_is_none_kept_and_asked_again_on_request(judge, tmp_path):
    cache = tmp_path / "ratings.jsonl"
    judge.reply = lambda body: (200, "I cannot say.") if "Add 2" in sent(body) else by_number(body)
    assert llm_rater(judge.url, "tiny", cache=cache)(ROWS) == [1, 2, None, 4]
    assert "I cannot say." in [json.loads(line)["text"] for line in cache.read_text().splitlines()]
    assert llm_rater(judge.url, "tiny", cache=cache)(ROWS) == [1, 2, None, 4]
    assert len(judge.asked) == 4
    judge.reply = by_number
    assert llm_rater(judge.url, "tiny", cache=cache, retry_failed=True)(ROWS) == [1, 2, 3, 4]
    assert len(judge.asked) == 5
    assert llm_rater(judge.url, "tiny", cache=cache)(ROWS) == [1, 2, 3, 4]


@pytest.mark.parametrize("content", [None, "", [{"type": "text", "text": "Rating: 4"}]])
def test_a_reply_without_text_is_none(judge, content):
    judge.reply = lambda body: (200, content)
    assert llm_rater(judge.url, "tiny")(ROWS[:1]) == [None]


def test_a_row_without_an_answer_is_not_asked(judge):
    assert llm_rater(judge.url, "tiny")([ROWS[0][:1], chat("x", " "), ROWS[1]]) == [None, None, 4]
    assert len(judge.asked) == 1


def test_half_a_surrogate_pair_can_be_rated_and_kept(judge, tmp_path):
    judge.reply = lambda body: (200, "\ud83d Rating: 3")
    for _ in range(2):
        assert llm_rater(judge.url, "tiny", cache=tmp_path / "r.jsonl")([chat("a\ud83d", "b\u2028c")]) == [3]
    assert len(judge.asked) == 1


@pytest.mark.parametrize(
    "torn", ['{"key": "ab', '{"key": "ab", "rating": 9}', '{"key": "ab", "rating": [1]}', "[1]", "\x00\x00", "null"]
)
def test_a_torn_last_line_costs_one_question(judge, tmp_path, torn):
    """What a kill left half written is passed over, and the next line does not stick to it."""
    cache = tmp_path / "ratings.jsonl"
    llm_rater(judge.url, "tiny", cache=cache)(ROWS[:3])
    whole = cache.read_text().splitlines(keepends=True)
    cache.write_text("".join(whole[:2]) + torn)
    assert llm_rater(judge.url, "tiny", cache=cache)(ROWS[:3]) == [4] * 3
    assert len(judge.asked) == 4
    assert llm_rater(judge.url, "tiny", cache=cache)(ROWS[:3]) == [4] * 3
    assert len(judge.asked) == 4


RATING = """
import sys
from ftkit.rater import llm_rater
rows = [[{"role": "user", "content": f"Add {i} and 1."}, {"role": "assistant", "content": f"{i + 1}."}] for i in range(4)]
llm_rater(sys.argv[1], "tiny", cache=sys.argv[2])(rows)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_run_goes_on_where_it_stopped(judge, tmp_path):
    """Kill -9 while the third reply is under way: two are kept, and only the other two are asked afterwards."""
    cache, third = tmp_path / "ratings.jsonl", threading.Event()

    def stuck(body):
        if "Add 2" in sent(body):
            third.set()
            time.sleep(30)
        return by_number(body)

    judge.reply = stuck
    process = subprocess.Popen([sys.executable, "-c", RATING, judge.url, str(cache)])
    try:
        assert third.wait(60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before, judge.reply = len(judge.asked), by_number
    assert (before, len(cache.read_text().splitlines())) == (3, 2)
    assert llm_rater(judge.url, "tiny", cache=cache)(ROWS) == [1, 2, 3, 4]
    assert len(judge.asked) - before == 2


@pytest.mark.parametrize(
    ("status", "said", "message"),
    [
        (401, "bad key", r"refuses the key. Pass a valid api_key.*bad key"),
        (403, "not yours", r"refuses the key"),
        (404, "no such model", r"knows no model 'tiny'.*/v1/models.*no such model"),
        (429, "slow down", r"takes no more requests.*Lower concurrency"),
        (500, "broken", r"failed while it rated"),
        (400, "This model's maximum context length is 512 tokens", r"Row 3 .*longer than 'tiny'.*can read.*shorten it"),
        (400, "Server is pinned to 'x'", r"refuses the request for 'tiny'.*pinned to 'x'"),
        (200, b"<html>a web page</html>", r"not as an OpenAI-compatible server does"),
        (200, b"{not json", r"Row 3 could not be rated"),
    ],
)
def test_what_the_server_refuses_is_explained_and_earlier_replies_stay(judge, tmp_path, status, said, message):
    cache = tmp_path / "ratings.jsonl"
    judge.reply = lambda body: (status, said) if "Add 2" in sent(body) else by_number(body)
    with pytest.raises(ModelError, match=rf"(?s)^Row 3 could not be rated: .*{judge.url}.*ratings.jsonl") as raised:
        llm_rater(judge.url, "tiny", cache=cache)(ROWS)
    assert raised.match(f"(?s){message}")
    assert len(cache.read_text().splitlines()) >= 2
    assert len([body for body in judge.asked if "Add 2" in sent(body)]) == (3 if status in (429, 500) else 1)
    judge.reply = by_number
    assert llm_rater(judge.url, "tiny", cache=cache)(ROWS) == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_server_that_is_not_there_is_explained():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        ModelError, match=rf"http://127.0.0.1:{port}/v1/ cannot be reached. Start the server.*Give a cache file"
    ):
        llm_rater(f"http://127.0.0.1:{port}/v1", "tiny")(ROWS)


@pytest.mark.slow
def test_a_server_that_hangs_is_explained(judge):
    judge.reply = lambda body: (time.sleep(1.5), (200, "Rating: 4"))[1]
    with pytest.raises(ModelError, match=r"gave no answer within 0.3 s, three times. Raise timeout_s"):
        llm_rater(judge.url, "tiny", timeout_s=0.3)(ROWS[:1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"concurrency": 0}, "concurrency=0 is outside"), ({"base_url": "127.0.0.1:8000"}, "is no URL")],
)
def test_settings_that_cannot_work_are_refused_at_once(settings, message):
    with pytest.raises(ConfigError, match=message):
        llm_rater(**{"base_url": "http://127.0.0.1:9/v1", "model": "tiny", **settings})


def test_missing_openai_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtra, match=r"pip install 'ftkit\[judge\]'"):
        llm_rater("http://127.0.0.1:9/v1", "tiny")


def toy_reward(tokenizer, **settings):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    return LlamaForSequenceClassification(
        LlamaConfig(
            **{
                "vocab_size": len(tokenizer),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 256,
                "num_labels": 1,
                "pad_token_id": 0,
                **settings,
            }
        )
    ).eval()


def rewards_by_hand(model, tokenizer, rows):
    """One row at a time, read at its last token: no padding is involved."""
    rewards = []
    for row in rows:
        ids = torch.tensor(
            [tokenizer(tokenizer.apply_chat_template(row, tokenize=False), add_special_tokens=False)["input_ids"]]
        )
        with torch.no_grad():
            rewards.append(float(model.score(model.model(input_ids=ids).last_hidden_state[0, -1])))
    return rewards


@pytest.mark.parametrize("pad", ["<|endoftext|>", "<|im_end|>", "\u010a", None])
def test_rewards_equal_single_ones_whatever_pads(tokenizer, pad):
    """Also where the pad token is the stop token, or the newline with which each chat ends: then the head would read too early."""
    model = toy_reward(tokenizer)
    rows = [chat("?" * n, "answer " * (1 + n % 3)) for n in (20, 1, 9, 33, 4)]
    expected = rewards_by_hand(model, tokenizer, rows)
    tokenizer.pad_token, model.config.pad_token_id = pad, None
    assert reward_model(model, tokenizer, batch_size=3)(rows) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert model.config.pad_token_id is None


def test_rows_that_no_reward_can_be_had_for_are_none(tokenizer):
    rows = [ROWS[0][:1], chat("x", "y" * 300), ROWS[1], chat("x", "")]
    assert [s is not None for s in reward_model(toy_reward(tokenizer), tokenizer)(rows)] == [False, False, True, False]


def test_a_saved_reward_model_scores_the_same_and_selects(tokenizer, tmp_path):

    model = toy_reward(tokenizer)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    loaded = load_reward_model(tmp_path)
    assert reward_model(*loaded)(ROWS) == pytest.approx(
        rewards_by_hand(model, tokenizer, ROWS), rel=0.1, abs=0.02
    )  # 16-bit
    selection = cleaning.select(data.load_examples([{"messages": row} for row in ROWS]), reward_model(*loaded), 0.5)
    assert len(selection.chosen) == 2


def test_several_outputs_are_refused(tokenizer, tmp_path):
    model = toy_reward(tokenizer, num_labels=3)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has 3 outputs; a reward model has one"):
        reward_model(model, tokenizer)
    with pytest.raises(ModelError, match=r"has 3 outputs; a reward model has one"):
        load_reward_model(tmp_path)


def test_a_chat_model_is_no_reward_model(model, tokenizer, tmp_path):
    """Transformers would put a random head on it and say so in a log line."""
    model.config.num_labels = 1
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no weights for score.weight, so its rewards would be random"):
        load_reward_model(tmp_path)


def test_pickled_weights_and_remote_code_are_refused(tokenizer, tmp_path):
    model = toy_reward(tokenizer)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="code from a repository is never run"):
        load_reward_model(tmp_path)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="Pickled weights are not loaded"):
        load_reward_model(tmp_path)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`transformers serve` with the bundled model on a free port of loopback: URL, model name and a count of chat requests."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    folder, log = str(models.bundled_folder()), tmp_path_factory.mktemp("serve") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        Path(sys.executable).with_name("transformers"),
        "serve",
        folder,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        wait_until_ready(process, port, log)
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{port}/v1", model=folder, requests=lambda: log.read_text().count("Request received")
        )
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(process, port, log, limit_s=180):
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if process.poll() is not None:
            pytest.fail(f"transformers serve ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v1/models")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.5)
        finally:
            connection.close()
    pytest.fail(f"transformers serve was not ready within {limit_s} s:\n{log.read_text()[-2000:]}")


@pytest.mark.slow
def test_the_bundled_model_rates_behind_a_real_server(served, tmp_path):
    """A small model is a poor judge, but a real one: it answers, what it says is kept, and nothing is asked twice."""
    rows = [
        chat("What is the capital of Japan? Answer in one sentence.", "The capital of Japan is Tokyo."),
        chat("What is two plus two?", "A green boat."),
    ]
    cache = tmp_path / "ratings.jsonl"
    settings = {"rubric": SHORT_RUBRIC, "cache": cache, "timeout_s": 300}
    ratings = llm_rater(served.url, served.model, **settings)(rows)
    texts = [json.loads(line)["text"] for line in cache.read_text().splitlines()]
    assert ratings == [parse(text) for text in texts]
    assert all(rating in (1, 2, 3, 4, 5) for rating in ratings), texts
    assert served.requests() == 2
    assert llm_rater(served.url, served.model, **settings)(rows) == ratings
    assert served.requests() == 2


@pytest.mark.slow
def test_a_real_server_without_the_model_is_explained(served):
    with pytest.raises(ModelError, match=rf"(?s)Row 1 .*{served.url}.*'nobody/nothing'"):
        llm_rater(served.url, "nobody/nothing")(ROWS[:1])
