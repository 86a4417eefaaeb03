"""`rbvsr models`: weights listed, examined, converted, verified; downloads from a server that fails as servers do."""

import functools
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.app.running import run
from vsrealbasicvsr.app import downloading, models
from vsrealbasicvsr.app.downloading import Download, download
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.weights import DEFAULT_WEIGHTS, load_model, read_network

pytestmark = pytest.mark.long


@pytest.fixture
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = models.models_folder()
    if not folder.is_relative_to(tmp_path):
        pytest.skip("the models folder does not follow XDG_DATA_HOME on this system")
    return folder


# ---- what is there ---------------------------------------------------------------------------------------------------


def test_the_default_weights_and_stored_ones_are_listed_with_what_is_wrong(
    data_home: Path, two_sets: Path, tmp_path: Path
) -> None:
    data_home.mkdir(parents=True)
    (data_home / "mine.safetensors").write_bytes(two_sets.read_bytes())
    (data_home / "bad.pth").write_text("<html>")
    done = run("models", "list", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    rows = {row["name"]: row for row in said["models"]}
    assert [*rows] == ["default", "bad", "mine"]
    assert (rows["default"]["parameters"], rows["default"]["sets"]) == (1_349_864, 2)
    assert rows["default"]["licence"] == "Apache-2.0"
    assert rows["default"]["sha256"] == hashlib.sha256(DEFAULT_WEIGHTS.read_bytes()).hexdigest()
    assert rows["mine"]["default_detail"] == 0.75
    assert "is a web page" in rows["bad"]["problem"]
    assert [one["name"] for one in said["downloadable"]] == ["published"]
    table = run("models", "list").stdout
    assert "mine" in table
    assert "rbvsr models download published" in table
    verified = run("models", "verify")
    assert verified.returncode == 1
    assert [line.split()[:2] for line in verified.stdout.splitlines()] == [
        ["ok", "default:"],
        ["bad", "bad:"],
        ["ok", "mine:"],
    ]
    assert verified.stderr == "rbvsr: 1 of 3 models cannot be used: bad. Get them again\n"
    assert run("models", "verify", "default", "mine").returncode == 0


def test_a_model_is_known_by_its_name_its_path_or_a_word_on_what_to_do(
    data_home: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_home.mkdir(parents=True)
    (data_home / "mine.safetensors").write_bytes(tiny_model.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert models.resolve("default") == "default"
    assert models.resolve("mine") == str(data_home / "mine.safetensors")
    (tmp_path / "mine").write_bytes(tiny_model.read_bytes())
    assert models.resolve("mine") == str(tmp_path / "mine")
    assert models.resolve("no/such.pth") == str(tmp_path / "no" / "such.pth")
    with pytest.raises(UserError, match="rbvsr models download published gets it"):
        models.resolve("published")
    with pytest.raises(UserError, match="rbvsr models list shows them"):
        models.resolve("other")


def test_upscale_takes_the_name_of_a_stored_model(
    data_home: Path, tiny_model: Path, small_clip_file: Path, tmp_path: Path
) -> None:
    data_home.mkdir(parents=True)
    (data_home / "mine.safetensors").write_bytes(tiny_model.read_bytes())
    common = ("--stop", "0.1", "--codec", "ffv1", "--device", "cpu")
    named = run("upscale", small_clip_file, tmp_path / "named.mkv", "--model", "mine", *common)
    assert named.returncode == 0, named.stderr
    wrong = run("upscale", small_clip_file, tmp_path / "wrong.mkv", "--model", "yours", *common)
    assert wrong.returncode == 1
    assert "no stored model 'yours'" in wrong.stderr


def test_info_says_what_weights_are(two_sets: Path) -> None:
    said = json.loads(run("models", "info", two_sets, "--json").stdout)
    assert (said["sets"], said["default_detail"], said["licence"]) == (2, 0.75, "not stated")
    assert said["architecture"]["mid_channels"] == 8
    assert said["parameters"] == sum(parameter.numel() for parameter in load_model(two_sets).parameters())
    text = run("models", "info", "default").stdout
    assert "licence:         Apache-2.0" in text
    assert all(len(line) < 1000 for line in text.splitlines())


def test_convert_writes_the_same_network_and_does_not_overwrite(tiny_model: Path, tmp_path: Path) -> None:
    tensors = {f"generator_ema.{name}": tensor for name, tensor in load_model(tiny_model).state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "in.pth")
    command = ("models", "convert", tmp_path / "in.pth", tmp_path / "out.safetensors", "--licence", "CC0")
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert "EMA" in done.stdout
    stored = read_network(tmp_path / "out.safetensors")
    assert stored.metadata["licence"] == "CC0"
    for name, tensor in load_model(tiny_model).state_dict().items():
        assert torch.equal(stored.tensors[name], tensor)
    again = run(*command)
    assert (again.returncode, "use --overwrite to replace it" in again.stderr) == (1, True)
    assert run(*command, "--overwrite").returncode == 0
    wrong = run("models", "convert", tmp_path / "none.pth", tmp_path / "x.safetensors")
    assert (wrong.returncode, wrong.stderr.count("\n"), "does not exist" in wrong.stderr) == (1, 1, True)


# ---- downloads -------------------------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 4000


@dataclass
class Server:
    """What a server sends, and what it was asked for."""

    content: bytes = CONTENT
    takes_ranges: bool = True
    cuts_after: list[int] = field(default_factory=list)
    """Bytes of each answer before the connection is cut; after these, whole answers."""
    statuses: list[int] = field(default_factory=list)
    """Of the first answers."""
    asked: list[str] = field(default_factory=list)
    url: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, server_state: Server, *arguments: Any) -> None:
        self.state = server_state
        super().__init__(*arguments)

    def do_GET(self) -> None:
        state, wanted = self.state, self.headers.get("Range", "")
        state.asked.append(wanted)
        if state.statuses:
            self.send_error(state.statuses.pop(0))
            return
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.takes_ranges else 0
        if first >= len(state.content):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(state.content) - 1}/{len(state.content)}")
        rest = state.content[first:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: state.cuts_after.pop(0)] if state.cuts_after else rest)
        self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloading, "PAUSE_SECONDS", 0.0)
    state = Server()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, state)) as listening:
        state.url = f"http://127.0.0.1:{listening.server_port}/weights.pth"
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield state
        listening.shutdown()
        thread.join()


def wanted(server: Server, content: bytes = CONTENT) -> Download:
    return Download(url=server.url, sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content))


def test_a_download_is_whole(server: Server, tmp_path: Path) -> None:
    counts: list[int] = []
    download(wanted(server), tmp_path / "sub" / "weights.pth", counts.append)
    assert (tmp_path / "sub" / "weights.pth").read_bytes() == CONTENT
    assert counts == sorted(counts)
    assert counts[-1] == len(CONTENT)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["weights.pth"]


def test_connections_that_are_cut_off_cost_nothing_that_was_sent(server: Server, tmp_path: Path) -> None:
    server.cuts_after = [300_000, 1, 0, 200_000]
    server.statuses = [503]
    download(wanted(server), tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    firsts = [int(text.removeprefix("bytes=").rstrip("-") or 0) for text in server.asked]
    assert firsts == [0, 0, 300_000, 300_001, 300_001, 500_001]


def test_a_download_goes_on_in_another_process(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(CONTENT[:700_000])
    download(wanted(server), tmp_path / "weights.pth")
    assert server.asked == ["bytes=700000-"]
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_a_server_without_parts_begins_anew(server: Server, tmp_path: Path) -> None:
    server.takes_ranges, server.cuts_after = False, [500_000]
    download(wanted(server), tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "content", [CONTENT[:-1] + b"!", CONTENT + b"more", b"<html>404"], ids=["other", "longer", "short"]
)
def test_another_file_never_stands_under_the_name(server: Server, tmp_path: Path, content: bytes) -> None:
    server.content = content
    with pytest.raises(UserError, match=r"brought another file|cannot be downloaded"):
        download(wanted(server), tmp_path / "weights.pth")
    assert not (tmp_path / "weights.pth").exists()
    server.content = CONTENT
    download(wanted(server), tmp_path / "weights.pth")  # what it left does no harm
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(("statuses", "said"), [([404], "404"), ([503] * 9, "503")])
def test_a_server_that_refuses_is_named_in_one_line(
    server: Server, tmp_path: Path, statuses: list[int], said: str
) -> None:
    server.statuses = statuses
    with pytest.raises(UserError, match=said) as caught:
        download(wanted(server), tmp_path / "weights.pth")
    assert "\n" not in str(caught.value)
    assert server.url in str(caught.value)


def test_a_server_that_is_not_there_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "PAUSE_SECONDS", 0.0)
    nowhere = Download(url="http://127.0.0.1:9/weights.pth", sha256="0" * 64, num_bytes=10)
    with pytest.raises(UserError, match="it goes on where it was"):
        download(nowhere, tmp_path / "weights.pth")


def test_published_weights_are_downloaded_and_converted(
    server: Server, data_home: Path, tiny_model: Path, tmp_path: Path
) -> None:
    tensors = {f"generator_ema.{name}": tensor for name, tensor in load_model(tiny_model).state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "in.pth")
    server.content = (tmp_path / "in.pth").read_bytes()
    server.cuts_after = [1000]
    one = models.Published(
        download=wanted(server, server.content), title="tiny", licence="CC0", page="https://example.org"
    )
    made = models.download_model("tiny", keep_checkpoint=False, published={"tiny": one})
    assert [path.name for path in data_home.iterdir()] == ["tiny.safetensors"]
    assert made == data_home / "tiny.safetensors"
    assert read_network(made).metadata["licence"] == "CC0"
    assert models.resolve("tiny") == str(made)
    with pytest.raises(UserError, match="rbvsr models verify tiny"):
        models.download_model("tiny", keep_checkpoint=False, published={"tiny": one})
    made.unlink()
    server.statuses = [403]
    with pytest.raises(UserError, match=r"in a browser, see https://example\.org, and run rbvsr models convert FILE"):
        models.download_model("tiny", keep_checkpoint=False, published={"tiny": one})
    models.download_model("tiny", keep_checkpoint=True, published={"tiny": one})
    assert {path.name for path in data_home.glob("tiny.*") if path.suffix != ".lock"} == {
        "tiny.pth",
        "tiny.safetensors",
    }


def test_what_is_published_is_named_alike_in_both_tables() -> None:
    from vsrealbasicvsr.weights import published_name

    for one in models.PUBLISHED.values():
        name = published_name(one.download.sha256)
        assert name is not None
        assert one.download.url.rpartition("/")[2] in name
        assert one.download.url.startswith("https://")
