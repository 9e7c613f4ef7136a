"""Vector databases, each behind its own client."""
