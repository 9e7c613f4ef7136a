"""Training an encoder on (query, positive, negatives), resumable at any step."""
