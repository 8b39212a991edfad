"""What is known of an operator before a number is computed."""

from .check import check_tags as check_tags
from .check_pattern import check_pattern as check_pattern
from .infer import infer_pattern as infer_pattern, infer_tags as infer_tags
from .pattern import Pattern as Pattern
