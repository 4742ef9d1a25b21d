"""report.html: the figures of report.md, every record to be looked up, hostile texts, the page in a real browser."""

import asyncio
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evals.config import TaskConfig
from evals.record import Record, as_json
from evals.tasks.task import make_task
from orchestrator.analysis.diagnostics import shown_moves
from orchestrator.inputs.problems import load_problems
from orchestrator.inputs.prompts import as_text, prompts_digest, run_prompts
from orchestrator.report import page as pages
from orchestrator.report.make import write_report
from orchestrator.report.page import bold, inline
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.rundir.telemetry_rows import Event
from support.chromium import Browser, find_browser
from support.command import run
from support.made_up import CHAIN, PLAIN, POWER, changed, failed_record, make_record, make_run, write

HOSTILE = (
    '</script><script>window.hacked = 1</script><img src="http://evil.test/x" onerror="hacked = 1"><!--<script>  &amp;'
)
NUM_PROBLEMS = 120
GREP = '"problem_id": 7, "sample_index": 0,'


def hostile_record(problem_id: int, correct: bool) -> Record:
    """Every seventh text is hostile, every tenth answer cut off, every fifteenth has none, and problem 3 failed."""
    if problem_id == 3:
        return changed(failed_record(3), error=HOSTILE)
    record = make_record(problem_id, correct, ended="length" if problem_id % 10 == 0 else "eos")
    numeric = {"correct": correct, "answer": str(problem_id), "kind": "number"}
    if problem_id % 15 == 1:
        numeric = {"correct": False, "answer": None, "kind": "none"}
    text = HOSTILE if problem_id % 7 == 0 else f"That is {problem_id}."
    scores = {**as_json(record.scores), "numeric": numeric}
    return changed(record, text=text, scores=scores, chain=CHAIN | {"log_p_trace": [-9.0, -8.0, -7.5, -7.5, -7.0]})


def save(directory: Path, sampler: dict[str, Any], right: int, name: str = "tiny") -> Path:
    """A run of which run.json tells the truth; every `right`-th answer is wrong."""
    data = directory.parent / "data.jsonl"
    asked = [f"What is {i}? {HOSTILE if i % 20 == 0 else ''}" for i in range(NUM_PROBLEMS)]
    rows = [json.dumps({"question": question, "answer": f"#### {i}"}) + "\n" for i, question in enumerate(asked)]
    data.write_text("".join(rows), encoding="utf-8")
    source = load_problems(str(data))
    run = make_run(sampler, NUM_PROBLEMS, data=str(data), model=name)
    run["provenance"]["data"] = {"name": source.name, "sha256": source.digest, "rows": source.num_rows}
    run["provenance"]["prompts_sha256"] = prompts_digest(make_task(TaskConfig(), 3), source.problems)
    return write(directory, run, [hostile_record(i, i % right > 0) for i in range(NUM_PROBLEMS)])


class Page(HTMLParser):
    """Tags with their attributes, the text outside scripts, and what the scripts hold."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        self.text = " ".join(self.text.split())
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += f" {data}"


def report_cells(report: Path) -> list[str]:
    """The cells of all tables of a report.md."""
    lines = [line for line in report.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [cell.strip() for line in lines if not line.startswith("| ---") for cell in line[1:-1].split(" | ")]


def shares(answers: list[dict[str, Any]], flag: str) -> float:
    return sum(flag in answer["flags"] for answer in answers) / len(answers)


def test_the_page_has_the_figures_of_the_report_and_the_summary(tmp_path: Path) -> None:
    text = write_report([save(tmp_path / "run", POWER, 3)])
    page, summary = Page(tmp_path / "run/report.html"), json.loads((tmp_path / "run/summary.json").read_text())
    assert all(cell in page.text for cell in report_cells(tmp_path / "run/report.md"))
    assert all(sentence in page.text for sentence in summary["warnings"])
    items = [" ".join(item.split()) for item in text.split("\n- ")[1:]]
    told = [item for item in items if not item.startswith(("Warning: ", "Workers over time"))]
    assert len(told) > 5
    assert all(item in page.text for item in told)
    answers = [answer for problem in page.data["problems"] for [answer] in problem["answers"]]
    done = [answer for answer in answers if "failed" not in answer["flags"]]
    assert shares(answers, "right") == pytest.approx(summary["accuracy"]["numeric"]["mean"])
    assert shares(done, "no answer") == pytest.approx(summary["no_answer_rate"])
    assert shares(done, "truncated") == pytest.approx(summary["truncated_rate"])
    assert shares(answers, "graders differ") * len(answers) == summary["num_disagreements"] > 0
    assert len(answers) - len(done) == summary["num_failed"] == 1
    assert [tag for tag, _ in page.tags].count("svg") == 3, "answer lengths, log p by move, workers over time"


def test_a_doubter_finds_record_prompt_tokens_and_verdicts(tmp_path: Path) -> None:
    directory = save(tmp_path / "run", POWER, 3)
    write_report([directory])
    data = Page(directory / "report.html").data
    problem = data["problems"][8]
    record = hostile_record(8, True)
    [[answer]] = problem["answers"]
    assert (problem["id"], problem["gold"], problem["means"]) == (8, "#### 8", [1.0])
    assert data["prefix"] + problem["prompts"][0] == "Question: What is 8? \nAnswer:"
    assert data["prefix"].startswith("Question: What is ")
    scores = as_json(record.scores)
    assert (answer["text"], answer["ids"], answer["scores"]) == (record.text, record.token_ids, scores)
    assert answer["trace"] == [[0, -9.0], [1, -8.0], [2, -7.5], [3, -7.5], [4, -7.0]]
    assert answer["chain"]["moves"] == record.chain.reported()["moves"]
    assert data["places"] == ["run/records.jsonl"]


def test_prompts_that_are_not_those_of_the_run_are_not_shown(tmp_path: Path) -> None:
    directory = save(tmp_path / "run", POWER, 3)
    run = Manifest.read(directory)
    assert run_prompts(run).missing == ""
    found = run_prompts(run.model_copy(update={"prompts_sha256": "0" * 64}))
    assert (len(found.problems), found.prompts) == (NUM_PROBLEMS, {})
    assert "config.data" in run_prompts(run.model_copy(update={"data": None})).missing
    (tmp_path / "data.jsonl").unlink()
    write_report([directory])
    page = Page(directory / "report.html")
    assert "Not all of what was asked is shown: The data file" in page.text
    assert page.data["problems"][8]["prompts"] == [None]
    assert as_text(({"role": "user", "content": "2 + 2?"},)) == "[user]\n2 + 2?"


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    directory = save(tmp_path / "run", POWER, 3, name=HOSTILE)
    run = json.loads((directory / "run.json").read_text())
    run["provenance"]["model"] = {"name": HOSTILE, "sha256": None}
    (directory / "run.json").write_text(json.dumps(run), encoding="utf-8")
    write_report([directory])
    page = Page(directory / "report.html")
    assert [tag for tag, _ in page.tags].count("script") == len(page.scripts) == 2
    assert "img" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    links = [attributes.get(name) for _, attributes in page.tags for name in ("href", "xlink:href", "src")]
    assert all(link.startswith(("#", "data:,")) for link in links if link), "no address of anybody"
    assert page.data["problems"][7]["answers"][0][0]["text"] == HOSTILE
    assert page.data["problems"][3]["answers"][0][0]["error"] == HOSTILE
    assert page.scripts[1] == (Path(pages.__file__).parent / "page.js").read_text(encoding="utf-8")
    assert str(bold("**<b>** & *")) == "<strong>&lt;b&gt;</strong> &amp; *"


def test_the_page_of_a_comparison(tmp_path: Path) -> None:
    runs = [save(tmp_path / "t1", PLAIN, 2), save(tmp_path / "power", POWER, 3)]
    write_report(runs)
    page = Page(tmp_path / "report.html")
    assert all(cell in page.text for cell in report_cells(tmp_path / "report.md"))
    assert page.data["runs"] == ["temperature 1", "power (alpha 4, 10 moves)"]
    assert page.data["baseline"] == 0
    means = [problem["means"] for problem in page.data["problems"]]
    lines = (tmp_path / "report.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| power") and "+" in line)
    won, lost = (int(cell) for cell in row.split("|")[5:7])
    assert (sum(b > a for a, b in means), sum(b < a for a, b in means)) == (won, lost)
    assert won > lost > 0
    assert all(len(problem["prompts"]) == 1 for problem in page.data["problems"]), "asked alike, kept once"


def test_figures_on_one_page_share_no_id_and_find_their_own(tmp_path: Path) -> None:
    """Ids are of the page, not of a figure: the first of two would serve both, also where it is hidden."""
    runs = [save(tmp_path / name, POWER, 3) for name in ("a", "b")]
    write_report(runs)
    page = Page(tmp_path / "report.html")
    assert [tag for tag, _ in page.tags].count("svg") == 1 + 2 * 3
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids)) > 100
    used = [link for _, attributes in page.tags for name, link in attributes.items() if name == "xlink:href"]
    used += [clip.removeprefix("url(")[:-1] for _, attributes in page.tags if (clip := attributes.get("clip-path"))]
    assert len(used) > 100
    assert {link and link.removeprefix("#") for link in used} <= set(ids)


def test_a_figure_keeps_what_its_texts_say() -> None:
    assert inline('<g id="a"><text>id="b" url(#c)</text><use href="#a"/></g>', "x") == (
        '<g id="x-a"><text>id="b" url(#c)</text><use href="#x-a"/></g>'
    )


def test_events_are_told_with_their_reasons(tmp_path: Path) -> None:
    directory = save(tmp_path / "run", POWER, 3)
    with (directory / "telemetry.jsonl").open("ab") as log:
        log.write(Event(event="death", time=120.0, worker="cpu1", reason=HOSTILE).line())
        log.write(Event(event="requeue", time=120.0, worker="cpu1", problem_id=7).line())
    write_report([directory])
    page = Page(directory / "report.html")
    assert f"30.0 s cpu1 worker died {' '.join(HOSTILE.split())}" in page.text
    assert "30.0 s cpu1 asked again 7" in page.text


def test_token_ids_are_left_to_the_records_where_they_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAX_TOKEN_IDS", 100)
    directory = save(tmp_path / "run", POWER, 3)
    write_report([directory])
    assert Page(directory / "report.html").data["problems"][0]["answers"][0][0]["ids"] is None


def test_a_long_trace_keeps_both_ends() -> None:
    kept = shown_moves(1001, pages.MAX_TRACE)
    assert (len(kept), kept[0], kept[-1]) == (pages.MAX_TRACE, 0, 1000)
    assert shown_moves(0, pages.MAX_TRACE) == []


def look(
    url: str, texts: list[str], picture: Path, scripts: Sequence[tuple[str, Any]] = (), size: str = "1200,1040"
) -> list[dict[str, Any]]:
    """Open a page; returns what it did."""
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium")
    browser = Browser(program, picture.parent / "profile", {}, size)
    try:
        asyncio.run(browser.visit(url, texts, picture, scripts=scripts))
    finally:
        browser.close()
    return browser.events


def check_quiet(events: list[dict[str, Any]], url: str) -> None:
    """No error, nothing on the console, and no request but for the page itself and its empty icon."""
    loud = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}
    assert [event for event in events if event["method"] in loud] == []
    asked_for = {
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    }
    assert asked_for - {"data:,"} == {url}


def chosen(kind: str, run: int = -1, search: str = "") -> str:
    """A script that sets the controls and says how many problems are left."""
    return f"""Object.entries({json.dumps({"kind": kind, "run": run, "search": search})}).forEach(([id, value]) => {{
            document.getElementById(id).value = value;
            document.getElementById(id).dispatchEvent(new Event("input"));
        }}), document.getElementById("place").textContent.replace(/.* of /, "")"""


def test_filters_search_and_pages_in_a_browser(tmp_path: Path) -> None:
    write_report([save(tmp_path / "t1", PLAIN, 2), save(tmp_path / "power", POWER, 3)])
    page = Page(tmp_path / "report.html")
    problems = page.data["problems"]
    url = (tmp_path / "report.html").as_uri()

    def number(kind: str, run: int) -> str:
        found = sum(any(kind in answer["flags"] for answer in problem["answers"][run]) for problem in problems)
        return f"{found}"

    flipped = sum(len(set(problem["means"])) > 1 for problem in problems)
    rows, details = "document.querySelectorAll('#rows .row')", "document.querySelectorAll('.detail .answer')"
    texts = "[...document.querySelectorAll('.answer > pre:first-of-type')].map((box) => box.innerText)"
    scripts = [
        (chosen("all"), "120"),
        *((chosen(kind, run), number(kind, run)) for kind in ("right", "wrong", "no answer") for run in (0, 1)),
        (chosen("truncated", 1), "12"),
        (chosen("failed", 1), "1"),
        (chosen("graders differ", 0), number("graders differ", 0)),
        (chosen("flipped"), f"{flipped}"),
        (chosen("flipped", 1), f"{flipped}"),
        (chosen("all", -1, "THAT IS 117."), "1"),
        (f"{rows}.length", 1),
        (chosen("failed", 1, "that is 117."), "none"),
        (chosen("all", -1), "120"),
        ("document.getElementById('on').click(), document.getElementById('place').textContent", "51–100 of 120"),
        (f"{rows}.length", 50),
        (f"location.hash = 'problem-7', dispatchEvent(new Event('hashchange')), {details}.length", 2),
        (texts, [HOSTILE] * 2),
        ("document.querySelectorAll('.detail polyline').length", 2),
        (
            "document.querySelector('#scores a').getAttribute('href') === '#' + document.querySelector('.problems').id",
            True,
        ),
        ("/grep '(.*)' power.records.jsonl/.exec(document.querySelector('.detail').innerText)[1]", GREP),
        ("[document.images.length, document.scripts.length, 'hacked' in window]", [0, 2, False]),
    ]
    assert (tmp_path / "power/records.jsonl").read_text().count(GREP) == 1
    events = look(url, ["2 methods on 120 common problems", "1–50 of 120"], tmp_path / "page.png", scripts)
    check_quiet(events, url)


def test_the_page_fits_a_phone(tmp_path: Path) -> None:
    """The page itself never scrolls sideways; what is wider than a phone scrolls in a box of its own, to its end."""
    runs = [save(tmp_path / "t1", PLAIN, 2), save(tmp_path / "power", POWER, 1)]  # all wrong: the longest headline
    write_report(runs)
    boxes = "[...document.querySelectorAll('.wide')]"
    scripts = [
        ("innerWidth", 390),
        ("document.querySelectorAll('details').forEach((one) => one.open = true)", None),
        ("location.hash = 'problem-20', dispatchEvent(new Event('hashchange')), 0", 0),
        ("document.scrollingElement.scrollWidth <= innerWidth", True),
        (f"{boxes}.every((box) => box.getBoundingClientRect().right <= innerWidth)", True),
        (f"{boxes}.filter((box) => box.querySelector('svg')).every((box) => (box.scrollLeft = 9999) > 0 && "
         "box.querySelector('svg').getBoundingClientRect().right <= innerWidth)", True),
    ]  # fmt: skip
    for page, text in ((runs[1], "1–50 of 120"), (tmp_path, "2 methods on 120 common problems")):
        look((page / "report.html").as_uri(), [text], page / "page.png", scripts, "390,844")


@pytest.mark.slow
@pytest.mark.ray
def test_the_picture_of_the_demo(tmp_path: Path) -> None:
    """How docs/report.png is made: of the real demo, its four methods on one page."""
    if find_browser() is None:
        pytest.skip("there is no Chromium")
    done = run("--run-dir", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    url = (tmp_path / "demo/report.html").as_uri()
    texts = ["embedded model: 4 methods on 200 common problems", "1–50 of 200"]
    check_quiet(look(url, texts, tmp_path / "report.png"), url)
    assert 20_000 < (tmp_path / "report.png").stat().st_size < 300_000
