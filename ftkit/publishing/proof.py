"""Does what is exported answer as what was trained? Prompts rendered, cut into tokens and answered on both sides.

A merged folder is compared with its adapter in 32 bits, token by token; a GGUF, served by llama.cpp, with the merged
folder. What fails is not exported further.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ftkit import chat, data, evaluation, files, models, tables
from ftkit.config import TrainConfig
from ftkit.errors import DataError, GateFailed, ModelError
from ftkit.hardware import detect, release_memory
from ftkit.models import Answer
from ftkit.publishing import merging, places, serving
from ftkit.runs import Run
from ftkit.tables import Table

PROMPTS = 50
_OWN, _TOOLS = 0.6, 0.16  # shares of the prompts that come from the task and that have tools; the rest is general
_AGREEING = 0.99  # least share of answer tokens that both sides choose alike, near-ties left aside
_TIE = 0.1  # nats by which a choice is no better than another: rounding to 16 bits may turn it round
_EQUAL = {"f32": 0.9, "f16": 0.9, "bf16": 0.9}  # least share of equal answers
_LIKE = 0.75  # least mean F1 of words with the merged model's answers, for weights that are rounded further
_POINTS = 0.10  # most that a score may fall
_SMALL_BYTES = 2 * 2**30  # a file that may be served twice at once
_LIKELIEST = 10  # tokens of each place whose log-probabilities are compared
_ANSWERS = "answers.json"
_ADAPTER = "adapter on its base"
_SHOWN, _LONG = 3, 120


@dataclass(frozen=True)
class Check:
    """One thing that was compared: what was found, what is wanted, and whether that is enough; None: only reported."""

    name: str
    found: str
    wanted: str
    passed: bool | None
    value: float


@tables.shown
@dataclass(frozen=True)
class Parity:
    """How two sides of an export compare, check by check.

    Args:
        before: what was exported.
        after: what came of it.
        checks: each with what was found and what is wanted.
        unlike: prompts whose answers differ, with both.
        scores: of the task on both sides, where there were examples.
    """

    before: str
    after: str
    checks: tuple[Check, ...]
    unlike: tuple[tuple[str, str, str], ...] = ()
    scores: dict[str, evaluation.EvalReport] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def value(self, name: str) -> float:
        """The number that a check found."""
        return next(check.value for check in self.checks if check.name == name)

    def require(self) -> "Parity":
        """The report itself, where it passed.

        Raises:
            GateFailed: names what failed.
        """
        if failed := [check for check in self.checks if check.passed is False]:
            told = "; ".join(f"{check.name}: {check.found}, wanted {check.wanted}" for check in failed)
            raise GateFailed(
                f"{self.after} does not answer as {self.before} does, so it is not handed on. {told}. The adapter is "
                "untouched; print the report of publishing.parity to see the prompts."
            )
        return self

    def _parts(self) -> list[Table | str]:
        words = {True: "✓", False: "✗", None: "○"}
        rows = [(check.name, check.found, check.wanted, words[check.passed]) for check in self.checks]
        parts: list[Table | str] = [Table(("compared", "found", "wanted", ""), rows)]
        if self.unlike:
            head, shown = ("prompt", self.before, self.after), self.unlike[:_SHOWN]
            parts.append(Table(head, [[text[-_LONG:] for text in row] for row in shown], prose=True))
            parts += [f"and {len(self.unlike) - len(shown)} more."] * (len(self.unlike) > len(shown))
        word = "the same" if self.passed else "NOT the same"
        return [*parts, f"{self.after} is {word} as {self.before}, by these checks."]


def parity(
    before: Run | str | Path,
    after: str | Path,
    examples: Any = None,
    *,
    prompts: int = PROMPTS,
    max_new_tokens: int = 80,
    threads: int = 1,
) -> Parity:
    """Compare an adapter with the folder that it was merged into, or that folder with a GGUF of it.

    The prompts are fixed: the first of `examples`, general questions, and some with tools. The verdict is written into
    `export.json` beside `after`; where a merge has passed with the same prompts, it is read from there.

    Args:
        before: a run or an adapter's folder; for a GGUF, the merged folder.
        after: the merged folder, or the `.gguf` file.
        examples: rows of the task, such as its test part; with them the score of both sides is compared too.
        prompts: how many.
        max_new_tokens: most tokens of an answer.
        threads: of llama.cpp, for a GGUF; see `serve_gguf`.

    Raises:
        MissingArtifact: one side is not there.
        ModelError: one side is damaged or was changed, or llama.cpp cannot serve the file.
        MissingExtra: a GGUF, and `xllamacpp` is not installed.
    """
    after, asked = Path(after), fixed_prompts(examples, prompts)
    if after.suffix == ".gguf":
        merged = merging.check_merged(after.parent / places.MERGED if isinstance(before, Run) else before)
        report, facts = _served(merged, after, asked, max_new_tokens, threads), {"of": merging.merged_digest(merged)}
    else:
        adapter, merged = merging.adapter_of(before), merging.check_merged(after)
        places.refuse_tampered(adapter, "Take it from a checkpoint or a copy, or train again.")
        facts = {"adapter": merging.weights_digest(adapter), "key": _key(merged, asked, max_new_tokens)}
        known = places.record(after.parent).get(after.name, {}).get("parity", {})
        if known.get("passed") and all(known.get(name) == value for name, value in facts.items()):
            return Parity(_ADAPTER, after.name, tuple(Check(**check) for check in known["checks"]))
        report = _merged(adapter, merged, asked, max_new_tokens)
        facts |= {"of": merging.merged_digest(merged)}
    verdict = {"passed": report.passed, "prompts": len(asked), "checks": [asdict(check) for check in report.checks]}
    places.note(after.parent, after.name, parity=facts | verdict)
    return report


def fixed_prompts(examples: Any, count: int = PROMPTS) -> list[dict[str, Any]]:
    """The same rows every time: of the task, where there is one, general ones and some with tools."""
    if count < 1:
        raise DataError(f"prompts={count}: at least one is wanted. The default is {PROMPTS}.")
    chats = (dict(row) for row in (() if examples is None else examples) if row["messages"])
    own = list(itertools.islice(chats, round(count * _OWN)))
    with_tools = _first("tool_skill", min(round(count * _TOOLS), count - len(own)))
    return [*own, *_first("general", count - len(own) - len(with_tools)), *with_tools]


def _first(sample: str, count: int) -> list[dict[str, Any]]:
    rows = data.load_examples(sample)
    return [{**rows[i], "fixed": True} for i in range(min(count, len(rows)))]


def _as_asked(row: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """What a row asks; tools are written into the text where the template leaves them out."""
    asked = data.prompt(row)
    if asked.get("tools"):
        try:
            chat.render(asked, tokenizer)
        except DataError:
            return {"messages": chat.fold_tools(asked["messages"], asked["tools"])}
    return asked


def _in_32_bits() -> TrainConfig:
    return TrainConfig.for_hardware(detect(), load_in_4bit=False, backend="transformers", dtype="fp32")


@dataclass(frozen=True)
class _Side:
    """What one side makes of the prompts, before it answers."""

    texts: list[str]
    ids: list[list[int]]
    stops: list[int]
    generation: dict[str, Any]

    @classmethod
    def of(cls, model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> "_Side":
        """How a model and its tokenizer read the rows."""
        texts = [chat.render(_as_asked(row, tokenizer), tokenizer, add_generation_prompt=True) for row in rows]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        own = {key: value for key, value in model.generation_config.to_dict().items() if not key.startswith("_")}
        for told_elsewhere in ("transformers_version", "eos_token_id"):  # stop tokens are a check of their own
            own.pop(told_elsewhere, None)
        return cls(texts, ids, chat.stop_ids(tokenizer, model), own)


def _merged(adapter: Path, merged: Path, rows: list[dict[str, Any]], max_new_tokens: int) -> Parity:
    """An adapter on its base beside the merged model, both in 32 bits."""
    model, tokenizer = models.load(str(merged), _in_32_bits())
    new = _Side.of(model, tokenizer, rows)
    answers = _answers(model, tokenizer, merged, rows, max_new_tokens)
    said = [tokenizer(answer.text, add_special_tokens=False)["input_ids"] for answer in answers]
    said = [ids + [tokenizer.eos_token_id] * answer.stopped for ids, answer in zip(said, answers, strict=True)]
    chosen = _likeliest(model, new.ids, said)
    del model
    release_memory()
    model, tokenizer = models.load_adapter(adapter, _in_32_bits())
    old = _Side.of(model, tokenizer, rows)
    alike, ties, tokens, gap = 0, 0, 0, 0.0
    for ours, theirs in zip(chosen, _likeliest(model, new.ids, said, chosen), strict=True):
        same = ours.tokens[:, 0] == theirs.first
        alike += int(same.sum())
        ties += int((~same & (theirs.best - theirs.values[:, 0] < _TIE)).sum())
        tokens += len(same)
        gap = max(gap, float((ours.values - theirs.values).abs().max()))
    del model
    release_memory()
    found = f"{alike:,} of {tokens:,} ({alike / tokens:.2%})" + f", {ties} near-ties" * bool(ties)
    enough = alike + ties >= _AGREEING * tokens
    checks = (
        *_read_alike(old.texts, new.texts, old.ids, new.ids),
        Check("greedy tokens agree", found, f"{_AGREEING:.0%}", enough, alike / tokens),
        Check("logit gap", f"{gap:.3f} nats at most", "reported", None, gap),
        _same("stop tokens", old.stops, new.stops),
        _same("generation config", old.generation, new.generation),
    )
    return Parity(_ADAPTER, merged.name, checks)


def _read_alike(
    old: Sequence[str], new: Sequence[str], old_ids: Sequence[list[int]], new_ids: Sequence[list[int]]
) -> tuple[Check, Check]:
    return (
        _share("rendered prompts", sum(a == b for a, b in zip(old, new, strict=True)), len(old), 1.0),
        _share("token ids", sum(a == b for a, b in zip(old_ids, new_ids, strict=True)), len(old), 1.0),
    )


def _share(name: str, equal: int, of: int, least: float | None) -> Check:
    wanted = "reported" if least is None else "all" if least == 1 else f"{least:.0%}"
    return Check(name, f"{equal} of {of} equal", wanted, None if least is None else equal >= least * of, equal / of)


def _same(name: str, old: Any, new: Any) -> Check:
    if isinstance(old, dict):
        keys = [key for key in old | new if old.get(key) != new.get(key)]
        found = ", ".join(f"{key} {old.get(key)} → {new.get(key)}" for key in keys) or "equal"
    else:
        found = f"{old}" if old == new else f"{old} → {new}"
    return Check(name, found, "equal", old == new, float(old == new))


@dataclass(frozen=True)
class _Choices:
    """What a model would write at every place of one answer: tensors of places, or of places by tokens."""

    tokens: Any  # the likeliest, of this model or of the one that it is compared with
    values: Any  # their log-probabilities
    first: Any  # the likeliest of this model
    best: Any  # its log-probability


def _likeliest(
    model: Any,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    others: Sequence[_Choices] | None = None,
) -> list[_Choices]:
    """What a model would write at every place of each answer; with `others`, how likely it finds their tokens."""
    import torch

    found: dict[int, _Choices] = {}
    said = [ids or [0] for ids in answers]  # of an empty answer, what would come first
    rows = [[*asked, *ids] for asked, ids in zip(prompts, said, strict=True)]
    labels = [[chat.IGNORED] * len(asked) + ids for asked, ids in zip(prompts, said, strict=True)]
    with models.evaluating(model):
        for picked in models.batches([len(row) for row in rows], 8):
            ids, mask = models.padded([rows[i] for i in picked], 0, model.device)
            wanted, _ = models.padded([labels[i] for i in picked], chat.IGNORED, model.device)
            logits, wanted = models.answer_logits(model, ids, mask, wanted)
            for place, i in enumerate(picked):
                last = torch.log_softmax(logits[place][wanted[place] != chat.IGNORED].float(), dim=-1).cpu()
                own = last.topk(min(_LIKELIEST, last.shape[-1]))
                tokens = own.indices if others is None else others[i].tokens
                found[i] = _Choices(tokens, last.gather(1, tokens), own.indices[:, 0], own.values[:, 0])
    return [found[i] for i in range(len(prompts))]


def _answers(
    model: Any, tokenizer: Any, merged: Path, rows: Sequence[Mapping[str, Any]], max_new_tokens: int
) -> list[Answer]:
    """What the merged model answers in 32 bits; kept beside its folder, so that a GGUF is compared without it."""
    path, key = merged.parent / _ANSWERS, _key(merged, rows, max_new_tokens)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return [Answer(**answer) for answer in kept["answers"]]
    except (OSError, ValueError, LookupError, TypeError):
        pass
    if model is None:
        model, tokenizer = models.load(str(merged), _in_32_bits())
    asked = [_as_asked(row, tokenizer) for row in rows]
    answers = models.generate(model, tokenizer, asked, max_new_tokens=max_new_tokens)
    files.write_json(path, {"key": key, "answers": [asdict(answer) for answer in answers]})
    return answers


def _key(merged: Path, rows: Sequence[Mapping[str, Any]], max_new_tokens: int) -> str:
    asked = [data.prompt(row) for row in rows]
    written = json.dumps([merging.merged_digest(merged), max_new_tokens, asked], sort_keys=True, default=str)
    return hashlib.sha256(written.encode("utf-8", "replace")).hexdigest()


def _served(merged: Path, gguf: Path, rows: list[dict[str, Any]], max_new_tokens: int, threads: int) -> Parity:
    """A merged model beside its GGUF as llama.cpp serves it."""
    known = places.record(gguf.parent).get(gguf.name, {})
    if gguf.is_file() and known and known.get("sha256") != files.digest(gguf):
        raise ModelError(f"{gguf} does not have the digest that was recorded for it. Remove it and export it again.")
    from transformers import AutoTokenizer

    tokenizer = models.pretrained(AutoTokenizer, merged)
    before = _answers(None, tokenizer, merged, rows, max_new_tokens)
    asked = [_as_asked(row, tokenizer) for row in rows]
    texts = [chat.render(row, tokenizer, add_generation_prompt=True) for row in asked]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest = max(map(len, ids)) + max_new_tokens + 1
    how = {"threads": threads, "context_tokens": max(serving.CONTEXT_TOKENS, longest)}
    read, cut, after = zip(*_ask(gguf, asked, max_new_tokens, how), strict=True)
    start = tokenizer.bos_token or ""
    texts, served_texts = ([text.removeprefix(start) for text in side] for side in (texts, read))
    return _compared(merged, gguf, rows, (texts, ids, before), (served_texts, cut, after))


def _ask(
    gguf: Path, rows: Sequence[Mapping[str, Any]], max_new_tokens: int, how: Mapping[str, Any]
) -> list[tuple[str, list[int], Answer]]:
    """Text, token ids and answer of each row; a small file is served twice, since one thread leaves a core idle."""
    small = gguf.is_file() and gguf.stat().st_size < _SMALL_BYTES
    servers = min(2, len(rows)) if small else 1

    def part(first: int) -> list[tuple[str, list[int], Answer]]:
        """The rows of one server: each `servers`-th from `first` on."""
        found = []
        with serving.server(gguf, **how) as url:
            for row in rows[first::servers]:
                text = serving.post(url, "/apply-template", _over_http(row))["prompt"]
                cut = {"content": text, "add_special": True, "parse_special": True}
                ids = serving.post(url, "/tokenize", cut)["tokens"]
                asked = {"prompt": text, "n_predict": max_new_tokens, "temperature": 0}
                reply = serving.post(url, "/completion", asked)
                stopped = reply.get("stop_type") in ("eos", "word")
                found.append((text, ids, Answer(reply["content"], int(reply["tokens_predicted"]), stopped)))
        return found

    with ThreadPoolExecutor(servers) as pool:
        parts = list(pool.map(part, range(servers)))
    return [parts[number % servers][number // servers] for number in range(len(rows))]


def _over_http(row: Mapping[str, Any]) -> dict[str, Any]:
    """Messages and tools as servers take them: the arguments of a call are JSON text there."""
    turns = [dict(turn) for turn in row["messages"]]
    for turn in turns:
        if calls := data.parse_calls(turn.pop("tool_calls", None)):
            turn["tool_calls"] = calls
        for call in calls:
            call["function"] = {**call["function"], "arguments": data.as_json(call["function"]["arguments"], "a call")}
    tools = data.parse_tools(row.get("tools"))
    return {"messages": turns} | ({"tools": tools} if tools else {})


def _compared(merged: Path, gguf: Path, rows: list[dict[str, Any]], old: Any, new: Any) -> Parity:
    kind = places.record(gguf.parent).get(gguf.name, {}).get("quant", "")
    pairs = [(a.text.strip(), b.text.strip()) for a, b in zip(old[2], new[2], strict=True)]
    equal = sum(a == b for a, b in pairs)
    like = math.fsum(evaluation.token_f1(b, [a]) for a, b in pairs) / len(pairs)
    stopped = sum(a.stopped == b.stopped for a, b in zip(old[2], new[2], strict=True))
    checks = [
        *_read_alike(old[0], new[0], old[1], new[1]),
        _share("answers", equal, len(pairs), _EQUAL.get(kind)),
        Check("words of the answers", f"F1 {like:.3f}", f"{_LIKE}", like >= _LIKE, like),
        _share("answers that end by themselves", stopped, len(pairs), 0.9),
    ]
    own = [number for number, row in enumerate(rows) if not row.get("fixed")]
    scores = {}
    if own:
        examples = [rows[number] for number in own]
        for side, answers in ((merged.name, old[2]), (gguf.stem, new[2])):
            scores[side] = evaluation.score_answers([answers[n] for n in own], examples, name=side)
        was, now = (report.exact_match.value for report in scores.values())
        found, wanted = f"{was:.1%} → {now:.1%}", f"at most {100 * _POINTS:.0f} points lost"
        checks.append(Check("exact match of the task", found, wanted, now >= was - _POINTS, now))
    prompts = [data.prompt(row)["messages"][-1]["content"] for row in rows]
    unlike = [(asked, a, b) for asked, (a, b) in zip(prompts, pairs, strict=True) if a != b]
    return Parity(merged.name, gguf.name, tuple(checks), tuple(unlike), scores)
