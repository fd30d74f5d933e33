"""Prompt, retrieve or fine-tune? A guide that asks; documents that are searched and cited; approaches measured."""

from ftkit.decision.approaches import APPROACHES, compare_approaches
from ftkit.decision.documents import Document, read_documents
from ftkit.decision.guide import decision_form, plot_guide, recommend
from ftkit.decision.plots import plot_approaches, plot_cost, plot_data_needed
from ftkit.decision.retrieval import Index, cited_prompt, recall
from ftkit.decision.verdicts import Approach, Decision, Terms

__all__ = [
    "APPROACHES",
    "Approach",
    "Decision",
    "Document",
    "Index",
    "Terms",
    "cited_prompt",
    "compare_approaches",
    "decision_form",
    "plot_approaches",
    "plot_cost",
    "plot_data_needed",
    "plot_guide",
    "read_documents",
    "recall",
    "recommend",
]
