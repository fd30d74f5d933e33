"""A model over HTTP: replies in order, each paid for once, and every refusal explained; asked on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from types import ModuleType

import pytest
from toys import chat_server

from ftkit import chat
from ftkit.errors import ConfigError, MissingExtra, ModelError
from ftkit.models import Endpoint, LocalModel, answer_nll, generate

pytest.importorskip("openai")

QUESTIONS = [f"Number {i}?" for i in range(4)]
ECHOES = [f"Reply to number {i}." for i in range(4)]


@pytest.fixture
def server():
    with chat_server() as running:
        running.reply = echo
        yield running


def sent(body):
    return body["messages"][-1]["content"]


def echo(body):
    """Reply with the number of the question, so that the order of the answers shows."""
    return 200, f"Reply to number {sent(body).split('Number ')[1][0]}."


def test_replies_come_in_order_at_temperature_0(server):
    assert Endpoint(server.url, "tiny", max_tokens=9).ask(QUESTIONS) == ECHOES
    asked = {(body["model"], body["temperature"], body["max_tokens"], len(body["messages"])) for body in server.asked}
    assert asked == {("tiny", 0, 9, 1)}
    assert {path for path, _ in server.headers} == {"/v1/chat/completions"}


def test_only_the_key_that_was_given_is_sent_and_it_is_never_shown(server, monkeypatch):
    """A key in the environment belongs to another server; what a server says of ours is masked."""
    monkeypatch.setenv("OPENAI_API_KEY", "of-another-server")
    with_key = Endpoint(server.url, "tiny", api_key="my-secret")
    Endpoint(server.url, "tiny").ask(QUESTIONS[:1])
    with_key.ask(QUESTIONS[:1])
    assert [headers["Authorization"] for _, headers in server.headers] == ["Bearer none", "Bearer my-secret"]
    server.reply = lambda body: (401, "my-secret is no key")
    with pytest.raises(ModelError) as raised:
        with_key.ask(QUESTIONS[1:])
    assert "my-secret" not in f"{with_key!r} {raised.value}"


def test_questions_at_once_keep_the_order(server):
    def slowly(body):
        time.sleep(0.2)
        return echo(body)

    server.reply = slowly
    assert Endpoint(server.url, "tiny", concurrency=4).ask(QUESTIONS) == ECHOES
    assert 1 < server.most_at_once <= 4


def test_what_was_answered_is_not_asked_again(server, tmp_path):
    """Neither in a second call, nor for another address of the same model; a repeated question is asked once."""
    cache = tmp_path / "deep" / "replies.jsonl"
    first = Endpoint(server.url, "tiny", cache=cache)
    assert first.ask([*QUESTIONS, *QUESTIONS]) == ECHOES * 2
    assert first.ask(QUESTIONS) == ECHOES
    assert Endpoint("http://127.0.0.1:9/v1", "tiny", cache=cache).ask(QUESTIONS) == ECHOES
    assert len(server.asked) == 4
    assert [json.loads(line)["reply"] for line in cache.read_text().splitlines()] == ECHOES


def test_without_a_file_replies_are_kept_for_the_session(server):
    endpoint = Endpoint(server.url, "tiny")
    assert endpoint.ask(QUESTIONS) == endpoint.ask(QUESTIONS)
    assert len(server.asked) == 4


@pytest.mark.parametrize("change", [{"model": "other"}, {"max_tokens": 7}])
def test_another_model_or_length_is_asked_anew(server, tmp_path, change):
    cache = tmp_path / "replies.jsonl"
    for settings in ({"model": "tiny"}, {"model": "tiny", **change}):
        Endpoint(server.url, cache=cache, **settings).ask(QUESTIONS[:1])
    assert len(server.asked) == 2


def test_an_unusable_reply_is_asked_again_on_request(server, tmp_path):
    endpoint = Endpoint(server.url, "tiny", cache=tmp_path / "replies.jsonl")
    server.reply = lambda body: (200, "I cannot say.") if "2?" in sent(body) else echo(body)
    assert endpoint.ask(QUESTIONS)[2] == endpoint.ask(QUESTIONS)[2] == "I cannot say."
    server.reply = echo
    assert endpoint.ask(QUESTIONS, usable=lambda reply: "cannot" not in reply) == ECHOES
    assert len(server.asked) == 5


def test_an_empty_question_is_not_asked(server):
    assert Endpoint(server.url, "tiny").ask(["", QUESTIONS[1]]) == ["", ECHOES[1]]
    assert len(server.asked) == 1


@pytest.mark.parametrize("content", [None, "", [{"type": "text", "text": "Reply"}]])
def test_a_reply_without_text_is_empty(server, content):
    server.reply = lambda body: (200, content)
    assert Endpoint(server.url, "tiny").ask(QUESTIONS[:1]) == [""]


def test_half_a_surrogate_pair_can_be_asked_and_kept(server, tmp_path):
    server.reply = lambda body: (200, "\ud83d yes")
    for _ in range(2):
        assert Endpoint(server.url, "tiny", cache=tmp_path / "r.jsonl").ask(["a\ud83d\u2028c"])[0].endswith(" yes")
    assert len(server.asked) == 1


@pytest.mark.parametrize("torn", ['{"key": "ab', '{"key": "ab", "reply": 9}', "[1]", "\x00\x00", "null"])
def test_a_torn_last_line_costs_one_question(server, tmp_path, torn):
    """What a kill left half written is passed over, and the next line does not stick to it."""
    cache = tmp_path / "replies.jsonl"
    Endpoint(server.url, "tiny", cache=cache).ask(QUESTIONS[:3])
    whole = cache.read_text().splitlines(keepends=True)
    cache.write_text("".join(whole[:2]) + torn)
    for _ in range(2):
        assert Endpoint(server.url, "tiny", cache=cache).ask(QUESTIONS[:3]) == ECHOES[:3]
        assert len(server.asked) == 4


ASKING = """
import sys
from ftkit import models
models.Endpoint(sys.argv[1], "tiny", cache=sys.argv[2]).ask([f"Number {i}?" for i in range(4)])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_run_goes_on_where_it_stopped(server, tmp_path):
    """Kill -9 while the third reply is under way: two are kept, and only the other two are asked afterwards."""
    cache, third = tmp_path / "replies.jsonl", threading.Event()

    def stuck(body):
        if "2?" in sent(body):
            third.set()
            time.sleep(30)
        return echo(body)

    server.reply = stuck
    process = subprocess.Popen([sys.executable, "-c", ASKING, server.url, str(cache)])
    try:
        assert third.wait(60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before, server.reply = len(server.asked), echo
    assert (before, len(cache.read_text().splitlines())) == (3, 2)
    assert Endpoint(server.url, "tiny", cache=cache).ask(QUESTIONS) == ECHOES
    assert len(server.asked) - before == 2


@pytest.mark.parametrize(
    ("status", "said", "message"),
    [
        (401, "bad key", r"refuses the key. Pass a valid api_key.*bad key"),
        (403, "not yours", r"refuses the key"),
        (404, "no such model", r"knows no model 'tiny'.*/v1/models.*no such model"),
        (429, "slow down", r"takes no more requests.*Lower concurrency"),
        (500, "broken", r"failed while it answered"),
        (400, "This model's maximum context length is 512 tokens", r"Row 3 .*longer than 'tiny'.*can read.*shorten it"),
        (400, "Server is pinned to 'x'", r"refuses the request for 'tiny'.*pinned to 'x'"),
        (200, b"<html>a web page</html>", r"not as an OpenAI-compatible server does"),
        (200, b"{not json", r"Row 3 got no reply"),
    ],
)
def test_what_the_server_refuses_is_explained_and_earlier_replies_stay(server, tmp_path, status, said, message):
    endpoint = Endpoint(server.url, "tiny", cache=tmp_path / "replies.jsonl")
    server.reply = lambda body: (status, said) if "2?" in sent(body) else echo(body)
    with pytest.raises(ModelError, match=rf"(?s)^Row 3 got no reply: .*{server.url}.*replies.jsonl") as raised:
        endpoint.ask(QUESTIONS, noun="row")
    assert raised.match(f"(?s){message}")
    assert len(endpoint.cache.read_text().splitlines()) >= 2
    assert len([body for body in server.asked if "2?" in sent(body)]) == (3 if status in (429, 500) else 1)
    server.reply = echo
    assert endpoint.ask(QUESTIONS) == ECHOES


@pytest.mark.slow
def test_a_server_that_is_not_there_is_explained():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = rf"http://127.0.0.1:{port}/v1 cannot be reached. Start the server.*Give a cache file"
    with pytest.raises(ModelError, match=said):
        Endpoint(f"http://127.0.0.1:{port}/v1", "tiny").ask(QUESTIONS)


@pytest.mark.slow
def test_a_server_that_hangs_is_explained(server):
    server.reply = lambda body: (time.sleep(1.5), (200, "late"))[1]
    with pytest.raises(ModelError, match=r"gave no answer within 0.3 s, three times. Raise timeout_s"):
        Endpoint(server.url, "tiny", timeout_s=0.3).ask(QUESTIONS[:1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"concurrency": 0}, "concurrency=0 is outside"), ({"base_url": "127.0.0.1:8000"}, "is no URL")],
)
def test_settings_that_cannot_work_are_refused_at_once(settings, message):
    with pytest.raises(ConfigError, match=message):
        Endpoint(**{"base_url": "http://127.0.0.1:9/v1", "model": "tiny", **settings})


def test_missing_openai_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtra, match=r"pip install 'ftkit\[judge\]'"):
        Endpoint("http://127.0.0.1:9/v1", "tiny")


def test_neither_the_key_nor_a_password_in_the_url_is_shown():
    endpoint = Endpoint("http://ada:pass@127.0.0.1:9/v1", "m", api_key="hunter2")
    assert not [secret for secret in ("ada", "pass", "hunter2") if secret in repr(endpoint)]
    with pytest.raises(ConfigError, match="is no URL") as told:
        Endpoint("ftp://ada:pass@127.0.0.1", "m")
    assert "pass" not in str(told.value)


def test_a_key_is_found_by_its_name_alone(server, monkeypatch):
    """In the environment, or on Colab among the secrets that the notebook may read; else it is told."""
    monkeypatch.setenv("MY_KEY", " from-the-environment\n")
    endpoint = Endpoint(server.url, "tiny", key_name="MY_KEY")
    endpoint.ask(QUESTIONS[:1])
    assert server.headers[0][1]["Authorization"] == "Bearer from-the-environment"
    assert "from-the-environment" not in repr(endpoint)
    userdata = ModuleType("google.colab.userdata")
    userdata.SecretNotFoundError = userdata.NotebookAccessError = KeyError
    userdata.get = {"COLAB_KEY": "from-colab"}.__getitem__
    colab = ModuleType("google.colab")
    colab.userdata = userdata
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setitem(sys.modules, "google.colab.userdata", userdata)
    Endpoint(server.url, "tiny", key_name="COLAB_KEY").ask(QUESTIONS[1:2])
    assert server.headers[1][1]["Authorization"] == "Bearer from-colab"
    with pytest.raises(ConfigError, match="key_name='NO_KEY': no environment variable has this name"):
        Endpoint(server.url, "tiny", key_name="NO_KEY").ask(QUESTIONS)


def test_a_key_that_the_server_repeats_is_kept_nowhere(server, tmp_path):
    """Neither in a reply, nor in the cache, nor in the traceback of an error."""
    cache = tmp_path / "replies.jsonl"
    endpoint = Endpoint(server.url, "tiny", api_key="zq-my-secret", cache=cache)
    server.reply = lambda body: (200, "Your key is zq-my-secret.")
    assert endpoint.ask(QUESTIONS[:1]) == ["Your key is (api_key)."]
    server.reply = lambda body: (401, "zq-my-secret is wrong")
    with pytest.raises(ModelError, match="refuses the key") as raised:
        endpoint.ask(QUESTIONS)
    told = "".join(traceback.format_exception(raised.value))
    assert "zq-my-secret" not in told + cache.read_text()


def test_another_servers_account_and_a_redirect_get_nothing(server, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-mine")
    with chat_server() as elsewhere:
        server.reply = lambda body: (307, "moved", {"Location": f"{elsewhere.url}/chat/completions"})
        Endpoint(server.url, "tiny", api_key="my-secret").ask(QUESTIONS[:1])
        assert server.headers[0][1]["Authorization"] == "Bearer my-secret"
        sent_on = str(elsewhere.headers[0][1])
    assert "my-secret" not in sent_on
    assert "of-mine" not in sent_on + str(server.headers[0][1])


def test_messages_of_several_turns_and_sampling_reach_the_server(server):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Number 1?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "Number 2?"},
    ]
    endpoint = Endpoint(server.url, "tiny", temperature=0.3, top_p=0.9, seed=7)
    assert endpoint.ask([turns, "Number 3?"]) == ["Reply to number 2.", "Reply to number 3."]
    assert server.asked[0]["messages"] == turns
    assert [server.asked[0][name] for name in ("temperature", "top_p", "seed")] == [0.3, 0.9, 7]
    Endpoint(server.url, "tiny", temperature=None).ask(["Number 1?"])
    assert not {"temperature", "top_p", "seed"} & set(server.asked[-1])


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"top_p": 0.9}, {"seed": 1}, {"draw": 1}])
def test_other_sampling_or_another_draw_is_asked_anew(server, tmp_path, change):
    draw = change.pop("draw", 0)
    for settings, number in (({}, 0), (change, draw), (change, draw)):
        Endpoint(server.url, "tiny", cache=tmp_path / "r.jsonl", **settings).ask(QUESTIONS[:1], draw=number)
    assert len(server.asked) == 2


def test_retry_after_is_respected_and_told(server):
    """A second is waited for when the server asks for one; a wait that is too long is left to the caller."""
    times = []

    def busy(body):
        times.append(time.monotonic())
        return (429, "slow down", {"Retry-After": "1"}) if len(times) == 1 else echo(body)

    server.reply = busy
    assert Endpoint(server.url, "tiny").ask(QUESTIONS[:1]) == ECHOES[:1]
    assert times[1] - times[0] >= 0.95
    server.reply = lambda body: (429, "slow down", {"Retry-After": "86400"})
    with pytest.raises(ModelError, match=r"takes no more requests.*It asks to wait 86400 s"):
        Endpoint(server.url, "tiny", max_retries=0).ask(QUESTIONS[:1])


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.05, 0])
def test_an_answer_that_never_ends_is_given_up(pause):
    """Neither one that drips nor one that floods holds us longer than the timeout, or fills the memory."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def pour():
            while True:
                try:
                    talking, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=drip, args=(talking,), daemon=True).start()

        def drip(talking):
            with talking:
                talking.recv(65536)
                talking.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{")
                while True:
                    try:
                        talking.sendall(b" " * (1 if pause else 65536))
                    except OSError:
                        return
                    time.sleep(pause)

        threading.Thread(target=pour, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        with pytest.raises(ModelError, match=r"an answer that did not end within 0.5 s and 8 MiB"):
            Endpoint(url, "tiny", timeout_s=0.5, max_retries=1).ask(QUESTIONS[:1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 3}, "temperature=3 is outside 0 to 2"),
        ({"top_p": 0}, "top_p=0 is outside"),
        ({"max_tokens": 0}, "max_tokens=0 leaves no room"),
        ({"api_key": "x", "key_name": "Y"}, "api_key and key_name are both given"),
    ],
)
def test_sampling_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Endpoint("http://127.0.0.1:9/v1", "tiny", **settings)


def test_a_local_model_answers_alike_and_is_asked_once(model, tokenizer, tmp_path):
    """The same words as `generate` gives, in order; another draw is another reply; a text too long is told."""
    cache = tmp_path / "replies.jsonl"
    model.config.max_position_embeddings = 2_000
    local = LocalModel(model, tokenizer, "toy", cache=cache, max_tokens=5, batch_size=2)
    replies = local.ask([*QUESTIONS, "", QUESTIONS[0]])
    assert replies[:4] == [answer.text for answer in generate(model, tokenizer, QUESTIONS, max_new_tokens=5)]
    assert replies[4:] == ["", replies[0]]
    assert LocalModel(None, tokenizer, "toy", cache=cache, max_tokens=5).missing(QUESTIONS) == []
    assert len(local.missing(QUESTIONS, draw=1)) == 4
    with pytest.raises(ModelError, match=r"need more than the 2,000 tokens"):
        local.ask(["long " * 5_000])
    assert local.ask(["long " * 5_000, QUESTIONS[0]], skip_refused=True) == ["", replies[0]]


def test_a_model_that_chooses_gives_the_likeliest_reply_there_is(model, tokenizer, tmp_path):
    """By the surprise at each option, as measured by hand; it is kept apart from what the model would write."""
    options = [["yes", "no", "perhaps"], ["left", "right"]]
    model.config.max_position_embeddings = 2_000
    asked = ["Is it?", "Which side?"]
    judge = LocalModel(model, tokenizer, "toy", cache=tmp_path / "kept.jsonl", max_tokens=5, choose=True)
    wanted = []
    for question, allowed in zip(asked, options, strict=True):
        turns = [[{"role": "user", "content": question}, {"role": "assistant", "content": text}] for text in allowed]
        surprise = [nll for nll, _ in answer_nll(model, [chat.tokenize(each, tokenizer) for each in turns])]
        wanted.append(allowed[surprise.index(min(surprise))])
    assert judge.ask(asked, options=options) == wanted
    assert judge.missing(asked) == []
    assert len(LocalModel(model, tokenizer, "toy", cache=tmp_path / "kept.jsonl", max_tokens=5).missing(asked)) == 2


def test_a_model_that_chooses_refuses_a_question_that_any_words_may_answer(model, tokenizer):
    with pytest.raises(ConfigError, match="choose=False, or compare pairs"):
        LocalModel(model, tokenizer, "toy", choose=True).ask(["Why?"])
