"""Embeddings as data: stores of vectors, the models that fill them, and their fusion into one vector per product."""
