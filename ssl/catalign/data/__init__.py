"""Catalogues: read from any table or folder, prepared once, memory-mapped from then on."""
