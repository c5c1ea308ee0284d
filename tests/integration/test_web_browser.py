"""The web pages in Chromium: by keyboard alone, on a phone, in the dark, with words that look like scripts."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastavro
import pytest
from kafka import KafkaConsumer, TopicPartition

from tests.support.chromium import browser
from tests.support.kafka import Topics
from tests.support.web import TOKEN, Pages, fill, served
from vocbeam.deploy.broker import Broker
from vocbeam.pipelines.flagging import Channel, raise_flag
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.registry import FileRegistry

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PHONE = {"width": 390, "height": 844}
PATHS = ("/", "/stages/help", "/departments/logistics", "/flags/new", "/cases/1", "/audit")


@pytest.fixture(scope="module")
def window(chromium: Path) -> Iterator[Browser]:
    """A browser for the tests of this module."""
    with browser(chromium) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, kafka_broker: Broker) -> Iterator[Pages]:
    """Pages over a filled warehouse, whose flags go to a real broker."""
    folder = tmp_path_factory.mktemp("web")
    fill(f"sqlite:///{folder / 'warehouse.db'}").dispose()
    topics = Topics(kafka_broker.bootstrap, prefix="browser")
    channel = Channel(
        bootstrap=kafka_broker.bootstrap, registry=FileRegistry(folder / "registry"), topic_prefix="browser"
    )
    topics.create("flag")
    with served(
        f"sqlite:///{folder / 'warehouse.db'}", send=lambda flag, rules: raise_flag(flag, rules, channel)
    ) as running:
        yield running
    topics.remove()


@pytest.fixture
def page(window: Browser, pages: Pages) -> Iterator[Page]:
    """A tab, not signed in, in which nothing may go wrong: no error on the console, no request to elsewhere."""
    context = window.new_context(base_url=pages.url)
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda asked: None if asked.url.startswith((pages.url, "data:")) else wrong.append(asked.url))
    yield tab
    context.close()
    assert wrong == []


def sign_in(page: Page) -> None:
    """Signs in with the token that a command would have printed."""
    page.goto(f"/sign-in/token?token={TOKEN}")


def press_until(page: Page, key: str, name: str) -> None:
    """Presses a key until the focus is on the element of this name, label or id, as somebody would who sees it."""
    focus = "[document.activeElement.id, document.activeElement.name, document.activeElement.innerText.trim()]"
    for _ in range(40):
        page.keyboard.press(key)
        if name in page.evaluate(f"() => {focus}"):
            return
    raise AssertionError(f"{key} never reaches {name}")


def outlined(page: Page) -> bool:
    """Whether the focus can be seen."""
    style = "getComputedStyle(document.activeElement)"
    return bool(page.evaluate(f"() => {style}.outlineStyle !== 'none' && parseFloat({style}.outlineWidth) >= 2"))


def test_flag__raised_by_keyboard_alone_reaches_kafka(page: Page, kafka_broker: Broker) -> None:
    page.goto("/sign-in")
    press_until(page, "Tab", "Raise a flag")
    assert outlined(page)
    page.keyboard.press("Enter")
    page.wait_for_url("**/flags/new")
    press_until(page, "Tab", "kind")
    page.keyboard.press("ArrowRight")
    press_until(page, "Tab", "stage")
    page.keyboard.type("Get")
    press_until(page, "Tab", "text")
    assert outlined(page)
    page.keyboard.type("Put the phone number on the box")
    press_until(page, "Tab", "Send")
    page.keyboard.press("Enter")
    page.wait_for_url("**/flags/sent/*")
    assert page.get_by_role("heading", name="Thank you").is_visible()
    with_id = page.locator("code").inner_text()
    consumer = KafkaConsumer(bootstrap_servers=kafka_broker.bootstrap, auto_offset_reset="earliest")
    consumer.assign([TopicPartition("browser.flag", 0)])
    schema = fastavro.parse_schema(json.loads(contracts.schema_text("flag")))
    found: list[Any] = []
    while not found:
        for records in consumer.poll(timeout_ms=1000).values():
            bodies = [io.BytesIO(wire.split(record.value)[1]) for record in records]
            found += [fastavro.schemaless_reader(body, schema, None) for body in bodies]
    consumer.close()
    (record,) = found
    assert record["event_id"] == with_id
    assert (record["flag_kind"], record["journey_stage"]) == ("idea", "help")
    assert record["text"] == "Put the phone number on the box"


def test_phone__nothing_is_wider_than_the_screen(page: Page) -> None:
    page.set_viewport_size({"width": PHONE["width"], "height": PHONE["height"]})
    sign_in(page)
    for path in PATHS:
        page.goto(path)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"], path
        small = (
            "() => [...document.querySelectorAll('main button, main .button')].filter(e => e.offsetHeight < 24).length"
        )
        assert page.evaluate(small) == 0


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2) of a colour as browsers write it: rgb(1, 2, 3)."""
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrasts(page: Page) -> dict[str, float]:
    """Contrast of every text with what it stands on, by that text."""
    found = page.evaluate(
        """() => [...document.querySelectorAll('body *')]
            .filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
            .map(e => {
                let behind = e;
                const clear = element => getComputedStyle(element).backgroundColor === 'rgba(0, 0, 0, 0)';
                while (behind && clear(behind)) behind = behind.parentElement;
                const style = getComputedStyle(e);
                return [e.textContent.trim().slice(0, 40), e.closest('svg') ? style.fill : style.color,
                        behind ? getComputedStyle(behind).backgroundColor : 'rgb(255, 255, 255)'];
            })"""
    )
    ratios = {}
    for words, ink, paper in found:
        low, high = sorted((luminance(ink), luminance(paper)))
        ratios[words] = (high + 0.05) / (low + 0.05)
    return ratios


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours__follow_the_system_and_can_be_read(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    sign_in(page)
    paper = "() => getComputedStyle(document.body).backgroundColor"
    assert (luminance(page.evaluate(paper)) < 0.1) == (scheme == "dark")
    for path in PATHS:
        page.goto(path)
        weak = {words: round(ratio, 2) for words, ratio in contrasts(page).items() if ratio < 4.5}
        assert weak == {}, path


def test_words_that_look_like_a_script__are_shown(page: Page) -> None:
    sign_in(page)
    page.goto("/departments/logistics")
    assert page.get_by_text("<script>document.title = 'taken over'</script>").is_visible()
    assert page.title() == "Logistics – Corner Shop"
    assert page.locator("main script, main img").count() == 0


def test_structure__headings_labels_and_names(page: Page) -> None:
    sign_in(page)
    for path in PATHS:
        page.goto(path)
        levels = page.evaluate("() => [...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
        assert levels.count(1) == 1, path
        assert all(after - before <= 1 for before, after in pairwise(levels)), path
        fields = page.locator("input:not([type=hidden]), select, textarea")
        assert fields.evaluate_all("fields => fields.filter(field => !field.labels.length).length") == 0, path
        ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids)), path


def test_case__closed_in_the_browser(page: Page) -> None:
    sign_in(page)
    page.goto("/cases/1")
    page.get_by_role("button", name="Acknowledge: we work on it").click()
    page.get_by_label("Root cause").fill("Two were ill")
    page.get_by_label("Action").fill("A third was trained")
    page.get_by_role("button", name="Close the case").click()
    assert page.get_by_text("A third was trained").is_visible()
    assert page.get_by_role("button", name="Close the case").count() == 0
