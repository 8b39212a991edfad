"""Kinds of matrices: what each makes of a pattern, how it is factorised and solved."""

from .arrangement import AbstractArrangement as AbstractArrangement
from .choose import arrange as arrange
from .dense import Dense as Dense
from .entries import Entries as Entries
from .sparse import Sparse as Sparse
