"""The report in a browser: Debian's Chromium, headless; axe-core looks at it, the keyboard works it, it prints."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reports import recorded_report

from lossproof.proofs_checks.report import report_page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra 'browser'")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")

IDS = ("A1", "B2", "D4")
DESKTOP, PHONE = (1280, 900), (390, 844)
UNFOLD = "for (const details of document.querySelectorAll('details')) details.open = true"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    file: Path = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(report_page(recorded_report(*IDS)), encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Any]:
    """Opens the report in a window of its own; whatever it asks of a network, or throws, fails the test."""
    contexts, wrong = [], []

    def open_page(size: tuple[int, int] = DESKTOP, scheme: str = "light", hash_: str = "", script: bool = True) -> Any:
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, color_scheme=scheme, java_script_enabled=script)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda request: request.url.split("#")[0] == address or wrong.append(request.url))
        page.goto(address + hash_)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def opened(page: Any) -> list[str]:
    found: list[str] = page.evaluate(
        "Array.from(document.querySelectorAll('article > details[open]'), d => d.parentNode.id)"
    )
    return found


def shown(page: Any) -> list[str]:
    """Claims that the filter lets through; the table and the list must agree."""
    listed = "Array.from(document.querySelectorAll({!r}), e => e.id || e.dataset.claim)"
    articles: list[str] = page.evaluate(listed.format("article:not([hidden])"))
    assert page.evaluate(listed.format("tr[data-claim]:not([hidden])")) == articles
    return articles


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")])
def test_axe_finds_nothing_serious(visit: Any, size: tuple[int, int], scheme: str) -> None:
    page = visit(size, scheme)
    page.evaluate(UNFOLD)
    page.wait_for_timeout(100)
    found = axe.Axe().run(page).response
    assert len(found["passes"]) >= 20  # it looked
    assert [
        (v["id"], v["nodes"][0]["html"]) for v in found["violations"] if v["impact"] in ("serious", "critical")
    ] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_tab_goes_from_the_skip_link_to_the_claims_and_enter_unfolds(visit: Any) -> None:
    page = visit()
    focused = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
    order = []
    for _ in range(8):
        page.keyboard.press("Tab")
        order.append(page.evaluate(focused))
    assert order[:7] == ["skip", "theme", "text", "kind", "verdict", "unfold", "fold"]
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"  # the focus is visible
    summary = page.locator("#B2 > details > summary")
    for _ in range(20):
        if summary.evaluate("e => e === document.activeElement"):
            break
        page.keyboard.press("Tab")
    assert opened(page) == []
    page.keyboard.press("Enter")
    assert opened(page) == ["B2"]
    assert page.locator("#B2 math").first.is_visible()
    page.keyboard.press("Enter")
    assert opened(page) == []


def test_the_skip_link_skips(visit: Any) -> None:
    page = visit()
    page.keyboard.press("Tab")
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#claims"


def test_the_filter(visit: Any) -> None:
    page = visit()
    assert shown(page) == list(IDS)
    page.fill("#text", "drift BETWEEN two replicas")
    assert shown(page) == ["B2"]
    assert page.text_content("#shown") == "1 of 3 claims match"
    page.fill("#text", "")
    page.select_option("#kind", "kernel")
    page.select_option("#verdict", "not run")
    results = {
        result.claim.id: {rung.kind: rung.verdict for rung in result.rungs} for result in recorded_report(*IDS).results
    }
    unrun = [id_ for id_, rungs in results.items() if rungs["kernel"] == "not run"]
    assert 0 < len(unrun) < len(IDS)
    assert shown(page) == unrun
    page.select_option("#kind", "whole claim")
    page.select_option("#verdict", "fails")
    assert shown(page) == []


def test_a_deep_link_opens_its_claim(visit: Any) -> None:
    page = visit(hash_="#D4")
    assert opened(page) == ["D4"]
    page.wait_for_function("Math.abs(document.querySelector('#D4').getBoundingClientRect().top) < 60")
    page.fill("#text", "drift between")
    assert shown(page) == ["B2"]
    page.evaluate("location.hash = '#A1'")  # a link to what the filter hides lifts the filter
    page.wait_for_function("document.querySelector('#A1 > details').open")
    assert shown(page) == list(IDS)
    page.click("#B2 .permalink")
    assert page.evaluate("location.hash") == "#B2"
    page.wait_for_function("document.querySelector('#B2 > details').open")


def test_light_and_dark(visit: Any) -> None:
    def brightness(page: Any) -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.strip("rgb()").split(",")[:3])

    page = visit(scheme="dark")
    assert brightness(page) < 150
    page.click("#theme")
    assert brightness(page) > 600
    page.reload()  # remembered in the page only
    assert brightness(page) < 150
    assert brightness(visit(scheme="light")) > 600


def test_mathematics_is_laid_out_as_mathematics(visit: Any) -> None:
    page = visit(hash_="#B2")
    fraction = page.locator("#B2 mfrac").first
    above, below = (fraction.locator(f":scope > *:nth-child({k})").bounding_box() for k in (1, 2))
    assert above["y"] + above["height"] <= below["y"] + 1
    scripted = page.locator("#B2 msub").first
    base, index = (scripted.locator(f":scope > *:nth-child({k})").bounding_box() for k in (1, 2))
    assert index["y"] + index["height"] > base["y"] + base["height"]


def test_without_script_it_is_read_all_the_same(visit: Any) -> None:
    page = visit(script=False)
    assert not page.locator("#controls").is_visible()
    assert not page.locator("#theme").is_visible()
    page.click("#B2 > details > summary")
    assert page.locator("#B2 math").first.is_visible()


def test_it_prints_all_unfolded_and_without_controls(visit: Any) -> None:
    page = visit(scheme="dark")
    folded = page.pdf(prefer_css_page_size=True)
    assert folded.startswith(b"%PDF-")
    assert opened(page) == []  # as it was
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened(page) == list(IDS)
    assert not page.locator("#controls").is_visible()
    assert not page.locator(".permalink").first.is_visible()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    for name in ("#A1 .derivation li", "#D4 .mistakes table"):
        assert page.locator(name).first.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened(page) == []
    page.emulate_media(media="null")
    page.evaluate(UNFOLD)
    unfolded = page.pdf(prefer_css_page_size=True)
    assert folded.count(b"/Type /Page\n") == unfolded.count(b"/Type /Page\n") >= 4
