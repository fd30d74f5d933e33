"""A GGUF served by llama.cpp in a process of its own, as an endpoint that judges and evaluations ask.

A damaged file, or a crash of llama.cpp, ends that process and not this one.
"""

import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftkit import models
from ftkit.errors import MissingArtifact, MissingExtra, ModelError

CONTEXT_TOKENS = 4096
_REQUEST_S = 600  # of one answer; a large model on one thread writes about a token a second


@contextmanager
def serve_gguf(
    path: str | Path, *, threads: int = 1, context_tokens: int = CONTEXT_TOKENS, max_tokens: int = 300
) -> Iterator[models.Endpoint]:
    """Serve a GGUF on loopback for as long as the block runs, and yield the endpoint at which it is asked.

    Args:
        path: the file.
        threads: of the processor. On a machine that does other work, more than one wait for each other and are slower.
        context_tokens: prompt and answer together; more takes more memory.
        max_tokens: at which a reply is cut.

    Raises:
        MissingArtifact: no such file.
        MissingExtra: `xllamacpp` or `openai` is not installed.
        ModelError: llama.cpp cannot load the file; says what it said.
    """
    with server(path, threads=threads, context_tokens=context_tokens) as url:
        yield models.Endpoint(f"{url}/v1", Path(path).stem, max_tokens=max_tokens, timeout_s=_REQUEST_S)


@contextmanager
def server(path: str | Path, *, threads: int = 1, context_tokens: int = CONTEXT_TOKENS) -> Iterator[str]:
    """The address of a server of this file, which ends with the block; see `serve_gguf`."""
    path = Path(path)
    if not path.is_file():
        raise MissingArtifact(f"{path} is no file. publishing.to_gguf writes a GGUF.")
    if find_spec("xllamacpp") is None:
        raise MissingExtra("Serving a GGUF needs the package xllamacpp. Run: pip install 'ftkit[gguf]'")
    script = Path(__file__).with_name("server.py")
    command = [sys.executable, str(script), str(path), str(threads), str(context_tokens)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8"
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            url = process.stdout.readline().strip()  # ends at once where the process does
            if not url.startswith("http://"):
                process.wait()
                raise ModelError(f"llama.cpp cannot serve {path}: {_reason(log)} Export it again.")
            yield url
        finally:
            process.stdin.close()  # this is how it is told to end
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def post(url: str, place: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """What a server of llama.cpp answers to one request.

    Raises:
        ModelError: it refuses the request, or has ended.
    """
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{place}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_REQUEST_S) as reply:
            return dict(json.loads(reply.read()))
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", "replace")[:300]
        raise ModelError(f"llama.cpp refuses {place} with HTTP {error.code}: {said}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"llama.cpp stopped answering at {place} ({error}). Is the memory enough?") from error


def _reason(log: Any) -> str:
    """The last lines in which llama.cpp, or Python, speaks of an error."""
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    failed = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
    return " ".join((failed or lines or ["it ended without a word."])[-2:])[:500]
