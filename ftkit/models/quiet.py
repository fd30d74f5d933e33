"""Keep other libraries' banners and progress bars out of a page that a learner reads."""

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

# Loggers that Unsloth writes to: its own, and those that it takes from Transformers.
_UNSLOTH_LOGGERS = ("unsloth_zoo.log", "transformers.models.llama.modeling_llama", "transformers.trainer")

_CHATTER = ("Unsloth ", "Unsloth: ", "Not an error, but Unsloth", "==((====))==")

# Said of rows or settings that are changed.
_A_LOSS = re.compile(r"truncat|could not|fail|unsuccessful|ignor|not support|dropout", re.IGNORECASE)


def _is_no_chatter(record: logging.LogRecord) -> bool:
    said = str(record.msg)
    return record.levelno >= logging.ERROR or not said.startswith(_CHATTER) or bool(_A_LOSS.search(said))


@contextmanager
def quietly(enabled: bool = True) -> Iterator[None]:
    """Silence banners, weight-loading bars and known harmless log lines inside the block; errors still come through.

    What Unsloth logs later, while it trains and saves, stays hidden after the block: banners, and repairs that it has
    made by itself, but no line of rows that it cuts or of a setting that it ignores.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    for name in _UNSLOTH_LOGGERS:
        logging.getLogger(name).addFilter(_is_no_chatter)  # a second time changes nothing
    # said after any forward pass before trainer.train(), such as the probe's: it starts clean by itself
    warnings.filterwarnings("ignore", message="Unsloth: detected a manual forward/backward run")
    noisy = logging.getLogger("bitsandbytes")  # says that an optional kernel package is missing
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), _no_transformers_bars():
            yield
    finally:
        noisy.setLevel(level)


@contextmanager
def _no_transformers_bars() -> Iterator[None]:
    if "transformers" not in sys.modules:  # importing it here would come before Unsloth
        yield
        return
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
