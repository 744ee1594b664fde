"""``mmare-site``: the hospital's side."""


def main() -> None:
    """X."""
