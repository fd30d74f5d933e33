"""A command on the page: its lines, its exit status, and what it complained of where it failed."""

from ftkit.lessons import stream


def test_lines_are_printed_and_complaints_are_kept_for_a_failure(tmp_path, monkeypatch, capsys):
    (tmp_path / "speaks.py").write_text(
        "import os, sys\nprint('threads', os.environ['OMP_NUM_THREADS'])\nprint('a bar', file=sys.stderr)\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert stream(["speaks", "0"], threads=3) == 0
    assert capsys.readouterr().out == "threads 3\n"
    assert stream(["speaks", "2"], threads=1) == 2
    assert capsys.readouterr().out == "threads 1\na bar\n\n"
