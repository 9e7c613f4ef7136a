"""What lies on disk between two stages; `docs/formats.md` is the same in prose."""
