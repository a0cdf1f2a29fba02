"""The report of a real sweep in a real browser: it works, alone and on a phone."""

import json
import shutil

import pytest

from domainbed import training
from domainbed.scripts import report, sweep, train

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
webdriver = pytest.importorskip("selenium.webdriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no browser: apt-get install chromium chromium-driver",
)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(autouse=True)
def no_network():
    """Not closed here: the driver is asked by its name, localhost."""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a sweep on EmojiDG: two draws, two of the four test domains."""
    root = tmp_path_factory.mktemp("report")
    lists = sweep.make_args_list(
        1, ["EmojiDG"], ["LFA", "LinearProbeCLIP", "ZeroShotCLIP"], 0, 2, 11,
        str(root / "data"), "domain_generalization", 0.2, True, None,
    )  # fmt: skip
    for train_args in lists:
        if train_args["test_envs"][0] < 2:
            job = sweep.Job(train_args, str(root / "sweep"))
            run = training.Run(train.parse_args(job.command_str.split()[3:]))
            run.output_dir.mkdir(parents=True)
            run.train()
    report.main(
        ["--input_dir", str(root / "sweep"), "--output", str(root / "report.html")]
    )
    return root / "report.html"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    service = webdriver.ChromeService(executable_path=DRIVER)
    browser = webdriver.Chrome(options=options, service=service)
    yield browser
    browser.quit()


@pytest.fixture
def opened(browser, page):
    browser.get(page.as_uri())
    return browser


def requests(browser):
    """The addresses that pages asked for since the last look."""
    entries = browser.get_log("performance")
    messages = [json.loads(entry["message"])["message"] for entry in entries]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def visible(browser, css):
    return [e for e in browser.find_elements("css selector", css) if e.is_displayed()]


def test_the_page_asks_for_nothing_and_complains_of_nothing(browser, page):
    browser.get_log("browser")
    requests(browser)
    browser.get(page.as_uri())
    select_oracle(browser)
    assert requests(browser) == [page.as_uri()]
    assert browser.get_log("browser") == []


def select_oracle(browser):
    last = browser.find_elements("css selector", "#selection option")[-1]
    assert last.text == "test-domain validation set (oracle)"
    last.click()


def test_the_selector_changes_what_is_shown(opened):
    def shown():
        parts = visible(opened, "[data-selection]")
        return {part.get_attribute("data-selection") for part in parts}

    assert shown() == {"training-domain validation set"}
    before = len(visible(opened, "svg"))
    select_oracle(opened)
    assert shown() == {"test-domain validation set (oracle)"}
    assert len(visible(opened, "svg")) == before > 5
    for dots in visible(opened, "svg use")[:20]:  # what they refer to may be hidden
        assert dots.rect["width"] > 0


def test_a_fold_opens_to_numbers(opened):
    assert visible(opened, "details table") == []
    visible(opened, "summary")[0].click()
    (table,) = visible(opened, "details table")
    assert "LinearProbeCLIP" in table.text
    assert "fluent" in table.text


def test_layer_attention_is_shown(opened):
    headings = [heading.text for heading in visible(opened, "h3")]
    assert "Layer attention" in headings


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways_and_the_text_has_contrast(
    opened, page, scheme
):
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    opened.get(page.as_uri())
    unfold = "document.querySelectorAll('details').forEach(fold => fold.open = true)"
    opened.execute_script(unfold)
    assert len(visible(opened, "details table")) > 5
    width = opened.execute_script("return document.documentElement.scrollWidth")
    assert width == 390
    background = opened.find_element("css selector", "body")
    background = luminance(background.value_of_css_property("background-color"))
    texts = [
        *visible(opened, "svg text")[:3],
        *visible(opened, "figcaption")[:3],
        *visible(opened, ".summary td")[:3],
    ]
    for text in texts:
        of = "fill" if text.tag_name == "text" else "color"
        own = luminance(text.value_of_css_property(of))
        high, low = max(own, background), min(own, background)
        assert (high + 0.05) / (low + 0.05) > 4.5  # WCAG 2.2, level AA
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def luminance(colour):
    """Relative luminance (WCAG) of a CSS rgb() colour."""
    numbers = colour[colour.index("(") + 1 : -1].split(",")[:3]
    parts = [float(number) / 255 for number in numbers]
    parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True))
