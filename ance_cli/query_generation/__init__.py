"""Queries for passages that have no labels."""
