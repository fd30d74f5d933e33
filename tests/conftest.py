"""Toys: a tokenizer and a model small enough to build in milliseconds, real in every other way."""

import gc
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from ftkit import data
from ftkit.config import TrainConfig

os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
from hypothesis import settings
from toys import make_model, make_tokenizer

# The same draws every time, and on a busy machine all the time they need; HYPOTHESIS_PROFILE=default draws anew.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# Files of slow tests that take longer than most, in minutes of one thread; of other notebooks see costs.json.
LONG = {
    "test_01_decide": 9.0,
    "test_00_quickstart": 7.0,
    "test_05_unsloth": 6.0,
    "test_09_train": 4.5,
    "test_08_configure": 4.3,
    "test_kill": 2.5,
    "test_export": 1.8,
    "test_processes": 1.5,
    "test_loading": 1.5,
    "test_backends": 1.0,
    "test_loop": 1.0,
    "test_study": 1.0,
}

SET_ASIDE = pytest.StashKey[int]()  # modules that were imported when their objects were last set aside

# A shell that starts tests in the background has them ignore Ctrl+C, and what they start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Imports make a million objects that stay; looking for garbage after every 700 of them takes a fifth of their time.
gc.set_threshold(100_000)
# With this package, which JupyterLab brings along, each import of jsonschema reads a grammar for a second. It checks
# the format "iri", which nothing here asks for.
sys.modules.setdefault("rfc3987_syntax", None)


def pytest_runtest_setup(item):
    """What was imported is set aside once: each training collects garbage and would walk through all of torch."""
    if len(sys.modules) > item.session.stash.get(SET_ASIDE, 0) + 50:
        gc.collect()
        gc.freeze()
        item.session.stash[SET_ASIDE] = len(sys.modules)


def pytest_collection_modifyitems(items):
    """The longest files first, so that of two workers none ends alone with one of them (`--no-loadscope-reorder`)."""
    costs = json.loads((Path(__file__).parents[1] / "notebooks/costs.json").read_text())
    minutes = {f"test_{name}": cost["minutes"] for name, cost in costs.items()} | LONG
    items.sort(key=lambda item: -minutes.get(item.path.stem, 0))


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model():
    """A Llama with two layers and random weights, the same every time."""
    return make_model()


def pytest_configure(config):
    """The fast tests write their small files into memory where there is room: a disk takes several times as long."""
    import shutil
    import tempfile

    memory = "/dev/shm"
    if config.option.markexpr == "not slow" and os.path.isdir(memory) and shutil.disk_usage(memory).free > 2 * 2**30:
        os.environ.setdefault("TMPDIR", memory)
        tempfile.tempdir = None  # asked anew


@pytest.fixture
def rows():
    """Eight short chats."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} plus {i}?"},
                {"role": "assistant", "content": f"It is {2 * i}."},
            ]
        }
        for i in range(8)
    ]


@pytest.fixture
def splits(rows):

    return data.split(data.load_examples(rows), val=0.2, test=0.2, seed=0)


@pytest.fixture(scope="session")
def toy_config():
    """Settings under which the toy trains in a second, without Unsloth and 4-bit."""
    return TrainConfig(
        backend="transformers",
        load_in_4bit=False,
        dtype="fp32",
        gradient_checkpointing=False,
        optim="adamw_torch",
        max_steps=4,
        warmup_steps=0,
        learning_rate=1e-2,
        lora_r=4,
        eval_steps=2,
        save_steps=2,
        max_length=256,
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`transformers serve` with the bundled model on a free port of loopback: URL, model and a count of requests."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    from ftkit import models

    folder, log = models.resolve(models.BUNDLED), tmp_path_factory.mktemp("serve") / "log"
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
