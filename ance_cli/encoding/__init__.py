"""Corpus and queries to token caches and vectors."""
