"""What a store of live events is: durable before it answers, idempotent by event id, and able to forget."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

PSEUDONYM_BYTES = 12
HOUR_MS = 3_600_000
DAY_S = 86_400


class EventStoreError(Exception):
    """The store does not answer, is locked, or cannot write."""


@dataclass(frozen=True)
class Event:
    """One thing that a user did. Ids are the caller's, as text."""

    event_id: str
    user_id: str
    item_id: str
    event_type: str
    timestamp_ms: int


@dataclass(frozen=True)
class UserState:
    """What a store knows of a user."""

    events: tuple[Event, ...] = ()
    """The newest, oldest first."""
    erasures: int = 0
    """How often the user asked to be forgotten."""
    pseudonym: str | None = None
    """What stands for the user in logs; once it is erased, nothing leads from it to the user."""

    @property
    def erased(self) -> bool:
        """What a bundle holds of the user is not to be used."""
        return self.erasures > 0


EMPTY_USER = UserState()


class HourlyCount(NamedTuple):
    """Events of all users with one item."""

    hour: int
    """Hours since the epoch."""
    item_id: str
    events: int


class EventStore(Protocol):
    """Keeps events by user. Every method raises `EventStoreError` where the store cannot do it."""

    erased_here: set[str]
    """`user_digest` of everybody whom this process was asked to erase: known at once, and also while the store is away."""

    async def append(self, events: Sequence[Event]) -> int:
        """Keep events; those whose id this user has already are left out. When it returns they survive a crash.

        Returns:
            how many are new.
        """

    async def user(self, user_id: str, limit: int) -> UserState:
        """What is known of a user, with at most `limit` of the newest events."""

    async def assign_pseudonym(self, user_id: str, pseudonym: str, erasures: int) -> None:
        """Have `pseudonym` stand for a user who has none yet, and was not erased since it was thought of.

        Args:
            erasures: the `UserState.erasures` of then.
        """

    async def erase(self, user_id: str) -> int:
        """Forget a user's events and pseudonym, and remember that what others hold of them is not to be used.

        Returns:
            how many events there were.
        """

    async def erased(self) -> frozenset[str]:
        """`user_digest` of everybody who was erased."""

    async def hourly(self, first_hour: int, last_hour: int) -> list[HourlyCount]:
        """How many events each item had in each of these hours, by their own times; without the events of those who were erased."""

    async def ping(self) -> None:
        """Do nothing, if the store works."""

    async def close(self) -> None:
        """Give back what is held."""


def user_digest(user_id: str) -> str:
    """What is remembered of a user who was erased."""
    return hashlib.sha256(user_id.encode()).hexdigest()


def new_pseudonym() -> str:
    """A name that says nothing."""
    return secrets.token_hex(PSEUDONYM_BYTES)
