"""Prompt, retrieve or fine-tune? A guide that asks; documents that are searched and cited."""

from ftkit.decision.documents import Chunk, Document, read_documents
from ftkit.decision.embedding import embed
from ftkit.decision.guide import DecisionForm, Recommendation, decision_form, plot_guide, recommend
from ftkit.decision.retrieval import CitedPrompt, Hit, Index, Recall, cited_prompt, recall

__all__ = [
    "Chunk",
    "CitedPrompt",
    "DecisionForm",
    "Document",
    "Hit",
    "Index",
    "Recall",
    "Recommendation",
    "cited_prompt",
    "decision_form",
    "embed",
    "plot_guide",
    "read_documents",
    "recall",
    "recommend",
]
