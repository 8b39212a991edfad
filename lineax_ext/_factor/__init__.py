"""Factorisations of arrays: no operator and no lineax solver comes in here."""
