"""A report in a real browser: charts drawn, segments opened by pointer and by keyboard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vl_convert")
pytest.importorskip("jinja2")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import Browser, Page, sync_playwright
from report_pages import make_page
from small_runs import run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("there is no Chromium on the PATH")
    with sync_playwright() as started:
        # As root, which CI may be, Chromium starts without its sandbox only.
        found = started.chromium.launch(
            executable_path=program, args=["--no-sandbox"] * (os.geteuid() == 0)
        )
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    make_page(pristine, path)
    return path


@pytest.fixture
def show(browser: Browser, report: Path) -> Iterator[Open]:
    """Open a page; at the end of the test it must have asked for nothing and complained of
    nothing."""
    asked, said, contexts = [], [], []

    def open_page(path: Path = report, *, width: int = 1280, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in asked) == len(contexts)
    assert said == []


def test_every_chart_is_drawn_in_the_colours_of_the_page(show: Open) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = show(color_scheme=scheme)
        charts = page.locator(".chart svg")
        assert charts.count() >= 10
        sizes = charts.evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
        assert min(sizes) > 200
        bars = page.locator(".chart svg .role-mark path")
        widths = bars.evaluate_all("all => all.map(one => one.getBBox().width)")
        assert len(widths) > 30 and max(widths) > 100
        colours[scheme] = [
            page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor"),
            *bars.evaluate_all("all => all.map(bar => getComputedStyle(bar).fill)")[:1],
        ]
    assert colours["light"][0] != colours["dark"][0] and colours["light"][1] != colours["dark"][1]
    assert all(colour.startswith("rgb") for both in colours.values() for colour in both)


def test_a_segment_opens_by_a_click_with_its_frames_and_closes_by_another(show: Open) -> None:
    page = show()
    segment = page.locator(".segment").nth(2)
    title = segment.get_attribute("aria-label").split(":")[0]
    segment.click()
    panel = page.get_by_role("region", name=title)
    assert panel.is_visible() and segment.get_attribute("aria-expanded") == "true"
    images = panel.locator("img")
    images.first.wait_for()
    sizes = images.evaluate_all("all => all.map(one => [one.complete, one.naturalWidth])")
    assert sizes and all(is_complete and width > 16 for is_complete, width in sizes)
    assert all(
        alt.startswith("Frame at ") for alt in images.evaluate_all("all => all.map(i => i.alt)")
    )
    assert "Segment id" in panel.inner_text()
    panel.get_by_label("tubelet grid").uncheck()
    assert "grid" not in panel.get_attribute("class").split()
    segment.click()
    assert page.locator(".panel").count() == 0


def test_segments_are_reached_and_opened_by_keyboard_alone(show: Open) -> None:
    page = show()

    def focused(expression: str) -> Any:
        return page.evaluate(f"document.activeElement.{expression}")

    for _ in range(60):
        page.keyboard.press("Tab")
        if focused("classList.contains('segment')"):
            break
    assert page.evaluate("document.activeElement.matches('.segment:focus-visible')")
    names = (
        page.locator(".bar")
        .first.locator("button")
        .evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    )
    assert focused("getAttribute('aria-label')") == names[0]
    page.keyboard.press("End")
    assert focused("getAttribute('aria-label')") == names[-1]
    page.keyboard.press("ArrowLeft")
    assert focused("getAttribute('aria-label')") == names[-2]
    page.keyboard.press("Enter")
    assert page.locator("#panel-title").inner_text() == names[-2].split(":")[0]
    assert focused("getAttribute('aria-expanded')") == "true"
    page.keyboard.press("Tab")  # to the next pack's bar, or into the panel
    page.keyboard.press("Escape")
    assert page.locator(".panel").count() == 0
    assert focused("getAttribute('aria-label')") == names[-2]


def test_the_panel_goes_on_to_the_next_segment_across_packs(show: Open) -> None:
    page = show()
    page.locator(".segment").first.click()
    seen = [page.locator("#panel-title").inner_text()]
    while page.get_by_role("button", name="Next").is_enabled():
        page.get_by_role("button", name="Next").click()
        seen.append(page.locator("#panel-title").inner_text())
    assert len(seen) == page.locator(".segment").count()


def test_a_phone_shows_all_of_it_without_scrolling_sideways(show: Open) -> None:
    page = show(width=390, has_touch=True, is_mobile=True)
    page.locator(".segment").first.tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".panel img").first.bounding_box()["width"] <= 390


def test_a_reader_of_the_screen_finds_landmarks_headings_and_names(show: Open) -> None:
    page = show()
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1, role
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(one => one.tagName)")
    assert levels[:2] == ["H1", "H2"] and levels.count("H1") == 1
    unnamed = page.locator("button, [role=img], summary, table").evaluate_all(
        "all => all.filter(one => !one.closest('.scroll') && !one.ariaLabel && !one.innerText)"
    )
    assert unnamed == []
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1
    page.locator("figure summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("figure table").first.is_visible()


def test_it_is_read_without_scripts_and_without_motion(show: Open) -> None:
    page = show(java_script_enabled=False)
    page.locator("figure summary").first.click()
    assert page.locator("figure table").first.is_visible()
    assert page.locator(".chart svg").count() >= 10
    page = show(reduced_motion="reduce")
    assert page.locator(".segment").first.evaluate(
        "one => getComputedStyle(one).transitionDuration"
    ) in ("0s", "")


def test_markup_in_the_name_of_a_file_is_shown_and_not_obeyed(
    show: Open, sample_clips: Path, tmp_path: Path
) -> None:
    name = '"><img src=x onerror=alert(1)><script>alert(2)<'
    folder = tmp_path / name
    (folder / "script>").mkdir(parents=True)
    shutil.copy(sample_clips / "square_320x320.mp4", folder / "script>" / "a.mp4")
    run([tmp_path], tmp_path / "out")
    path = tmp_path / "page.html"
    make_page(tmp_path / "out", path)
    page = show(path)
    page.locator(".segment").first.click()
    assert page.locator("#panel-title").inner_text() == f"{name}/script>/a.mp4, clip 0"
    page.locator(".segment").first.hover()
    assert page.locator("main img").count() == page.locator(".panel img").count()
