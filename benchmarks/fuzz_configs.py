"""Settings by the thousand, broken at random: each is a valid config or one of our errors, soon and in few words.

python benchmarks/fuzz_configs.py [--count 3000] [--seed 0]

YAML is mutated (bytes, lines, values, nesting, aliases, tags), settings are given odd values under known and foreign
names, and values are typed as on a command line. Whatever else is raised, or takes long, is printed with its input.
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ftkit.config import TrainConfig, typed_value
from ftkit.errors import FtkitError

LIMIT_S, LIMIT_CHARACTERS = 2.0, 20_000
NAMES = [spec.name for spec in fields(TrainConfig)]
FOREIGN = ["cutoff_len", "lora_target", "datasets", "<<", "true", "~", "1", "", "a b", "\x1b[2J", "\u202e", "x" * 5000]
_TYPED = """
0 -1 1e999 -.inf .nan 2e-4 0x10 0b 0b1 0o7 1_000 1:30:15 2001-02-30 2001-99-99 true no ~ "" '' [] {} [[]] [q_proj]
[q_proj,1] {a:1} {a: [{b: [c]}]} [&a x,*a] <<:_*a !!int !!int_abc !!float_"" !!bool_x !!binary_%% !!timestamp_x
!!set_{a} !!omap_[a] !!python/name:os.x !!python/object/apply:os.system_[true] &a_1 *a &a_[*a]
|_x >_x ?_a %YAML @x `x` "\\ud800" "\\0" "\\x1b[31m" - -_- # : \x00 \x1b \ufeff \u2028 \U0001f600
"""
TYPED = [value.replace("_", " ") for value in _TYPED.split()]
TEXTS = ["", "16", "bf16", "cosine", "\ud800", "\x00", "x" * 10**6, "\x1b[31m", b"x", Path("x")]
NUMBERS = [-1, 0, 1, 3, 2**31, 10**400, -(10**5000), 0.5, 1e-5, float("nan"), float("inf"), 1j, True, False]
OTHERS = [None, (), [], {}, ("q_proj",), ["q_proj"], [""], [None], [["q"]], {"a": 1}, {1}, range(3), object(), int, ...]
LETTERS = "\t\n\r\x00\x1b\u2028\ufeff\U0001f600'\"[]{}:,#&*!|>%@`~-?<= \\0129abz_."


def main() -> None:
    """Print how many were valid, how many refused, and what else happened; exit 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, ends, slowest = random.Random(options.seed), Counter[str](), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for i in range(options.count):
            attempt, given = (from_file, from_settings, from_typed)[i % 3](chance, Path(folder))
            end, seconds = outcome(attempt)
            slowest = max(slowest, seconds)
            ends[end] += 1
            if end not in ("valid", "refused"):
                print(f"{end} ({seconds:.1f} s): {given!r:.300}")
    print(f"{options.count} settings, seed {options.seed}: {dict(ends)}; the slowest took {slowest:.2f} s")
    raise SystemExit(set(ends) > {"valid", "refused"})


def outcome(attempt: Callable[[], Any]) -> tuple[str, float]:
    """How an attempt ended, and after how many seconds."""
    began = time.perf_counter()
    try:
        attempt()
        end = "valid"
    except FtkitError as error:
        end = "refused" if len(str(error)) <= LIMIT_CHARACTERS else "an endless message"
    except Exception as error:  # noqa: BLE001 - the very thing that is looked for
        end = f"{type(error).__name__}: {str(error)[:100]!r}"
    seconds = time.perf_counter() - began
    return end if seconds <= LIMIT_S else f"slow, {end}", seconds


def from_file(chance: random.Random, folder: Path) -> tuple[Callable[[], Any], bytes]:
    """Load a file that `save` wrote and chance mutated; a valid one is written and read again."""
    path = TrainConfig(seed=chance.randrange(99)).save(folder / "config.yaml")
    text = mutated(path.read_text(encoding="utf-8"), chance).encode("utf-8", "surrogatepass")
    if chance.random() < 0.1:
        place = chance.randrange(len(text) + 1)
        text = text[:place] + chance.randbytes(4) + text[place:]
    path.write_bytes(text)
    return lambda: saved_again(TrainConfig.load(path), folder), text


def from_settings(chance: random.Random, folder: Path) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Settings in Python, as a program or a form gives them."""
    names = chance.sample(NAMES, 3) + chance.sample(FOREIGN, 1) * (chance.random() < 0.3)
    values: list[Any] = chance.choice([TEXTS, NUMBERS, OTHERS])
    given = {name: chance.choice(values) for name in names}
    for name in NAMES:
        if name in given and chance.random() < 0.5:
            del given[name]
    return lambda: saved_again(TrainConfig(**given), folder), given


def from_typed(chance: random.Random, folder: Path) -> tuple[Callable[[], Any], tuple[str, str]]:
    """A name and a value, as `--parameter NAME VALUE` takes them."""
    name, text = chance.choice(NAMES + FOREIGN), chance.choice(TYPED)
    text = "".join(chance.choice([letter] * 9 + [chance.choice(LETTERS)]) for letter in text) * chance.choice([1, 1, 9])
    return lambda: saved_again(TrainConfig(**{name: typed_value(text)}), folder), (name, text)


def saved_again(config: TrainConfig, folder: Path) -> None:
    """What is valid shows itself, has a digest, and is read as it was written."""
    assert str(config) and config._repr_html_() and config.digest()
    assert TrainConfig.load(config.save(folder / "again.yaml")) == config


def mutated(text: str, chance: random.Random) -> str:
    """One to four changes of a text's lines."""
    for _ in range(chance.randint(1, 4)):
        lines = text.split("\n")
        place = chance.randrange(len(lines))
        value = chance.choice(TYPED)
        match chance.randrange(8):
            case 0:
                lines.insert(place, f"{chance.choice(NAMES + FOREIGN)}: {value}")
            case 1:
                lines[place] = f"{lines[place].partition(':')[0]}: {value}"
            case 2:
                lines[place] = chance.choice(["[", "{", "- ", "? ", "&a [*a, ", "!!x "]) * chance.choice(
                    [1, 50, 20_000]
                )
            case 3:
                lines[place : place + 2] = []
            case 4:
                lines[place] = " " * chance.randint(1, 9) + lines[place]
            case 5:
                lines += [f"k{i}: &k{i} [{','.join([f'*k{i - 1}'] * 9)}]" for i in range(1, 9)]
            case 6:
                lines[place] = "".join(
                    chance.choice([letter] * 4 + [chance.choice(LETTERS)]) for letter in lines[place]
                )
            case 7:
                lines *= chance.choice([2, 2, 2, 50])
        text = "\n".join(lines)[:200_000]
    return text


if __name__ == "__main__":
    main()
