"""Counts in sentences: a number with its noun, in the singular for one."""


def count(number: int, noun: str) -> str:
    """`1 update`, `2,000 updates`, `1 class`, `10 classes`.

    noun: in the singular; one whose plural needs more than `s` or `es` is not known here.
    """
    if number == 1:
        return f"1 {noun}"
    # classes, processes
    if noun.endswith("s"):
        return f"{number:,} {noun}es"
    return f"{number:,} {noun}s"
