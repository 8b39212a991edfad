from .check import check_tags as check_tags
