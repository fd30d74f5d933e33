"""Scores of one text beside what was wanted. Knows no model; formulas are the field's.

Before texts are compared, what no reader of an answer would count is taken away, and each step says why it may be.
"""

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ftkit.data import parse_calls
from ftkit.errors import DataError

Metric = Callable[[str, list[str]], float | None]

_ARTICLES = re.compile(r"(?<!\S)(a|an|the)(?!\S)")
_LETTER = "letterxa"
_LETTER_A = re.compile(
    r"(?<![\w'])A(?!\w|')(?! +(?!(?:or|and|is|are|because|since|as|but|nor)\b)[a-z])|(?<=[a-z,:] )A(?![\w'])"
)
_DENIED = (
    r"(?:not|isnt|arent|wasnt|cannot|cant|never|hardly|neither|nor|no)(?: (?:be|very|really|exactly|clearly|quite))?"
    r"|(?:dont|doesnt|do not|does not) (?:think|believe|seem|look|appear)(?: \w+){0,3}?"
)
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FENCED = re.compile(r"(?P<fence>`{3,}|~{3,})[ \t]*[\w+#.-]*[ \t]*\n(?P<inside>.*?)\n?[ \t]*(?P=fence)", re.DOTALL)
_STOP = re.compile(
    r"<\|(?:im_end|im_start|endoftext|end_of_text|eot_id|eom_id|end|return|user|assistant|system)\|>"
    r"|</s>|<eos>|<pad>|<end_of_turn>|<start_of_turn>|<｜end▁of▁sentence｜>|\[/?INST\]"
)
_BEGIN = re.compile(r"(?:\s*(?:<s>|<bos>|<pad>|<\|begin_of_text\|>|<\|im_start\|>assistant\n|<\|assistant\|>))+")
_TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        **{chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F)},  # full-width forms
    }
)
_CURRENCY = "€£¥₹₩"
_BEFORE = re.compile(rf"([{_CURRENCY}])\s*(\d[\d.,]*)")  # €5 is 5 €
_THOUSANDS = re.compile(r"(?<=\d)[,\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_COUNTS = re.compile(r"(?<=[\w)])\s*([<>=!]=|[<>=+^])\s*(?=[\w(.-])|(?<=\d)\s*(\*)\s*(?=\d)|(?<=[a-z])(\+\+|#)(?!\w)")
_HELD = str.maketrans(dict(zip("<>=!+^*#", map(chr, range(0xE000, 0xE008)), strict=True)))  # past the punctuation
_FREED = {ord(held): chr(sign) for sign, held in _HELD.items()}
_UNIT = re.compile(rf"(?<![\w.])(\d[\d.,]*)([^\W\d_]+|°\w*|[{_CURRENCY}])(?!\w)|([{_CURRENCY}])(?=\d)")  # 5km is 5 km
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def squad_normalise(text: str) -> str:
    """Lower-case, without punctuation and articles, single spaces (SQuAD v1.1's evaluation script).

    Beyond that script, because otherwise right answers count as wrong or wrong ones as right: a code fence around the
    whole text and all that stands outside a last `\\boxed{}` fall away; quotes, dashes and punctuation of every
    script count as the plain ones, full-width signs as the usual; 5km is 5 km and €5 is 5 €; a sign, a decimal point,
    a slash or a colon inside a number stays (3.5 is not 35, 1/2 is not 12), as do signs that compute or compare
    (2+2 is not 22, x < 5 is not x > 5, C++ is not C), and thousands' commas go; a text that is nothing but the letter
    A, or nothing but signs, is not empty.
    """
    text = unicodedata.normalize("NFC", _LATEX_TEXT.sub(r"\1", boxed(unfenced(text)))).translate(_TYPOGRAPHY).lower()
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")  # nobody sees these
    text = _UNIT.sub(r"\1 \2\3 ", _BEFORE.sub(r"\2 \1 ", _THOUSANDS.sub("", text)))
    text = _COUNTS.sub(_held, text)
    kept = "".join(character for place, character in enumerate(text) if not _is_punctuation(text, place))
    words = " ".join(_ARTICLES.sub(" ", kept).split()).translate(_FREED)
    bare = kept.split()
    if words or (bare and bare != ["a"]):
        return words
    return "a" if bare else " ".join(text.split())


def exact_words(text: str) -> str:
    """Only outer blanks and line-end blanks are forgiven: for output whose format is the task."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def answered(text: str) -> str:
    """A text without the reasoning before the answer and the stop text after it; of cut reasoning nothing is left.

    Raises:
        DataError: it is no text.
    """
    if not isinstance(text, str):
        raise DataError(f"{str(text)[:40]!r} ({type(text).__name__}) is no text, and answers and references are texts.")
    said = text.rpartition("</think>")[2]
    if said.lstrip().startswith("<think>"):
        return ""
    begun = _BEGIN.match(said)
    said = said[begun.end() :] if begun else said
    stop = next((stop for stop in _STOP.finditer(said) if stop[0] != "</s>" or "<s>" not in said[: stop.start()]), None)
    return said[: stop.start() if stop else None].lstrip("\n")


def unfenced(text: str) -> str:
    """What one code fence around the whole text holds, or the text itself."""
    found = _FENCED.fullmatch(text.strip())
    return found["inside"] if found and found["fence"] not in found["inside"] else text


def boxed(text: str) -> str:
    """What the last complete LaTeX `\\boxed{}` holds (MATH's mark of a final answer), or the text itself."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return text
    depth, begin = 0, boxes[-1].end()
    for place in range(begin - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place]
    return text


def exact_match(
    prediction: str, references: str | Sequence[str], normalise: Callable[[str], str] = squad_normalise
) -> float:
    """1.0 if the prediction equals any reference after normalisation, else 0.0. Two empty texts are equal.

    Reasoning before the answer and stop text behind it do not count. Where a reference calls functions, the same calls
    must be made in the same order: names and arguments are compared as objects, and what is said beside them does not
    count.
    """
    prediction = answered(prediction)
    made = calls_in(prediction)
    for reference in map(answered, listed(references)):
        wanted = calls_in(reference)
        if made == wanted if wanted else normalise(prediction) == normalise(reference):
            return 1.0
    return 0.0


def token_f1(
    prediction: str, references: str | Sequence[str], normalise: Callable[[str], str] = squad_normalise
) -> float:
    """Best F1 of shared words over the references, 0 to 1. Two empty texts score 1, one empty text 0."""
    said = normalise(answered(prediction)).split()
    return max(_f1(said, normalise(answered(r)).split()) for r in listed(references))


def tool_calls(prediction: str, references: str | Sequence[str]) -> float:
    """1.0 if the prediction makes the calls of any reference, in their order; no call is right where none is wanted."""
    made = calls_in(answered(prediction))
    return float(any(made == calls_in(answered(reference)) for reference in listed(references)))


def calls_in(text: str) -> list[str]:
    """The calls that a text makes, as JSON with sorted keys: in `<tool_call>` tags, or JSON and nothing else."""
    tagged, calls = _CALL.findall(text), []
    for block in map(unfenced, tagged or [text]):
        block = block.strip().removeprefix("[TOOL_CALLS]").removeprefix("<|python_tag|>")
        spelt = block if '"arguments"' in block else block.replace('"parameters"', '"arguments"')
        try:
            made = parse_calls(spelt) if '"arguments"' in spelt else []
            said = [json.dumps(_whole(call["function"]), sort_keys=True) for call in made]
        except (DataError, RecursionError):
            said = []
        calls += said or (["unreadable" + block] if tagged else [])
    return calls


def json_valid(prediction: str) -> float:
    """1.0 if the answer, without a code fence around the whole of it, is one JSON value (RFC 8259: no NaN)."""
    return float(_parsed(prediction) is not _NOTHING)


def keeps_schema(prediction: str, schema: Mapping[str, Any]) -> float:
    """1.0 if the answer is JSON that keeps a JSON schema, else 0.0. Nothing that a schema refers to is fetched.

    Raises:
        DataError: the schema itself is none, or refers to what it does not hold.
    """
    from jsonschema import exceptions, validators  # type: ignore[import-untyped]
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    value = _parsed(prediction)
    try:
        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        kind.check_schema(schema)
        return float(value is not _NOTHING and kind(schema, registry=Registry()).is_valid(value))
    except (exceptions.SchemaError, Unresolvable, RecursionError, TypeError, AttributeError) as error:
        raise DataError(f"A schema is no JSON schema that can be used: {str(error).splitlines()[0]}.") from error


def label_in(prediction: str, labels: Sequence[str], normalise: Callable[[str], str] = squad_normalise) -> str | None:
    """The one label that an answer names, normalised; None where it names none, several, or denies it ("not spam").

    A longer label is looked for first: "not spam" is no "spam" where both are labels. Where A is a label, a capital A
    that cannot be the article names it.
    """
    said, known = answered(prediction), sorted({normalise(label) for label in labels}, key=len, reverse=True)
    if normalise(said) in known:
        return normalise(said)
    text = normalise(_LETTER_A.sub(_LETTER, said)).lower() if "a" in known else normalise(said)
    named, denied = set[str](), set[str]()
    for label in known:
        spelt = re.escape(_LETTER if label == "a" else label)
        place = re.compile(rf"(?P<denied>\b(?:{_DENIED}) )?(?<!\w)(?<!\d[.,:/])(?<!-){spelt}(?!\w|[.,:/]\d)")
        found = list(place.finditer(text)) if label else []
        for one in found:
            (denied if one["denied"] else named).add(label)
        text = place.sub(" ", text) if found else text
    return named.pop() if len(named) == 1 and not denied else None


def rouge_l(prediction: str, references: str | Sequence[str]) -> float:
    """Best ROUGE-L F-measure over the references (Lin 2004), 0 to 1, without stemming; words of every script count."""
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    scorer = RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=_words))
    said, wanted = answered(prediction), [answered(reference) for reference in listed(references)]
    if not _words(said):
        return float(any(not _words(reference) for reference in wanted))
    return max(float(scorer.score(reference, said)["rougeL"].fmeasure) for reference in wanted)


def chrf(prediction: str, references: str | Sequence[str]) -> float:
    """Best chrF over the references (Popović 2015; sacrebleu's defaults), from 0 to 1; two empty texts score 1."""
    from sacrebleu.metrics.chrf import CHRF

    said, wanted = answered(prediction).strip(), [answered(r).strip() for r in listed(references)]
    if not said:
        return float("" in wanted)
    return float(CHRF().sentence_score(said, wanted).score) / 100


def _held(found: re.Match[str]) -> str:
    """Signs that count, where no punctuation is looked for; next to words as one of them, as they were written."""
    return found[0].translate(_HELD)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    shared = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * shared / (len(predicted) + len(wanted))


def listed(references: str | Sequence[str]) -> Sequence[str]:
    """References as a list; DataError where there is none."""
    if not references and not isinstance(references, str):
        raise DataError("There is no reference to compare with: give the right answer, or a list of right ones.")
    return [references] if isinstance(references, str) else list(references)


def _is_punctuation(text: str, place: int) -> bool:
    """Whether a sign may go: one that makes a number what it is stays."""
    sign, before, after = text[place], text[place - 1 : place], text[place + 1 : place + 2]
    if sign not in string.punctuation and not unicodedata.category(sign).startswith("P"):
        return False
    if not after.isdigit():
        return True
    inside = before.isdigit() and sign in ".,:/-"
    first = sign in "-." and not before.isalnum() and before not in tuple(".-")
    return not (inside or first)


_NOTHING = object()


def _parsed(prediction: str) -> Any:
    """The JSON value that an answer is; stop text and thoughts inside a string of it are no end of it."""

    def refused(constant: str) -> None:
        raise ValueError(constant)

    said = answered(prediction)
    for text in (prediction, said):
        try:
            return json.loads(unfenced(text), parse_constant=refused)
        except (ValueError, RecursionError):
            continue
    return _NOTHING


def _whole(value: Any) -> Any:
    """Numbers as JSON means them: 2.0 is 2."""
    if isinstance(value, Mapping):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
