"""Stop between two steps: an event that another thread sets, or Ctrl+C and the notebook's stop button."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible(stop: threading.Event | None = None) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether to stop after the step that runs now.

    In the main thread the first SIGINT asks for that, and a second one raises KeyboardInterrupt as usual; elsewhere
    only `stop` counts. The handler that was there before comes back at the end.
    """
    asked = threading.Event()

    def wanted() -> bool:
        return asked.is_set() or (stop is not None and stop.is_set())

    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield wanted
        return

    def handle(number: int, frame: Any) -> None:
        """Ask once, then give up waiting."""
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield wanted
    finally:
        signal.signal(signal.SIGINT, before)
