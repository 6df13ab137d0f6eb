"""What models read and write: catalogues, prepared once from any table or folder, and stores of embeddings."""
