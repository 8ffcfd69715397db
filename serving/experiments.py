"""Assignment of users to variants of experiments: stable, and without any stored state."""

import hashlib
from typing import NamedTuple

from serving.config import Experiment, ServingConfig, Variant
from serving.schemas.recommend import ConflictError, RecommendRequest


class Assignment(NamedTuple):
    """The playlist of a request, and the experiment and the variant that led to it."""

    playlist: str
    experiment: str | None
    variant: str | None


def assigned(config: ServingConfig, request: RecommendRequest, user_id: str | None) -> Assignment:
    """Returns the assignment of a request: the playlist that it names, or that of the user's variant.

    A request without a user takes no part in experiments.

    Args:
        user_id: as the bundle writes it: `7` and `"07"` are one user.

    Raises:
        ConflictError: the request names a variant that does not exist.
    """
    for name, experiment in config.experiments.items():
        if experiment.playlist != request.playlist:
            continue
        if request.variant is not None:
            variant = next((one for one in experiment.variants if one.name == request.variant), None)
            if variant is None:
                known = ", ".join(one.name for one in experiment.variants)
                raise ConflictError(
                    f"variant: experiment {name!r} has no {request.variant!r}; it has {known}"
                )
            return Assignment(variant.playlist, name, variant.name)
        if user_id is None:
            return Assignment(request.playlist, None, None)
        variant = variant_of(name, experiment, user_id)
        return Assignment(variant.playlist, name, variant.name)
    if request.variant is not None:
        raise ConflictError(f"variant: there is no experiment on playlist {request.playlist!r}")
    return Assignment(request.playlist, None, None)


def variant_of(name: str, experiment: Experiment, user_id: str) -> Variant:
    """Returns the variant of a user, by a digest of the experiment's name and the user's id.

    Variants of different experiments are independent, and each gets the share of users that its weight says.
    """
    digest = hashlib.sha256(f"{name}\0{user_id}".encode()).digest()
    remaining = int.from_bytes(digest[:8]) / 2**64 * sum(variant.weight for variant in experiment.variants)
    for variant in experiment.variants:
        remaining -= variant.weight
        if remaining < 0:
            return variant
    return experiment.variants[-1]
