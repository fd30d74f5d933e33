"""Leave with something usable: an adapter merged into its base, a GGUF for llama.cpp and Ollama, and the proof.

And leave with it in order: the licence it stands under, a card of the run's own facts, a way to the Hub; or take the
run's settings on to Axolotl, and back.
"""

from ftkit.publishing.axolotl import to_axolotl
from ftkit.publishing.axolotl_reading import from_axolotl
from ftkit.publishing.card import model_card
from ftkit.publishing.gguf import K_QUANTS, QUANTS, to_gguf
from ftkit.publishing.hub import push
from ftkit.publishing.licences import licence
from ftkit.publishing.merging import merge
from ftkit.publishing.ollama import modelfile
from ftkit.publishing.proof import Parity, parity
from ftkit.publishing.serving import serve_gguf

__all__ = [
    "K_QUANTS",
    "QUANTS",
    "Parity",
    "from_axolotl",
    "licence",
    "merge",
    "model_card",
    "modelfile",
    "parity",
    "push",
    "serve_gguf",
    "to_axolotl",
    "to_gguf",
]
