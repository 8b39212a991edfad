"""Factorisations of arrays."""
