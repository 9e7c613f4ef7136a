"""ance: trains dense retrievers with negatives mined by the model being trained (ANCE, ICLR 2021)."""

__version__ = "0.1.0"
