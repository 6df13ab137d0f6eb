"""Pretext tasks, one file each; see :mod:`catalign.objectives.base` for the contract."""
