"""Encoders: from a checkpoint folder and texts to vectors."""
