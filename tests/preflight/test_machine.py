"""Surroundings that spoil a run: GPUs, the order of imports, versions, the disk."""

import errno
import json
import os
import sys
import types

import pytest
from toys import finding

from ftkit.preflight import machine
from ftkit.preflight.machine import check_imports
from ftkit.runs import Run


def test_several_gpus(look, monkeypatch):
    """One process with two GPUs would split batches; one of several launched processes is fine."""
    monkeypatch.setattr(machine, "visible_gpus", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert finding(look(), "several-gpus").severity == "error"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "several-gpus" in look().passed


def test_unsloth_late(look, model, monkeypatch):
    """Modules stand in the order of their import: what stands before Unsloth was not patched by it."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("unsloth", "unsloth_zoo")]:
        monkeypatch.delitem(sys.modules, name)  # where an earlier test loaded it
    monkeypatch.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
    model.for_training = lambda: None
    assert "transformers" in finding(look(), "unsloth-late").evidence
    assert list(check_imports("unsloth", ["unsloth_zoo.x", "torch", "transformers", "unsloth"])) == []


def test_versions_differ(look, tmp_path):
    run = Run.create("old", tmp_path)
    run.finish("train")
    facts = json.loads((run / "run.json").read_text())
    facts["versions"]["trl"] = "0.9.0"
    (run / "run.json").write_text(json.dumps(facts))
    found = finding(look(run=run), "versions-differ")
    assert "trl 0.9.0 then" in found.evidence


@pytest.mark.parametrize(("free_mib", "severity"), [(10, "error"), (100, "warning")])
def test_disk_low(look, tmp_path, monkeypatch, free_mib, severity):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free_mib * 2**20))
    found = finding(look(run=Run.create("full", tmp_path)), "disk-low")
    assert (found.severity, found.field) == (severity, "save_total_limit")


def test_run_not_writable(look, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert os.strerror(errno.ENOTDIR) in finding(look(run=Run(tmp_path / "file/run")), "run-not-writable").evidence
