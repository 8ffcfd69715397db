"""Event types become codes by their position, and unknown ones are refused by name."""

import pytest

from passerelle.errors import UserError
from passerelle.event_types import event_type_codes

KNOWN = ("view", "cart", "purchase")


def test_codes_are_positions_in_the_given_order() -> None:
    assert event_type_codes(["purchase", "view", "view"], KNOWN, "here").tolist() == [2, 0, 0]
    assert event_type_codes([], KNOWN, "here").tolist() == []


def test_unknown_event_types_are_named() -> None:
    with pytest.raises(
        UserError, match="here: no 'buy', 'sell' among the events of shop: view, cart, purchase"
    ):
        event_type_codes(["sell", "view", "buy", "buy"], KNOWN, "here", "shop")
