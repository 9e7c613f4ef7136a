"""Which documents a model trains against: samplers and filters over candidates, and the audit."""
