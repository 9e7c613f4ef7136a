"""The page of `ance report`: what it tells, its charts and its HTML."""
