"""Finding the best documents of each query: exactly, through a FAISS index, or by BM25."""
