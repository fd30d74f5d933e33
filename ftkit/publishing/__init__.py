"""Leave with something usable: an adapter merged into its base, a GGUF for llama.cpp and Ollama, and the proof."""

from ftkit.publishing.gguf import K_QUANTS, QUANTS, to_gguf
from ftkit.publishing.merging import merge
from ftkit.publishing.ollama import modelfile
from ftkit.publishing.proof import Parity, parity
from ftkit.publishing.serving import serve_gguf

__all__ = ["K_QUANTS", "QUANTS", "Parity", "merge", "modelfile", "parity", "serve_gguf", "to_gguf"]
