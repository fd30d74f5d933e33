"""From `messages` to tokens with the tokenizer's own chat template, and which of the tokens are trained."""

from ftkit.chat.masking import IGNORED, show_example, stop_ids, tokenize, trained_share
from ftkit.chat.templates import Messages, fold_reasoning, fold_system, fold_tools, merge_turns, render

__all__ = [
    "IGNORED",
    "Messages",
    "fold_reasoning",
    "fold_system",
    "fold_tools",
    "merge_turns",
    "render",
    "show_example",
    "stop_ids",
    "tokenize",
    "trained_share",
]
