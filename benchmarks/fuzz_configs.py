"""Broken settings by the thousand: each is a valid config or one of our errors, at once and in few words.

```bash
python benchmarks/fuzz_configs.py          # 3,000, in about half a minute; --count and --seed change that
```

YAML text is mutated (bytes, lines, values, nesting, aliases, tags), dicts are built from odd values under known and
foreign names, and values are typed as on a command line. A foreign exception ends the run with its input.
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path

from ftkit.__main__ import _mapping, _parameters
from ftkit.config import TrainConfig
from ftkit.errors import FtkitError

NAMES = [spec.name for spec in fields(TrainConfig)]
FOREIGN = ["cutoff_len", "lora_target", "datasets", "<<", "true", "~", "1", "", "a b", "\x1b[2J", "\u202e", "é", "x" * 5000]
TEXTS = """
0 -1 1e999 -.inf .nan 2e-4 0x10 0b1 0o7 1_000 1:30:15 2001-02-30 2001-99-99 true no ~ "" '' [] {} [[]] [q_proj] [q_proj,1]
{a: 1} [{a: b}] !!int !!int_abc !!float_"" !!bool_x !!binary_%% !!timestamp_x !!set_{a} !!omap_[a] !!python/name:os.x
!!python/object/apply:os.system_[true] &a_1 *a &a_[*a] <<:_*a |_x >_x ?_a %YAML @x `x` "\\ud800" "\\0" "\\x1b[31m" - -_- # :
""".split()
VALUES = [
    None, True, False, 0, -1, 1, 3, 2**31, 10**400, -(10**5000), 0.5, 1e-5, float("nan"), float("inf"), 1j, "", "16",
    "bf16", "cosine", "\ud800", "\x00", "x" * 10**6, b"x", (), [], {}, ("q_proj",), ["q_proj"], [""], [None],
    [["q_proj"]], {"a": 1}, {1}, range(3), object(), int, print, Path("x"), ...,
]  # fmt: skip
ALPHABET = "\t\n\r\x00\x1b\u2028\ufeff\U0001f600'\"[]{}:,#&*!|>%@`~-?<= \\0129abz_."
