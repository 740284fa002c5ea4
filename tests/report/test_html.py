"""The page, in a real browser, opened from disk."""

import json
import shutil
import time

import pytest
from run_dirs import make_config, write_run

from src.report.comparison import grouped
from src.report.html import _finite, _in_script, write_page
from src.report.results import read_runs
from src.report.results_table import results_table
from src.report.style import styles

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror=window.hacked=1><b>bold</b>"


def write(place, path, *figures):
    runs, left_out = read_runs([place])
    by_data = grouped(runs, lambda run: run.row["data"])
    write_page(path, by_data, left_out, {"cifar10": figures})
    return by_data


@pytest.mark.fault_injection("safety", "markup in names and configs on the HTML page")
def test_no_text_ends_the_script_that_holds_it():
    text = _in_script({"a": [EVIL, "<!--"], "n": float("nan"), "i": (1.5, float("inf"))})
    assert "<" not in text
    assert json.loads(text) == {"a": [EVIL, "<!--"], "n": None, "i": [1.5, None]}
    assert _finite(2) == 2


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1600"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    errors = [(60.0, 50.0), (41.0, 31.0), (30.0, 20.0)]
    for kind, depth, final in (("plain", 20, 28.0), ("plain", 56, 71.2), ("resnet", 56, 24.0)):
        write_run(place, make_config(kind, depth, recipe__iterations=2000), errors, final=(final, final + 1))
    for seed, final in enumerate((8.5, 9.125, 8.25)):
        write_run(place, make_config("resnet", 20, seed), errors, final=(final / 2, final))
    write_run(place, make_config("resnet", 110), errors)
    write_run(place, make_config("resnet", 32), errors[:1], failure=f"out of memory {EVIL}\nsecond line")
    write_run(
        place,
        make_config("resnet", 44, choices__model=EVIL, model__shortcut=EVIL, trainer__precision=EVIL),
        errors,
        name="<b onclick=x>&amp;-s0",
    )
    write_run(place, make_config("resnet", 1202))
    write_run(place, make_config("plain", 20, data="digits"), errors, final=(1, 2))
    (write_run(place, make_config("plain", 32), errors, final=(1, 2)) / "summary.json").write_text("{")
    return place


def open_page(browser, path):
    """Opens a page from disk and waits until its script has run to its end."""
    browser.get(path.as_uri())
    for _ in range(100):
        if browser.execute_script(
            "return document.URL === arguments[0] && !!document.querySelector('#missing tbody')", path.as_uri()
        ):
            return
        time.sleep(0.1)
    pytest.fail(f"the page was not drawn: {browser.get_log('browser')}")


@pytest.fixture
def page(browser, runs_folder, tmp_path):
    """The page, freshly loaded; called with JavaScript it returns its value."""
    path = tmp_path / "index.html"
    by_data = write(runs_folder, path)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    open_page(browser, path)

    def run(script, *arguments):
        return browser.execute_script(script, *arguments)

    run.by_data = by_data
    yield run
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert not run("return window.hacked")


def traces(page):
    """Name, x, y, color, dash and axis of what the curves show."""
    return page(
        "return document.getElementById('curves')._fullData.filter(t => t.visible === true)"
        ".map(t => [t.name, [...t.x], [...t.y], t.line.color, t.line.dash, t.xaxis])"
    )


def choose(page, where, value):
    page(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))",
        where,
        value,
    )


def tick(page, key, value):
    page("document.querySelector(`fieldset[name=${arguments[0]}] input[value='${arguments[1]}']`).click()", key, value)


def rows(page, table):
    return page(
        "return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)]"
        ".map(row => [...row.cells].map(cell => cell.textContent))",
        table,
    )


def test_a_run_is_a_trace_in_the_color_of_the_figures(page):
    choose(page, "value", "train/error")
    runs = page.by_data["cifar10"]
    expected = [
        [run.curve("train/error"), style.color.lower()]
        for run, style in zip(runs, styles(runs), strict=True)
        if run.metrics
    ]
    found = [[list(map(list, zip(x, y, strict=True))), c.lower()] for _, x, y, c, _, _ in traces(page)]
    assert found == [[list(map(list, curve)), color] for curve, color in expected]
    assert len(found) == 9


def test_both_errors_are_shown_at_first_dashed_and_solid_families_apart(page):
    found = traces(page)
    assert len(found) == 2 * 9
    assert {dash for *_, dash, _ in found} == {"dash", "solid"}
    assert {axis for name, *_, axis in found if name.startswith("plain")} == {"x"}
    assert {axis for name, *_, axis in found if name.startswith("residual")} == {"x2"}
    assert page("return document.querySelectorAll('#curves .legend .traces').length") == 9


def test_the_switches_change_what_is_drawn(page):
    offered = page("return [...document.getElementById('value').options].map(o => o.value)")
    assert offered == ["both", "train/error", "test/error", "train/loss", "lr"]
    for value, first in (("test/error", [50, 31, 20]), ("train/loss", [1.5, 1.5, 1.025, 1.025, 0.75, 0.75])):
        choose(page, "value", value)
        assert traces(page)[0][2] == first
    choose(page, "value", "train/error")
    choose(page, "over", "time")
    found = traces(page)
    assert len(found) == 6  # only of finished runs is the time known
    speed = 40_000 / 20
    at = found[0][1]
    unit = 250 * 128 / speed / at[0]
    assert unit in (1, 60, 3600)
    assert at == pytest.approx([i * 128 / speed / unit for i in (250, 500, 750)])


def test_the_legend_hides_a_run(page, browser):
    toggle = browser.find_elements("css selector", "#curves .legendtoggle")[3]
    before = {name for name, *_ in traces(page)}
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", toggle)
    toggle.click()
    for _ in range(50):
        if len(hidden := before - {name for name, *_ in traces(page)}):
            break
        page("return new Promise(done => setTimeout(done, 100))")
    assert len(hidden) == 1
    choose(page, "value", "train/loss")
    assert hidden & {name for name, *_ in traces(page)} == set()  # and it stays so


def test_filters_act_on_curves_panels_and_tables(page):
    points = "return document.querySelector('#panels > div').data.flatMap(t => t.mode === 'markers' ? t.y : [])"
    assert len(page(points)) == 6
    tick(page, "family", "plain")
    assert all(name.startswith("residual") for name, *_ in traces(page))
    assert [row[0] for row in rows(page, "results")] == ["resnet20", "resnet56"]
    assert len(page(points)) == 4
    tick(page, "seed", "1")
    assert rows(page, "results")[0][6:8] == ["8.38 ± 0.18", "2"]  # of the seeds that are shown
    assert sorted(page(points)) == sorted([4.25, 4.125, 24])
    tick(page, "depth", "20")
    assert [row[0] for row in rows(page, "results")] == ["resnet56"]
    assert {row[3] for row in rows(page, "runs")} == {"32", "44", "56", "110", "1202"}
    tick(page, "family", "plain")
    tick(page, "shortcut", "A")
    assert [row[0] for row in rows(page, "results")] == ["plain56"]
    tick(page, "seed", "0")
    tick(page, "seed", "2")
    assert traces(page) == rows(page, "results") == page(points) == []
    choose(page, "data", "digits")
    assert [row[0] for row in rows(page, "results")] == ["plain20"]


def test_the_tables_are_those_of_the_command_and_sort_by_a_click(page):
    lines = results_table([run.row for run in page.by_data["cifar10"] if run.state == "finished"]).splitlines()[2:]
    expected = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert rows(page, "results") == expected
    assert expected[2][-3:] == ["8.75 (Table 6)", "-0.12", "as in the paper"]
    by = "document.querySelectorAll('#runs th button')[arguments[0]].click()"
    order = "return document.querySelectorAll('#runs th')[arguments[0]].ariaSort"
    column = 8
    errors = [row[column] for row in rows(page, "runs")]
    known = sorted((e for e in errors if e != "-"), key=float)
    page(by, column)
    assert [row[column] for row in rows(page, "runs")] == known + ["-"] * (len(errors) - len(known))
    assert page(order, column) == "ascending"
    page(by, column)
    assert [row[column] for row in rows(page, "runs")] == known[::-1] + ["-"] * (len(errors) - len(known))
    assert page(order, column) == "descending"


@pytest.mark.fault_injection("safety", "markup in names and configs on the HTML page")
def test_what_is_not_finished_is_listed_and_text_is_only_text(page):
    found = [[place.rpartition("/")[2], state, why] for place, state, why in rows(page, "missing")]
    assert found[:4] == [
        ["resnet32-s0", "failed", f"out of memory {EVIL}"],
        ["<b onclick=x>&amp;-s0", "unfinished", "at 24,000 of 64,000 iterations"],
        ["resnet110-s0", "unfinished", "at 24,000 of 64,000 iterations"],
        ["resnet1202-s0", "not started", ""],
    ]
    assert found[4][:2] == ["plain32-s0", "left out"]
    assert "JSONDecodeError" in found[4][2]
    assert page("return document.querySelectorAll('img, td *, #filters b[onclick]').length") == 0
    for part in ("#filters", "#curves .legend"):
        assert EVIL in page("return document.querySelector(arguments[0]).textContent", part)


def test_a_phone_has_the_families_below_each_other_and_nothing_sticks_out(page, browser, runs_folder, tmp_path):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        write(runs_folder, tmp_path / "phone.html")
        open_page(browser, tmp_path / "phone.html")
        assert page("return document.documentElement.scrollWidth") == 390
        domains = page(
            "const l = document.getElementById('curves')._fullLayout; return [l.yaxis.domain, l.yaxis2.domain]"
        )
        assert domains[0][0] > domains[1][1]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_figures_are_in_the_page_itself(page, browser, runs_folder, tmp_path):
    figure, path = tmp_path / "layers.svg", tmp_path / "other.html"
    figure.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"/>')
    write(runs_folder, path, figure)
    figure.unlink()
    open_page(browser, path)
    assert page("return [...document.images].map(i => [i.complete, i.naturalWidth])") == [[True, 30]]
