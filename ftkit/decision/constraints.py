"""What an answer may look like, held while it is written: a JSON schema, a regular expression, or a grammar.

`llguidance` says which tokens may come next; it was taken for being one wheel without dependencies.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftkit import chat
from ftkit.errors import DataError

_WANTED = "give a JSON schema as a dict, a regular expression, or a Lark grammar with a rule 'start:'."
_BLANKS = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n]{0,8}"}  # or a small model writes blanks for ever


@dataclass(frozen=True)
class Constraint:
    """A grammar over the tokens of one model."""

    grammar: str
    vocabulary: Any

    @classmethod
    def of(cls, answer_format: Mapping[str, Any] | str, tokenizer: Any, model: Any) -> "Constraint":
        """Read a JSON schema (a mapping), a regular expression, or a Lark grammar (a text with a rule `start:`).

        Raises:
            DataError: it does not parse, or nothing can satisfy it.
        """
        from llguidance import LLMatcher, hf

        if isinstance(answer_format, str) and re.search(r"^start\s*:", answer_format, re.MULTILINE):
            grammar = LLMatcher.grammar_from_lark(answer_format)
        elif isinstance(answer_format, str):
            grammar = LLMatcher.grammar_from_regex(answer_format)
        elif isinstance(answer_format, Mapping):
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(answer_format), defaults=_BLANKS)
        else:
            raise DataError(f"answer_format={answer_format!r} is {type(answer_format).__name__}: {_WANTED}")
        width = max(model.get_output_embeddings().weight.shape[0], len(tokenizer))
        vocabulary = hf.from_tokenizer(tokenizer, n_vocab=width, eos_token=chat.stop_ids(tokenizer, model))
        if why := LLMatcher(vocabulary, grammar, log_level=0).get_error():
            raise DataError(
                f"answer_format={str(answer_format)[:80]!r} cannot be kept by any answer: "
                f"{' '.join(why.split())[:300]}. G{_WANTED[1:]}"
            )
        return cls(grammar, vocabulary)

    def allows(self, answer: str) -> bool:
        """Whether this text could be written under the constraint."""
        from llguidance import LLMatcher

        tokens = self.vocabulary.tokenize_str(answer)
        matcher = LLMatcher(self.vocabulary, self.grammar, log_level=0)
        return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())

    def processor(self) -> "_Masks":
        """A logits processor for one batch."""
        return _Masks(self, [])


@dataclass(frozen=True)
class _Masks:
    """Takes the chance from every token that may not come next; `matchers` has one a row, once the batch is seen."""

    constraint: Constraint
    matchers: list[Any]

    def __call__(self, tokens: Any, scores: Any) -> Any:
        import numpy as np
        import torch
        from llguidance import LLMatcher

        vocabulary, grammar = self.constraint.vocabulary, self.constraint.grammar
        if not self.matchers:
            self.matchers.extend(LLMatcher(vocabulary, grammar, log_level=0) for _ in scores)
        else:
            for matcher, token in zip(self.matchers, tokens[:, -1].tolist(), strict=True):
                if not matcher.is_stopped():
                    matcher.consume_token(token)
        bits = np.frombuffer(b"".join(matcher.compute_bitmask() for matcher in self.matchers), np.uint8)
        allowed = np.unpackbits(bits.reshape(len(self.matchers), -1), axis=1, bitorder="little")[:, : scores.shape[1]]
        return scores.masked_fill(torch.from_numpy(allowed == 0).to(scores.device), -torch.inf)
