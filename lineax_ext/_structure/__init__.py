from .check import check_tags as check_tags
from .detect import infer_tags as infer_tags
from .pattern import Pattern as Pattern
