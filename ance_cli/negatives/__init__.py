"""Which documents a model trains against: samplers and filters over candidate lists, and the audit."""
