"""The page of `ance report`: its facts, its charts and its HTML."""
