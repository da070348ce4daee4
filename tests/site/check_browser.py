"""The built pages in a browser, at the widths of a desk and a phone. Run by ``poe site`` after the build.

Needs Chromium and its driver; on Debian ``apt-get install chromium chromium-driver``.
"""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
WIDTHS = {"desk": (1280, 900), "phone": (390, 844)}
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage""".split()
PAGES = ["index.html", "install.html", "restore.html", "training.html", "evaluate.html", "integrations.html"]
PAGES += ["guides.html", "models.html", "benchmarks.html", "architecture.html", "extending.html", "contributing.html"]
PAGES += ["changelog.html", "search.html", "genindex.html", "decisions/index.html"]
FOLDERS = ["idea", "concepts", "coming_from", "auto_gallery", "api"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server without a log; a missing favicon is no fault of a page."""

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/favicon.ico":
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    assert (SITE / "index.html").is_file(), f"{SITE} has no pages: build them with `poe docs`"
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    assert not missing, f"{' and '.join(missing)} not found: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=programs["chromedriver"])
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def console_errors(browser) -> list[str]:
    """What the console has complained of since it was last asked."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@pytest.fixture(params=WIDTHS)
def page(request, browser, address):
    """A browser of a width, and afterwards no error in its console and nothing asked of another host."""
    width, height = WIDTHS[request.param]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": request.param == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("browser"), browser.get_log("performance")
    yield browser
    errors = console_errors(browser)
    assert not errors, errors
    asked = "".join(
        entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]
    )
    assert address in asked
    abroad = [
        piece.partition('"')[0] for piece in asked.split('"url":"http')[1:] if not f"http{piece}".startswith(address)
    ]
    assert not abroad, abroad


def top_pages() -> list[str]:
    inner = [file for folder in FOLDERS for file in sorted((SITE / folder).glob("*.html"))]
    return PAGES + [str(file.relative_to(SITE)) for file in inner]


TOO_WIDE = """const edge = document.documentElement.clientWidth + 1;
const scrolls = e => e && e.tagName !== 'ARTICLE' &&
  (['auto', 'scroll'].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
return [...document.querySelectorAll('article *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width > 0 && box.right > edge && !scrolls(e.parentElement);
}).map(e => e.outerHTML.slice(0, 120))"""


def test_every_top_page_fits_its_width_and_shows_its_pictures(page, address):
    for name in top_pages():
        page.get(f"{address}/{name}")
        assert page.find_elements("css selector", "h1"), name
        overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.execute_script(overflow) <= 0, f"{name} scrolls sideways"
        assert page.execute_script(TOO_WIDE) == [], f"{name} has what is cut off at the right"
        unseen = "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        assert page.execute_script(unseen) == [], f"{name} lacks a picture"


def test_planted_faults_are_found(page, address):
    page.get(f"{address}/install.html")
    page.execute_script("document.querySelector('article').insertAdjacentHTML('beforeend', '<p id=wide>wide</p>')")
    page.execute_script("document.querySelector('#wide').style.width = '3000px'; console.error('planted')")
    assert any("wide" in element for element in page.execute_script(TOO_WIDE))
    assert any("planted" in message for message in console_errors(page))


def border(page) -> float:
    """Where the slider's border is, in percent of the width, as it is drawn."""
    script = """const frame = document.querySelector('.before-after-frame'), box = frame.getBoundingClientRect();
    const handle = frame.querySelector('.before-after-handle').getBoundingClientRect();
    return (handle.left + handle.width / 2 - box.left) / box.width * 100"""
    return page.execute_script(script)


def test_the_slider_follows_pointer_and_keys(page, address):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.get(f"{address}/index.html")
    slider = page.find_element("css selector", ".before-after-frame input[type=range]")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    assert border(page) == pytest.approx(50, abs=1)
    quarter = slider.size["width"] // 4
    ActionChains(page).move_to_element(slider).click_and_hold().move_by_offset(quarter, 0).release().perform()
    assert border(page) == pytest.approx(75, abs=2)
    slider.send_keys(Keys.HOME)
    assert border(page) == pytest.approx(0, abs=1)
    for _ in range(3):
        slider.send_keys(Keys.ARROW_RIGHT)
    assert border(page) == pytest.approx(3, abs=1)
    assert slider.get_attribute("aria-valuetext") == "97 % restored"
    assert slider.accessible_name
    shown = "return getComputedStyle(document.querySelectorAll('.before-after-frame img')[1]).clipPath"
    assert page.execute_script(shown) == "inset(0px 0px 0px 3%)"


def test_the_slider_follows_a_finger(browser, address):
    width, height = WIDTHS["phone"]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        browser.get(f"{address}/index.html")
        browser.execute_script("document.querySelector('.before-after-frame').scrollIntoView({block: 'center'})")
        box = browser.execute_script(
            "const box = document.querySelector('.before-after-frame').getBoundingClientRect();"
            "return [box.left, box.top, box.width, box.height]"
        )
        places = [(box[0] + box[2] * share, box[1] + box[3] / 2) for share in (0.5, 0.4, 0.3, 0.2)]
        for kind, points in [
            ("touchStart", places[:1]),
            *(("touchMove", [place]) for place in places),
            ("touchEnd", []),
        ]:
            touches = [{"x": x, "y": y} for x, y in points]
            browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
        assert border(browser) == pytest.approx(20, abs=3)
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_the_search_finds_a_name_of_the_reference(page, address):
    from selenium.webdriver.support.ui import WebDriverWait

    page.get(f"{address}/install.html")
    openers = page.find_elements("css selector", ".search-button__button, .search-button-field")
    next(button for button in openers if button.is_displayed()).click()
    field = WebDriverWait(page, 20).until(
        lambda page: next((f for f in page.find_elements("css selector", "input[name=q]") if f.is_displayed()), None)
    )
    field.send_keys("InterScan\n")
    found = WebDriverWait(page, 60).until(
        lambda page: [
            link.get_attribute("href")
            for link in page.find_elements("css selector", "ul.search li a")
            if "slicescan.layers.InterScan" in link.get_attribute("href")
        ]
    )
    page.get(found[0])
    assert "InterScan" in page.find_element("css selector", "h1").text
