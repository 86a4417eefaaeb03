"""`rbvsr preview` and `rbvsr compare`: the moments they choose, and their page in a real headless Chromium."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests import TIMEOUT_SECONDS
from tests.app.running import run
from tests.clips import write_clip
from vsrealbasicvsr.app.excerpts import measure, open_excerpt
from vsrealbasicvsr.app.moments import Candidate, choose, find_moments, score_of
from vsrealbasicvsr.app.page import time_text
from vsrealbasicvsr.errors import UserError

pytestmark = pytest.mark.long

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("page") / "in.mkv", num_frames=40, options={"g": "10"})


@pytest.fixture(scope="module")
def page(clip: Path, tiny_model: Path) -> Path:
    """A page of three moments by bicubic and the tiny network."""
    path = clip.with_name("page.html")
    done = run(
        *("preview", clip, path, "--at", "0.2", "--at", "0:00.6", "--at", "1.2", "--frames", 3),
        *("--model", tiny_model, "--overlap", 2, "--device", "cpu", "--json"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["event"], result["moments"]) == ("result", 3)
    assert result["bytes"] == path.stat().st_size
    return path


def embedded(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


# ---- what is on a page -----------------------------------------------------------------------------------------------


def test_a_page_is_one_file_that_names_no_other(page: Path) -> None:
    text = re.sub(r"data:image/webp;base64,[A-Za-z0-9+/=]+", "", page.read_text())
    assert re.findall(r"(?:https?:|//[a-z]|src=|@import|url\()", text) == []
    assert "default-src 'none'" in text
    data = embedded(page)
    assert [shot["time"] for shot in data["shots"]] == ["0:00.2", "0:00.6", "0:01.2"]
    assert [len(pictures) for shot in data["shots"] for pictures in shot["pictures"]] == [3] * 6
    assert [method["name"] for method in data["methods"]] == ["bicubic", "rbvsr"]
    assert (data["width"], data["height"], data["aspect"], data["fps"]) == (256, 192, 1.0, 25.0)


def test_names_of_files_are_shown_and_not_run(clip: Path, tmp_path: Path) -> None:
    nasty = tmp_path / "<img src=x onerror=alert(1)>.mkv"
    nasty.write_bytes(clip.read_bytes())
    done = run("compare", nasty, clip, tmp_path / "page.html", "--frames", 1, "--shots", 1)
    assert done.returncode == 0, done.stderr
    assert "<img src=x" not in (tmp_path / "page.html").read_text()


def test_compare_shows_the_same_frames_of_videos_of_several_sizes_and_starts(tmp_path: Path) -> None:
    """Each frame is a grey of its own, so that a wrong one is seen."""

    def video(name: str, side: int, first_pts: int) -> Path:
        with av.open(str(tmp_path / name), "w") as file:
            stream = file.add_stream("libx264", rate=25, options={"crf": "10", "g": "7", "bf": "2"})
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            for n in range(50):
                picture = np.full((side, side, 3), 4 * n + 20, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = n + first_pts, Fraction(1, 25)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        return tmp_path / name

    videos = [video("small.mkv", 32, 0), video("large.mp4", 64, 0), video("late.mkv", 64, 75)]
    done = run("compare", *videos, tmp_path / "page.html", "--at", "0.4", "--at", "1.72", "--frames", 2, "--label", "s")
    assert done.returncode == 0, done.stderr
    data = embedded(tmp_path / "page.html")
    assert [method["name"] for method in data["methods"]] == ["s", "large.mp4", "late.mkv"]
    assert (data["width"], data["height"]) == (64, 64)
    for shot, first in zip(data["shots"], (10, 43), strict=True):
        for pictures in shot["pictures"]:
            for n, picture in enumerate(pictures):
                assert mean_of(picture) == pytest.approx(4 * (first + n) + 20, abs=1.9)


def mean_of(data_uri: str) -> float:
    import base64
    import io

    content = base64.b64decode(data_uri.removeprefix("data:image/webp;base64,"))
    with av.open(io.BytesIO(content), format="webp_pipe") as file:
        return float(next(file.decode(video=0)).to_ndarray(format="rgb24").mean())


def test_the_upscaled_frames_are_those_of_the_whole_video(
    clip: Path, page: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """All but the rounding of WebP and x264: the frame beside it differs more."""
    done = run("upscale", clip, tmp_path / "out.mkv", "--model", tiny_model, "--device", "cpu", "--codec", "ffv1")
    assert done.returncode == 0, done.stderr
    compared = run(
        *("compare", clip, tmp_path / "out.mkv", tmp_path / "page.html", "--at", "0.2", "--at", "0.6", "--at", "1.2"),
        *("--frames", 3),
    )
    assert compared.returncode == 0, compared.stderr
    ours, whole = embedded(page), embedded(tmp_path / "page.html")
    for one, other in zip(ours["shots"], whole["shots"], strict=True):
        assert one["pictures"][0] == other["pictures"][0]
        assert mean_of(one["pictures"][1][0]) == pytest.approx(mean_of(other["pictures"][1][0]), abs=0.3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["preview", "none.mkv"], "there is no file none.mkv"),
        (["preview", "in.mkv", "page.txt"], "ends in .html"),
        (["preview", "in.mkv", "--at", "9:00"], "is beyond the end: in.mkv lasts 0:01.6"),
        (["preview", "in.mkv", "--at", "soon"], "--at takes seconds or h:mm:ss"),
        (["preview", "in.mkv", "--frames", "0"], "--frames must be 1 to 100, got 0"),
        (["preview", "in.mkv", "notes.html"], "exists and is no page of rbvsr"),
        (["compare", "in.mkv", "page.html"], "takes 2 to 8 videos"),
        (["compare"], "takes 2 to 8 videos"),
        (["compare", "in.mkv", "in.mkv", "page.html"], "two videos are called"),
        (["compare", "in.mkv", "notes.html", "page.html"], "notes.html is not a video"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], said: str, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "in.mkv").write_bytes(clip.read_bytes())
    (tmp_path / "notes.html").write_text("<html>my own</html>")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert sum(line.startswith("rbvsr: ") for line in done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "notes.html"]


# ---- which moments ---------------------------------------------------------------------------------------------------


def test_moments_are_where_detail_moves_and_not_where_a_scene_begins() -> None:
    random = np.random.default_rng(0)
    detailed = random.integers(0, 255, (90, 160)).astype(np.uint8)
    moved, flat = np.roll(detailed, 1, 1) // 2 + detailed // 2, np.full((90, 160), 90, np.uint8)
    other = random.integers(0, 255, (90, 160)).astype(np.uint8)
    assert score_of(detailed, moved) > score_of(detailed, detailed) > score_of(flat, flat + 1)
    assert score_of(detailed, other) == 0


def test_moments_are_spread_over_the_video(clip: Path) -> None:
    extent = measure(clip)
    assert (extent.start, extent.rate) == (0, 25)
    candidates = [Candidate(Fraction(n, 10), 100.0 - n) for n in range(16)]
    assert choose(candidates, 3, extent) == [Fraction(0), Fraction(3, 10), Fraction(6, 10)]
    found = find_moments(clip, extent, 3)
    assert len(found) == 3
    assert found == sorted(found)
    assert all(seconds < extent.end for seconds in found)


def test_a_long_video_is_read_around_the_moment_only(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "long.mp4", num_frames=300, width=32, height=32, options={"g": "25", "bf": "2"})
    excerpt = open_excerpt(path, Fraction(8), before=Fraction(1, 5), after=Fraction(1, 5), folder=tmp_path / "part")
    assert excerpt.source.clip.num_frames < 120
    with av.open(str(path)) as file:
        expected = next(frame for frame in file.decode(video=0) if frame.pts * frame.time_base >= 8)
    found = np.asarray(excerpt.source.clip.get_frame(excerpt.at)[0])
    assert np.array_equal(found, expected.to_ndarray()[: expected.height])


def test_times_are_written_as_they_are_given() -> None:
    assert [time_text(seconds) for seconds in (0, 59.96, 83.25, 3723.4)] == ["0:00.0", "1:00.0", "1:23.2", "1:02:03.4"]
    with pytest.raises(UserError, match="there is no file"):
        measure(Path("nowhere.mkv"))


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium. RBVSR_REQUIRE_CHROMIUM=1 makes it a failure that there is none."""
    executable = os.environ.get("RBVSR_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        reason = "playwright is not installed: pip install playwright"
    else:
        reason = f"there is no Chromium ({', '.join(BROWSERS)} on PATH, or RBVSR_CHROMIUM): apt install chromium"
        if executable:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
                yield browser
                browser.close()
            return
    if os.environ.get("RBVSR_REQUIRE_CHROMIUM") == "1":
        pytest.fail(f"RBVSR_REQUIRE_CHROMIUM=1, but {reason}", pytrace=False)
    pytest.skip(reason)


class Opened:
    """The page in a window of a browser; what it complains of is kept."""

    def __init__(self, browser: Any, page: Path, **options: Any) -> None:
        self.context = browser.new_context(offline=True, **options)
        self.tab = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self._keep(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url[:30]))
        self.tab.goto(page.as_uri())
        self.wait("Boolean(window.rbvsr && rbvsr.drawn)")

    def _keep(self, text: str) -> None:
        if "getImageData" not in text:  # a hint for `colour`, which is not the page's
            self.complaints.append(text)

    def state(self, name: str) -> Any:
        return self.tab.evaluate(f"rbvsr.state.{name}")

    def wait(self, condition: str) -> None:
        """Until this is so; asked from outside, for the page's policy lets nothing in it evaluate a text."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self.tab.evaluate(condition):
            assert time.monotonic() < deadline, condition
            self.tab.wait_for_timeout(5)

    def colour(self, x: float, y: float = 0.5) -> list[int]:
        """The colour that is drawn at this part of the canvas' width and height."""
        return list(
            self.tab.evaluate(
                "([x, y]) => { const c = document.getElementById('canvas');"
                " return [...c.getContext('2d').getImageData(c.width * x, c.height * y, 1, 1).data] }",
                [x, y],
            )
        )


@pytest.fixture
def opened(chromium: Any, page: Path) -> Iterator[Opened]:
    window = Opened(chromium, page, viewport={"width": 1000, "height": 700}, color_scheme="light")
    yield window
    assert window.complaints == []
    assert [url for url in window.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    window.context.close()


def test_the_divider_is_dragged_and_moved_by_keys(opened: Opened) -> None:
    stage = opened.tab.locator("#stage").bounding_box()
    middle = stage["y"] + stage["height"] / 2
    right = opened.colour(0.52), opened.colour(0.7)
    opened.tab.mouse.move(stage["x"] + stage["width"] / 2, middle)
    opened.tab.mouse.down()
    opened.tab.mouse.move(stage["x"] + stage["width"] * 0.8, middle, steps=4)
    opened.tab.mouse.up()
    assert opened.state("split") == pytest.approx(0.8, abs=0.01)
    assert (opened.colour(0.52), opened.colour(0.7)) != right
    divider = opened.tab.locator("#divider")
    divider.focus()
    opened.tab.keyboard.press("Home")
    assert divider.get_attribute("aria-valuenow") == "0"
    opened.tab.keyboard.press("ArrowRight")
    assert divider.get_attribute("aria-valuenow") == "2"
    opened.tab.keyboard.press(".")
    assert divider.get_attribute("aria-valuenow") == "7"
    assert opened.state("frame") == 0


def test_methods_moments_and_frames_are_chosen_by_keys_and_buttons(opened: Opened) -> None:
    press = opened.tab.keyboard.press
    press("a")
    assert (opened.state("left"), opened.state("right")) == (0, 0)
    press("Shift+B")
    assert (opened.state("left"), opened.state("right")) == (1, 0)
    assert opened.tab.get_by_role("button", name="Left: rbvsr").get_attribute("aria-pressed") == "true"
    opened.tab.get_by_role("button", name="Right: rbvsr").click()
    assert opened.tab.inner_text("#label-right") == "B rbvsr"
    press("s")
    assert opened.tab.locator("#divider").is_visible() is False
    press("3")
    press("ArrowUp")
    opened.wait("rbvsr.drawn.shot === 1")
    assert "Moment 2 of 3 at 0:00.6" in opened.tab.get_attribute("#canvas", "aria-label")
    assert "Moment 2 of 3" in opened.tab.inner_text("#status")
    opened.tab.get_by_role("button", name="Moment 1").click()
    opened.tab.locator("#canvas").click()
    press("ArrowLeft")
    opened.wait("rbvsr.drawn.shot === 0 && rbvsr.drawn.frame === 2")
    assert opened.tab.inner_text("#frame-value") == "3 / 3"
    opened.tab.locator("#frame").fill("1")
    opened.wait("rbvsr.drawn.frame === 0")
    press("c")  # there is no third method
    assert opened.state("right") == 1


def test_zoom_keeps_the_place_under_the_pointer_and_the_picture_in_view(opened: Opened) -> None:
    fit = opened.state("zoom")
    stage = opened.tab.locator("#stage").bounding_box()
    x, y = stage["x"] + stage["width"] * 0.6, stage["y"] + stage["height"] * 0.3

    def place() -> list[float]:
        dx, dy = stage["width"] * 0.1, -stage["height"] * 0.2
        return [opened.state("x") + dx / opened.state("zoom"), opened.state("y") + dy / opened.state("zoom")]

    before = place()
    opened.tab.mouse.move(x, y)
    opened.tab.mouse.wheel(0, -600)
    opened.wait(f"rbvsr.state.zoom > {2 * fit}")
    assert place() == pytest.approx(before, abs=1.5)
    at = opened.state("x")
    opened.tab.mouse.down()
    opened.tab.mouse.move(x - 60, y, steps=3)
    opened.tab.mouse.up()
    assert opened.state("x") > at
    assert opened.state("split") == 0.5
    opened.tab.keyboard.press("-")
    for _ in range(8):
        opened.tab.keyboard.press("+")
    assert opened.state("zoom") == 16
    opened.tab.keyboard.press("0")
    assert (opened.state("zoom"), opened.state("x")) == (pytest.approx(fit), 128)
    opened.tab.get_by_role("button", name="Actual size").click()
    assert opened.tab.inner_text("#zoom-value") in ("100 %", f"{round(100 * fit)} %")


def test_the_loop_plays_and_pauses(opened: Opened) -> None:
    opened.tab.keyboard.press("Space")
    opened.wait("rbvsr.drawn.frame === 2")
    opened.wait("rbvsr.drawn.frame === 1")
    opened.tab.get_by_role("button", name="Pause").click()
    assert opened.state("playing") is False


@pytest.fixture(scope="module")
def wide_page(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of four methods with long names."""
    path = tmp_path_factory.mktemp("wide") / "page.html"
    labels = [text for n in range(4) for text in ("--label", f"a method with a long name, {n}")]
    done = run("compare", clip, clip, clip, clip, path, *labels, "--frames", 1)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1200, 800), (360, 640)])
def test_everything_is_in_view_and_readable(
    chromium: Any, wide_page: Path, scheme: str, width: int, height: int, tmp_path: Path
) -> None:
    window = Opened(chromium, wide_page, viewport={"width": width, "height": height}, color_scheme=scheme)
    assert window.tab.evaluate("document.documentElement.scrollWidth") <= width
    stage = window.tab.locator("#stage").bounding_box()
    assert (stage["x"] >= 0, stage["x"] + stage["width"] <= width) == (True, True)
    assert window.tab.evaluate("document.documentElement.scrollHeight") <= height
    assert stage["height"] >= 200
    for name in ("#play", "#fit", "#single", "#theme", "#divider", "#strip"):
        box = window.tab.locator(name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    assert unnamed(window) == []
    assert contrast(window) >= 4.5
    window.tab.keyboard.press("t")
    assert window.tab.evaluate("document.documentElement.dataset.theme") == {"light": "dark", "dark": "light"}[scheme]
    assert contrast(window) >= 4.5
    window.tab.keyboard.press("?")
    assert window.tab.get_by_role("dialog", name="Keys").is_visible()
    window.tab.keyboard.press("Escape")
    window.tab.screenshot(path=str(tmp_path / "page.png"))
    assert window.complaints == []
    window.context.close()


def unnamed(window: Opened) -> list[str]:
    """What a screen reader could not name."""
    return list(
        window.tab.evaluate(
            "[...document.querySelectorAll('button, input, [role=slider], [role=img], nav')].filter("
            "e => !(e.ariaLabel || e.innerText || e.labels?.length)).map(e => e.outerHTML)"
        )
    )


def contrast(window: Opened) -> float:
    """The least contrast ratio (WCAG) of text and what is behind it."""
    return float(
        window.tab.evaluate(
            """() => {
            const style = getComputedStyle(document.documentElement);
            const light = (name) => {
              const [r, g, b] = style.getPropertyValue(name).trim().slice(1).match(/../g)
                .map(h => parseInt(h, 16) / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
              return .2126 * r + .7152 * g + .0722 * b;
            };
            const ratio = (a, b) => (Math.max(light(a), light(b)) + .05) / (Math.min(light(a), light(b)) + .05);
            return Math.min(ratio('--text', '--ground'), ratio('--text', '--panel'), ratio('--soft', '--ground'),
                            ratio('--on-accent', '--accent'));
            }"""
        )
    )
