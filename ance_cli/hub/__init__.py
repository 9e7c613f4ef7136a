"""Checkpoints in and out of the model hub, and foreign checkpoints."""
