"""MT-Bench and AlpacaEval on their public files, each by path, URL or Hub id. Knows formats; `judging` judges.

MT-Bench (Zheng et al. 2023): questions of two turns in eight categories, graded 1 to 10 alone or in pairs against a
baseline, with reference answers for mathematics, reasoning and coding. AlpacaEval (Li et al. 2023): instructions with a
baseline's outputs. The judge's prompts are our own: results stand beside published ones, and are not the same thing.
"""

import csv
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftkit import tables
from ftkit.errors import DataError, without_secrets
from ftkit.evaluation.judging import Judge, JudgeRatings, Preferences, compare_pairs, rate, spelt_on_scale
from ftkit.evaluation.statistics import Score, mean_within
from ftkit.evaluation.win_rates import win_rate
from ftkit.models import Endpoint, LocalModel
from ftkit.tables import Table

Source = str | Path | Sequence[Mapping[str, Any]]
Answerer = Source | Endpoint | LocalModel
_GRADE = {"quality": "is the answer helpful, relevant, accurate, deep enough and as detailed as was asked for?"}
_REFERENCED = ("math", "reasoning", "coding")
_LARGEST = 64 * 2**20  # bytes of a file from the network


@tables.shown
@dataclass(frozen=True)
class MTBench:
    """What MT-Bench says of a model: `ratings` from 1 to 10, or `pairs` against a baseline.

    Args:
        overall: mean over both turns of all questions, with its interval; of pairs, the win rate.
        turns: likewise, of turn 1 and turn 2.
        categories: likewise, by category.
        ratings: every verdict of single grading.
        pairs: every verdict of pairwise grading.
    """

    overall: Score
    turns: dict[int, Score]
    categories: dict[str, Score]
    ratings: JudgeRatings | None
    pairs: Preferences | None

    def _parts(self) -> list[Table | str]:
        verdicts = self.ratings or self.pairs
        assert verdicts is not None
        rows: list[tuple[str, Score]] = [("both turns", self.overall)]
        rows += [(f"turn {turn}", score) for turn, score in self.turns.items()]
        rows += list(self.categories.items())
        what = "score, 1 to 10 [95 %]" if self.ratings else "win rate [95 %]"
        spelt = [(name, spelt_on_scale(score)) for name, score in rows]
        return [*verdicts._parts(), Table(("part", what), spelt)]


def mt_bench(
    judge: Judge,
    answers: Answerer,
    questions: Source,
    *,
    references: Source | None = None,
    baseline: Answerer | None = None,
    candidates: Sequence[str] = (),
    judges_itself: bool = False,
    price: tuple[float, float] | None = None,
    budget: float | None = None,
    draws: int = 3,
) -> MTBench:
    """Grade two-turn answers, each turn on its own: from 1 to 10, or against a baseline's in both orders.

    Other arguments are as in `rate`. A source is a path, a URL, `owner/name:file` for a data set on the Hub, or rows.

    Args:
        judge: who grades.
        answers: who answers, an `Endpoint` or a `LocalModel`; or FastChat's file of a model's answers
            (`question_id`, `choices` with `turns`).
        questions: FastChat's `question.jsonl` (`question_id`, `category`, `turns`).
        references: its `reference_answer/gpt-4.jsonl`, in the form of answers. They are used for mathematics,
            reasoning and coding; without the file, what stands as `reference` beside a question.
        baseline: as `answers`; with it pairs are graded.
        candidates: names or folders of the models under test; a model that answers is one without being named.
        judges_itself: let a candidate be the judge.
        price: per million tokens, in and out, of the judge.
        budget: refuse to start judging where the cost may exceed this.
        draws: how often a verdict that cannot be read is asked for.

    Raises:
        DataError: files that are not what they should be, or lack answers.
        ConfigError, ModelError: as in `rate`.
    """
    asked = _questions(questions)
    right = {} if references is None else _turns_of(references, asked, partly=True)
    for question in asked:
        right.setdefault(question["question_id"], _texts(question.get("reference")))
    under_test = [*candidates, *_named(answers), *_named(baseline)]
    rows = _two_turns(asked, _answered(answers, asked), right)
    if baseline is None:
        ratings = rate(
            judge,
            rows,
            criteria=_GRADE,
            scale=10,
            candidates=under_test,
            judges_itself=judges_itself,
            price=price,
            budget=budget,
            draws=draws,
        )
        values = [row["scores"]["quality"] for row in ratings.rows]
        return _summed(rows, values, ratings, None)
    other = _two_turns(asked, _answered(baseline, asked), right)
    pairs = compare_pairs(
        judge,
        rows,
        other,
        candidates=under_test,
        judges_itself=judges_itself,
        price=price,
        budget=budget,
        draws=draws,
    )
    return _summed(rows, pairs.preferences, None, pairs)


def alpaca_eval(
    judge: Judge,
    answers: Answerer,
    questions: Source,
    *,
    baseline: Answerer | None = None,
    gamed: Source | None = None,
    candidates: Sequence[str] = (),
    judges_itself: bool = False,
    price: tuple[float, float] | None = None,
    budget: float | None = None,
    draws: int = 3,
) -> Preferences:
    """Compare a model's outputs with a baseline's on AlpacaEval's instructions, in both orders.

    `answers` is who answers, or a file of outputs (`instruction`, `output`), and so is `baseline`: by default the
    `output` that stands beside each instruction. `questions` is `alpaca_eval.json`, or any file with `instruction`, in
    its order. With `gamed`, AlpacaEval's `df_gamed.csv`, the length-controlled rate is the leaderboard's, which knows
    how hard its own instructions are; without, it is the same regression without that term. What a source is, and all
    else, is as in `mt_bench`.
    """
    given = _rows(questions, "instruction")
    asked = [{"question_id": row["instruction"], "turns": [row["instruction"]]} for row in given]
    told = _named(answers), _named(baseline)
    sides = []
    for source in (answers, given if baseline is None else baseline):
        said = _answered(source, asked)
        sides.append([{"prompt": q["turns"][0], "answer": said[q["question_id"]][0]} for q in asked])
    result = compare_pairs(
        judge,
        *sides,
        candidates=[*candidates, *told[0], *told[1]],
        judges_itself=judges_itself,
        price=price,
        budget=budget,
        draws=draws,
    )
    if gamed is None or result.lost == len(result.rows):
        return result
    lengths = [(len(row["answer"]), len(row["baseline"])) for row in result.rows]
    difficulty, anchors = alpaca_difficulty(gamed, len(given))
    controlled = win_rate(result.preferences, lengths, True, difficulty=difficulty, anchors=anchors)
    return replace(result, length_controlled=controlled)


def alpaca_annotations(source: Source) -> tuple[list[float | None], list[tuple[str, str]]]:
    """Published annotations as `win_rate` takes them: a preference an item, and both outputs (model, baseline).

    Args:
        source: an `annotations.json` of AlpacaEval: `preference` from 1 (baseline) to 2 (model), `output_1` the
            baseline's, `output_2` the model's.
    """
    rows = _rows(source, "output_1", "output_2", "preference")
    spelt = [_preference(number, row["preference"]) for number, row in enumerate(rows, 1)]
    told = [0.5 if value == 0 else value and value - 1 for value in spelt]  # older files write 0 for a tie
    return told, [(row["output_2"] or "", row["output_1"] or "") for row in rows]


def _preference(number: int, given: Any) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not (given == 0 or 1 <= given <= 2):
        raise DataError(
            f"Annotation {number} has the preference {given!r}: 1 (baseline) to 2 (model) is wanted, or null."
        )
    return float(given)


def alpaca_difficulty(gamed: Source, count: int) -> tuple[list[float], list[tuple[float, float, float]]]:
    """The difficulty of AlpacaEval's first `count` instructions, and its anchors, from `df_gamed.csv`."""
    rows = _rows(gamed, "index", "instruction_difficulty", "std_delta_len", "preference")
    try:
        known = {int(row["index"]): float(row["instruction_difficulty"]) for row in rows}
        columns = ("std_delta_len", "instruction_difficulty", "preference")
        scored = [row for row in rows if row["preference"] not in ("", None)]
        anchors = [(float(row[columns[0]]), float(row[columns[1]]), float(row[columns[2]])) for row in scored]
        difficulty = [known[number] for number in range(count)]
    except (ValueError, TypeError, LookupError) as error:
        raise DataError(f"gamed is no df_gamed.csv of AlpacaEval for {count} instructions: {error}.") from error
    return difficulty, anchors


def _summed(
    rows: Sequence[Mapping[str, Any]],
    values: Sequence[float | None],
    ratings: JudgeRatings | None,
    pairs: Preferences | None,
) -> MTBench:
    """Means over everything, turns and categories; a question's two turns are one cluster."""
    least, most = (1, 10) if ratings else (0, 1)

    def mean(wanted: Mapping[str, Any]) -> Score:
        """Of the rows that hold what is wanted."""
        scored = zip(rows, values, strict=True)
        chosen = [(value, row["cluster"]) for row, value in scored if wanted.items() <= row.items()]
        return mean_within(chosen, least, most)

    categories = sorted({row["category"] for row in rows})
    turns = {turn: mean({"turn": turn}) for turn in (1, 2)}
    return MTBench(mean({}), turns, {name: mean({"category": name}) for name in categories}, ratings, pairs)


def _two_turns(
    questions: Sequence[Mapping[str, Any]], said: Mapping[Any, Sequence[str]], right: Mapping[Any, Sequence[str]]
) -> list[dict[str, Any]]:
    """A row a turn; the second shows the first as well, and says which answer counts."""
    rows = []
    for question in questions:
        number, turns = question["question_id"], question["turns"]
        answers, known = said[number], [text for text in right.get(number, ()) if text.strip()]
        for turn in range(1, len(turns) + 1):
            asked, told = turns[0], answers[0]
            if turn > 1:
                asked = f"First question:\n{turns[0]}\n\nSecond question, whose answer counts:\n{turns[1]}"
                told = f"Answer to the first question:\n{answers[0]}\n\nAnswer to the second question:\n{answers[1]}"
            reference = []
            if known and question.get("category") in _REFERENCED:
                reference = ["\n\n".join(f"Question {i}: {text}" for i, text in enumerate(known[:turn], 1))]
            rows.append(
                {
                    "id": f"{number}-{turn}",
                    "cluster": str(number),
                    "category": str(question.get("category", "none")),
                    "turn": turn,
                    "prompt": asked,
                    "answer": told,
                    "expected": reference,
                }
            )
    return rows


def _named(answers: Answerer | None) -> list[str]:
    if isinstance(answers, Endpoint):
        return [answers.model]
    return [answers.name] if isinstance(answers, LocalModel) else []


def _answered(answers: Answerer, questions: Sequence[Mapping[str, Any]]) -> dict[Any, list[str]]:
    """Answers by question: what a model says to each turn in its order, or what a file holds."""
    if not isinstance(answers, Endpoint | LocalModel):
        return _turns_of(answers, questions)
    chats: list[list[dict[str, str]]] = [[] for _ in questions]
    for turn in range(max(len(question["turns"]) for question in questions)):
        for chat, question in zip(chats, questions, strict=True):
            chat.append({"role": "user", "content": question["turns"][turn]})
        for chat, reply in zip(chats, answers.ask(chats, noun="question"), strict=True):
            chat.append({"role": "assistant", "content": reply})
    return {
        question["question_id"]: [turn["content"] for turn in chat[1::2]]
        for question, chat in zip(questions, chats, strict=True)
    }


def _turns_of(source: Source, questions: Sequence[Mapping[str, Any]], partly: bool = False) -> dict[Any, list[str]]:
    """Answers by question from FastChat's or AlpacaEval's file; with `partly` not every question needs one."""
    found: dict[Any, list[str]] = {}
    for row in _rows(source):
        if "instruction" in row:
            found[row["instruction"]] = [str(row.get("output") or "")]
        elif "question_id" in row:
            choices = row.get("choices")
            first = choices[0] if isinstance(choices, list) and choices else row
            found[row["question_id"]] = _texts(first.get("turns") if isinstance(first, Mapping) else None)
    lacking = [q["question_id"] for q in questions if len(found.get(q["question_id"], ())) < len(q["turns"])]
    if lacking and not partly:
        raise DataError(
            f"{_shown(source)} has no answer to {len(lacking)} of {len(questions)} questions; the first is "
            f"{str(lacking[0])[:80]!r}. Wanted: question_id with choices and turns, or instruction with output."
        )
    return found


def _texts(given: Any) -> list[str]:
    """A list of texts; a text alone is one, and of anything else there is none."""
    if isinstance(given, str):
        return [given]
    return [str(text) for text in given] if isinstance(given, list | tuple) else []


def _questions(source: Source) -> list[dict[str, Any]]:
    rows = _rows(source, "question_id", "turns")
    odd = [row["question_id"] for row in rows if not isinstance(row["turns"], list) or len(row["turns"]) != 2]
    twice = len(rows) - len({str(row["question_id"]) for row in rows})
    if odd or twice:
        problems = [f"{len(odd)} questions do not have two turns; the first is {odd[0]!r}."] if odd else []
        problems += [f"{twice} question_ids stand there twice."] if twice else []
        raise DataError(f"{_shown(source)}: {' '.join(problems)}")
    return rows


def _rows(source: Source, *columns: str) -> list[dict[str, Any]]:
    """Rows of a JSON list, JSONL or CSV file, which all have these columns."""
    if isinstance(source, str | Path):
        text = _text(str(source))
        try:
            rows = _parsed(text, str(source))
        except (ValueError, RecursionError) as error:
            page = "It is a web page. " if text.lstrip()[:1] == "<" else ""
            raise DataError(
                f"{_shown(source)} is no JSON list, JSONL or CSV file. {page}Take the address of the file "
                f"itself ({error})."
            ) from error
    elif isinstance(source, Iterable) and not isinstance(source, Mapping):
        rows = list(source)
    else:
        raise DataError(f"{type(source).__name__} is no source: give a path, a URL, 'owner/name:file', or rows.")
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{_shown(source)} holds no rows.")
    for number, row in enumerate(rows, 1):
        if lacking := [name for name in columns if name not in row]:
            raise DataError(
                f"{_shown(source)}, row {number}: {', '.join(lacking)} is missing. It has {sorted(row)[:9]}."
            )
    return rows


def _parsed(text: str, name: str) -> list[Any]:
    if name.partition("?")[0].endswith(".csv"):
        return list(csv.DictReader(io.StringIO(text)))
    if text.lstrip()[:1] == "[":
        return list(json.loads(text))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _text(source: str) -> str:
    """What a path, a URL or `owner/name:file` of the Hub holds."""
    if source.startswith(("http://", "https://")):
        return _downloaded(source)
    path = Path(source)
    if not path.is_file() and ":" in source:
        path = _from_hub(*source.split(":", 1))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{source!r} cannot be read ({error}). Give a path, a URL, 'owner/name:file' for a data set on the "
            "Hub, or rows."
        ) from error


def _downloaded(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            body = answer.read(_LARGEST + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        said = without_secrets(f"{url} cannot be downloaded: {error}. Download it by hand and give the path.")
        raise DataError(said) from error
    if len(body) > _LARGEST:
        raise DataError(f"{without_secrets(url)} is larger than {_LARGEST >> 20} MiB: that is no question file.")
    return str(body.decode("utf-8", "replace"))


def _from_hub(repository: str, file: str) -> Path:
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset"))
    except (errors.HFValidationError, errors.HfHubHTTPError, errors.EntryNotFoundError, OSError) as error:
        raise DataError(
            f"{repository}:{file} cannot be had from the Hub ({str(error)[:200]}). Give 'owner/name:file' of a data "
            "set, or download the file and give its path."
        ) from error


def _shown(source: Source | Any) -> str:
    return without_secrets(str(source)) if isinstance(source, str | Path) else "What was given"
