"""The models that fill embedding stores, and their fusion into one vector per product."""
