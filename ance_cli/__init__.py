"""ance: dense retrievers trained with negatives that they mine themselves (ANCE, ICLR 2021)."""

__version__ = "0.2.0.dev0"
