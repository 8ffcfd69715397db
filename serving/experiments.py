"""Which variant of an experiment a user belongs to: always the same one, without anything being stored."""

import hashlib
from typing import NamedTuple

from passerelle.errors import UserError
from serving.config import Experiment, ServingConfig, Variant
from serving.schemas.recommend import RecommendRequest


class Assignment(NamedTuple):
    """What a request gets."""

    playlist: str
    experiment: str | None
    variant: str | None


def assigned(config: ServingConfig, request: RecommendRequest, user_id: str | None) -> Assignment:
    """The playlist of a request: the one it names, or that of the user's variant. Without a user there is nobody to assign.

    Args:
        user_id: as the bundle writes it: `7` and `"07"` are one user.

    Raises:
        UserError: it names a variant that is not there.
    """
    for name, experiment in config.experiments.items():
        if experiment.playlist != request.playlist:
            continue
        if request.variant is not None:
            variant = next((one for one in experiment.variants if one.name == request.variant), None)
            if variant is None:
                known = ", ".join(one.name for one in experiment.variants)
                raise UserError(f"variant: experiment {name!r} has no {request.variant!r}; it has {known}")
            return Assignment(variant.playlist, name, variant.name)
        if user_id is None:
            return Assignment(request.playlist, None, None)
        variant = variant_of(name, experiment, user_id)
        return Assignment(variant.playlist, name, variant.name)
    if request.variant is not None:
        raise UserError(f"variant: there is no experiment on playlist {request.playlist!r}")
    return Assignment(request.playlist, None, None)


def variant_of(name: str, experiment: Experiment, user_id: str) -> Variant:
    """By a digest of the experiment's name and the user's id: independent from experiment to experiment, in the shares of the weights."""
    digest = hashlib.sha256(f"{name}\0{user_id}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64 * sum(variant.weight for variant in experiment.variants)
    for variant in experiment.variants:
        place -= variant.weight
        if place < 0:
            return variant
    return experiment.variants[-1]
