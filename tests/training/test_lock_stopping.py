"""One process a run folder, and a stop that waits for the end of a step."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from ftkit.errors import StorageError
from ftkit.training.loop import locked
from ftkit.training.recorder import interruptible

HOLDER = """
import sys, time
from pathlib import Path
from ftkit.training.loop import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused(holder, tmp_path):
    with pytest.raises(StorageError, match="in use: another process is training there"), locked(tmp_path):
        pass


def test_a_lock_dies_with_its_process(holder, tmp_path):
    """`kill -9` leaves no stale lock."""
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        pass


def test_the_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        pass


def test_a_second_thread_is_refused(tmp_path):
    caught = []

    def enter():
        try:
            with locked(tmp_path):
                pass
        except StorageError as error:
            caught.append(error)

    with locked(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(caught) == 1


def test_a_file_system_without_locks_is_served_from_elsewhere(tmp_path, monkeypatch):
    """Some mounted drives refuse flock; filelock then raises NotImplementedError."""
    import filelock

    acquire = filelock.FileLock.acquire

    def refuse(self, *arguments, **settings):
        if self.lock_file.startswith(str(tmp_path)):
            raise NotImplementedError("FileSystem does not appear to support flock")
        return acquire(self, *arguments, **settings)

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with locked(tmp_path), pytest.raises(StorageError, match="in use"), locked(tmp_path):
        pass


def test_only_the_first_of_several_launched_processes_takes_it(holder, tmp_path, monkeypatch):
    """Under torchrun all processes train in one folder."""
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path):
        pass


def test_the_first_sigint_asks_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_an_event_counts_in_any_thread():
    """Signals belong to the main thread; a button's event does not."""
    stop, answers = threading.Event(), []

    def look():
        with interruptible(stop) as asked:
            answers.append(asked())
            stop.set()
            answers.append(asked())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert answers == [False, True]


def test_a_process_that_ignores_sigint_goes_on_ignoring_it():
    """As under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)
