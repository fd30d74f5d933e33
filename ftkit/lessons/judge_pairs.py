"""Pairs of answers to measure a judge with; knows no judge."""

from dataclasses import dataclass

from ftkit import files, tables

Rows = list[dict[str, str]]


@tables.shown
@dataclass(frozen=True)
class JudgeExam:
    """Pairs of answers whose right verdict is plain; the better one is the longer one in half of them.

    Args:
        pairs: question, answer, other answer.
        labels: 1 where the answer is better, 0 where the other is.
    """

    pairs: tuple[tuple[str, str, str], ...]
    labels: tuple[float, ...]

    @property
    def answers(self) -> Rows:
        """The answers, as a judge takes them."""
        return [{"prompt": prompt, "answer": answer} for prompt, answer, _ in self.pairs]

    @property
    def others(self) -> Rows:
        """The other answers to the same questions."""
        return [{"prompt": prompt, "answer": other} for prompt, _, other in self.pairs]

    def _parts(self) -> list[tables.Table | str]:
        rows = []
        for (prompt, answer, other), label in zip(self.pairs, self.labels, strict=True):
            marks = ("✓ ", "") if label == 1 else ("", "✓ ")
            rows.append((prompt, marks[0] + answer, marks[1] + other))
        head = ("question", "answer", "other answer")
        return [tables.Table(head, rows, prose=True, caption="✓: the better one, by its label")]


def judge_exam() -> JudgeExam:
    """The pairs that come with the kit, to measure a judge with before anybody believes it."""
    given = files.sample("judge_exam")
    pairs = tuple((pair["prompt"], pair["answer"], pair["other"]) for pair in given)
    return JudgeExam(pairs, tuple(pair["better"] for pair in given))
