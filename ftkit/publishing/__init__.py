"""Leave with something that others can use: a run's settings in the words of other trainers."""

from ftkit.publishing.axolotl import from_axolotl, to_axolotl

__all__ = ["from_axolotl", "to_axolotl"]
