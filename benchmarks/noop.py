"""The ceiling of any HTTP figure here: what a Ray Serve deployment that does nothing is made of."""


class NoOp:
    """Answers every request with the same two bytes."""

    async def __call__(self) -> str:
        return "ok"
