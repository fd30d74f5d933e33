"""Leave with something usable: the licence it stands under, a card of its own facts, a way to the Hub."""

from ftkit.publishing.card import model_card
from ftkit.publishing.hub import push
from ftkit.publishing.licences import licence

__all__ = ["licence", "model_card", "push"]
