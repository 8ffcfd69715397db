"""The interface of a store of live events.

A store is durable before it answers, idempotent by event id, and able to erase users.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

PSEUDONYM_BYTES = 12
DAY_S = 86_400


class EventStoreError(Exception):
    """The store does not answer, is locked, or cannot write."""


@dataclass(frozen=True)
class Event:
    """One event of a user, with the caller's ids as text."""

    event_id: str
    user_id: str
    item_id: str
    event_type: str
    timestamp_ms: int


@dataclass(frozen=True)
class UserState:
    """A user's state in a store."""

    events: tuple[Event, ...] = ()
    """The newest events, oldest first."""
    erasures: int = 0
    """How often the user was erased."""
    pseudonym: str | None = None
    """Stands for the user in logs; once it is erased, nothing leads from it to the user."""

    @property
    def erased(self) -> bool:
        """Whether the bundle's history and features of the user must not be used."""
        return self.erasures > 0


EMPTY_USER = UserState()


class HourlyCount(NamedTuple):
    """Number of events of all users with one item in one hour."""

    hour: int
    """Hours since the epoch."""
    item_id: str
    events: int


@dataclass(frozen=True)
class ErasedUsers:
    """Some of the erased users, in the order of their first erasure."""

    digests: tuple[str, ...]
    """The `user_digest` of each."""
    position: int
    """Of the last of them."""
    is_last: bool
    """There are no more by now."""


class EventStore(Protocol):
    """Keeps events by user.

    Every method raises `EventStoreError` where the store cannot do it.
    """

    erased_here: set[str]
    """`user_digest` of every user whom this process was asked to erase, also while the store is away."""

    async def append(self, events: Sequence[Event]) -> int:
        """Keeps events; those whose id this user has already are left out.

        When it returns they survive a crash.

        Returns:
            the number of new events.
        """

    async def user(self, user_id: str, limit: int) -> UserState:
        """Returns a user's state, with at most `limit` of the newest events."""

    async def assign_pseudonym(self, user_id: str, pseudonym: str, erasures: int) -> None:
        """Assigns a pseudonym to a user who has none yet, and was not erased since it was chosen.

        Args:
            erasures: `UserState.erasures` when the pseudonym was chosen.
        """

    async def erase(self, user_id: str) -> int:
        """Deletes a user's events and pseudonym, and remembers that the user was erased.

        Returns:
            the number of deleted events.
        """

    async def erased_after(self, position: int, limit: int) -> ErasedUsers:
        """Returns users who were erased after a position in the order of erasures; 0 is before the first."""

    async def hourly(self, first_hour: int, last_hour: int) -> list[HourlyCount]:
        """Returns the number of events by hour and item, by the events' own times.

        Events of erased users do not count.
        """

    async def ping(self) -> None:
        """Returns if the store works."""

    async def close(self) -> None:
        """Releases connections and threads."""


def user_digest(user_id: str) -> str:
    """Returns the digest by which an erased user is remembered."""
    return hashlib.sha256(user_id.encode()).hexdigest()


def new_pseudonym() -> str:
    """Returns a random name."""
    return secrets.token_hex(PSEUDONYM_BYTES)
