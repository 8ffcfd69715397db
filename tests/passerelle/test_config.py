"""Configuration from TOML with overrides, and the words of its errors."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.config import Config, apply_overrides, load_config, read_toml, validate
from passerelle.errors import UserError


class Loss(Config):
    """A section."""

    num_negatives: int = 256
    temperature: float = 1.0


class Layer(Config):
    """An element of a list."""

    width: int


class Recipe(Config):
    """A file."""

    name: str
    loss: Loss = Loss()
    extra: Loss | None = None
    layers: tuple[Layer, ...] = ()
    named: dict[str, Layer] = {}  # noqa: RUF012


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('name = "é"\n[loss]\nnum_negatives = 5\n[[layers]]\nwidth = 3\n')
    recipe = load_config(Recipe, path, ["loss.num_negatives=64", "name=other", "extra.temperature=0.5"])
    assert recipe == Recipe(
        name="other", loss=Loss(num_negatives=64), extra=Loss(temperature=0.5), layers=(Layer(width=3),)
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"name = \n", r"recipe\.toml: "),
        (b"\xff", r"recipe\.toml: .*codec"),
        (b"", r"recipe\.toml: name: Field required$"),
        (b"name = 'a'\nnmae = 'b'\n", r"recipe\.toml: nmae: unknown key; did you mean name\?$"),
        (
            b"name = 'a'\n[loss]\nqqq = 1\n",
            r"loss\.qqq: unknown key; known here: num_negatives, temperature$",
        ),
        (
            b"name = 'a'\n[loss]\nnum_negatives = 'many'\n",
            r"loss\.num_negatives: Input should be a valid integer.*, got 'many'$",
        ),
        (b"name = 'a'\n[loss]\ntemperature = inf\n", r"loss\.temperature: .*finite"),
        (
            b"name = 'a'\n[[layers]]\nwidht = 3\n",
            r"layers\.0\.widht: unknown key; did you mean width\? \(and 1 more\)$",
        ),
        (b"name = 'a'\n[named.x]\nwidht = 3\n", r"named\.x\.widht: unknown key; did you mean width\?"),
        (
            b"name = 'a'\n[extra]\nnum_negative = 3\n",
            r"extra\.num_negative: unknown key; did you mean num_negatives\?",
        ),
    ],
)
def test_wrong_files(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(data)
    with pytest.raises(UserError, match=message) as failure:
        load_config(Recipe, tmp_path / "recipe.toml")
    assert "\n" not in str(failure.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.toml: no such file$"):
        read_toml(tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=1", {"a": {"b": 1}, "c": 2}),
        ("c=false", {"a": {"b": 0}, "c": False}),
        ("c=word", {"a": {"b": 0}, "c": "word"}),
        ("c='1'", {"a": {"b": 0}, "c": "1"}),
        ("c=[1, 2]", {"a": {"b": 0}, "c": [1, 2]}),
        ("c=x=y", {"a": {"b": 0}, "c": "x=y"}),
        ("d.e.f=0.5", {"a": {"b": 0}, "c": 2, "d": {"e": {"f": 0.5}}}),
    ],
)
def test_overrides(override: str, expected: dict[str, Any]) -> None:
    values = {"a": {"b": 0}, "c": 2}
    assert apply_overrides(values, [override]) == expected
    assert values == {"a": {"b": 0}, "c": 2}  # the original stays


@pytest.mark.parametrize("override", ["a", "=1", "a..b=1", "c.d=1"])
def test_wrong_overrides(override: str) -> None:
    with pytest.raises(UserError, match=f"--set {override}: "):
        apply_overrides({"a": {}, "c": 2}, [override])


def test_the_last_override_wins() -> None:
    assert apply_overrides({}, ["a.b=1", "a.c=2", "a.b=3"]) == {"a": {"b": 3, "c": 2}}


@given(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive(negatives: int, temperature: float) -> None:
    values = apply_overrides(
        {"name": "a"}, [f"loss.num_negatives={negatives}", f"loss.temperature={temperature!r}"]
    )
    if abs(negatives) < 2**63:
        loss = validate(Recipe, values, "here").loss
        assert (loss.num_negatives, loss.temperature) == (negatives, temperature)


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe(name="a").name = "b"  # type: ignore[misc]
