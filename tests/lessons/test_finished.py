"""The finished run that a lesson begins with."""

from ftkit import files
from ftkit.lessons import finished_run
from ftkit.runs import Run


def test_without_updates_it_is_a_copy_of_the_sample(tmp_path):
    run = finished_run("shipped", tmp_path)
    assert run.path == tmp_path / "shipped"
    for name, path in files.inside(Run.sample().path).items():
        assert files.digest(run / name) == files.digest(path)
    assert finished_run("shipped", tmp_path).path == run.path  # a cell that is run twice


def test_with_updates_it_is_trained_beside_the_copy(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr("ftkit.lessons.finished.models.load", lambda base, config: ("model", "tokenizer"))
    monkeypatch.setattr("ftkit.lessons.finished.train", lambda *given, **how: trained.append(given))
    run = finished_run("shipped", tmp_path, max_steps=20, seed=7)
    (_, _, splits, config, where), *rest = trained
    assert (run.path, where.path, rest) == (tmp_path / "shipped-trained", tmp_path / "shipped-trained", [])
    assert (config.max_steps, config.seed) == (20, 7)
    assert len(splits.train)
