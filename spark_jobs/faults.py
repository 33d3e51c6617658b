"""Named fault points (stub)."""


def reach(point: str) -> None:
    """Do nothing."""
