"""The page, in a real browser, opened from disk."""

import html
import json
import shutil

import pytest
from run_dirs import make_config, write_run

from src.report.differences import claim
from src.report.figures import styles
from src.report.grouping import group_by
from src.report.html import write_page
from src.report.reading import read_runs
from src.report.results_table import results_table

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror=window.hacked=1><b>bold</b>"
ERRORS = [(60.0, 50.0), (41.0, 31.0), (30.0, 20.0)]
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"/>'
# All look at the data set that is shown, in which what is filtered out is hidden.
SHOWN = "document.querySelector('article:not([hidden])')"
PLOTS = f"[...{SHOWN}.querySelectorAll('.plots.curves .plotly-graph-div')]"
TRACES = f"{PLOTS}.flatMap((plot) => plot.data).filter((trace) => trace.visible === true)"


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")
    options.add_argument("--disable-dev-shm-usage")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Runs in all states by data set, and the page of them."""
    root = tmp_path_factory.mktemp("runs")
    for kind, depth, final in (("plain", 20, 28.0), ("plain", 56, 71.2), ("resnet", 56, 24.0)):
        config = make_config(kind, depth, recipe__iterations=2000)
        write_run(root, config, ERRORS, final=(final, final + 1))
    for seed, final in enumerate((8.5, 9.125, 8.25)):
        write_run(root, make_config("resnet", 20, seed), ERRORS, final=(final / 2, final))
    write_run(root, make_config("resnet", 110), ERRORS)
    write_run(root, make_config("resnet", 32), ERRORS[:1], failure=f"out of memory {EVIL}\nmore")
    evil = {"choices__model": EVIL, "model__shortcut": EVIL, "trainer__precision": EVIL}
    write_run(root, make_config("resnet", 44, **evil), ERRORS, name="<b onclick=x>&amp;-s0")
    write_run(root, make_config("resnet", 1202))
    write_run(root, make_config("plain", 20, data="digits"), ERRORS, final=(1, 2))
    broken = write_run(root, make_config("plain", 32), ERRORS, final=(1, 2))
    (broken / "summary.json").write_text("{")

    runs, skipped = read_runs([root])
    by_data = group_by(runs, lambda run: run.row["data"])
    figure, page = root / "layers.svg", root / "index.html"
    figure.write_text(SVG)
    write_page(page, by_data, skipped, {"cifar10": [figure]})
    figure.unlink()
    return by_data, page


@pytest.fixture
def page(browser, written):
    """Load the page; called with a JavaScript expression it returns its value."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.set_window_size(1200, 1600)
    browser.get(written[1].as_uri())  # returns when all scripts have run

    def evaluate(expression, *arguments):
        return browser.execute_script(f"return {expression}", *arguments)

    yield evaluate
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [
        e["params"]["request"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert {request["url"].partition(":")[0] for request in requests} <= {"file", "data", "blob"}
    assert evaluate("window.hacked === undefined")


def choose(page, name, value):
    root = "document" if name == "data" else SHOWN
    select = f"{root}.querySelector('[name={name}]')"
    page(f"[{select}].forEach((s) => {{ s.value = arguments[0]; s.onchange(); }})", value)


def click(page, key, value):
    selector = f"fieldset[name={key}] input[value='{value}']"
    page(f"{SHOWN}.querySelector(arguments[0]).click()", selector)


def traces(page):
    """The label, family, points and color of each curve that is shown."""
    points = "t.x.map((x, i) => [x, t.y[i]])"
    return page(f"{TRACES}.map((t) => [t.name, t.meta.family, {points}, t.line.color])")


def rows(page, table):
    """The text of a table's rows that are shown."""
    return page(
        f"[...{SHOWN}.querySelectorAll('table.' + arguments[0] + ' tbody tr:not([hidden])')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))",
        table,
    )


def nets(page):
    return [row[0] for row in rows(page, "results")]


def points(page, plot=0):
    """What the markers of single runs in a figure by depth show."""
    return page(
        f"{SHOWN}.querySelectorAll('.by-depth .plotly-graph-div')[{plot}].data"
        ".filter((t) => t.visible !== false && t.mode === 'markers').flatMap((t) => t.y)"
    )


def test_a_run_is_a_curve_in_the_color_of_the_figures(page, written):
    runs = written[0]["cifar10"]
    choose(page, "y", "train/error")
    expected = {
        (tuple(run.curve("train/error")), run.row["family"], style.color)
        for run, style in zip(runs, styles(runs), strict=True)
        if run.metrics
    }
    shown = [
        (tuple(map(tuple, points)), family, color) for _, family, points, color in traces(page)
    ]
    assert set(shown) == expected
    assert len(shown) == 9


def test_both_errors_are_shown_at_first_in_an_axes_for_each_family(page):
    look = ".map((t) => [t.meta.family, t.line.dash])"
    shown = page(f"{PLOTS}.map((plot) => plot.data.filter((t) => t.visible){look})")
    assert shown == [
        [["plain", "dash"], ["plain", "solid"]] * 2,
        [["residual", "dash"], ["residual", "solid"]] * 7,
    ]
    legend = f"{SHOWN}.querySelectorAll('.plots.curves .legend .traces').length"
    assert page(legend) == 9
    ranges = page(f"{PLOTS}.map((p) => [p.layout.xaxis.range, p.layout.yaxis.range])")
    assert ranges[0] == ranges[1] == [[0, 64000], [0, 66.5]]


def test_the_curves_switch_to_other_columns_and_to_time(page):
    offered = page(f"[...{SHOWN}.querySelector('[name=y]').options].map((o) => o.value)")
    assert offered == ["both", "train/error", "test/error", "train/loss", "lr"]
    choose(page, "y", "test/error")
    assert [error for _, error in traces(page)[0][2]] == [50, 31, 20]
    choose(page, "y", "train/loss")
    assert [loss for _, loss in traces(page)[0][2]] == [1.5, 1.5, 1.025, 1.025, 0.75, 0.75]
    choose(page, "y", "train/error")
    choose(page, "x", "time")
    shown = traces(page)
    assert len(shown) == 6  # only of finished runs is the time known
    hours = [iteration * 128 / (40_000 / 20) / 3600 for iteration in (250, 500, 750)]
    minutes = [60 * x for x in hours]
    assert [x for x, _ in shown[0][2]] == pytest.approx(minutes)
    assert page(f"{PLOTS}[0].layout.xaxis.title.text") == "training time (minutes)"


def test_zooming_one_family_zooms_the_others(page, browser):
    zoom = f"Plotly.relayout({PLOTS}[0], {{'xaxis.range': [10, 20], 'yaxis.range': [1, 2]}})"
    page(f"{zoom}.then(() => new Promise((done) => requestAnimationFrame(done)))")
    assert page(f"{PLOTS}.map((p) => p.layout.xaxis.range)") == [[10, 20]] * 2
    assert page(f"{PLOTS}.map((p) => p.layout.yaxis.range)") == [[1, 2]] * 2


def test_the_legend_hides_a_run_in_all_views(page, browser):
    before = {(name, family) for name, family, *_ in traces(page)}
    toggle = browser.find_elements("css selector", ".plots.curves .legendtoggle")[3]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", toggle)
    toggle.click()
    for _ in range(50):  # Plotly waits for a second click
        hidden = before - {(name, family) for name, family, *_ in traces(page)}
        if hidden:
            break
        page("new Promise((done) => setTimeout(done, 100))")
    assert len(hidden) == 1
    choose(page, "y", "train/loss")
    assert not hidden & {(name, family) for name, family, *_ in traces(page)}


def test_filters_act_on_curves_figures_and_tables(page):
    assert len(points(page)) == 6
    click(page, "family", "plain")
    assert {family for _, family, *_ in traces(page)} == {"residual"}
    assert nets(page) == ["resnet20", "resnet56"]
    assert len(points(page)) == 4
    click(page, "seed", "1")
    assert sorted(points(page)) == sorted([4.25, 4.125, 24])
    click(page, "depth", "20")
    assert nets(page) == ["resnet56"]
    assert {row[3] for row in rows(page, "runs")} == {"32", "44", "56", "110", "1202"}
    lines = "data.filter((t) => t.visible && t.meta.means).map((t) => t.y)"
    means = page(f"{SHOWN}.querySelector('.by-depth .plotly-graph-div').{lines}")
    assert sorted(means, key=str) == [[24], [None]]
    click(page, "depth", "20")
    assert sorted(points(page)) == sorted([4.25, 4.125, 24])
    click(page, "depth", "20")
    click(page, "family", "plain")
    click(page, "shortcut", "A")
    assert nets(page) == ["plain56"]
    click(page, "shortcut", "none")
    click(page, "shortcut", EVIL)
    assert traces(page) == rows(page, "runs") == points(page) == []


def test_another_data_set_replaces_everything(page):
    choose(page, "data", "digits")
    assert nets(page) == ["plain20"]
    assert [len(curve) for _, _, curve, _ in traces(page)] == [3, 3]
    assert page(f"{PLOTS}[0].clientWidth") > 1000
    assert page("[...document.querySelectorAll('article:not([hidden])')].length") == 1


def test_the_results_are_the_printed_table(page, written):
    finished = [run.row for run in written[0]["cifar10"] if run.state == "finished"]
    lines = results_table(finished).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert rows(page, "results") == cells
    assert cells[2][-3:] == ["8.75 (Table 6)", "-0.12 [-2.36, +2.11]", "as in the paper"]


def test_the_page_says_first_what_the_runs_show_of_the_claim(written):
    by_data, path = written
    sentences = claim(by_data["cifar10"])
    assert sentences
    facts = html.unescape(path.read_text()).partition("<ul>")[2]
    assert facts.startswith("".join(f"<li>{sentence}</li>" for sentence in sentences))


def test_a_click_on_a_title_sorts_a_table_and_leaves_unknown_values_last(page):
    column = 8
    title = f"{SHOWN}.querySelectorAll('table.runs th')[{column}]"
    errors = [row[column] for row in rows(page, "runs")]
    known = sorted((error for error in errors if error != "-"), key=float)
    unknown = ["-"] * (len(errors) - len(known))
    for direction, ordered in (("ascending", known), ("descending", known[::-1])):
        page(f"{title}.firstChild.click()")
        assert [row[column] for row in rows(page, "runs")] == ordered + unknown
        assert page(f"{title}.ariaSort") == direction


@pytest.mark.fault_injection("safety", "markup in names and configs on the HTML page")
def test_no_text_of_a_run_is_written_as_markup(written):
    """Also where there is no browser."""
    text = written[1].read_text()
    assert "window.hacked" in text
    for markup in ("<script>window.hacked", "<img src=x", "<b>bold", "<b onclick"):
        assert markup not in text


@pytest.mark.fault_injection("safety", "markup in names and configs on the HTML page")
def test_markup_in_names_configs_and_errors_is_text(page):
    states = {row[0]: [row[1], row[6]] for row in rows(page, "runs") if row[1] != "finished"}
    assert states == {
        "resnet32-s0": [f"failed: out of memory {EVIL}", "8,000 of 64,000"],
        "<b onclick=x>&amp;-s0": ["unfinished", "24,000 of 64,000"],
        "resnet110-s0": ["unfinished", "24,000 of 64,000"],
        "resnet1202-s0": ["not started", "0 of 64,000"],
    }
    skipped = page("document.querySelector('table.skipped tbody').textContent")
    assert "plain32-s0" in skipped
    assert "JSONDecodeError" in skipped
    assert page("document.querySelectorAll('td *, fieldset b[onclick], img[onerror]').length") == 0
    for part in (".filters", ".plots.curves"):
        assert EVIL in page(f"{SHOWN}.querySelector(arguments[0]).textContent", part)


def test_on_a_phone_the_families_are_below_each_other_and_nothing_sticks_out(page, browser):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.refresh()
        assert page("document.documentElement.scrollWidth") == 390
        tops = page(f"{PLOTS}.map((plot) => plot.getBoundingClientRect().top)")
        assert tops[1] > tops[0] + 300
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_figures_are_embedded_in_the_page(page):
    assert page("[...document.images].map((i) => [i.complete, i.naturalWidth])") == [[True, 30]]
