"""The files between two commands; `docs/reference/files.md` describes them."""
