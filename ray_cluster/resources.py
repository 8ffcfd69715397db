"""Files that lie beside the packages in a checkout, and inside this package in an installed wheel."""

from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent
PACKAGES = ("passerelle", "training", "serving", "ray_cluster")


def resource(name: str) -> Path:
    """Returns the folder `model_repository` or `requirements`; pyproject.toml
    says what the wheel holds of it.
    """
    in_wheel = _PACKAGE / "shipped" / name
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / name


def is_checkout() -> bool:
    """Returns whether this code runs from a checkout, and not from an installed wheel."""
    return (_PACKAGE.parent / "pyproject.toml").is_file()


def runtime_env() -> dict[str, Any]:
    """Returns what brings these packages to the workers of a running Ray cluster.

    A checkout travels as their working directory; of an installed wheel, only its
    packages, not all of site-packages.
    """
    if is_checkout():
        return {"working_dir": str(_PACKAGE.parent)}
    return {"py_modules": [str(_PACKAGE.parent / package) for package in PACKAGES]}
