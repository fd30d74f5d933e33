"""A command of another process, shown on the page as it speaks."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence


def stream(arguments: Sequence[str], threads: int) -> int:
    """Run `python -m …` on so many threads and print its lines as they come; gives back its exit status.

    What it says on stderr, bars of progress among it, is shown only where it fails.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        command = [sys.executable, "-m", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment) as process:
            for line in process.stdout or ():
                print(line, end="")
        if process.returncode:
            said.seek(0)
            print(said.read()[-3000:])
    return process.returncode
