"""Leave with something that others can use: a run's settings in the words of other trainers, and theirs as settings."""

from ftkit.publishing.axolotl import to_axolotl
from ftkit.publishing.axolotl_reading import from_axolotl

__all__ = ["from_axolotl", "to_axolotl"]
