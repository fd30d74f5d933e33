"""Pairs of answers to measure a judge with; knows no judge."""

from dataclasses import dataclass

from ftkit import files, tables


@tables.shown
@dataclass(frozen=True)
class JudgeExam:
    """Pairs of answers whose right verdict is plain; the better one is the longer one in half of them.

    Args:
        answers: rows of prompt and answer.
        others: rows of the same prompts with another answer.
        labels: 1 where the answer is better, 0 where the other is.
    """

    answers: tuple[dict[str, str], ...]
    others: tuple[dict[str, str], ...]
    labels: tuple[float, ...]

    def _parts(self) -> list[tables.Table | str]:
        rows = []
        for mine, theirs, label in zip(self.answers, self.others, self.labels, strict=True):
            marks = ("✓ ", "") if label == 1 else ("", "✓ ")
            rows.append((mine["prompt"], marks[0] + mine["answer"], marks[1] + theirs["answer"]))
        head = ("question", "answer", "other answer")
        return [tables.Table(head, rows, prose=True, caption="✓: the better one, by its label")]


def judge_exam() -> JudgeExam:
    """The pairs that come with the kit, to measure a judge with before anybody believes it."""
    pairs = files.sample("judge_exam")
    sides: list[list[dict[str, str]]] = [[], []]
    for pair in pairs:
        for side, name in zip(sides, ("answer", "baseline"), strict=True):
            side.append({"id": pair["id"], "prompt": pair["prompt"], "answer": pair[name]})
    return JudgeExam(tuple(sides[0]), tuple(sides[1]), tuple(pair["preferred"] for pair in pairs))
