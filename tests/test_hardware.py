"""What this machine is: read from it, and sane."""

import os
import subprocess
import sys

import pytest

from ftkit import hardware


def test_detect_agrees_with_the_machine():
    import torch

    machine = hardware.detect()
    assert machine.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert 0.5 < machine.memory_gib < 4096
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert machine.name in str(machine)


@pytest.mark.slow
@pytest.mark.skipif(hardware.detect().device != "cpu", reason="Unsloth's CPU backend is not there on a GPU machine")
def test_cpu_bf16_is_what_unsloth_finds():
    """Both read the CPU's flags; they must not disagree, or the number format would."""
    script = "import unsloth; from unsloth_zoo.cpu.runtime import cpu_bf16_supported as found; print('BF16', found())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"BF16 {hardware._cpu_has_bf16()}" in done.stdout


@pytest.mark.skipif(hardware.detect().device != "cpu", reason="on a GPU the peak is the GPU's")
def test_peak_memory_never_falls_below_the_present():
    assert hardware.peak_memory_gib() >= 0.95 * hardware.process_memory_gib()


@pytest.mark.parametrize("content", [None, b"", b"max\n", b"\xff\x00", "\u00b2".encode(), b"-1"])
def test_what_the_system_says_of_itself_is_read_or_left_out(monkeypatch, tmp_path, content):
    """Containers hide the files of the CPU and of the memory limit, or fill them in ways of their own."""
    place = tmp_path / "said"
    if content is not None:
        place.write_bytes(content)
    monkeypatch.setattr(hardware, "_CPU", place)
    monkeypatch.setattr(hardware, "_MEMORY_LIMIT", place)
    assert isinstance(hardware._cpu_name(), str)
    assert hardware._cpu_has_bf16() is False
    assert hardware._ram_gib() > 0.1


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, (0, 0, 1)),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, (3, 1, 4)),
        ({"WORLD_SIZE": "2"}, (0, 0, 2)),
        ({"RANK": "first", "WORLD_SIZE": "2"}, (0, 0, 1)),
    ],
)
def test_which_of_how_many_processes_is_what_the_launcher_said(monkeypatch, said, found):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    here = hardware.launch()
    assert (here.rank, here.local, here.processes) == found
