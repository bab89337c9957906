"""Publishing against a server on this machine that stands in for the hub: what arrives, what is never sent, one clear error."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants

from tests.conftest import llama
from titer.core.errors import TiterError
from titer.data.world import World
from titer.integrations.publish import contents, push

TOKEN = "hf_sentinelOfThisTest"
Reply = tuple[int, Any, dict[str, str]]


class Hub(ThreadingHTTPServer):
    """The hub's few addresses that a push asks; `faults` are answers given instead, by the end of the path asked."""

    def __init__(self, faults: dict[str, Reply], existing: bool | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.private = faults, existing
        self.exists = existing is not None
        self.asked: list[tuple[str, str, Any, str]] = []
        self.large = ""  # files of this kind go by the protocol of large files
        self.put: dict[str, bytes] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str, body: Any) -> Reply:
        for end, reply in self.faults.items():
            if path.endswith(end):
                return reply
        if path == "/api/repos/create":
            return self.create(body)
        if path == "/api/models/me/model" and not self.exists:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        found = {
            "/api/models/me/model": {"id": "me/model", "private": self.private},
            "/api/validate-yaml": {"errors": [], "warnings": []},
            "/api/models/me/model/commit/main": {"commitUrl": f"{self.url}/me/model/commit/1", "commitOid": "1" * 40},
        }
        if path.endswith("/preupload/main"):
            modes = {f["path"]: "lfs" if self.large and f["path"].endswith(self.large) else "regular" for f in body["files"]}
            found[path] = {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]}
        if path == "/me/model.git/info/lfs/objects/batch":
            found[path] = {"objects": [{**o, "actions": {"upload": {"href": f"{self.url}/put/{o['oid']}"}}} for o in body["objects"]]}
        return (200, found[path], {}) if path in found else (404, {"error": f"no {path}"}, {})

    def create(self, body: Any) -> Reply:
        url = f"{self.url}/{body['organization']}/{body['name']}"
        if self.exists:
            return 409, {"error": "You already created this model repo", "url": url}, {}
        self.exists, self.private = True, body["visibility"] == "private"
        return 200, {"url": url}, {}

    def received(self) -> dict[str, bytes]:
        """The files of the one commit."""
        (body,) = (body for _, path, body, _ in self.asked if path.endswith("/commit/main"))
        return {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in body if line["key"] == "file"}


class Handler(BaseHTTPRequestHandler):
    server: Hub  # type: ignore[assignment]

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in raw.splitlines()]
        self.reply(lines if "ndjson" in self.headers["Content-Type"] else lines[0])

    def do_GET(self) -> None:
        self.reply(None)

    def do_PUT(self) -> None:
        self.server.put[self.path.removeprefix("/put/")] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.faults.get("/put", (200,))[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def reply(self, body: Any) -> None:
        path = self.path.split("?")[0]
        with self.server.lock:
            self.server.asked.append((self.command, path, body, self.headers.get("authorization", "")))
        status, content, headers = self.server.answer(path, body)
        sent = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(sent)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def hub(faults: dict[str, Reply] | None = None, existing: bool | None = None) -> Iterator[Hub]:
    server = Hub(faults or {}, existing)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        close_session()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token and no file of the machine's user; the client may ask, and does not wait between its tries."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no" / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no" / "tokens"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


@pytest.fixture(scope="module")
def saved(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    llama(world).save(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n", encoding="utf-8")
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_every_byte_of_the_model_arrives_and_nothing_else(model: Path) -> None:
    (model / "notes.txt").write_text("mine")
    (model / ".env").write_text("secret")
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("secret")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    (model / "old").mkdir()
    (model / "old" / "config.json").write_text("{}")
    shutil.copy(model / "model.safetensors", model / "old" / "model.safetensors")
    told: list[str] = []
    with hub() as server:
        found = push(model, "me/model", token=TOKEN, endpoint=server.url, tell=told.append)
        received = server.received()
    expected = {p.name for p in model.iterdir() if p.is_file()} - {"notes.txt", ".env"} | {"additional_chat_templates/tools.jinja"}
    assert set(received) == set(found.files) == expected
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= expected
    assert all(received[name] == (model / name).read_bytes() for name in expected)
    assert found.left_out == ("notes.txt", "old/config.json", "old/model.safetensors")
    assert (found.url, found.private) == (f"{server.url}/me/model", True)
    assert [path for _, path, _, _ in server.asked] == [
        "/api/repos/create",
        "/api/models/me/model",
        "/api/validate-yaml",
        "/api/models/me/model/preupload/main",
        "/api/models/me/model/commit/main",
    ]
    assert server.asked[0][2] == {"name": "model", "organization": "me", "visibility": "private", "type": "model"}
    assert {token for *_, token in server.asked} == {f"Bearer {TOKEN}"}
    assert told == [f"sending {len(expected)} files, {sum((model / name).stat().st_size for name in expected) / 1e6:.1f} MB"]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the library's own, in its older protocol
def test_large_files_arrive_whole_by_their_own_protocol(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    with hub() as server:
        server.large = ".safetensors"
        push(model, "me/model", token=TOKEN, endpoint=server.url)
    whole = (model / "model.safetensors").read_bytes()
    assert server.put == {hashlib.sha256(whole).hexdigest(): whole}
    (commit,) = (body for _, path, body, _ in server.asked if path.endswith("/commit/main"))
    (line,) = (line["value"] for line in commit if line["key"] == "lfsFile")
    assert line == {"path": "model.safetensors", "algo": "sha256", "oid": hashlib.sha256(whole).hexdigest(), "size": len(whole)}
    assert "model.safetensors" not in server.received()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_large_file_that_is_refused_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    with hub({"/put": (403, {}, {})}) as server:
        server.large = ".safetensors"
        with pytest.raises(TiterError, match="may not write to me/model"):
            push(model, "me/model", token=TOKEN, endpoint=server.url)


def test_a_public_repository_is_made_where_that_is_said(model: Path) -> None:
    with hub() as server:
        assert push(model, "me/model", private=False, token=TOKEN, endpoint=server.url).private is False
    assert server.asked[0][2]["visibility"] == "public"


@pytest.mark.parametrize("private", [True, False])
def test_a_private_repository_that_exists_is_added_to(model: Path, private: bool) -> None:
    with hub(existing=True) as server:
        assert push(model, "me/model", private, TOKEN, server.url).private
        assert "model.safetensors" in server.received()


@pytest.mark.parametrize("status", [402, 403])
def test_a_token_that_may_write_but_not_create_is_enough_for_a_repository_that_exists(model: Path, status: int) -> None:
    with hub({"/create": (status, {"error": "no"}, {})}, existing=True) as server:
        push(model, "me/model", token=TOKEN, endpoint=server.url)
        assert "model.safetensors" in server.received()


def test_nothing_goes_to_a_public_repository_where_a_private_one_was_meant(model: Path) -> None:
    with hub(existing=False) as server, pytest.raises(TiterError, match=r"exists and is public.*private=False"):
        push(model, "me/model", token=TOKEN, endpoint=server.url)
    assert [path for _, path, _, _ in server.asked] == ["/api/repos/create", "/api/models/me/model"]
    with hub(existing=False) as server:
        assert push(model, "me/model", False, TOKEN, server.url).private is False


def test_a_token_of_the_environment_is_used_and_a_missing_one_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub() as server:
        with pytest.raises(TiterError, match=r"no token of the Hugging Face hub is set.*hf auth login.*HF_TOKEN"):
            push(model, "me/model", endpoint=server.url)
        assert server.asked == []
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        push(model, "me/model", endpoint=server.url)
    assert {token for *_, token in server.asked} == {f"Bearer {TOKEN}"}


GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
INVALID = {"X-Error-Message": "Invalid credentials in Authorization header"}


@pytest.mark.parametrize(
    ("end", "reply", "word", "status"),
    [
        ("/create", (401, {"error": f"bad {TOKEN}"}, INVALID), r"does not accept this token.*\(token\).*hf auth login", 2),
        ("/create", (403, {"error": "no rights in me"}, {}), r"may not write to me/model.*no rights in me.*token's rights", 2),
        ("/create", (402, {"error": "private storage"}, {}), r"may not write to me/model.*private storage", 2),
        ("/create", (500, {"error": "oh"}, {}), r"the hub failed.*500.*run the same command again later", 1),
        ("/create", (500, b"<html>", {}), r"the hub failed.*500", 1),
        ("/create", (429, {"error": "slow down"}, {}), r"the hub failed.*429.*slow down", 1),
        ("/create", (200, b"not json", {}), r"was not published \(JSONDecodeError", 1),
        ("me/model", (403, {"error": "x"}, GATED), r"me/model is gated.*ask for access at https://huggingface.co/me/model", 2),
        ("me/model", (404, {"error": "x"}, {"X-Error-Code": "RepoNotFound"}), r"has no me/model, or this token may not see it", 2),
        (
            "/validate-yaml",
            (400, {"errors": [{"message": "license x"}]}, {}),
            r"does not take the header of README.md.*license x.*mend it",
            2,
        ),
        ("/validate-yaml", (502, b"<html>", {}), r"was not published", 1),
        ("/preupload/main", (503, {"error": "busy"}, {}), r"the hub failed.*503.*not sent twice", 1),
        ("/commit/main", (403, {"error": "read only"}, {}), r"may not write to me/model.*read only", 2),
        ("/commit/main", (500, {"error": "oh\x1b[2J"}, {}), r"the hub failed.*500", 1),
        ("/commit/main", (413, {"error": "too large"}, {}), r"the hub refused me/model \(413.*too large", 2),
    ],
)
def test_trouble_with_the_hub_is_one_clear_error(model: Path, end: str, reply: Reply, word: str, status: int) -> None:
    with hub({end: reply}) as server, pytest.raises(TiterError, match=word) as raised:
        push(model, "me/model", token=TOKEN, endpoint=server.url)
    assert raised.value.status == status
    assert TOKEN not in str(raised.value)
    assert str(raised.value).isprintable()
    assert raised.value.__suppress_context__  # no traceback of the library, which shows headers


def test_a_hub_that_is_away_or_off_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub() as server:
        pass
    with pytest.raises(TiterError, match=r"could not be reached \(ConnectError.*check the network") as raised:
        push(model, "me/model", token=TOKEN, endpoint=server.url)
    assert raised.value.status == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TiterError, match="switched off by HF_HUB_OFFLINE"):
        push(model, "me/model", token=TOKEN, endpoint=server.url)
    close_session()


@pytest.mark.parametrize("name", ["me/model/x", "model", "me//x", "", "me/mo del", "../x", "me/a..b", "me/a.git", "me/\x1b"])
def test_a_name_that_is_none_is_told_before_the_hub_is_asked(model: Path, name: str) -> None:
    with hub() as server, pytest.raises(TiterError, match=r"is no name of a repository.*OWNER/NAME"):
        push(model, name, token=TOKEN, endpoint=server.url)
    assert server.asked == []


def outside(model: Path, name: str) -> None:
    (model.parent / "elsewhere").write_text("{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(model.parent / "elsewhere")


def folder_outside(model: Path, name: str) -> None:
    (model.parent / "private").mkdir()
    (model / name).symlink_to(model.parent / "private", target_is_directory=True)


def holding(model: Path, name: str) -> None:
    (model / name).parent.mkdir(parents=True, exist_ok=True)
    (model / name).write_text("x")


@pytest.mark.parametrize(
    ("make", "name", "word"),
    [
        *((holding, name, "is a pickle.*safetensors alone") for name in ("a.bin", "x/optimizer.pt", "A.PTH", "s.pkl", "e.ckpt")),
        *((outside, name, "link that leads out of the folder.*cp -rL") for name in ("generation_config.json", "notes")),
        (folder_outside, "more", "link that leads out"),
        *((holding, name, "prompts and answers may be in it") for name in ("samples.jsonl", "report.html", "a/answers.part.jsonl", "DONE")),
        (holding, "samples/key/x", "prompts and answers"),
        (holding, "odd.safetensors", "damaged or cut short"),
        (lambda model, _: (model / "README.md").unlink(), "", "has no README.md.*write one"),
        (lambda model, _: (model / "model.safetensors").unlink(), "", r"no \*.safetensors"),
        (lambda model, _: (model / "config.json").unlink(), "", "is no model"),
        (lambda model, _: shutil.rmtree(model), "", "no folder at"),
    ],
)
def test_what_must_not_be_published_is_refused_before_anything_is_asked(
    model: Path, make: Callable[[Path, str], None], name: str, word: str
) -> None:
    make(model, name)
    with hub() as server, pytest.raises(TiterError, match=word):
        push(model, "me/model", token=TOKEN, endpoint=server.url)
    assert server.asked == []


def test_a_stage_s_folder_is_refused_and_its_model_is_not(model: Path, tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "key"
    shutil.copytree(model, stage / "model")
    (stage / "DONE").write_text("x")
    (stage / "manifest.json").write_text("{}")
    with pytest.raises(TiterError, match="its folder model"):
        contents(stage)
    assert "model.safetensors" in contents(stage / "model").files


def test_links_within_the_folder_and_to_the_folder_are_fine(model: Path, tmp_path: Path) -> None:
    (model / "LICENSE").write_text("mine")
    (model / "LICENSE.txt").symlink_to("LICENSE")
    (tmp_path / "link").symlink_to(model, target_is_directory=True)
    files = contents(tmp_path / "link").files
    assert files["LICENSE.txt"].read_text() == "mine"


def test_an_adapter_is_sent_as_it_is(saved: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(saved)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    assert set(contents(tmp_path / "adapter").files) == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
