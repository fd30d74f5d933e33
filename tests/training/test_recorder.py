"""A stop waits for the end of a step, and only updates that changed the weights are counted."""

import os
import signal
import threading

import pytest
import torch

from ftkit.runs import Run
from ftkit.training.recorder import Recorder, interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


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


def test_updates_that_the_scaler_skips_are_not_counted(toy_config, tmp_path):
    """A real scaler on a real parameter: an infinite gradient leaves the weights as they are."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = AcceleratedOptimizer(torch.optim.SGD([weight], lr=0.1), scaler=torch.amp.GradScaler("cpu"))
    optimizer.gradient_state._set_sync_gradients(True)  # shared in a process: an earlier training may have left it off
    recorder = Recorder(Run.create("toy", tmp_path), toy_config, {}, watch=lambda points, total: None)
    callback = recorder.callback()
    for gradient in (float("inf"), 1.0, float("inf"), 1.0):
        optimizer.scaler.scale(weight.sum() * gradient).backward()
        optimizer.step()
        callback.on_optimizer_step(None, None, None, optimizer=optimizer)
        optimizer.zero_grad()
    assert recorder.applied == 2
