"""Files appear whole or not at all."""

import subprocess
import sys
import textwrap

import pytest

from ftkit import files
from ftkit.errors import StorageError


def test_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    """A write that the system refuses half-way (here: a file size limit) changes nothing on disk."""
    script = textwrap.dedent(f"""
        import resource, signal
        from ftkit import files
        from ftkit.errors import StorageError
        files.write_text({str(tmp_path / "a.txt")!r}, "old")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            files.write_text({str(tmp_path / "a.txt")!r}, "x" * 100_000)
        except StorageError as error:
            print("StorageError", error)
    """)
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.startswith("StorageError")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


def test_no_space_left_is_explained(tmp_path):
    """/dev/full is the kernel's own full disk: every write there fails with ENOSPC."""
    with (
        pytest.raises(StorageError, match="disk is full"),
        files.disk_errors_explained(tmp_path),
        open("/dev/full", "w") as file,
    ):
        file.write("x")
        file.flush()


def test_a_folder_that_fails_half_way_never_shows(tmp_path):
    with pytest.raises(ZeroDivisionError), files.folder(tmp_path / "adapter") as working:
        (working / "half").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for name in ("one", "two"):
        with files.folder(tmp_path / "adapter") as working:
            (working / name).write_text("x")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [files.HIDDEN, "two"]
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_sweep_removes_our_own_temporaries_and_nothing_else(tmp_path):
    """An editor's swap file, a repository and somebody's backup begin with a dot as well."""
    kept = [".git", ".history.csv.swp", ".adapter.bak", "adapter", "x.ftkit-tmp"]
    for name in (*kept, ".adapter.x1.ftkit-tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".history.csv.x4.ftkit-tmp").touch()
    (tmp_path / ".link.ftkit-tmp").symlink_to(tmp_path / "adapter")
    files.remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("there", ["notes.txt", "deep/notes.txt", "ftkit.json", ".hidden"])
def test_a_folder_of_somebody_else_is_not_replaced(tmp_path, there):
    mine = tmp_path / "adapter" / there
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with (
        pytest.raises(StorageError, match=rf"ftkit did not write what is in it: {there}"),
        files.folder(tmp_path / "adapter"),
    ):
        pytest.fail("the block ran")
    assert mine.read_text() == "mine"


def test_a_stranger_in_a_folder_of_ours_keeps_it_from_being_replaced(tmp_path):
    with files.folder(tmp_path / "adapter") as working:
        (working / "one").write_text("x")
    (tmp_path / "adapter/notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"notes\.txt"), files.folder(tmp_path / "adapter"):
        pytest.fail("the block ran")


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "adapter").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is a link"), files.folder(tmp_path / "adapter"):
        pytest.fail("the block ran")


def test_an_edited_file_is_told_where_that_matters(tmp_path):
    with files.folder(tmp_path / "data") as working:
        (working / "train.jsonl").write_text("x")
    files.refuse_foreign(tmp_path / "data", edited=True)
    (tmp_path / "data/train.jsonl").write_text("corrected by hand")
    files.refuse_foreign(tmp_path / "data")
    with pytest.raises(StorageError, match=r"train\.jsonl"):
        files.refuse_foreign(tmp_path / "data", edited=True)


def test_weights_that_do_not_fit_are_a_storage_error_and_leave_nothing(tmp_path):
    """The library raises a class of its own when the system refuses a file of that size."""
    script = (
        "import numpy, pathlib, resource, signal, sys\n"
        "from safetensors.numpy import save_file\n"
        "from ftkit import files\n"
        "from ftkit.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "try:\n"
        "    with files.weight_errors_explained(path), files.folder(path) as working:\n"
        "        save_file({'a': numpy.zeros(100_000)}, working / 'x.safetensors')\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "adapter")], capture_output=True, text=True)
    assert "the disk is full or refuses a file of this size" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "loop/x", "folder"], ids=["long", "nul", "loop", "folder"])
def test_a_name_that_cannot_be_written_is_explained(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"Cannot write .* Choose (another|a shorter)"):
        files.write_text(tmp_path / name, "text")
    assert {path.name for path in tmp_path.iterdir()} == {"loop", "folder"}


def test_a_line_is_added_below_half_a_line(tmp_path):
    """What a killed program left stays as it is; nothing grows onto it."""
    path = tmp_path / "new/x.jsonl"
    files.append_jsonl(path, {"a": "é\ud800"})
    with path.open("ab") as file:
        file.write(b'{"a": 1, "b')
    files.append_jsonl(path, {"a": 2})
    assert path.read_bytes() == '{"a": "é?"}\n{"a": 1, "b\n{"a": 2}\n'.encode()


def test_a_line_that_cannot_be_added_is_explained(tmp_path):
    with pytest.raises(StorageError, match="a folder stands where a file is wanted"):
        files.append_jsonl(tmp_path, {"a": 1})
