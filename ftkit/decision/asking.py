"""What a model is asked: a question alone, or behind a system prompt, solved examples, or passages of documents."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit import chat, data, models
from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.decision.constraints import Constraint
from ftkit.decision.documents import Document
from ftkit.decision.retrieval import Index, cited_prompt
from ftkit.models import Answer

_DIRECTIONS = (
    "Answer with nothing but the answer itself.",
    "Answer in as few words as possible.",
    "Copy names, numbers and units exactly as they are given.",
    "Do not explain, and do not repeat the question.",
)


@dataclass(frozen=True)
class Way:
    """What an approach changes beside the question alone."""

    shots: str = ""  # "fixed" or "nearest" solved examples stand before the question
    searched: bool = False  # a system prompt that did best on val
    passages: bool = False  # found in the documents
    constrained: bool = False  # only answers of the wanted format can be written
    tuned: bool = False  # an adapter was trained


WAYS = {
    "zero_shot": Way(),
    "prompt": Way(searched=True),
    "few_shot": Way(shots="fixed"),
    "few_shot_nearest": Way(shots="nearest"),
    "constrained": Way(constrained=True),
    "constrained_few_shot": Way(shots="nearest", constrained=True),
    "rag": Way(passages=True),
    "fine_tune": Way(tuned=True),
    "rag_fine_tune": Way(passages=True, tuned=True),
}


@dataclass(frozen=True)
class Task:
    """What all approaches share."""

    base: str
    splits: Splits
    config: TrainConfig
    scoring: dict[str, Any]
    tokenizer: Any
    limit: int  # tokens of a prompt and its answer
    folds: bool  # the chat template refuses a system turn
    shots: int
    passages: int
    max_new_tokens: int
    batch_size: int
    timed: int
    seed: int
    index: Index | None
    questions: Index | None

    def asked(self, way: Way, row: Mapping[str, Any], system: str = "") -> dict[str, Any]:
        """What the model is asked for a row; examples that do not fit are left out, the least alike first."""
        question = data.prompt(row)
        turns = list(question["messages"])
        if way.passages and self.index is not None:
            hits = self.index.search(turns[-1]["content"], self.passages)
            turns[-1:] = cited_prompt(
                turns[-1]["content"],
                hits,
                self.tokenizer,
                max_length=self.limit,
                max_new_tokens=self.max_new_tokens,
                cite=False,
            ).messages
        own = [turns.pop(0)["content"]] if turns[0]["role"] == "system" else []
        said = "\n\n".join(filter(None, (system, *own)))
        first = [{"role": "system", "content": said}] if said else []
        examples = self._examples(way, turns[-1]["content"])
        while True:
            told = [*first, *itertools.chain.from_iterable(examples), *turns]
            asked = question | {"messages": chat.fold_system(told) if self.folds else told}
            if not examples or self.tokens(asked) + self.max_new_tokens <= self.limit:
                return asked
            examples.pop(0)

    def _examples(self, way: Way, question: str) -> list[list[dict[str, Any]]]:
        """Solved examples of the training part, each a question and an answer; the nearest last."""
        train, picked = self.splits.train, []
        if way.shots == "fixed":
            picked = random.Random(self.seed).sample(range(len(train)), min(self.shots, len(train)))
        elif self.questions is not None and way.shots:
            hits = self.questions.search(question, self.shots)
            picked = [int(hit.chunk.document) for hit in reversed(hits)]
        return [_solved(train[i]) for i in picked]

    def tokens(self, asked: Mapping[str, Any]) -> int:
        """Tokens of a question as the model reads it."""
        text = chat.render(asked, self.tokenizer, add_generation_prompt=True)
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def generate(self, model: Any, asked: Sequence[Any], constraint: Constraint | None, size: int) -> list[Answer]:
        """The one decoding that all approaches share: greedy, and none longer than the others may be."""
        return models.generate(
            model,
            self.tokenizer,
            asked,
            max_new_tokens=self.max_new_tokens,
            batch_size=size,
            constraint=constraint.processor if constraint else None,
        )

    def of_training(self, way: Way, part: Any) -> Any:
        """Rows to train on, asked as the test will be."""
        if not way.passages:
            return part
        from datasets import Dataset

        rows = []
        for row in part:
            asked = self.asked(way, row)
            rows.append({**asked, "messages": [*asked["messages"], answer_turn(row)]})
        return Dataset.from_list(rows)


def questions_of(train: Any) -> list[Document]:
    """Training questions to be searched, under the numbers of their rows; of equal ones the first."""
    first: dict[str, int] = {}
    for i, row in enumerate(train):
        text = data.prompt(row)["messages"][-1]["content"]
        if text.strip():
            first.setdefault(" ".join(text.split()).casefold(), i)
    return [Document(str(i), "", data.prompt(train[i])["messages"][-1]["content"]) for i in first.values()]


def made_prompts(task: str, train: Any, seed: int) -> list[str]:
    """System prompts out of the task, directions and the form of a solved example, in an order of their own."""
    forms = [answer_turn(row)["content"] or "" for row in train.select(range(min(3, len(train))))]
    shapes = ["", *(f"An answer looks like this one, to another question:\n{form}" for form in forms if form)]
    pairs = [(), *((one,) for one in _DIRECTIONS), *itertools.combinations(_DIRECTIONS, 2)]
    made = [" ".join(filter(None, (task.strip(), *said))) for said in pairs]
    found = ["\n".join(filter(None, parts)) for parts in itertools.product(made, shapes)]
    found = [text for text in dict.fromkeys(found) if text]
    random.Random(seed).shuffle(found)
    return found


def _solved(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    asked = [turn for turn in data.prompt(row)["messages"] if turn["role"] != "system"]
    return [*asked, answer_turn(row)]


def answer_turn(row: Mapping[str, Any]) -> dict[str, Any]:
    """The turn that is the reference."""
    return data.plain(row["messages"][len(data.prompt(row)["messages"])])
