"""`vdiff report`: one page that works offline, whatever the run has come to and
whatever its texts say.
"""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.browser import complaints, opened, requests
from tests.tiny import TinyRun
from vdiff.cli import app
from vdiff.metrics import table
from vdiff.model_folder.card import read_card
from vdiff.reporting import record
from vdiff.reporting.chart import Axis, Line, Point, chart

HOSTILE = """<script>alert(1)</script>"><img src=x onerror=alert(2)>\u202e\x1b[31m"""


class Page(HTMLParser):
    """What a page consists of: (tag, attributes) in order, the tags left open, and its text."""

    VOID = ("meta", "img", "input", "br", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag]


def evaluated(run: Path, num_images: int = 100) -> None:
    """An evaluation as another command would leave it; its numbers mean nothing."""
    cards = {name: read_card(run / name) for name in ("original", "base_2")}
    numbers = {"mse": 0.1, "psnr": 16.0, "ssim": 0.5}
    agreed = table.PairNumbers(
        name="original", hash=cards["original"].hash, num_steps=8, numbers=numbers
    )
    low, high = (
        table.Value(value=1.0, low=0.9, high=1.1),
        table.Value(value=30.0, low=25.0, high=35.0),
    )
    rows = (
        table.EvaluationRow(
            model="original",
            hash=cards["original"].hash,
            num_steps=8,
            role="original",
            metrics={"fid": low},
        ),
        table.EvaluationRow(
            model="original",
            hash=cards["original"].hash,
            num_steps=1,
            role="undistilled",
            metrics={"fid": high},
        ),
        table.EvaluationRow(
            model="base_2",
            hash=cards["base_2"].hash,
            num_steps=1,
            role="student",
            seconds_per_image=0.001,
            metrics={"fid": low},
            teacher=agreed,
            original=agreed,
        ),
    )
    protocol = table.Protocol(
        num_images=num_images,
        first_seed=0,
        sampler="ddim eta=0.0",
        shape=(3, 8, 8),
        resizing="none",
        reference=None,
        features={"fid": "pool3"},
    )
    content = table.EvaluationTable(
        protocol=protocol, made="2026", made_by="vdiff", machine="x", rows=rows
    )
    table.write(run / "evaluation" / "table.json", content)


def made(*arguments: str, out: str = "page.html") -> str:
    assert app.run(["report", *arguments, "--out", out, "-q", "-n", "2", "--device", "cpu"]) == 0
    return Path(out).read_text(encoding="utf-8")


def check(text: str) -> Page:
    """What holds of every page: whole, nothing from elsewhere, every picture in words,
    every id once.
    """
    page = Page(text)
    assert page.open == []
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    assert all(found.get("alt") for found in page.all("img"))
    assert all(found.get("aria-label") for found in page.all("svg"))
    for tag, found in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in found), (tag, found)
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = found.get(name) or ""
            assert value == "" or value.startswith(("data:image/png;base64,", "#")), (tag, value)
    assert {tag for tag, _ in page.elements} & {
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
    } == set()
    links = {(found["href"] or "")[1:] for found in page.all("a")}
    assert links <= set(ids)
    policy = next(found["content"] or "" for found in page.all("meta") if "http-equiv" in found)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "http://" not in text
    assert "https://" not in text
    assert all(found.get("scope") for found in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    return page


def test_a_finished_run_shows_its_pictures_its_numbers_and_where_it_comes_from(
    distilled: Path,
) -> None:
    evaluated(distilled)
    text = made(str(distilled), "--price-per-hour", "3600")
    page = check(text)
    card = read_card(distilled / "base_2")
    assert card.hash in page.text
    assert card.data["fingerprint"] in page.text
    assert "n = 100; seeds 0-99; ddim eta=0.0" in page.text  # the protocol stands with the numbers
    assert (
        "Down to 1 step the students' FID stays within the 95 % interval of the original's in 8"
        in page.text
    )
    assert "without distillation 30.0 (25.0 to 35.0)" in page.text
    rows = 1 + 2 * 3  # the original; not distilled and student at 4, 2 and 1
    assert (
        len([found for found in page.all("img") if str(found["alt"]).startswith("seed")])
        == 2 * rows + 2 * 2
    )
    assert "name: tiny" in page.text
    seconds = json.loads((distilled / "status.json").read_text())["seconds"]
    assert f"{seconds['base_2']:,.2f}" in page.text  # a price of one per second
    assert "Not measured, or changed since: base_0, base_1" in page.text


def test_a_trend_is_called_one_and_its_stages_stand_one_after_another(distilled: Path) -> None:
    with (distilled / "log.jsonl").open("a") as log:
        for stage, update, count, trend in [
            ("original", 5, 256, {"swd": 0.5}),
            ("base_0", 1, 256, {"swd": 0.25, "psnr": 20.0, "mse": 0.04}),
            ("base_0", 2, 256, {"swd": 0.125, "psnr": None}),
        ]:
            log.write(
                json.dumps({"stage": stage, "update": update, "num_images": count, "trend": trend})
                + "\n"
            )
    page = check(made(str(distilled)))
    assert "A trend, no measurement" in page.text
    assert charts_of_trends(page) == [
        (
            "Trend of Sliced Wasserstein distance, of 256 pictures. Against updates of all stages "
            "in turn. original: 0.500 at 5; base_0: 0.250 at 6, 0.125 at 7"
        ),
        (
            "Trend of PSNR with the own teacher, in dB, of 256 pictures. "
            "Against updates of all stages in turn. base_0: 20.0 at 6"
        ),
    ]
    assert "less is better; of 256 pictures" in page.text


def test_trends_of_different_numbers_of_pictures_are_never_one_curve(distilled: Path) -> None:
    with (distilled / "log.jsonl").open("a") as log:
        for update, more in [
            (1, {"num_images": 64}),
            (2, {"num_images": 32}),
            (3, {}),
            (4, {"num_images": -1}),
        ]:
            log.write(
                json.dumps({"stage": "original", "update": update, "trend": {"swd": 0.5}, **more})
                + "\n"
            )
    before = "Trend of Sliced Wasserstein distance, of"
    after = "Against updates of all stages in turn. original: 0.500 at"
    assert charts_of_trends(check(made(str(distilled)))) == [
        f"{before} 32 pictures. {after} 2",
        f"{before} 64 pictures. {after} 1",
        f"{before} an unknown number of pictures. {after} 3, 0.500 at 4",
    ]


def test_a_trend_of_the_last_stage_alone_stands_after_all_updates_before_it(
    distilled: Path,
) -> None:
    with (distilled / "log.jsonl").open("a") as log:
        log.write(
            json.dumps({"stage": "base_2", "update": 2, "num_images": 64, "trend": {"swd": 0.5}})
            + "\n"
        )
    (words,) = charts_of_trends(check(made(str(distilled))))
    assert words.endswith("base_2: 0.500 at 11")  # 5 of the base, 2 of each student


@pytest.mark.parametrize("values", [(0.9,), (1.0,), (0.97, 0.99)])
def test_an_axis_ends_where_no_value_can_be_above(values: tuple[float, ...]) -> None:
    line = Line("students", "student", [Point(step, value) for step, value in enumerate(values, 1)])
    drawn = Page(chart("SSIM", [line], Axis("steps", 2, (1, 2), (1, 2)), Axis("SSIM", most=1.0)))
    heights = [float(str(mark["cy"])) for mark in drawn.all("circle")]
    rules = {float(str(mark["y1"])) for mark in drawn.all("line")}
    assert min(heights) >= 12 - 1e-9  # the top of the picture's frame
    assert min(rules) >= 12
    assert not re.search(r"1\.[0-9]", drawn.text)


def test_charts_of_similarities_and_shares_end_at_one(distilled: Path) -> None:
    evaluated(distilled)
    found = table.read(distilled / "evaluation/table.json")
    assert found is not None
    rows = [
        row.model_copy(update={"metrics": {"precision": table.Value(value=1.0)}})
        for row in found.rows[-1:]
    ]
    table.write(distilled / "evaluation/table.json", found.model_copy(update={"rows": tuple(rows)}))
    with (distilled / "log.jsonl").open("a") as log:
        log.write(
            json.dumps({"stage": "base_0", "update": 1, "num_images": 256, "trend": {"ssim": 0.9}})
            + "\n"
        )
    text = made(str(distilled))
    parts = [
        part
        for part in text.split("<svg")
        if "similarity" in part[:300] or "Precision" in part[:300]
    ]
    assert len(parts) == 3  # of the table, of the trend, precision
    for part in parts:
        assert not re.search(r">1\.[0-9]+</text>", part.split("</svg>")[0])


def test_on_a_phone_a_wide_table_moves_under_its_row_names(distilled: Path) -> None:
    evaluated(distilled)
    made(str(distilled))
    with opened(Path("page.html"), width=390) as driver:
        places = driver.execute_script(
            "const wide = [...document.querySelectorAll('.wide')].find(each => each.scrollWidth > "
            "each.clientWidth);const name = wide.querySelector('tbody th'), number = "
            "wide.querySelector('tbody td');const places = () => [name, number].map(each => "
            "each.getBoundingClientRect().left);const before = places(); wide.scrollLeft = 40; "
            "return [before, places()];"
        )
    assert places[1][0] == places[0][0]
    assert places[1][1] == pytest.approx(places[0][1] - 40, abs=1)


def charts_of_trends(page: Page) -> list[str]:
    return [
        words
        for mark in page.all("svg")
        if (words := str(mark["aria-label"])).startswith("Trend of ")
    ]


def test_a_report_replaces_a_report_and_no_other_file(
    distilled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["report", str(distilled), "--no-pictures", "-q"]
    assert app.run(arguments) == 0
    assert app.run(arguments) == 0
    (distilled / "report.html").write_text("mine")
    assert app.run(arguments) == 2
    assert "report.html` is there already, and vdiff did not make it" in capsys.readouterr().err
    assert app.run([*arguments, "--force"]) == 2
    assert (distilled / "report.html").read_text() == "mine"


def test_texts_of_a_run_stay_texts(distilled: Path) -> None:
    evaluated(distilled)
    (distilled / "recipe.yaml").write_text(f"# {HOSTILE}\nname: tiny\n", encoding="utf-8")
    status = json.loads((distilled / "status.json").read_text())
    hostile = {
        "state": "failed",
        "reason": HOSTILE,
        "resume_command": HOSTILE,
        "stage": HOSTILE,
        "host": HOSTILE,
    }
    (distilled / "status.json").write_text(json.dumps({**status, **hostile, "machine": HOSTILE}))
    line = {"stage": HOSTILE, "update": 1, "loss": 0.5}
    trend = {"stage": HOSTILE, "update": 1, "trend": {HOSTILE[:60]: 1.0, "swd": "1", "psnr": None}}
    (distilled / "log.jsonl").write_text(
        f"{json.dumps(line)}\n{json.dumps(trend)}\nhalf a li\n[]\n"
        + '{"stage": "a", "update": 1, "loss": NaN}'
    )
    found = json.loads((distilled / "evaluation" / "table.json").read_text())
    found["rows"][2]["model"] = found["machine"] = found["protocol"]["sampler"] = HOSTILE
    found["rows"][2]["metrics"] = {HOSTILE: {"value": 1.0}}
    (distilled / "evaluation" / "table.json").write_text(json.dumps(found))
    strange = distilled.rename("<b>&'\"")
    text = made(str(strange))
    page = check(text)
    assert len(page.all("script")) == 1
    assert not any("onerror" in found for _, found in page.elements)
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "<b>&'\"" in page.text


def test_a_run_without_any_model_says_what_to_type(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_run.path)
    run = tiny_run.folder("runs/tiny")
    run.path.mkdir(parents=True)
    run.recipe.write_text(tiny_run.text)
    run.log.write_text('{"stage": "original", "update": 2, "loss": 0.5}\n')
    page = check(made())
    assert "No model is finished yet." in page.text
    assert "vdiff train" in page.text
    assert "Losses" in page.text
    assert page.all("img") == []


def test_a_run_at_work_is_shown_as_far_as_it_is(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_run.path)
    assert app.run(["train", "-q", "--device", "cpu"]) == 0
    run = tiny_run.folder("runs/tiny")
    working = {
        "state": "running",
        "stage": "base_0",
        "update": 1,
        "updates": 2,
        "resume_command": "vdiff distill",
    }
    run.status.write_text(json.dumps(working))
    with run.lock():
        page = check(made())
    assert "The run is at work: base_0 is at update 1 of 2" in page.text
    assert "vdiff evaluate runs/tiny" in page.text
    assert "waiting" in page.text
    assert page.all("input") == []  # nothing to pull a divider over
    killed = check(made())
    assert "The run was killed. vdiff distill goes on." in killed.text


def test_pages_and_screens_tell_one_of_a_thing_in_the_singular(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_run.path)
    short = ["--set", "train.updates=1", "--set", "distill.updates=1", "--device", "cpu"]
    assert app.run(["train", *short]) == 0
    assert app.run(["distill", "--stages", "1", *short]) == 0
    assert app.run(["compare", "original", "base_0", "--seeds", "0", "--device", "cpu"]) == 0
    assert app.run(["inspect", "original"]) == 0
    assert app.run(["report", "-n", "1", "--out", "page.html", "--device", "cpu"]) == 0
    screens = "".join(capsys.readouterr())
    page = Page(Path("page.html").read_text(encoding="utf-8")).text
    assert "1 update" in screens
    assert "1 picture" in screens
    assert "1 update" in page
    assert "1 picture" in page
    wrong = r"(?<![\d.,:=])1 (?:updates|pictures|steps|classes|lines|files)\b"
    assert re.findall(wrong, screens + page) == []


def test_a_damaged_model_or_table_is_named_and_the_rest_is_shown(distilled: Path) -> None:
    weights = distilled / "base_2" / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (distilled / "evaluation").mkdir()
    (distilled / "evaluation" / "table.json").write_text("{}")
    page = check(made(str(distilled)))
    assert "base_2: " in page.text
    assert "is no table of an evaluation: it is damaged" in page.text
    assert any("base_1" in str(found["alt"]) for found in page.all("img"))


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["report", str(tmp_path)]) == 2
    assert "there is no run" in capsys.readouterr().err


def test_published_numbers_are_shown_only_when_asked_for(distilled: Path) -> None:
    evaluated(distilled)
    assert "arXiv" not in made(str(distilled))
    assert "Salimans & Ho 2022" in Page(made(str(distilled), "--published", "cifar10")).text
    assert app.run(["report", str(distilled), "--published", "mnist"]) == 2


def test_pictures_are_drawn_once(distilled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["report", str(distilled), "-n", "2", "--device", "cpu"]
    assert app.run(arguments) == 0
    assert "drawing `base_2` at 1 step" in capsys.readouterr().err
    first = (distilled / "report.html").read_text()
    for path in (distilled / "evaluation" / "report").glob("way-*.npz"):
        path.write_bytes(b"damaged")
    assert app.run(arguments) == 0
    told = capsys.readouterr().err
    assert "drawing" not in told
    assert "following `base_2` from noise to picture" in told
    pictures = re.findall(r"data:image/png[^\"]*", first)
    assert pictures == re.findall(r"data:image/png[^\"]*", (distilled / "report.html").read_text())


def test_a_long_log_is_thinned_to_means() -> None:
    points = [(float(update), float(update % 2)) for update in range(10_000)]
    found = record.thinned(points)
    assert 100 <= len(found) <= record.MOST_POINTS
    assert found[-1][0] == 9999
    assert all(abs(value - 0.5) < 0.01 for _, value in found)
    assert record.thinned([]) == []


@pytest.mark.parametrize("width", [1280, 360])
def test_in_a_browser_nothing_complains_nothing_is_asked_for_and_the_divider_moves(
    distilled: Path, width: int
) -> None:
    evaluated(distilled)
    made(str(distilled))
    with opened(Path("page.html"), width) as driver:
        assert complaints(driver) == []
        assert requests(driver) == [Path("page.html").resolve().as_uri()]
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        clip = "return getComputedStyle(document.querySelector('.pair .above')).clipPath"
        before = driver.execute_script(clip)
        handle = driver.find_element("id", "cut")
        handle.send_keys("\ue014" * 10)  # the right arrow key
        after = driver.execute_script(clip)
        assert "50%" in before
        assert "60%" in after
        driver.find_element("id", "choose-base_0").click()
        words: Any = driver.find_element("id", "right-end").text
        assert words == "base_0, 4 steps"
        shown = (
            "return document.querySelector('.pair .above').src === "
            "document.getElementById('p-base_0-0').src"
        )
        assert driver.execute_script(shown)
        assert complaints(driver) == []


def test_on_paper_charts_stand_in_rows_and_the_pairs_beside_one_another(distilled: Path) -> None:
    evaluated(distilled)
    made(str(distilled))
    with opened(Path("page.html"), 1000) as driver:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        hint = driver.find_element("css selector", "#teacher-and-student .on-screen")
        assert not hint.is_displayed()  # there is no divider to pull
        columns = (
            "return getComputedStyle(document.querySelector(arguments[0])).gridTemplateColumns"
        )
        for charts, number in (("#quality .charts", 2), ("#losses .charts", 3)):
            assert len(driver.execute_script(columns, charts).split()) == number
        assert (
            driver.execute_script(
                "return getComputedStyle(document.querySelector('.pair .above')).clipPath"
            )
            == "none"
        )
