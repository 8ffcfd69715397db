"""The explorer in a real headless browser, over a real server and networks in this process."""

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import alert_is_present
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait

from passerelle.bundle import Bundle
from passerelle.config import validate
from serving.api.app import build_app
from serving.config import ServingConfig
from serving.events.intake import EventIntake
from serving.events.sqlite_store import SqliteEventStore
from serving.triton.ports import free_ports
from tests.serving.conftest import recommender_of
from tests.support.inference import OnnxInference
from tests.support.waiting import LIMIT_S, eventually

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no browser here: apt-get install chromium chromium-driver"
)
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)
BOOKS_FIRST = {
    "name": "books first",
    "when": {"op": "equals", "column": "kind", "value": "book"},
    "factor": 5.0,
}
CONFIG = {
    "playlists": {"books": {"ordering": {"boosts": [BOOKS_FIRST]}}},
    "experiments": {
        "order": {
            "variants": [{"name": "plain", "playlist": "default"}, {"name": "books", "playlist": "books"}]
        }
    },
}


@contextlib.contextmanager
def served(bundle: Bundle, folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """Yields the address of a server in a thread."""
    store = SqliteEventStore(folder / "events.sqlite")
    recommender = recommender_of(
        bundle, OnnxInference(bundle), 7, validate(ServingConfig, config, "test"), store
    )
    (port,) = free_ports(1)
    app = build_app(recommender, EventIntake(bundle, store))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    asyncio.run(store.close())


@pytest.fixture(scope="module")
def url(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(bundle, tmp_path_factory.mktemp("events"), CONFIG) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
    yield found
    found.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, url: str) -> webdriver.Chrome:
    browser.get(url)
    wait(browser, lambda: items(browser))
    return browser


def wait(browser: webdriver.Chrome, condition: Any) -> Any:
    return WebDriverWait(browser, LIMIT_S).until(lambda _: condition())


def cards(browser: webdriver.Chrome) -> list[Any]:
    return browser.find_elements(By.CSS_SELECTOR, "#answers > section")


def items(where: Any) -> list[str]:
    return [
        one.text
        for one in where.find_elements(
            By.CSS_SELECTOR, "#answers section li .title, section#similar li .title"
        )
    ]


def titles(card: Any) -> list[str]:
    return [one.text for one in card.find_elements(By.CSS_SELECTOR, "li .title")]


def submit(browser: webdriver.Chrome) -> None:
    """Submits the form and waits for new cards."""
    before = cards(browser)[0]
    browser.find_element(By.CSS_SELECTOR, "button.main").click()
    wait(browser, lambda: cards(browser) and cards(browser)[0] != before)


def screenshot(browser: webdriver.Chrome, name: str) -> None:
    """Saves a screenshot where the environment names a folder."""
    if folder := os.environ.get("PASSERELLE_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_page_opens_with_a_user_and_loads_nothing_from_other_sites(page: webdriver.Chrome, url: str) -> None:
    screenshot(page, "start")
    assert "version 7: 300 items, 40 users" in page.find_element(By.ID, "about").text
    assert len(items(page)) == 10 and all(text.startswith("Title №") for text in items(page))
    assert len(page.find_elements(By.CSS_SELECTOR, "#history li .title")) > 0
    assert (
        len(page.find_elements(By.CSS_SELECTOR, ".bar span")) == 5
        and "retrieval" in page.find_element(By.CSS_SELECTOR, ".legend").text
    )
    assert (
        page.find_elements(By.CSS_SELECTOR, ".chip")[0].text == "personal #1"
        or "personal" in page.find_element(By.ID, "answers").text
    )
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert loaded and all(name.startswith((url, "data:")) for name in loaded)
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_unknown_user_gets_popular_items_with_a_note(page: webdriver.Chrome) -> None:
    user = page.find_element(By.ID, "user")
    user.clear()
    user.send_keys("4")
    submit(page)
    assert page.find_element(By.CSS_SELECTOR, ".badge").text == "fallback: popular"
    assert page.find_element(By.ID, "history").text == "Nothing is known of this user."


def test_a_category(page: webdriver.Chrome, bundle: Bundle) -> None:
    Select(page.find_element(By.ID, "column")).select_by_value("genres")
    Select(page.find_element(By.ID, "value")).select_by_value("Drama")
    submit(page)
    genres = dict(
        zip(bundle.items.column("title").to_pylist(), bundle.items.column("genres").to_pylist(), strict=True)
    )
    assert items(page) and all("Drama" in genres[title] for title in items(page))
    screenshot(page, "category")


def test_two_variants_side_by_side(page: webdriver.Chrome) -> None:
    Select(page.find_element(By.ID, "left")).select_by_visible_text("order: plain")
    Select(page.find_element(By.ID, "right")).select_by_visible_text("order: books")
    submit(page)
    left, right = cards(page)
    assert left.find_element(By.TAG_NAME, "h2").text == "default: variant plain" and titles(left) != titles(
        right
    )
    assert (
        left.location["y"] == right.location["y"]
        and "books first" in right.text
        and "books first" not in left.text
    )
    screenshot(page, "variants")


def test_similar_items(page: webdriver.Chrome) -> None:
    page.find_element(By.CSS_SELECTOR, "button.similar").click()
    similar = wait(page, lambda: page.find_elements(By.ID, "similar"))[0]
    assert (
        similar.find_element(By.TAG_NAME, "h2").text.startswith("Similar to Title №")
        and len(titles(similar)) == 10
    )
    screenshot(page, "similar")


def test_errors_are_shown(page: webdriver.Chrome) -> None:
    user = page.find_element(By.ID, "user")
    user.clear()
    user.send_keys("ann")
    page.find_element(By.CSS_SELECTOR, "button.main").click()
    problem = wait(page, lambda: page.find_element(By.ID, "problem").text)
    assert "this catalogue's ids are integers" in problem
    screenshot(page, "mistake")


def test_a_narrow_screen(page: webdriver.Chrome) -> None:
    page.set_window_size(500, 900)
    try:
        width = page.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        screenshot(page, "narrow")
        assert width[0] <= width[1], "nothing is cut off to the right"
    finally:
        page.set_window_size(1280, 900)


def test_markup_in_titles_is_text(page: webdriver.Chrome) -> None:
    text = page.execute_script(
        "const node = element('span', '<img src=x onerror=alert(1)>'); return node.innerHTML"
    )
    assert text == "&lt;img src=x onerror=alert(1)&gt;"


def test_page_asks_for_an_api_key(browser: webdriver.Chrome, bundle: Bundle, tmp_path: Path) -> None:
    """The page asks for a key until it is one of the service's."""
    (tmp_path / "keys.txt").write_text("the right one\n", encoding="utf-8")
    with served(bundle, tmp_path, {"limits": {"api_keys_file": str(tmp_path / "keys.txt")}}) as url:
        browser.get(url)
        for key in ("a wrong one", "the right one"):
            question = WebDriverWait(browser, LIMIT_S).until(alert_is_present())
            assert "API key" in question.text
            question.send_keys(key)
            question.accept()
        wait(browser, lambda: len(items(browser)) == 10)
        assert not browser.find_elements(By.CSS_SELECTOR, ".problem:not(:empty)")
        browser.get("about:blank")
