"""The page in a real browser: what is drawn, what cannot act, keyboard, width, and live updates."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfkd.metrics import curves_document, round_rows
from selfkd.viewer.web.app import HERE
from selfkd.viewer.web.report import write_report
from tests.browser import Page, chromium, find_browser, served
from tests.synthetic import generate, judge, keep, make_samples, measure, new_run, prompts
from tests.test_web import EXAMPLE, HOSTILE, small_run

BROWSER = find_browser()
in_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium here (apt install chromium)")
pytestmark = pytest.mark.browser

DRAWN = "document.querySelectorAll('figure svg').length"
FIGURES = "document.querySelectorAll('figure').length"
ROWS = "document.querySelectorAll('tbody tr').length"
LISTED = "document.querySelectorAll('li[data-id]').length"
NAMED = (
    "[...document.querySelectorAll('figure svg')]"
    ".every(s => s.querySelector('title') && s.getAttribute('aria-label'))"
)
DOTS = "document.querySelectorAll('#figure-lead svg g[aria-label=dot] > *').length"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    shutil.copytree(EXAMPLE, path / "example")
    small_run(path / "small")
    hostile_run(path / "hostile")
    new_run(path / "empty")
    return path


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    with served(folder) as found:
        yield found


@pytest.fixture(scope="module")
def new_page() -> Iterator[Callable[[], Page]]:
    assert BROWSER
    with chromium(BROWSER) as opener:
        yield opener


@pytest.fixture
def page(new_page) -> Page:
    page = new_page()
    page.resize(1280, 900)
    return page


def hostile_run(path: Path) -> None:
    """A run in which every text that a model, a judge or a rule may write tries to act."""
    ledger = new_run(path, loop=HOSTILE, judge=HOSTILE)
    samples = make_samples(
        0, [(p, [1, 0]) for p in prompts(3) for _ in range(2)], completion=HOSTILE
    )
    generate(ledger, 0, samples)
    rewards: list[float | str | None] = [1.0, 0.0, "error", 0.5, 1.0, 0.0]
    judge(ledger, 0, samples, rewards, rationale=HOSTILE, answer=HOSTILE)
    keep(ledger, 0, samples, [None, HOSTILE, "=cmd()", HOSTILE, None, "low"])
    measure(ledger, 0, [1.0, 0.0])


@in_browser
def test_a_run_page_draws_every_figure_and_its_numbers_are_those_of_curves(page, address):
    page.open(f"{address}/runs/example", f"{DRAWN} >= 14")
    assert page.evaluate(DRAWN) == page.evaluate(FIGURES)
    assert page.evaluate(NAMED)
    page.evaluate("document.querySelectorAll('figure details').forEach(d => d.open = true)")
    page.wait(f"document.querySelectorAll('figure table').length === {FIGURES}")
    rows = json.loads(json.dumps(curves_document(EXAMPLE)))["rounds"]
    for figure, keys in {
        "lead": ["reward_mean", "heldout_reward", "heldout_stderr", "scored"],
        "funnel": ["kept"],
        "diversity": ["unique", "distinct_2", "similarity"],
        "distance": ["kl_base", "kl_previous"],
        "taste": ["reward_length"],
        "choosing": ["accept_rate", "coverage", "truncated"],
        "length": ["length_mean", "length_p95"],
    }.items():
        for key in keys:
            assert column(page, figure, key) == [row[key] for row in rows], (figure, key)
    for k in ("1", "8"):
        assert column(page, "pass", f"pass@{k}") == [row["pass_at_k"][k] for row in rows]
    assert column(page, "seconds", "train") == [row["seconds"]["train"] for row in rows]
    assert page.evaluate(DOTS) >= 2 * len(rows)
    assert page.problems == []
    assert all(url.startswith(address) for url in page.requests if not url.startswith("data:"))


def column(page: Page, figure: str, key: str) -> list[Any]:
    cells = f"[...document.querySelectorAll('#figure-{figure} td[data-key=\"{key}\"]')]"
    found = page.evaluate(
        f"{cells}.map(c => c.dataset.value === undefined ? null : Number(c.dataset.value))"
    )
    return found


@in_browser
def test_what_is_known_of_the_judge_is_drawn_and_nothing_where_nothing_is(page, address, tmp_path):
    page.open(f"{address}/runs/example", f"{DRAWN} >= 14")
    trust = "['drift', 'controls', 'agreement'].filter(i => document.querySelector('#figure-' + i))"
    assert page.evaluate(trust) == []
    ledger = new_run(tmp_path / "judged")
    samples = make_samples(0, [(p, [1, 0]) for p in prompts(4)])
    generate(ledger, 0, samples)
    judge(ledger, 0, samples, [0.0, 1.0, 0.0, 1.0])
    judge(ledger, 1, samples, [0.5, 1.0, 1.0, 1.0], "anchors")
    with served(tmp_path) as own:
        page.open(f"{own}/runs/judged", "document.querySelector('#figure-drift svg')")
        page.evaluate("document.querySelector('#figure-drift details').open = true")
        page.wait("document.querySelector('#figure-drift td')")
        row = round_rows(ledger.path)[1]["anchors"]
        for key, value in row.items():
            assert column(page, "drift", key) == [value], key
    rows = [
        {
            "round": n,
            "controls": {"empty": {"count": 4, "failed": n, "reward_mean": 0.5, "fails": n > 0}},
            "agreement": {
                "samples": 9,
                "coverage": 1,
                "auc": 0.75,
                "pairs": 4,
                "pair_accuracy": 1,
                "calibration": 0.25,
            },
        }
        for n in (0, 1)
    ]
    page.evaluate(
        f"selfkd.figures(document.querySelector('.figures'), [...selfkd.controls({{rounds: "
        f"{json.dumps(rows)}}}), ...selfkd.agreement({{rounds: {json.dumps(rows)}}})])"
    )
    log = [{"step": n, "loss": 1, "chosen_shift": -n, "rejected_shift": -2 * n} for n in (1, 2)]
    shapes = json.dumps([{"round": 0, "log": log}, {"round": 1, "log": log}])
    page.evaluate("document.querySelector('main').append(selfkd.el('div', {id: 'more'}))")
    page.evaluate(f"selfkd.figures(document.getElementById('more'), selfkd.trainings({shapes}))")
    page.evaluate("document.querySelectorAll('figure details').forEach(d => d.open = true)")
    page.wait(
        "document.querySelectorAll('#figure-shifts table, #figure-controls table').length == 2"
    )
    assert column(page, "shifts", "rejected_shift") == [-2, -4, -2, -4]
    assert column(page, "agreement", "calibration") == [0.25, 0.25]
    assert not page.evaluate("Boolean(document.querySelector('#figure-margin'))")
    assert column(page, "controls", "empty") == [0, 0.25]
    assert column(page, "agreement", "auc") == [0.75, 0.75]
    assert page.problems == []


@in_browser
def test_a_listener_hears_what_is_new_and_every_table_has_a_name(page, address):
    page.open(f"{address}/runs/example", f"{DRAWN} >= 14")
    page.evaluate("document.querySelectorAll('figure details').forEach(d => d.open = true)")
    page.wait(f"document.querySelectorAll('figure table').length === {FIGURES}")
    named = "[...document.querySelectorAll('table')].every(t => t.caption.innerText.length > 3)"
    assert page.evaluate(named)
    assert page.evaluate("document.querySelector('[role=status][aria-live]').innerText") is not None
    spoken = "document.querySelector('main [role=status]').textContent"
    assert page.evaluate(spoken) == "finished"
    # Banner, navigation and main; what is inside of main is named.
    assert page.evaluate(
        "['header', 'nav[aria-label]', 'main'].every(s => document.querySelector(s))"
    )
    regions = "[...document.querySelectorAll('main section, main [role=region]')]"
    assert page.evaluate(f"{regions}.every(s => s.getAttribute('aria-label'))")
    heads = "[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))"
    levels = page.evaluate(heads)
    assert levels[0] == 1 and set(levels) <= {1, 2}


@in_browser
def test_hostile_text_is_shown_and_does_nothing(page, address, folder):
    prompt = prompts(3)[0].id
    for path in ("", "/samples?round=0", f"/prompts/{prompt}", "/policies/base"):
        page.open(f"{address}/runs/hostile{path}", "document.querySelector('main h1')")
        page.wait("!document.querySelector('main').hasAttribute('aria-busy')")
        time.sleep(0.2)
        assert (
            page.evaluate("document.querySelectorAll('main img, main script, main iframe').length")
            == 0
        )
        assert page.evaluate(
            "[...document.querySelectorAll('a')].every(a => a.href.startsWith('http'))"
        )
    page.open(
        f"{address}/runs/hostile/samples?round=0",
        f"{LISTED} === 6",
    )
    text = page.evaluate("document.querySelector('main').innerText")
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in text
    assert "\\u202e" in text  # an invisible character is written out
    page.open(f"{address}/", f"{ROWS} === 4")
    page.open(f"{address}/compare?run=hostile&run=small", f"{DRAWN} > 2")
    assert page.problems == []


@in_browser
def test_a_live_run_is_followed_without_a_reload(page, tmp_path):
    ledger = new_run(tmp_path / "live")
    with served(tmp_path) as address:
        page.open(f"{address}/runs/live", "document.querySelector('main .empty')")
        assert "fills itself" in page.evaluate("document.querySelector('main').innerText")
        page.evaluate("window.mark = 1")
        measure(ledger, 0, [1.0, 0.0])
        samples = make_samples(0, [(p, [1, 2, 0]) for p in prompts(2)])
        generate(ledger, 0, samples)
        judge(ledger, 0, samples, [1.0, 0.0])
        page.wait("document.querySelector('#figure-lead svg')")
        page.evaluate("document.querySelector('#figure-lead details').open = true")
        page.wait("document.querySelectorAll('#figure-lead tbody tr').length === 1")
        measure(ledger, 1, [1.0, 1.0])
        page.wait("document.querySelectorAll('#figure-lead tbody tr').length === 2")
        assert column(page, "lead", "heldout_reward") == [0.5, 1.0]
        assert page.evaluate("window.mark") == 1
        shutil.rmtree(tmp_path / "live")
        page.wait("document.querySelector('#notice').innerText.includes('deleted')")
        before = len(page.requests)
        time.sleep(3)
        page.evaluate("1")
        assert len(page.requests) - before <= 3  # asked ever less often, not in a loop


@in_browser
def test_samples_are_gone_through_by_keyboard_and_keep_their_address(page, address):
    page.open(
        f"{address}/runs/small/samples?round=0&reason=low",
        f"{LISTED} === 3",
    )
    for _ in range(2):
        page.press("j")
    assert page.evaluate("document.activeElement.dataset.id") == "0--2"
    page.press("k")
    assert page.evaluate("document.querySelector('li.current').dataset.id") == "0--1"
    page.press("Enter")
    page.wait("location.pathname.includes('/prompts/')")
    page.wait("document.querySelector('article.current')")
    assert page.evaluate("document.querySelector('article.current').dataset.id") == "0--1"
    policy = "[...document.querySelectorAll('article a')].find(a => a.textContent === 'round-1')"
    page.evaluate(f"{policy}.click()")
    page.wait(
        "location.pathname.endsWith('/policies/round-1') && document.querySelector('ol li a')"
    )
    page.evaluate("document.querySelector('ol li a[href*=\"/prompts/\"]').click()")
    page.wait("location.hash === '#0--0' && document.querySelector('article.current')")
    page.open(
        f"{address}/runs/small/samples?round=0",
        f"{LISTED} === 6",
    )
    page.fill("[name=decision]", "kept")
    page.wait(f"{LISTED} === 1 && location.search.includes('decision=kept')")
    assert page.problems == []


@in_browser
@pytest.mark.parametrize(
    ("width", "dark"), [(360, False), (360, True), (1280, True), (3840, False)]
)
def test_no_page_scrolls_sideways(page, address, width, dark):
    page.resize(width, 900, dark=dark)
    prompt = json.loads((EXAMPLE / "metrics.jsonl").read_text().splitlines()[0])["round"]
    assert prompt == 0
    for path, ready in (
        ("/", f"{ROWS} === 4"),
        ("/runs/example", f"{DRAWN} >= 14"),
        ("/runs/example/samples", f"{LISTED} === 50"),
        ("/runs/example/policies/round-2", "document.querySelectorAll('ol li').length > 9"),
        (f"/runs/small/prompts/{prompts(1)[0].id}", "document.querySelector('article')"),
        ("/compare?run=example&run=small", f"{DRAWN} >= 6"),
        ("/runs/empty", "document.querySelector('.empty')"),
    ):
        page.open(address + path, ready)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert page.evaluate("document.documentElement.dataset.theme") == (
            "dark" if dark else "light"
        )
    assert page.problems == []


@in_browser
def test_the_list_filters_sorts_and_offers_to_compare(page, address):
    page.open(f"{address}/", f"{ROWS} === 4")
    names = "[...document.querySelectorAll('tbody td[data-key=run]')].map(t => t.innerText)"
    page.evaluate("document.querySelector('[data-sort=run]').click()")
    assert page.evaluate(names) == ["empty", "example", "hostile", "small"]
    page.fill("input[type=search]", "smollm2")
    assert page.evaluate(names) == ["example"]
    page.open(f"{address}/?text=finished", "document.querySelector('main h1')")
    page.open(f"{address}/?state=finished", f"{ROWS} === 1")
    page.open(f"{address}/", f"{ROWS} === 4")
    for name in ("example", "small"):
        page.evaluate(f"document.querySelector('input[aria-label=\"compare {name}\"]').click()")
    page.evaluate("document.querySelector('a.button').click()")
    page.wait(f"location.pathname === '/compare' && {DRAWN} >= 6")
    shared = page.evaluate("document.querySelector('main').innerText")
    assert "share no held-out prompt" in shared and "sampling.max_tokens" in shared


@in_browser
def test_a_report_opens_from_disk(page, tmp_path, folder):
    for run in ("example", "hostile"):
        write_report(folder / run, tmp_path / f"{run}.html")
        page.open(f"file://{tmp_path}/{run}.html", f"{DRAWN} > 5")
        drawn = f"{DRAWN} + document.querySelectorAll('figure .empty').length"
        assert page.evaluate(drawn) == page.evaluate(FIGURES)
        assert page.evaluate("document.querySelectorAll('article.sample').length") > 4
        assert page.evaluate("document.querySelectorAll('main img').length") == 0
    page.open(f"file://{tmp_path}/example.html", f"{DRAWN} >= 14")
    page.evaluate("document.querySelector('#figure-lead details').open = true")
    page.wait("document.querySelector('#figure-lead td')")
    assert column(page, "lead", "reward_mean") == [r["reward_mean"] for r in round_rows(EXAMPLE)]
    assert page.problems == []
    assert all(url.startswith(("file:", "data:")) for url in page.requests)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(theme):
    style = (HERE / "static" / "style.css").read_text()
    block = style.split(":root {" if theme == "light" else '[data-theme="dark"] {')[1].split("}")[0]
    colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", block))
    for name in ("text", "muted", "link", "reward", "gold", "kept", "bad"):
        for behind in ("panel", "page"):
            ratio = contrast(colours[name], colours[behind])
            assert ratio >= 4.5 if name in ("text", "muted", "link") else ratio >= 3.5, (
                name,
                ratio,
            )


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two colours."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@in_browser
def test_one_sample_and_rewards_that_are_not_finite_are_explained(page, tmp_path):
    ledger = new_run(tmp_path / "one")
    samples = make_samples(0, [(prompts(1)[0], [1, 0])])
    generate(ledger, 0, samples)
    judge(ledger, 0, samples, [float("nan")])
    with served(tmp_path) as address:
        page.open(f"{address}/runs/one", "document.querySelector('#figure-histogram .empty')")
        empty = "[...document.querySelectorAll('figure')].filter(f => f.querySelector('.empty'))"
        drawn = f"{DRAWN} + {empty}.length"
        assert page.evaluate(drawn) == page.evaluate(FIGURES)
        assert "NaN" not in page.evaluate("document.querySelector('main').innerText")
        page.open(f"{address}/runs/one/samples?round=0", f"{LISTED} === 1")
        assert "no reward" in page.evaluate("document.querySelector('li[data-id]').innerText")
    assert page.problems == []
