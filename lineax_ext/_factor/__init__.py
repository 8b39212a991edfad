"""Factorisations of arrays: no operator and no lineax solver in here."""
