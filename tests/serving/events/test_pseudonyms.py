"""Pseudonyms in the log of served answers, and their end with an erasure."""

import asyncio
import json
from pathlib import Path

from passerelle.bundle import Bundle
from passerelle.config import validate
from serving.config import ServingConfig
from serving.events.base import UserState
from serving.events.sqlite_store import SqliteEventStore
from serving.observability.served_log import ServedLog
from serving.schemas.recommend import RecommendRequest
from tests.serving.conftest import recommender_of
from tests.support.inference import OnnxInference
from tests.support.waiting import eventually_async


class ErasedMeanwhile(SqliteEventStore):
    """Erases the user whenever a pseudonym is about to be kept."""

    attempts = 0

    async def assign_pseudonym(self, user_id: str, pseudonym: str, erasures: int) -> None:
        await self.erase(user_id)
        await super().assign_pseudonym(user_id, pseudonym, erasures)
        self.attempts += 1


def test_pseudonym_is_not_kept_for_a_user_erased_meanwhile(bundle: Bundle, tmp_path: Path) -> None:
    store = ErasedMeanwhile(tmp_path / "events.sqlite")
    config = validate(ServingConfig, {"log": {"file": str(tmp_path / "served.jsonl")}}, "test")
    recommender = recommender_of(bundle, OnnxInference(bundle), 7, config, store)

    async def main() -> list[UserState]:
        states = []
        for attempts in (1, 2):
            await recommender.recommend(RecommendRequest(user_id=1000, k=3))
            await eventually_async(lambda expected=attempts: store.attempts == expected)
            states.append(await store.user("1000", 10))
        await store.close()
        return states

    assert [(state.erasures, state.pseudonym) for state in asyncio.run(main())] == [(1, None), (2, None)]


def test_log_has_pseudonyms_and_rounded_locations_only(
    bundle: Bundle, store: SqliteEventStore, tmp_path: Path
) -> None:
    path = tmp_path / "served.jsonl"
    log = ServedLog(path)
    config = validate(ServingConfig, {"log": {"file": str(path)}}, "test")
    recommender = recommender_of(bundle, OnnxInference(bundle), 7, config, store, log)
    place = {"place": {"latitude": 48.856613, "longitude": 2.352222}}

    async def has_pseudonym(user_id: str) -> bool:
        return (await store.user(user_id, 1)).pseudonym is not None

    async def main() -> None:
        for user_id in (1000, 1000, 1001, None):
            await recommender.recommend(
                RecommendRequest.model_validate({"user_id": user_id, "context": place, "k": 3})
            )
            if user_id is not None:
                await eventually_async(lambda user=str(user_id): has_pseudonym(user))

    asyncio.run(main())
    log.close()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    pseudonyms = [line["pseudonym"] for line in lines]
    assert (
        pseudonyms[0] == pseudonyms[1] != pseudonyms[2] and pseudonyms[3] is None and len(pseudonyms[0]) == 24
    )
    assert (
        all(line["near"] == [48.9, 2.4] and len(line["items"]) == 3 for line in lines)
        and lines[3]["fallback"] == "popular"
    )
    assert "48.85" not in path.read_text(encoding="utf-8") and '"user' not in path.read_text(encoding="utf-8")
