"""From `messages` to tokens with the tokenizer's own chat template, and which of the tokens are trained.

Trained are the answers that no mark leaves out, with or without their reasoning, or all of a document. For a template
that refuses system turns or neighbours of one role, or leaves out tools or reasoning, there are folds.
"""

from ftkit.chat.masking import IGNORED, show_example, stop_ids, tokenize, trained_share
from ftkit.chat.templates import Messages, fold_reasoning, fold_system, fold_tools, render

__all__ = [
    "IGNORED",
    "Messages",
    "fold_reasoning",
    "fold_system",
    "fold_tools",
    "render",
    "show_example",
    "stop_ids",
    "tokenize",
    "trained_share",
]
