"""The paper's theory, measured on a model and a corpus; and its figures."""
