"""A help desk's mail with planted, listed defects: the file that notebook 07 cleans.

Clean rows grow from one grammar, in which `[this|that]` is a choice and `{slot}` a fact of the customer's case, so that
the answer fits the mail. They have so little in common, each pair below 0.4, that a Jaccard threshold of 0.72 to 0.82
finds the planted copies and nothing else. Kinds `look-alike` and `decoy` are traps: they only seem wrong.

The grammar and the spoilt texts stand in `messy.txt` beside this file. Shop, products and names are invented; card
numbers, IBAN, phone numbers and keys are documented examples or plainly fake. The texts are Apache-2.0.
`python -m tools.make_messy` rewrites the three files in `ftkit/samples`.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

CLEAN = {"reply": 150, "extract": 90, "summarise": 90, "route": 90}

SURPLUS = 240  # further replies: more than half of the file then asks for one task

TEST = 10  # clean test rows a task

LOOK_ALIKE, NEAR, SAME = (0.55, 0.72), (0.82, 0.97), (0.8, 1.0)  # ranges of the Jaccard index

JACCARD = (
    "Shared over all 5-word shingles of two texts; words are the matches of \\w+ after NFKC and casefold; the text is "
    "instruction + '\\n\\n' + input (the prompt), with '\\n' + output after it for prompt plus answer. Near-duplicates "
    "and look-alikes keep to their range in both."
)

ABOUT = (
    "Defects of messy.jsonl. Lines count from 1; `original` is the line that a copy was made from, `test_line` a line "
    "of messy_test.jsonl; a row with `keep` only seems wrong."
)

Row = dict[str, str]

Defect = dict[str, Any]


def _section(name: str) -> list[str]:
    """Lines of one section of `messy.txt`; a section begins with `== name ==`."""
    text = Path(__file__).with_name("messy.txt").read_text(encoding="utf-8")
    return text.split(f"== {name} ==\n")[1].split("\n\n")[0].splitlines()


# Two lines a problem: products // team // its job // details // gist // wish => action // wish => action;
# then how it is told.
PROBLEMS = _section("problems")

# Tasks: instruction // answer; tones (warm, cross, brief): greeting // opening // closing // signature.
GRAMMAR = _section("grammar")

PARTS = dict(line.split(": ", 1) for line in GRAMMAR)

SWAPS = dict(pair.split("=") for pair in PARTS["swaps"].split())  # one word for another, for near-duplicates

SWAP = re.compile(rf"\b({'|'.join(SWAPS)})\b")

CHANGES: dict[str, Callable[[str], str]] = {
    "no change": str,
    "capitals": str.upper,
    "whitespace": lambda text: "  " + text.replace(" ", "  ").replace("\n", " \n\t"),
    "zero-width characters": lambda text: "\ufeff" + text.replace(" ", " \u200b", 9).replace("th", "t\u200bh", 1),
    "Unicode form": lambda text: unicodedata.normalize("NFD", text).replace("1", "１").replace("2", "２"),
}

# Kind, how, how many, range of Jaccard, why: rows made from a clean row.
COPIES = (
    ("exact-duplicate", "no change", 4, SAME, "The original, byte for byte."),
    *(("exact-duplicate", how, 2, SAME, f"The original up to {how}.") for how in list(CHANGES)[1:]),
    ("near-duplicate", "swapped words", 18, NEAR, "The original with one to three words swapped."),
    ("look-alike", "another case", 6, LOOK_ALIKE, "Worded like the original, but another customer's case: keep it."),
    ("leak-exact", "no change", 2, SAME, "The test row is this training row, byte for byte."),
    ("leak-near", "swapped words", 1, NEAR, "The test row is this training row with one to three words swapped."),
)

# Kind; why; spoilt field; what stands there, `||` between several.
TABLE = _section("spoilt")

SPOILT = [(*cells[:3], text) for cells in (line.split("; ", 3) for line in TABLE) for text in cells[3].split(" || ")]

dump = partial(json.dumps, ensure_ascii=False)


@dataclass(frozen=True)
class Messy:
    """Both files as raw lines, since not all parse, and the defects by line."""

    lines: tuple[str, ...]
    test: tuple[str, ...]
    defects: tuple[Defect, ...]


def shingles(row: Row, answer: bool = True) -> frozenset[str]:
    """All runs of five words in prompt plus answer, or in the prompt alone."""
    text = f"{row['instruction']}\n\n{row['input']}" + (f"\n{row['output']}" if answer else "")
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return frozenset(" ".join(words[i : i + 5]) for i in range(len(words) - 4))


def within(bounds: tuple[float, float], a: Row, b: Row) -> bool:
    """Whether the Jaccard index of two rows lies in a range, by their prompts and by prompt plus answer."""
    pairs = [(shingles(a, answer), shingles(b, answer)) for answer in (True, False)]
    return all(bounds[0] <= len(one & other) / len(one | other) <= bounds[1] for one, other in pairs)


def say(rng: Random, text: str, facts: Row) -> str:
    """Fill in the slots, then settle each `[this|that]`, innermost first."""
    while "{" in text:
        text = text.format(**facts)
    while choice := re.search(r"\[([^\[\]]*)\]", text):
        text = text[: choice.start()] + rng.choice(choice[1].split("|")) + text[choice.end() :]
    return text


def draw_facts(rng: Random) -> Row:
    """Draw a customer's case; gist, wish and the like stay open, to be worded anew at each use."""
    place = rng.randrange(0, len(PROBLEMS), 2)
    things, team, job, details, gist, *wishes = PROBLEMS[place].split(" // ")
    wish, action = rng.choice(wishes).split(" => ")
    facts = {"team": team, "job": job, "gist": gist, "told": PROBLEMS[place + 1], "wish": wish, "action": action}
    settled = {"thing": things, "detail": f"[{details}]", "name": "{names}", "model": "{models}"}
    settled |= {"order": "{numbers}", "day": "{days}", "price": "{prices}"}
    raw = PARTS | {"n": str(rng.randrange(100_000, 1_000_000)), "d": str(rng.randrange(1, 29))}
    raw["a"] = f"{rng.randrange(9, 290)}.{rng.choice(('00', '50', '90', '95'))}"
    facts |= {name: say(rng, text, raw) for name, text in settled.items()}
    return facts | {"product": "{model} {thing}", "line": "\n"}


def write_row(task: str, seed: int, changed: Row | None = None) -> Row:
    """Draw a case and word it; the same seed words it alike with some facts changed."""
    rng = Random(seed)
    facts = draw_facts(rng) | (changed or {})
    hello, opening, closing, bye = PARTS[rng.choice(("warm", "cross", "brief"))].split(" // ")
    parts = PARTS | {"told": facts["told"], "open": opening, "close": closing}
    body = [say(rng, parts[name], facts) for name in say(rng, PARTS["layouts"], facts).split()]
    text = " ".join(sentence[0].upper() + sentence[1:] for sentence in body)
    letter = rng.choice(("\n", "\n\n", " ")).join((say(rng, hello, facts), text, say(rng, bye, facts)))
    ask, answer = (say(rng, part, facts) for part in PARTS[task].split(" // "))
    return {"instruction": ask, "input": letter, "output": answer[0].upper() + answer[1:], "task": task}


def draw_rows(rng: Random, tasks: list[str]) -> list[tuple[int, Row]]:
    """Draw a clean row of fitting length for each task, with its seed."""
    drawn: list[tuple[int, Row]] = []
    while len(drawn) < len(tasks):
        seed = rng.randrange(2**32)
        row = write_row(tasks[len(drawn)], seed)
        if 55 <= len(row["input"].split()) <= 110 and 12 <= len(row["output"].split()) <= 70:
            drawn.append((seed, row))
    return drawn


def remake(rng: Random, how: str, seed: int, row: Row) -> Row:
    """Make another row from a clean one; `how` is the second column of `COPIES`."""
    if how == "another case":
        fresh, others = draw_facts(rng), rng.sample(("day", "price", "model"), rng.randrange(4))
        return write_row(row["task"], seed, {name: fresh[name] for name in ("name", "order", *others)})
    if how == "swapped words":
        spots = [match.start() for match in SWAP.finditer(row["input"])] or [0]
        first = rng.randrange(len(spots))
        chosen = spots[first : first + min(1 + seed % 8, 3)]  # three seldom stay near, so they are tried most
        swapped = SWAP.sub(lambda word: SWAPS[word[0]] if word.start() in chosen else word[0], row["input"])
        return row | {"input": swapped}
    return row | {field: CHANGES[how](row[field]) for field in ("input", "output")}


def related(rng: Random, clean: list[tuple[int, Row]]) -> list[tuple[str, Defect]]:
    """Remake clean rows, each at most once, into what `COPIES` lists; `original` counts them from 0."""
    made: list[tuple[str, Defect]] = []
    origins = iter(rng.sample(range(len(clean)), len(clean)))
    for kind, how, count, bounds, why in COPIES:
        wanted = len(made) + count
        while len(made) < wanted:
            origin = next(origins)
            tries = (remake(rng, how, *clean[origin]) for _ in range(20))
            copy = next((row for row in tries if within(bounds, clean[origin][1], row)), None)
            made += [(dump(copy), {"kind": kind, "original": origin, "why": why})] if copy else []
    return made


def spoiled(rng: Random, rows: list[Row]) -> list[tuple[str, Defect]]:
    """Spoil a row for each text in `SPOILT`, then break the last three."""
    pasted = {"log": "\n".join(say(rng, PARTS["log"], {}) for _ in range(235)), "line": "\n"}
    pasted["thread"] = "\n\n".join(write_row("reply", rng.randrange(2**32))["input"] for _ in range(32))
    made: dict[str, tuple[str, str]] = {}
    for row, (kind, why, field, text) in zip(rows, SPOILT, strict=False):
        half = row["output"][: len(row["output"]) // 2].rpartition(" ")[0]
        loop = " ".join([row["output"].partition(". ")[0] + "."] * 6)
        made[dump(row | {field: text.format(**row, **pasted, half=half, loop=loop)})] = (kind, why)
    torn, null, bare = (dump(row) for row in rows[-3:])
    made[torn[: len(torn) // 2]] = ("broken", "The JSON ends within a string.")
    made[re.sub(r'"output": ".*", ', '"output": null, ', null)] = ("broken", "The output is null.")
    made[re.sub(r'"output": ".*", ', "", bare)] = ("broken", "There is no output.")
    return [(line, {"kind": kind, "original": None, "why": why}) for line, (kind, why) in made.items()]


def listed(train: list[tuple[str, Defect]], test: list[tuple[str, Defect]], order: list[int]) -> tuple[Defect, ...]:
    """Give the defects their line numbers, from 1; a leak's `line` is the training row."""
    replies = sum('"task": "reply"' in line for line, _ in train)
    share = {"task": "reply", "count": replies, "share": round(replies / len(train), 3)}
    why = "One task has more lines than all others together."
    found: list[Defect] = [{"kind": "imbalance", "why": why, **share}]
    line_of: dict[int | None, int] = {entry: line for line, entry in enumerate(order, 1)}
    for line, (_, defect) in enumerate(train, 1):
        if defect:
            found.append({"line": line, **defect, "original": line_of.get(defect["original"])})
    for line, (_, defect) in enumerate(test, 1):
        if defect:
            found.append({"line": line_of[defect["original"]], **defect, "original": None, "test_line": line})
    blank = {"line": None, "kind": None, "original": None, "test_line": None}
    return tuple({**blank, "keep": defect["kind"] in ("look-alike", "decoy"), **defect} for defect in found)


def generate(seed: int = 0) -> Messy:
    """Generate training lines, test rows and the list of defects; the same seed gives the same."""
    rng = Random(seed)
    tasks = [task for task, count in CLEAN.items() for _ in range(count)] + ["reply"] * SURPLUS
    mixed = ("input", "short-answer")
    spare = [list(CLEAN)[n % 4] if {*cells} & {*mixed} else "reply" for n, cells in enumerate(SPOILT)]
    drawn = draw_rows(rng, [*tasks, *spare, *list(CLEAN)[:3], *TEST * list(CLEAN)])
    lines, first = [(dump(row), Defect()) for _, row in drawn], -TEST * len(CLEAN)
    made = related(rng, drawn[: len(tasks)])
    train = lines[: len(tasks)] + [pair for pair in made if "leak" not in pair[1]["kind"]]
    train += spoiled(rng, [row for _, row in drawn[len(tasks) : first]])
    test = lines[first:] + [pair for pair in made if "leak" in pair[1]["kind"]]
    order = rng.sample(range(len(train)), len(train))
    train = [train[entry] for entry in order]
    rng.shuffle(test)
    return Messy(tuple(line for line, _ in train), tuple(line for line, _ in test), listed(train, test, order))


def write(folder: Path, seed: int = 0) -> None:
    """Write `messy.jsonl`, `messy_test.jsonl` and `messy_defects.json`, in UTF-8 with Unix line ends."""
    messy = generate(seed)
    head = dump({"about": ABOUT, "jaccard": JACCARD, "seed": seed, "counts": Counter(d["kind"] for d in messy.defects)})
    defects = [head[:-1] + ', "defects": [', ",\n".join(map(dump, messy.defects)), "]}"]
    names = ("messy.jsonl", "messy_test.jsonl", "messy_defects.json")
    for name, lines in zip(names, (messy.lines, messy.test, defects), strict=True):
        (folder / name).write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(Path(__file__).parents[1] / "ftkit/samples")
