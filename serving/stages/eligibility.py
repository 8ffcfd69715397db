"""Items and offers that a request may get: those that meet its filters and the eligibility rules."""

from passerelle.bundle import Bundle
from serving.catalogue.catalogue import Catalogue, Eligible, item_columns
from serving.catalogue.columns import Columns
from serving.catalogue.filter_budget import CONDITION_WORK, PLACE_WORK, FilterBudget
from serving.catalogue.offers import PREFIX, read_offers
from serving.config import Playlist, ServingConfig
from serving.deadline import Deadline
from serving.eligibility_config import Offers
from serving.schemas.recommend import ItemsRequest
from serving.source_config import TimestampSource
from serving.stages.rules import EligibilityRules
from serving.stages.types import RequestTime
from serving.watched_file import WatchedFile

_MIN_CONDITIONS = 8
"""A request may visit every row so many times, and every place once, however large the catalogue is."""


class Eligibility:
    """The catalogue as it is now, and what filters and rules leave of it.

    Args:
        bundle: ids and columns of the items.
        config: rules, offers, and playlists whose columns have to exist.
        items: the columns of items, where other stages share them.

    Raises:
        UserError: the configuration names a column that does not exist or has another kind, or a file cannot
            be read.
    """

    def __init__(self, bundle: Bundle, config: ServingConfig, items: Columns | None = None) -> None:
        self._config = config
        items, offers = items or item_columns(bundle), config.offers
        if offers is None:
            self._watched = None
            self._fixed = self._checked(Catalogue(items))
        else:
            self._watched = WatchedFile(
                offers.file, lambda path: self._checked(Catalogue(items, read_offers(path, bundle.item_ids)))
            )
        self._rules = EligibilityRules(config.rules, bundle.item_ids)

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue with the latest offers; a request reads it once, so that its stages agree."""
        return self._fixed if self._watched is None else self._watched.value

    def eligible(
        self,
        catalogue: Catalogue,
        request: ItemsRequest,
        playlist: Playlist,
        request_time: RequestTime,
        deadline: Deadline,
    ) -> Eligible:
        """Returns the items and offers that meet the filters of a request and its playlist, and the rules.

        Raises:
            UserError: a filter names an unknown column, does not fit it, or the request's take too much work.
            DeadlineError: the deadline passes.
        """
        offers = self._config.offers
        every_row = _MIN_CONDITIONS * (catalogue.max_visits + CONDITION_WORK)
        every_place = PLACE_WORK * catalogue.size
        max_work = max(self._config.limits.max_filter_work, every_row + every_place)
        eligible = catalogue.eligible(
            request.filters,
            (*playlist.filters, *self._rules.conditions(request.context, request_time)),
            with_offer=offers is not None and offers.required,
            budget=FilterBudget(max_work, deadline),
        )
        eligible.rows_R[self._rules.blocked_B()] = False
        return eligible

    def _checked(self, catalogue: Catalogue) -> Catalogue:
        """Returns the catalogue, after checking that it has every column that the configuration names."""
        EligibilityRules.check(self._config.rules, catalogue)
        for name, playlist in self._config.playlists.items():
            catalogue.eligible(playlist.filters)
            catalogue.eligible([boost.when for boost in playlist.ordering.boosts])
            for column, kinds, part in playlist.ordering.columns():
                catalogue.require(column, kinds, f"playlists.{name}.ordering.{part}")
        for section, source in self._config.all_sources():
            for column, kinds in source.columns():
                catalogue.require(column, kinds, f"{section}: source {source.kind!r}")
            if isinstance(source, TimestampSource):
                catalogue.prepare_time_order(source.column, ahead=source.kind == "soon")
        if self._config.offers is not None:
            _check_offer_columns(self._config.offers, catalogue)
        return catalogue


def _check_offer_columns(offers: Offers, catalogue: Catalogue) -> None:
    if offers.place_column is not None:
        catalogue.require(PREFIX + offers.place_column, ("place",), "offers")
    if offers.price_column is not None:
        catalogue.require(PREFIX + offers.price_column, ("numeric",), "offers")
