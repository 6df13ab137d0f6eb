"""Nearest products: FAISS indexes, the Retriever, exact rankings and the metrics over them."""
