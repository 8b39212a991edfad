"""Tags, as lineax takes them: one, or any number of them."""


def tag_set(tags: object) -> frozenset[object]:
    try:
        return frozenset(tags)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return frozenset([tags])
