"""What a serving file (TOML) may say: playlists, experiments, cold users, hard rules, offers, events, limits (`passerelle serve --config`).

Columns are those of items; `offer.NAME` is a column of offers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from passerelle.config import Config, load_config
from passerelle.errors import UserError
from serving.ordering_config import OrderingConfig
from serving.schemas.filters import Filter

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
SourceKind = Literal["personal", "similar", "popular", "trending", "new", "near", "soon"]
DEFAULT = "default"
MAX_K = 10_000
_COLUMN_SOURCES = ("new", "near", "soon")


class SourceConfig(Config):
    """One way to find candidates."""

    kind: SourceKind
    """`personal`: by the query vector; `similar`: to items named in the request, or to the newest of the history; `popular`: most events;
    `trending`: most events lately; `new`, `soon`: by a timestamp; `near`: by a place."""
    candidates: int | None = Field(default=None, ge=1, le=10_000)
    """How many it may find; as many as the ranker was trained to order, if absent."""
    column: str | None = None
    """`new` and `soon`: a timestamp; `near`, and `popular` with a radius: a place."""
    half_life_days: float = Field(default=7.0, gt=0)
    """`trending`: an event counts half as much after so many days."""
    last: int = Field(default=3, ge=1, le=100)
    """`similar`: so many of the newest items of the history, where the request names none."""
    radius_km: float | None = Field(default=None, gt=0, le=20_038)
    """`popular`: only within this distance of the place in the request's context, where it has one."""

    @model_validator(mode="after")
    def _has_its_column(self) -> "SourceConfig":
        needs = self.kind in _COLUMN_SOURCES or self.radius_km is not None
        if needs and self.column is None:
            raise ValueError(f"a source {self.kind!r} needs a column")
        if self.column is not None and not needs:
            raise ValueError(
                f"column has no effect on a source {self.kind!r}"
                + (" without radius_km" if self.kind == "popular" else "")
            )
        if self.radius_km is not None and self.kind != "popular":
            raise ValueError(
                f"radius_km has no effect on a source {self.kind!r}: `popular` has one, `near` takes the nearest"
            )
        for name, kind in (("half_life_days", "trending"), ("last", "similar")):
            if name in self.model_fields_set and self.kind != kind:
                raise ValueError(f"{name} has no effect on a source {self.kind!r}, but on {kind!r}")
        return self


Sources = Annotated[tuple[SourceConfig, ...], Field(min_length=1, max_length=20)]


class Playlist(Config):
    """What a request may ask for by name: filters, sources, ordering and size."""

    sources: Sources = (SourceConfig(kind="personal"),)
    """For users of whom something is known; `[cold_start]` has those for the others, where this has no `cold_sources`."""
    cold_sources: Sources | None = None
    """For the others."""
    filters: tuple[Filter, ...] = Field(default=(), max_length=100)
    """Hold beside those of the request."""
    size: int = Field(default=10, ge=1, le=MAX_K)
    """Items of an answer, where the request gives no `k`."""
    ordering: OrderingConfig = OrderingConfig()
    """The order of its items: the ranker's, if absent."""


class ColdStart(Config):
    """Who is cold, and what they get."""

    min_events: int = Field(default=1, ge=1)
    """A user with fewer known events, stored and live together, is cold; not asked where `min_events_of` is given."""
    min_events_of: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """By kind of event: a user is cold who has fewer of each kind (`{booking = 2, click = 25}`: neither 2 bookings nor 25 clicks)."""
    min_request_items: int = Field(default=1, ge=1)
    """So many known items in the history of a request make it personal, whatever is stored."""
    sources: Sources = (SourceConfig(kind="popular"),)
    """Those of the answer, after one another in turns. What is popular fills up what they lack, here and in every playlist."""


class Rules(Config):
    """What no source, playlist, fallback or pin can get around."""

    min_age_column: str | None = None
    """Items above the age in the request's context are left out; where it names none, all that have a minimum above 0."""
    price_column: str | None = None
    """Items that cost more than the credit in the request's context are left out; without a credit, none."""
    stock_column: str | None = None
    """What has none left is left out."""
    ends_column: str | None = None
    """A timestamp: what is over is left out, by the clock of the service, and by the time of the request where that is later."""
    block_list: Path | None = None
    """A text file, an item id a line: they are never recommended, nor found as similar. It is read again within 5 s after it changes. A
    file that is missing at the start is an error, one that goes missing later leaves in force what it said."""


class Offers(Config):
    """Items are sold as offers, each with a place, a price, dates: an item appears once, with the best one that meets the filters."""

    file: Path
    """Parquet: `offer_id`, `item_id`, and columns of numbers, text, lists of text, timestamps, or structs of `latitude` and `longitude`.
    It is read again soon after it changes."""
    best_by: Literal["nearest", "cheapest"] = "cheapest"
    """Which of several offers an answer carries; `nearest` where the request names a place, else the cheapest."""
    place_column: str | None = None
    """For `nearest`, without `offer.`."""
    price_column: str | None = None
    """For `cheapest`, without `offer.`."""
    required: bool = False
    """Items without an offer that meets the filters are left out even where the filters name no offer."""

    @model_validator(mode="after")
    def _has_its_columns(self) -> "Offers":
        if self.best_by == "nearest" and self.place_column is None:
            raise ValueError("best_by = 'nearest' needs a place_column")
        return self


class Variant(Config):
    """One arm of an experiment."""

    name: Name
    """What answers and the log call it."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of the users, among the weights of all variants."""
    playlist: Name
    """What those who are drawn for it get."""


class Experiment(Config):
    """Users who ask for a playlist are divided among variants, each always to the same."""

    playlist: Name = DEFAULT
    """Which requests take part."""
    variants: tuple[Variant, ...] = Field(min_length=1, max_length=20)
    """A user belongs to one of them by a digest of the experiment's name and the user's id: nothing is stored."""


class LiveEventsConfig(Config):
    """Where live events are kept."""

    store: str = "sqlite"
    """`sqlite`, the file `events.sqlite` in the model repository unless `file` says otherwise; `none`; or `redis://HOST:PORT/DB` (Redis or
    Valkey), which several machines share."""
    file: Path | None = None
    """Of SQLite."""
    keep_per_user: int = Field(default=1000, ge=1, le=5000)
    """Newest events of a user that are read for a recommendation."""
    keep_days: float | None = Field(default=None, gt=0, le=36_500)
    """Events older than that are deleted; kept until they are erased, if absent."""
    timeout_ms: float = Field(default=100.0, gt=0, le=10_000)
    """A store that takes longer is left out of a recommendation, which says so."""

    @model_validator(mode="after")
    def _file_is_of_sqlite(self) -> "LiveEventsConfig":
        if self.file is not None and self.store != "sqlite":
            raise ValueError('events.file is of store = "sqlite"')
        return self


class LimitsConfig(Config):
    """How much is let in."""

    max_in_flight: int = Field(default=256, ge=1, le=10_000)
    """Requests of one replica at a time, of each kind: recommendations, events, all others. More are answered 429."""
    max_expected_ms: float = Field(default=80.0, gt=0)
    """A request that would take longer, as the last ones went and with what is before it, is answered 429: those that are let in are
    answered in time. A few are always let in."""
    deadline_ms: float = Field(default=1000.0, gt=0, le=60_000)
    """Time a request has where it gives none; what is not done by then is left out, or answered 503."""
    max_k: int = Field(default=1000, ge=1, le=MAX_K)
    """Most items of one answer."""
    max_body_bytes: int = Field(default=2_000_000, ge=1000)
    """Larger bodies are answered 413."""
    requests_per_s: float | None = Field(default=None, gt=0)
    """Of one API key (or address, where there are no keys); more are answered 429."""
    api_keys_file: Path | None = None
    """A text file, a key a line: requests need one of them as `Authorization: Bearer KEY`. Anybody may ask where this is absent."""
    explorer: bool = True
    """The page at `/`, and what it asks: ids of some users, and the history of any. Whoever may call may see them."""
    allowed_origins: tuple[str, ...] = ()
    """Other sites whose pages may call (CORS)."""


class LogConfig(Config):
    """What is written of answers."""

    file: Path | None = None
    """JSON lines: what was shown, by which version, playlist and variant, without user ids; and warnings. Nothing where absent."""


class TracingConfig(Config):
    """Where traces go."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """Of an OpenTelemetry collector that takes OTLP over HTTP, `http://HOST:4318`; needs the extra `otel`. Nowhere, if absent."""


class ServingConfig(Config):
    """The whole file; every section may be absent."""

    playlists: dict[Name, Playlist] = Field(default_factory=dict)
    experiments: dict[Name, Experiment] = Field(default_factory=dict)
    cold_start: ColdStart = ColdStart()
    rules: Rules = Rules()
    offers: Offers | None = None
    events: LiveEventsConfig = LiveEventsConfig()
    limits: LimitsConfig = LimitsConfig()
    log: LogConfig = LogConfig()
    tracing: TracingConfig = TracingConfig()

    @model_validator(mode="after")
    def _names_are_known(self) -> "ServingConfig":
        for name, playlist in self.playlists.items():
            if playlist.size > self.limits.max_k:
                raise ValueError(
                    f"playlists.{name}.size is {playlist.size}, limits.max_k {self.limits.max_k}"
                )
        asked: dict[str, str] = {}
        for name, experiment in self.experiments.items():
            self._require(experiment.playlist, f"experiments.{name}.playlist")
            for variant in experiment.variants:
                self._require(variant.playlist, f"experiments.{name}.variants.{variant.name}.playlist")
            if len({variant.name for variant in experiment.variants}) < len(experiment.variants):
                raise ValueError(f"experiments.{name} has two variants of one name")
            if experiment.playlist in asked:
                raise ValueError(
                    f"experiments {asked[experiment.playlist]} and {name} are both of playlist {experiment.playlist!r}"
                )
            asked[experiment.playlist] = name
        return self

    def _require(self, playlist: str, where: str) -> None:
        if playlist != DEFAULT and playlist not in self.playlists:
            raise ValueError(
                f"{where}: no playlist {playlist!r}; there are {', '.join(sorted({DEFAULT, *self.playlists}))}"
            )

    def playlist(self, name: str) -> Playlist:
        """One of the playlists; `default` is there always.

        Raises:
            UserError: there is none of that name.
        """
        if name in self.playlists:
            return self.playlists[name]
        if name == DEFAULT:
            return Playlist()
        raise UserError(
            f"playlist: there is no {name!r}; there are {', '.join(sorted({DEFAULT, *self.playlists}))}"
        )

    def all_sources(self) -> Iterator[tuple[str, SourceConfig]]:
        """Every source that is named anywhere, and where."""
        for name, playlist in self.playlists.items():
            for source in (*playlist.sources, *(playlist.cold_sources or ())):
                yield f"playlists.{name}", source
        for source in self.cold_start.sources:
            yield "cold_start", source


def load_serving_config(path: Path | None) -> ServingConfig:
    """A serving file, its paths as seen from its folder; the defaults without one.

    Raises:
        UserError: it cannot be read, or says something that is not known.
    """
    if path is None:
        return ServingConfig()
    config = load_config(ServingConfig, path)
    here = path.resolve().parent

    def resolved(file: Path | None) -> Path | None:
        return None if file is None else here / file

    return config.model_copy(
        update={
            "rules": config.rules.model_copy(update={"block_list": resolved(config.rules.block_list)}),
            "offers": None
            if config.offers is None
            else config.offers.model_copy(update={"file": here / config.offers.file}),
            "events": config.events.model_copy(update={"file": resolved(config.events.file)}),
            "log": config.log.model_copy(update={"file": resolved(config.log.file)}),
            "limits": config.limits.model_copy(
                update={"api_keys_file": resolved(config.limits.api_keys_file)}
            ),
        }
    )
