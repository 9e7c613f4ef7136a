"""Negatives for training: sources, filters, samplers, audit."""
