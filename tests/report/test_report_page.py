from __future__ import annotations

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_runs import events, finished, started

from freewheel import report
from freewheel.errors import ConfigurationError
from freewheel.events import Evaluated, Event, Tick, WorkerFailed, WorkersChanged, WorkerSlowed
from freewheel.report import Run

NO_LEDGER = {"pushed": 0, "applied": 0, "absorbed": 0, "pending": 0, "dropped": {}}
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, ids, references and text, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.references.append(value or "")
        if tag == "svg":
            self.labels.append(dict(attrs).get("aria-label") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def several() -> list[Run]:
    kinds = (("synchronous", 1, 1000.0, 0.905), ("hogwild", 2, 1480.0, 0.904))
    return [Run(m, events(m, w, seed, speed, top)) for seed in range(3) for m, w, speed, top in kinds]


def single() -> list[Run]:
    return [Run("hogwild", events())]


@pytest.mark.parametrize("runs", [single(), several()], ids=["single", "comparison"])
def test_the_page_is_whole_and_loads_nothing(runs: list[Run]) -> None:
    text = report.render(runs)
    page = Page(text)
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("runs", [single(), several()], ids=["single", "comparison"])
def test_plots_have_words_and_take_their_colours_from_the_page(runs: list[Run]) -> None:
    text = report.render(runs)
    page = Page(text)
    assert len(page.labels) == len(report.figures(runs)) == 6
    assert all(len(label) > 15 for label in page.labels)
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) <= {"#000000"}
    assert re.findall(r"#000000", drawn) == []
    defined = set(re.findall(r"(--[a-z0-9-]+):", text))
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", text)) <= defined


def test_the_same_events_give_the_same_page() -> None:
    assert report.render(several()) == report.render(several())


def test_the_single_page_holds_its_numbers() -> None:
    words = " ".join(Page(report.render([Run("hogwild", [*events()[:-1], finished()])])).words)
    for part in (
        "accuracy 0.9012 after 30,000 samples in 30.0 s, 1,000 samples per second",
        "421,642",
        "520.0 MiB",
    ):
        assert part in words
    for part in ("dropped: non-finite", "1,870", "1,875", "channels last", "2.13.0", "58.0 s", "14.5 s"):
        assert part in words


def test_a_ledger_that_does_not_add_up_is_said() -> None:
    ledger = {"pushed": 10, "applied": 7, "absorbed": 1, "pending": 0, "dropped": {"stale": 1}}
    assert "does not add up: 1 update is unaccounted for" in report.render(
        [Run("x", [started(), finished(ledger=ledger)])]
    )
    ledger["applied"] = 8
    assert "unaccounted" not in report.render([Run("x", [started(), finished(ledger=ledger)])])


def test_the_comparison_gives_its_verdict_first() -> None:
    page = Page(report.render(several()))
    words = [word.strip() for word in page.words if word.strip()]
    head = next(index for index, word in enumerate(words) if word.startswith("hogwild won"))
    assert head < words.index("Methods")


def test_labels_and_settings_are_escaped() -> None:
    evil = '<script>alert("x")</script>&_$a$'
    made = [started(evil, config={"model": evil, evil: evil}), *events()[1:-1]]
    ledger = {**NO_LEDGER, "pushed": 1, "dropped": {evil: 1}}
    made += [WorkerFailed(1, 7, evil), finished(reason="error", metrics={evil: 0.5}, ledger=ledger)]
    runs = [Run(evil, made), Run("_hidden", made), Run("$\\notatex", made)]
    for chosen in (runs[:1], runs):
        text = report.render(chosen, title=evil)
        assert "<script" not in text
        assert "script" not in Page(text).tags


def test_the_report_tells_of_workers_that_change_and_of_slow_ones() -> None:
    changed: list[Event] = [
        WorkersChanged(2, 6, 3.0, 0.2),
        WorkersChanged(6, 6, 3.5, 0.0),
        WorkerSlowed(1, 4.26, True, 4.0),
    ]
    text = report.render([Run("mine", [*events()[:-1], *changed, events()[-1]])])
    assert "2 worker threads, 6 in the end" in text
    assert text.count("The number of workers went from 2 to 6") == 1
    assert text.count("The number of workers went") == 1
    assert "Worker 1 was slow from" in text
    assert "4.3 times as long" in text


BROKEN: dict[str, list[Event]] = {
    "only started": [started()],
    "no plan": [started(planned_samples=None, target=None, config={})],
    "zero steps": [
        started(),
        finished(
            seconds=0.0, wall_seconds=0.0, cpu_seconds=0.0, samples=0, steps=0, worker_samples=[0, 0],
            worker_steps=[0, 0], staleness={}, metrics={}, target_seconds=None, peak_rss_bytes=0,
            ledger=NO_LEDGER,
        ),
    ],
    "no evaluation": [*(e for e in events()[:-1] if not isinstance(e, Evaluated)), finished(metrics={})],
    "interrupted": [*events()[:40], finished(reason="interrupted", target_seconds=None)],
    "error": [*events()[:3], WorkerFailed(0, 3, "ValueError: bad"), finished(reason="error", metrics={})],
    "nan": [
        started(),
        Tick(1.0, [1, 2], math.nan, math.nan, 0, math.nan),
        Evaluated(1.0, 3, math.nan, {"accuracy": math.nan, "loss": math.inf}),
        finished(metrics={"accuracy": math.nan}),
    ],
    "one tick": [started(), Tick(0.0, [0, 0], 2.0, 0.0, 10, 0.0)],
    "constant": [started(), *(Evaluated(at, 1, 0.1, {"accuracy": 0.0}) for at in (1.0, 2.0))],
    "many workers": events(workers=64),
    "wide staleness": [started(), finished(staleness={0: 5, 10_000: 1})],
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_whatever_was_recorded_gives_a_page(name: str) -> None:
    Page(report.render([Run("x", BROKEN[name])]))
    Page(report.render([Run("x", BROKEN[name]), Run("synchronous", events("synchronous", 1))]))
    Page(report.render([Run("x", BROKEN[name]), Run("x", BROKEN[name])]))


def test_a_run_that_broke_off_says_so() -> None:
    text = report.render([Run("x", BROKEN["error"])])
    assert "The run ended with an error" in text
    assert "Worker 0 failed in its step 3: ValueError: bad" in text


def test_write_makes_the_file_and_the_pictures(tmp_path: Path) -> None:
    path = report.write(single(), tmp_path / "new" / "report.html", title="A title", png=True)
    assert "<title>A title</title>" in path.read_text(encoding="utf-8")
    pictures = {file.stem: file.read_bytes() for file in (tmp_path / "new" / "report-figures").iterdir()}
    assert set(pictures) == set(report.figures(single()))
    assert all(data.startswith(b"\x89PNG") for data in pictures.values())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot write the report to .*file/report\.html"):
        report.write(single(), tmp_path / "file" / "report.html")


def test_no_runs_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one run"):
        report.render([])


def printed(code: str) -> str:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); {code}"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_the_report_imports_neither_matplotlib_nor_jinja() -> None:
    heavy = "{'matplotlib', 'jinja2', 'rich'} & set(sys.modules)"
    assert printed(f"import freewheel.report, freewheel.monitors; print({heavy})") == "set()"


def test_pyplot_is_not_needed() -> None:
    code = "import synthetic_runs as made; from freewheel.report import Run, render"
    code += "; render([Run('x', made.events())]); print('matplotlib.pyplot' in sys.modules)"
    assert printed(code) == "False"


def test_no_setting_of_matplotlib_is_changed() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    report.render(single())
    assert dict(mpl.rcParams) == before
