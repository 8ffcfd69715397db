"""`passerelle publish`: a bundle becomes a version of the model repository, after it has passed the parity
gate.

    <repository>/
      published.json                 which version is active, and the bundle each one came from
      query_encoder/<n>/model.onnx
      ranker/<n>/model.onnx

The gate serves the version from a private copy.
Nothing is visible in the repository until it has passed.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from pydantic import Field

from passerelle.bundle import (
    INDEX,
    QUERY_ENCODER,
    RANKER,
    SCORE_TOLERANCE,
    Bundle,
    BundleManifest,
    open_bundle,
)
from passerelle.config import Config, validate
from passerelle.errors import UserError
from passerelle.files import new_directory, sha256_of, write_text
from passerelle.manifest import open_manifest, write_manifest
from passerelle.progress import Progress, silent
from ray_cluster.networks import Networks
from ray_cluster.parity import HttpParity, TritonParity, http_parity, triton_parity
from ray_cluster.resources import resource
from serving.config import LimitsConfig, LiveEventsConfig, ServingConfig
from serving.retrievers.index_store import build_index
from serving.retrievers.retriever import SCAN_LIMIT
from serving.triton.client import TritonError
from serving.triton.model_config import disagreements, fitted_config

MODELS = (QUERY_ENCODER, RANKER)
PUBLISHED_NAME = "published.json"
# The gate asks many at once, on a machine that may be busy: it wants every answer, and in full.
_GATE_CONFIG = ServingConfig(
    events=LiveEventsConfig(store="none"),
    limits=LimitsConfig(max_in_flight=10_000, max_expected_ms=60_000, deadline_ms=60_000),
)
_TEMPLATES = resource("model_repository")


class PublishedVersion(Config):
    """Where one version came from."""

    bundle_id: str
    bundle: str
    """Path of the bundle when it was published."""
    model: str
    published_at: str


class Published(Config):
    """`published.json`."""

    active: int | None = None
    versions: dict[int, PublishedVersion] = Field(default_factory=dict)


class Publication(Config):
    """What `publish` did."""

    version: int
    bundle_id: str
    repository: str
    parity: dict[str, dict[str, Any]]


def read_published(repository: Path) -> Published:
    """Returns what is published in a repository; nothing when it is empty or absent.

    Raises:
        UserError: `published.json` cannot be read.
    """
    path = repository / PUBLISHED_NAME
    if not path.exists():
        return Published()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}): remove it and publish again") from None
    return validate(Published, values, str(path))


def published_version(bundle: Bundle, repository: Path) -> int:
    """Returns the version under which a bundle is published.

    Raises:
        UserError: it is not, or its networks are no longer there.
    """
    for version, entry in read_published(repository).versions.items():
        if entry.bundle_id == bundle.manifest.bundle_id and _is_placed(bundle, repository, version):
            return version
    raise UserError(
        f"{bundle.path} is not published in {repository}: run `passerelle publish {bundle.path} --repository "
        f"{repository}` first"
    )


def publish(bundle_path: Path, repository: Path, progress: Progress = silent) -> Publication:
    """Make a bundle the active version of a repository; one that is published already keeps its number.

    Raises:
        UserError: the bundle is damaged, does not fit the repository's
            configuration, or fails the parity gate.
            The version that was active stays active, and no file of the new one is left.
    """
    bundle = open_bundle(bundle_path)
    repository.mkdir(parents=True, exist_ok=True)
    with _locked(repository):
        published = read_published(repository)
        same = [
            version
            for version, entry in published.versions.items()
            if entry.bundle_id == bundle.manifest.bundle_id
        ]
        version = same[0] if same else 1 + max([0, *published.versions, *_version_folders(repository)])
        configs = _configs(bundle, repository, version)
        if bundle.manifest.num_items > SCAN_LIMIT and not (bundle.path / INDEX).exists():
            progress("building the index", 0, 1)
            build_index(bundle)
            progress("building the index", 1, 1)
        with tempfile.TemporaryDirectory(prefix="passerelle-gate-") as scratch:
            _place(bundle, Path(scratch), version, configs)
            parity = _gate(bundle, Path(scratch), version, published.active, progress)
        _place(bundle, repository, version, configs)
        manifest = open_manifest(bundle_path, BundleManifest, verify=False)
        write_manifest(bundle_path, manifest.updated(parity={**manifest.parity, **parity}))
        entry = PublishedVersion(
            bundle_id=manifest.bundle_id,
            bundle=str(bundle_path.resolve()),
            model=manifest.model,
            published_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        after = Published(active=version, versions={**published.versions, version: entry})
        write_text(repository / PUBLISHED_NAME, after.model_dump_json(indent=2) + "\n")
    return Publication(
        version=version, bundle_id=manifest.bundle_id, repository=str(repository), parity=parity
    )


@contextlib.contextmanager
def _locked(repository: Path) -> Iterator[None]:
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{repository}: another publish is at work there: wait for it to end") from None
    finally:
        os.close(descriptor)


def _version_folders(repository: Path) -> set[int]:
    return {
        int(folder.name)
        for model in MODELS
        for folder in (repository / model).glob("*")
        if folder.name.isdigit() and folder.is_dir()
    }


def _configs(bundle: Bundle, repository: Path, version: int) -> dict[str, str]:
    """Returns the `config.pbtxt` of each model, from the repository or else from the
    templates, with the bundle's dims.

    Raises:
        UserError: other versions in the repository were made for other dims.
            Triton has one configuration for all versions of a model.
    """
    others = sorted(_version_folders(repository) - {version})
    configs = {}
    for model in MODELS:
        path = repository / model / "config.pbtxt"
        source = path if path.exists() else _TEMPLATES / model / "config.pbtxt"
        text, network = source.read_text(encoding="utf-8"), bundle.manifest.networks[model]
        contradictions = disagreements(text, network, str(path)) if path.exists() and others else []
        if contradictions:
            raise UserError(
                f"{path}: {contradictions[0]}, and Triton has one configuration for all versions: "
                f"publish into another --repository, or remove versions {', '.join(map(str, others))} first"
            )
        configs[model] = fitted_config(
            text, network, bundle.manifest.max_history, str(source), bundle.query_encoding.widths()
        )
    return configs


def _network_path(bundle: Bundle, model: str) -> Path:
    return bundle.path / f"{model}.onnx"


def _is_placed(bundle: Bundle, repository: Path, version: int) -> bool:
    placed = {model: repository / model / str(version) / "model.onnx" for model in MODELS}
    return all(
        path.is_file() and sha256_of(path) == bundle.manifest.files[f"{model}.onnx"].sha256
        for model, path in placed.items()
    )


def _place(bundle: Bundle, repository: Path, version: int, configs: dict[str, str]) -> None:
    for model, config in configs.items():
        path = repository / model / "config.pbtxt"
        if not path.exists() or path.read_text(encoding="utf-8") != config:
            write_text(path, config)
    if not _is_placed(bundle, repository, version):
        for model in MODELS:
            with new_directory(repository / model / str(version), overwrite=True) as folder:
                shutil.copy(_network_path(bundle, model), folder / "model.onnx")


def _gate(
    bundle: Bundle, repository: Path, version: int, active: int | None, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Serve the version and compare every layer with training's own answers.

    Raises:
        UserError: it does not start, or differs; with the numbers.
    """
    # Imported here, because reading what is published needs no Ray.
    from ray_cluster.service import Service, ServiceOptions

    progress("starting Triton", 0, 1)
    with Networks(repository, version) as networks:
        networks.ensure()
        progress("starting Triton", 1, 1)
        try:
            triton = asyncio.run(triton_parity(bundle, version, networks.address, progress))
        except TritonError as error:
            raise UserError(f"{bundle.path}: not published: Triton does not answer: {error}") from None
        _require(triton, "Triton", bundle, active)
        progress("starting Serve", 0, 1)
        options = ServiceOptions(triton=networks.address, serving=_GATE_CONFIG, exact=True)
        with Service(bundle.path, repository, version, options) as service:
            progress("starting Serve", 1, 1)
            try:
                http = asyncio.run(http_parity(bundle, service.url, progress))
            except httpx.HTTPError as error:
                raise UserError(
                    f"{bundle.path}: not published: the service did not answer the parity gate ({error})"
                ) from None
    _require(http, "HTTP", bundle, active)
    return {"triton": triton.model_dump(), "http": http.model_dump()}


def _require(figures: TritonParity | HttpParity, layer: str, bundle: Bundle, active: int | None) -> None:
    if not figures.holds:
        stays = f"version {active} stays active" if active is not None else "no version is active"
        raise UserError(
            f"{bundle.path}: not published, {stays}: {layer} differs from training: {_in_words(figures)}"
        )


def _in_words(figures: TritonParity | HttpParity) -> str:
    differences = {name: value for name, value in figures.model_dump().items() if name.startswith("max_")}
    numbers = ", ".join(f"{name.replace('_', ' ')} {value:.2e}" for name, value in differences.items())
    return (
        f"{numbers} (allowed {SCORE_TOLERANCE:g}), "
        f"the ten best are identical for {figures.identical_top_10} of {figures.users} users"
    )
