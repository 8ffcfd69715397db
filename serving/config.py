"""Configuration of the service, a TOML file (`passerelle serve --config`).

It holds playlists, experiments, the rule for cold users, eligibility rules, offers, events and limits.
Columns are those of items; `offer.NAME` is a column of offers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from passerelle.config import Config, load_config
from passerelle.errors import UserError
from serving.eligibility_config import Offers, Rules
from serving.ordering_config import OrderingConfig
from serving.schemas.base import MAX_K
from serving.schemas.filters import Filter
from serving.source_config import CandidateSource, PersonalSource, PopularSource, SourceList

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
DEFAULT = "default"


class Playlist(Config):
    """Filters, sources, ordering and size that a request asks for by name."""

    sources: SourceList = (PersonalSource(),)
    """Sources for users who are not cold."""
    cold_sources: SourceList | None = None
    """Sources for cold users; those of `[cold_start]`, if absent."""
    filters: tuple[Filter, ...] = Field(default=(), max_length=100)
    """Conditions that hold in addition to those of the request."""
    size: int = Field(default=10, ge=1, le=MAX_K)
    """Number of items of an answer, where the request gives no `k`."""
    ordering: OrderingConfig = OrderingConfig()
    """Order of the items; the ranker's, if absent."""


class ColdStart(Config):
    """Which users are cold, and the sources of their answers."""

    min_events: int = Field(default=1, ge=1)
    """A user with fewer known events, stored and live together, is cold.

    Not read where `min_events_of` is given.
    """
    min_events_of: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """By event type: a user is cold who has fewer events of each type.

    `{booking = 2, click = 25}` means neither 2 bookings nor 25 clicks.
    """
    min_request_items: int = Field(default=1, ge=1)
    """A request whose own history has at least so many known items is personal, whatever is stored."""
    sources: SourceList = (PopularSource(),)
    """Sources of the answer, interleaved.

    Here and in every playlist, popular items fill the answer up where the sources find too few.
    """


class Variant(Config):
    """One variant of an experiment."""

    name: Name
    """Name in answers and in the log."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the users, relative to the weights of all variants."""
    playlist: Name
    """Playlist of the users who are assigned to it."""


class Experiment(Config):
    """Users who request a playlist are divided among variants; a user always gets the same one."""

    playlist: Name = DEFAULT
    """Requests for this playlist take part."""
    variants: tuple[Variant, ...] = Field(min_length=1, max_length=20)
    """A digest of the experiment's name and the user's id assigns one of them; nothing is stored."""


class LiveEventsConfig(Config):
    """Storage of live events."""

    store: str = "sqlite"
    """`sqlite`, `none`, or `redis://HOST:PORT/DB` (Redis or Valkey), which several machines can share.

    `sqlite` is the file `events.sqlite` in the model repository unless `file` names another one.
    """
    file: Path | None = None
    """File of `sqlite`."""
    keep_per_user: int = Field(default=1000, ge=1, le=5000)
    """Number of newest events of a user that are read for a recommendation."""
    keep_days: float | None = Field(default=None, gt=0, le=36_500)
    """Events that are older are deleted; they are kept until they are erased, if absent."""
    timeout_ms: float = Field(default=100.0, gt=0, le=10_000)
    """A recommendation does without a store that takes longer, and says so (`degraded`)."""

    @model_validator(mode="after")
    def _only_sqlite_has_a_file(self) -> "LiveEventsConfig":
        if self.file is not None and self.store != "sqlite":
            raise ValueError('events.file is of store = "sqlite"')
        return self


class LimitsConfig(Config):
    """Limits on requests."""

    max_in_flight: int = Field(default=256, ge=1, le=10_000)
    """Concurrent requests of one replica; more are answered 429.

    Recommendations, events and all other requests are counted separately.
    """
    max_expected_ms: float = Field(default=80.0, gt=0)
    """A request that is expected to take longer is answered 429, so that admitted ones are answered in time.

    The expectation comes from the latest requests and those that wait; a few requests are always admitted.
    """
    deadline_ms: float = Field(default=1000.0, gt=0, le=60_000)
    """Deadline of a request that gives none; stages that miss it are left out, or the answer is 503."""
    max_k: int = Field(default=1000, ge=1, le=MAX_K)
    """Maximum number of items of one answer."""
    max_filter_work: int = Field(default=20_000_000, ge=1)
    """Visits of rows by the filters of one request; filters that take more are answered 422.

    A visit takes about a nanosecond: a condition visits every item or offer, a radius those of its latitudes.
    A request may always visit every row of the catalogue 8 times, and compute every distance once.
    """
    max_body_bytes: int = Field(default=2_000_000, ge=1000)
    """Larger bodies are answered 413."""
    max_large_bytes_per_s: int = Field(default=2_000_000, ge=1000)
    """Bytes of bodies over 64 KiB, together, that one replica takes in a second; more are answered 429.

    While one is parsed, no other request is answered.
    """
    requests_per_s: float | None = Field(default=None, gt=0)
    """Requests of one API key (or of one address, where there are no keys); more are answered 429."""
    api_keys_file: Path | None = None
    """A text file, a key a line: requests need one of them as `Authorization: Bearer KEY`.

    No key is needed, if absent.
    """
    explorer: bool = True
    """Serve the page at `/` and its endpoints.

    They show the ids of some users and the history of any user to every client.
    """
    allowed_origins: tuple[str, ...] = ()
    """Other sites whose pages may send requests (CORS).

    Without API keys, requests of other sites' pages that are no GET are answered 403.
    """
    allowed_hosts: tuple[str, ...] = ()
    """Names by which clients reach the service (`Host`); requests by other names are answered 403.

    If absent, any name will do; on loopback and without API keys, only names of this machine.
    """


class LogConfig(Config):
    """Log of answers."""

    file: Path | None = None
    """JSON lines of warnings and of the items shown, with version, playlist and variant but without user ids.

    No log is written, if absent.
    """


class TracingConfig(Config):
    """Export of traces."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """OpenTelemetry collector that takes OTLP over HTTP, `http://HOST:4318`; needs the extra `otel`.

    No traces are exported, if absent.
    """


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
        experiment_of: dict[str, str] = {}
        for name, experiment in self.experiments.items():
            self._require(experiment.playlist, f"experiments.{name}.playlist")
            for variant in experiment.variants:
                self._require(variant.playlist, f"experiments.{name}.variants.{variant.name}.playlist")
            if len({variant.name for variant in experiment.variants}) < len(experiment.variants):
                raise ValueError(f"experiments.{name} has two variants of one name")
            if experiment.playlist in experiment_of:
                raise ValueError(
                    f"experiments {experiment_of[experiment.playlist]} and {name} are both of playlist "
                    f"{experiment.playlist!r}"
                )
            experiment_of[experiment.playlist] = name
        return self

    def _require(self, playlist: str, where: str) -> None:
        if playlist != DEFAULT and playlist not in self.playlists:
            raise ValueError(f"{where}: no playlist {playlist!r}; there are {self._playlist_names()}")

    def _playlist_names(self) -> str:
        return ", ".join(sorted({DEFAULT, *self.playlists}))

    def playlist(self, name: str) -> Playlist:
        """Returns the playlist of a name; there is always a `default`.

        Raises:
            UserError: there is none of that name.
        """
        if name in self.playlists:
            return self.playlists[name]
        if name == DEFAULT:
            return Playlist()
        raise UserError(f"playlist: there is no {name!r}; there are {self._playlist_names()}")

    def all_sources(self) -> Iterator[tuple[str, CandidateSource]]:
        """Yields every source of the file, with the section that names it."""
        for name, playlist in self.playlists.items():
            for source in (*playlist.sources, *(playlist.cold_sources or ())):
                yield f"playlists.{name}", source
        for source in self.cold_start.sources:
            yield "cold_start", source


def load_serving_config(path: Path | None) -> ServingConfig:
    """Returns the configuration of a file, with its relative paths resolved from the folder of the file.

    Without a file, returns the defaults.

    Raises:
        UserError: the file cannot be read, or is no valid configuration.
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
