"""What a registry must not be able to do to those who pull from it or publish to it."""

from __future__ import annotations

import base64
import contextlib
import errno
import gzip
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import First, command, environment
from hypothesis import given
from hypothesis import strategies as st
from security.hostile_registry import Got, Hostile, Reply, hostile

from compiler.errors import ConfigError, IntegrityError, StepError
from compiler.registries import GO_ON, Broken, connect, credentials, http, oci, patience, seen, timed, upload
from compiler.registries.addresses import check_reachable, range_of
from compiler.registries.http import Http, origin_of, retry_after
from compiler.registries.layout import Layout
from compiler.registries.oci import Image, describe, digest_of
from compiler.registries.patience import Patience
from compiler.registries.reference import Reference, parse
from compiler.registries.remote import Remote
from compiler.registries.sign_in import challenges
from compiler.registries.transfer import Layer, Meter, _stream, fetch, read_small, resolve, send, silent
from compiler.runtime.fetch import pull, versions

CANARY = "what nobody may read or change"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this user's credentials nor what was pulled before; no waiting for what is down."""
    (tmp_path / "home").mkdir()
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def registry() -> Iterator[Hostile]:
    """A registry that does as the test says."""
    with hostile() as running:
        yield running


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that must be as it was at the end."""
    file = tmp_path / "canary"
    file.write_text(CANARY)
    yield file
    assert file.read_text() == CANARY


def reference(registry: Hostile, rest: str = ":one") -> Reference:
    """Its only repository."""
    return parse(f"oci://{registry.host}/one{rest}")


def image(*layers: tuple[str, bytes], **changes: Any) -> tuple[bytes, dict[str, bytes]]:
    """A manifest of layers, and the blobs by digest."""
    blobs = {digest_of(data): data for _, data in layers}
    described = [describe(data, "application/octet-stream", name) for name, data in layers]
    record = json.loads(oci.encode(described, {}))
    return json.dumps({**record, **changes}).encode(), blobs


def serve(registry: Hostile, manifest: bytes, blobs: dict[str, bytes]) -> None:
    """Lets the registry hold an image under the tag `one`."""
    registry.replies["GET /v2/one/manifests/"] = 200, {}, manifest
    for digest, data in blobs.items():
        registry.replies[f"GET /v2/one/blobs/{digest}"] = 200, {}, data


def refused(registry: Hostile, out: Path, match: str) -> None:
    """Pulls, and expects an integrity error that leaves nothing."""
    with pytest.raises(IntegrityError, match=match):
        pull(reference(registry), out)
    assert not out.exists()
    partial = out.with_name(f".{out.name}.partial")
    assert not partial.exists() or not any(partial.iterdir())


# -- names and sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../canary", "/tmp/canary", "a/../../canary", ".git/config", ".hidden", "a\\..\\canary", "a//b", "a/", "",
     "..", "con\x00trol", "a\nb", "%2e%2e/canary", "ünicode", "~root", "a" * 300, "-rf"],
)  # fmt: skip
def test_name_that_is_not_plain_is_refused(registry: Hostile, tmp_path: Path, canary: Path, name: str) -> None:
    serve(registry, *image(("manifest.json", b"{}"), (name, b"overwritten")))
    refused(registry, tmp_path / "deep" / "out", "manifest of .* is none")
    assert not any(path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"overwritten")


@pytest.mark.parametrize("names", [("a", "a"), ("a", "A"), ("a", "a/b"), ("a/b", "A/c")])
def test_names_that_cannot_lie_side_by_side_are_refused(
    registry: Hostile, tmp_path: Path, names: tuple[str, str]
) -> None:
    serve(registry, *image(("manifest.json", b"{}"), (names[0], b"1"), (names[1], b"2")))
    refused(registry, tmp_path / "out", "manifest of .* is none")


@pytest.mark.parametrize(
    "manifest",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"schemaVersion": 2, "schemaVersion": 2, "artifactType": "' + oci.ARTIFACT_TYPE.encode() + b'"}',
        image(("manifest.json", b"{}"), layers=[])[0].replace(b'"layers": []', b'"layers": [[]]'),
        image(("manifest.json", b"{}"))[0].replace(b'"size": 2', b'"size": -2'),
        image(("manifest.json", b"{}"))[0].replace(b'"size": 2', b'"size": true'),
        image(("manifest.json", b"{}"))[0].replace(b'"size": 2', b'"size": 1e400'),
        image(("manifest.json", b"{}"))[0].replace(b"sha256:", b"sha1:"),
        image(("manifest.json", b"{}"), layers=[{}] * 1001)[0],
        b"x" * (oci.MAX_MANIFEST_BYTES + 1),
    ],
    ids=range(10),
)
def test_malformed_manifest_is_refused(registry: Hostile, tmp_path: Path, manifest: bytes) -> None:
    registry.replies["GET /v2/one/manifests/"] = 200, {}, manifest
    refused(registry, tmp_path / "out", "manifest of .* is|answers with more than")


def test_what_is_no_artifact_of_ours_is_said_to_be_that(registry: Hostile, tmp_path: Path) -> None:
    index = {"schemaVersion": 2, "mediaType": oci.INDEX_TYPE, "manifests": []}
    registry.replies["GET /v2/one/manifests/"] = 200, {}, json.dumps(index).encode()
    with pytest.raises(ConfigError, match=r"no artifact of this compiler but 'application/vnd\.oci\.image\.index"):
        pull(reference(registry), tmp_path / "out")


def test_manifest_that_is_not_the_pinned_one_is_refused(registry: Hostile, tmp_path: Path) -> None:
    serve(registry, *image(("manifest.json", b"{}")))
    with pytest.raises(IntegrityError, match="gives sha256:"):
        pull(reference(registry, "@sha256:" + "0" * 64), tmp_path / "out")


def test_blob_without_an_end_stops_at_its_announced_size_in_bounded_memory(registry: Hostile, tmp_path: Path) -> None:
    manifest, blobs = image(("manifest.json", b"{}"), ("model.bin", b"x" * 1000))
    serve(registry, manifest, blobs)
    sent = []

    def endless() -> Iterator[bytes]:
        while True:
            sent.append(1)
            yield b"\0" * (1 << 20)

    registry.replies[f"GET /v2/one/blobs/{digest_of(b'x' * 1000)}"] = lambda _got: (200, {}, endless())
    refused(registry, tmp_path / "out", "model.bin does not match its digest")
    assert len(sent) < 100


def test_artifact_larger_than_allowed_is_not_begun(registry: Hostile, tmp_path: Path) -> None:
    manifest = image(("manifest.json", b"{}"))[0].replace(b'"size": 2', b'"size": 90000000000')
    registry.replies["GET /v2/one/manifests/"] = 200, {}, manifest
    done = command("pull", str(reference(registry)), tmp_path / "out")
    assert done.code == 2
    assert "more than the 64,000,000,000 that are allowed" in done.last_lines()[1]
    done = command("pull", str(reference(registry)), tmp_path / "out", "--max-bytes", "1000TB")
    assert done.code == 5
    assert "no space left" in done.last_lines()[1]
    assert not any("/blobs/" in got.path for got in registry.got)


def test_compressed_answers_and_archives_are_never_unpacked(registry: Hostile, tmp_path: Path, canary: Path) -> None:
    bomb = gzip.compress(b"\0" * (64 << 20))
    manifest, blobs = image(("manifest.json", b"{}"), ("model.bin", b"\0" * (64 << 20)))
    serve(registry, manifest, blobs)
    registry.replies[f"GET /v2/one/blobs/{digest_of(bytes(64 << 20))}"] = 200, {"Content-Encoding": "gzip"}, bomb
    refused(registry, tmp_path / "out", "model.bin does not match its digest")

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, kind, link in (("../canary", tarfile.REGTYPE, ""), ("link", tarfile.SYMTYPE, str(canary))):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            archive.addfile(member)
    manifest, blobs = image(("manifest.json", b"{}"), ("layer.tar.gz", packed.getvalue()))
    manifest = manifest.replace(b"application/octet-stream", b"application/vnd.oci.image.layer.v1.tar+gzip")
    serve(registry, manifest, blobs)
    refused(registry, tmp_path / "out", "manifest")


def test_memory_stays_small_whatever_the_size_of_a_file(registry: Hostile, tmp_path: Path) -> None:
    size = 300 << 20
    manifest = image(("manifest.json", b"{}"), ("model.bin", b"1"))[0]
    digest = digest_of(b"1")
    manifest = manifest.replace(b'"size": 1,', f'"size": {size},'.encode())
    registry.replies["GET /v2/one/manifests/"] = 200, {}, manifest
    serve(registry, manifest, {digest_of(b"{}"): b"{}"})
    registry.replies[f"GET /v2/one/blobs/{digest}"] = lambda _got: (
        200, {}, (bytes(1 << 20) for _ in range(300)),
    )  # fmt: skip
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (600 << 20,) * 2)\n"
        "from compiler.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "pull", str(reference(registry)), str(tmp_path / "out")],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert "model.bin does not match its digest" in done.stderr


# -- where it leads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    ["http://169.254.169.254/latest/meta-data", "https://169.254.169.254/", "https://10.0.0.1/", "https://192.168.1.1/x",
     "https://[fd00::1]/", "https://[::ffff:10.0.0.1]/", "https://100.64.0.1/", "https://0.0.0.0/", "file:///etc/passwd",
     "http://example.com/", "ftp://127.0.0.1/", "https://user:pw@127.0.0.1/", "//169.254.169.254/x"],
)  # fmt: skip
def test_redirect_out_of_the_registrys_own_network_is_not_followed(
    registry: Hostile, tmp_path: Path, place: str
) -> None:
    manifest, _ = image(("manifest.json", b"{}"))
    registry.replies["GET /v2/one/manifests/"] = 200, {}, manifest
    registry.replies["GET /v2/one/blobs/"] = 307, {"Location": place}, b""
    refused(registry, tmp_path / "out", "leads to|without TLS")


def test_redirects_without_end_are_not_followed_on(registry: Hostile, tmp_path: Path) -> None:
    registry.replies["GET /v2/one/"] = 307, {"Location": "/v2/one/more"}, b""
    refused(registry, tmp_path / "out", "leads on and on")
    assert len(registry.got) < 20


def basic(registry: Hostile, folder: Path, monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Keeps the credentials planted:secret for hosts, and lets the registry ask for them."""
    kept = {host: {"auth": base64.b64encode(b"planted:secret").decode()} for host in hosts}
    (folder / "docker").mkdir()
    (folder / "docker/config.json").write_text(json.dumps({"auths": kept}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder / "docker"))


def asking(challenge: str, otherwise: Reply) -> Callable[[Got], Reply]:
    """Answers 401 until the request has credentials."""

    def reply(got: Got) -> Reply:
        if "Authorization" in got.headers:
            return otherwise
        return 401, {"WWW-Authenticate": challenge}, b""

    return reply


def test_credentials_do_not_follow_a_redirect_to_another_origin(
    registry: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    basic(registry, tmp_path, monkeypatch, registry.host)
    with hostile() as other:
        manifest, _ = image(("manifest.json", b"{}"))
        registry.replies["GET /v2/one/manifests/"] = asking('Basic realm="x"', (200, {}, manifest))
        registry.replies["GET /v2/one/blobs/"] = 307, {"Location": f"http://{other.host}/stored"}, b""
        other.replies["GET /stored"] = 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""
        with pytest.raises(StepError):
            pull(reference(registry), tmp_path / "out")
        assert any("Authorization" in got.headers for got in registry.got)
        assert other.got
        assert not any("Authorization" in got.headers for got in other.got)


def test_credentials_are_not_given_to_a_token_service_of_another_origin(
    registry: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hostile() as other:
        basic(registry, tmp_path, monkeypatch, registry.host)
        challenge = f'Bearer realm="http://{other.host}/token",service="x"'
        registry.replies["GET /v2/one/"] = asking(challenge, (404, {}, b""))
        other.replies["GET /token"] = 401, {}, b""
        with pytest.raises(ConfigError, match=f"no credentials for it|{other.host}, where .* asks for credentials"):
            pull(reference(registry), tmp_path / "out")
        assert [got.path.partition("?")[0] for got in other.got] == ["/token"]
        assert not any("Authorization" in got.headers for got in other.got)


def test_anonymous_token_of_another_host_that_is_refused_is_an_error_that_names_the_host(
    registry: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hostile() as other:
        basic(registry, tmp_path, monkeypatch, registry.host)
        challenge = f'Bearer realm="http://{other.host}/token"'
        registry.replies["GET /v2/one/"] = 401, {"WWW-Authenticate": challenge}, b""
        other.replies["GET /token"] = 200, {}, b'{"token": "anonymous"}'
        with pytest.raises(ConfigError, match=f"no credentials are kept for {other.host}") as caught:
            connect(reference(registry)).tags()
        assert f"if you trust {other.host}, keep credentials" in caught.value.fix


def test_token_is_fetched_with_the_credentials_of_its_own_origin(
    registry: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hostile() as other:
        basic(registry, tmp_path, monkeypatch, other.host)
        registry.replies["GET /v2/one/tags/"] = asking(
            f'Bearer realm="http://{other.host}/token",service="svc",scope="any"', (200, {}, b'{"tags": ["v1"]}')
        )
        other.replies["GET /token"] = 200, {}, b'{"token": "short-lived"}'
        assert connect(reference(registry)).tags() == ["v1"]
        assert "scope=repository%3Aone%3Apull" in other.got[0].path
        assert other.got[0].headers["Authorization"].startswith("Basic ")
        assert registry.got[-1].headers["Authorization"] == "Bearer short-lived"


def test_token_service_in_another_network_is_not_asked(registry: Hostile, tmp_path: Path) -> None:
    registry.replies["GET /v2/one/"] = 401, {"WWW-Authenticate": 'Bearer realm="https://169.254.169.254/token"'}, b""
    refused(registry, tmp_path / "out", "leads to 169.254.169.254, which is a link-local address")


@pytest.mark.parametrize(
    "foreign", ["http://{other}/upload", "https://example.com/upload", "http://127.0.0.1:1/upload"]
)
def test_upload_is_not_sent_where_a_foreign_location_says(registry: Hostile, tmp_path: Path, foreign: str) -> None:
    with hostile() as other:
        location = foreign.format(other=other.host)
        registry.replies["POST /v2/one/blobs/uploads/"] = 202, {"Location": location}, b""
        with pytest.raises(IntegrityError, match="wants the artifact sent to"):
            send(
                connect(reference(registry), writing=True), [Layer("one", "text/plain", b"secret weights")], {}, ["one"]
            )
        assert not other.got
        assert not any(b"secret weights" in got.body for got in registry.got)


def test_tags_are_listed_from_the_registry_itself_page_by_page(registry: Hostile) -> None:
    with hostile() as other:
        link = {"Link": f'<http://{other.host}/v2/one/tags/list?last=b>; rel="next"'}
        registry.replies["GET /v2/one/tags/list"] = 200, link, json.dumps({"tags": ["a", "../b", 7, "b"]}).encode()
        registry.replies["GET /v2/one/tags/list?n=1000&last=b"] = 200, {}, b'{"tags": ["c"]}'
        assert connect(reference(registry)).tags() == ["a", "b", "c"]
        assert not other.got


def test_history_of_a_registry_does_not_steer_the_terminal(registry: Hostile) -> None:
    nasty = "\x1b]0;owned\x07\x1b[2J"
    manifest = image(
        ("manifest.json", b"{}"),
        annotations={"org.opencontainers.image.version": nasty, "target-model-compiler.model": nasty},
    )[0]
    registry.replies["GET /v2/one/tags/list"] = 200, {}, b'{"tags": ["one"]}'
    registry.replies["GET /v2/one/manifests/"] = 200, {}, manifest
    done = command("history", f"oci://{registry.host}/one")
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    assert versions(connect(reference(registry)))[0]["version"] == nasty


def test_what_a_registry_says_is_shortened_and_made_printable(registry: Hostile) -> None:
    error = json.dumps({"errors": [{"code": "DENIED", "message": "\x1b[31m" + "x" * 5000}]}).encode()
    registry.replies["GET /v2/one/manifests/"] = 418, {}, error
    done = command("pull", str(reference(registry)), "nowhere")
    assert done.code == 5
    assert "HTTP 418: DENIED" in done.err
    assert "\x1b" not in done.err
    assert max(map(len, done.err.splitlines())) < 400


def test_host_other_than_this_machine_is_never_asked_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def no_connection(address: tuple[str, int], *_: object, **__: object) -> None:
        asked.append(address)
        raise ConnectionResetError

    monkeypatch.setattr("socket.create_connection", no_connection)
    monkeypatch.setattr("compiler.registries.addresses.resolve", lambda _host, _port: ["93.184.215.14"])
    monkeypatch.setattr("compiler.registries.patience.Patience.wait", lambda _self, error: (_ for _ in ()).throw(error))
    with pytest.raises(Broken):
        connect(parse("oci://registry.test/one")).tags()
    assert {port for _, port in asked} == {443}


# -- when it stalls, races and breaks off -----------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience that lasts for a second."""
    monkeypatch.setattr(Patience.__init__, "__defaults__", (1.0,))


def stalled(first: bytes) -> Iterator[bytes]:
    """Some bytes, and then none for a long time."""
    yield first
    time.sleep(30)


@pytest.mark.parametrize("verb", ["pull", "publish", "manifest"])
def test_ctrl_c_ends_a_transfer_that_waits_for_the_registry_at_once(
    registry: Hostile, tmp_path: Path, first: First, verb: str
) -> None:
    manifest, blobs = image(("manifest.json", b"{}" * 500), *((f"file{n}", b"%d" % n * 1000) for n in range(6)))
    serve(registry, manifest, blobs)
    for digest, data in blobs.items():
        length = {"Content-Length": str(len(data))}
        registry.replies[f"GET /v2/one/blobs/{digest}"] = lambda _got, length=length: (200, length, stalled(b"1"))
    registry.replies["POST /v2/one/blobs/uploads/"] = lambda _got: (202, {}, stalled(b""))
    arguments = ["pull", str(reference(registry)), str(tmp_path / "out")]
    awaited = "GET /v2/one/blobs/"
    if verb == "publish":
        del registry.replies["GET /v2/one/manifests/"]
        folder = first.project.artifacts / "nullmodel/nulltarget/latest"
        arguments, awaited = ["publish", str(folder), f"oci://{registry.host}/one"], "POST"
    if verb == "manifest":
        registry.replies["GET /v2/one/manifests/"] = lambda _got: (200, {}, stalled(b"{"))
        awaited = "GET /v2/one/manifests/"
    process = subprocess.Popen(
        [sys.executable, "-m", "compiler", *arguments], env=environment(), stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 30
    while not any(f"{got.method} {got.path}".startswith(awaited) for got in registry.got):
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[1]
    assert time.monotonic() - began < 2
    assert process.returncode == 130, said
    assert "Traceback" not in said


def test_error_of_one_file_wakes_the_others_that_stall(registry: Hostile, tmp_path: Path) -> None:
    manifest, blobs = image(("manifest.json", b"{}"), ("bad", b"bad"), ("slow", b"slow"))
    serve(registry, manifest, blobs)
    registry.replies[f"GET /v2/one/blobs/{digest_of(b'slow')}"] = lambda _got: (200, {}, stalled(b"s"))
    registry.replies[f"GET /v2/one/blobs/{digest_of(b'bad')}"] = lambda _got: (200, {}, slowly(b"not"))
    began = time.monotonic()
    refused(registry, tmp_path / "out", "bad does not match its digest")
    assert time.monotonic() - began < 2


def slowly(data: bytes) -> Iterator[bytes]:
    """The bytes, a moment later."""
    time.sleep(0.3)
    yield data


def test_stall_is_tried_again_from_where_it_was(
    registry: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert timed.ANSWER_S * 2 <= patience.PATIENCE_S
    monkeypatch.setattr(Http.ask, "__defaults__", (0.3,))
    monkeypatch.setattr(Remote.ask, "__defaults__", (None, None, False, 0.3))
    monkeypatch.setattr(patience, "QUIET_S", 0.2)
    data = b"0123456789"
    blob = describe(data, "text/plain", "model.bin")

    def reply(got: Got) -> Reply:
        start = int(got.headers.get("Range", "bytes=0-")[6:-1])
        if not start:
            return 200, {"Content-Length": "10"}, stalled(data[:4])
        return 206, {"Content-Range": f"bytes {start}-9/10"}, data[start:]

    registry.replies["GET /v2/one/blobs/"] = reply
    assert read_small(connect(reference(registry)), blob, 10) == data
    assert registry.got[-1].headers["Range"] == "bytes=4-"


def test_what_is_waited_for_is_said_once(
    registry: Hostile, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "QUIET_S", 0.1)
    registry.replies["GET /v2/one/tags/"] = 503, {}, b""
    with pytest.raises(StepError, match="cannot be reached: HTTP 503"):
        connect(reference(registry)).tags()
    assert [record.message for record in caplog.records] == [f"waiting for {registry.host}: HTTP 503"]


@pytest.mark.parametrize("confirmed", [False, True])
def test_upload_that_is_begun_and_lost_again_and_again_ends(
    registry: Hostile, impatient: None, monkeypatch: pytest.MonkeyPatch, confirmed: bool
) -> None:
    monkeypatch.setattr(upload, "UPLOAD_CHUNK", 4)
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    registry.replies["POST /v2/one/blobs/uploads/"] = 202, {"Location": "/v2/one/blobs/uploads/u"}, b""
    registry.replies["PATCH "] = (202 if confirmed else 404), {}, b""
    registry.replies["PUT "] = 404, {}, b""
    with pytest.raises(StepError, match=r"has lost one 10 times|cannot be reached: the registry lost the thread"):
        send(connect(reference(registry), writing=True), [Layer("one", "text/plain", b"secret")], {}, ["v1"])
    assert len(registry.got) < 100


def test_upload_location_is_relative_to_what_was_asked_for(registry: Hostile) -> None:
    registry.replies["POST /v2/one/blobs/uploads/"] = 202, {"Location": "u1"}, b""
    registry.replies["PUT "] = 201, {}, b""
    send(connect(reference(registry), writing=True), [Layer("one", "text/plain", b"1")], {}, ["v1"])
    assert any(got.path.startswith("/v2/one/blobs/uploads/u1?digest=") for got in registry.got)


def test_manifest_that_a_race_in_the_server_refused_is_put_again(registry: Hostile) -> None:
    answers = [(400, {}, b'{"errors": [{"code": "DIGEST_INVALID"}]}')] * 2 + [(201, {}, b"")]
    registry.replies["PUT /v2/one/manifests/"] = lambda _got: answers.pop(0)
    manifest = image(("one", b"1"))[0]
    described = describe(manifest, oci.MANIFEST_TYPE)
    remote = connect(reference(registry), writing=True)
    assert remote.write(described, manifest, ["v1"], lambda _count: None)
    answers[:] = [(400, {}, b'{"errors": [{"code": "MANIFEST_INVALID", "message": "no"}]}')]
    with pytest.raises(StepError, match="HTTP 400: MANIFEST_INVALID no"):
        remote.write(described, manifest, ["v1"], lambda _count: None)


@pytest.mark.parametrize("kind", ["oci", "file"])
def test_tag_that_is_to_stay_is_not_moved(registry: Hostile, tmp_path: Path, kind: str) -> None:
    older, newer = (image((name, b"1"))[0] for name in ("older", "newer"))
    if kind == "file":
        place = connect(parse(f"file:{tmp_path}/layout"), writing=True)
        place.write(describe(newer, oci.MANIFEST_TYPE), newer, ["latest", "stable"], lambda _count: None)
    else:
        place = connect(reference(registry), writing=True)
        held = {"latest": newer, "stable": newer}
        for tag in ("latest", "stable", "new"):
            registry.replies[f"GET /v2/one/manifests/{tag}"] = lambda _got, tag=tag: (
                (200, {}, held[tag]) if tag in held else (404, {}, b"")
            )
            registry.replies[f"PUT /v2/one/manifests/{tag}"] = lambda got, tag=tag: (
                held.__setitem__(tag, got.body) or (201, {}, b"")
            )
    asked = []

    def unless(tag: str, manifest: bytes) -> bool:
        asked.append((tag, manifest))
        return tag == "latest"

    described = describe(older, oci.MANIFEST_TYPE)
    place.write(described, older, ["new", "stable", "latest"], lambda _count: None, unless)
    assert asked == [("stable", newer), ("latest", newer)]
    assert [place.manifest(tag) for tag in ("new", "stable", "latest")] == [older, older, newer]


def begins_with_half(data: bytes, second: Callable[[Got], Reply]) -> Callable[[Got], Reply]:
    """The first answer ends in the middle, without having said how long it is."""
    got_one: list[Got] = []

    def reply(got: Got) -> Reply:
        got_one.append(got)
        return (200, {}, iter([data[: len(data) // 2]])) if len(got_one) == 1 else second(got)

    return reply


@pytest.mark.parametrize("second", ["part", "whole", "other part, honestly", "other part"])
def test_file_that_ended_early_is_gone_on_with(registry: Hostile, tmp_path: Path, impatient: None, second: str) -> None:
    data = bytes(range(200))
    described = describe(data, "text/plain", "model.bin")
    (tmp_path / "out").mkdir()
    replies: dict[str, Reply] = {
        "part": (206, {"Content-Range": "bytes 100-199/200"}, data[100:]),
        "whole": (200, {}, data),
        "other part, honestly": (206, {"Content-Range": "bytes 50-199/200"}, data[50:]),
        "other part": (206, {"Content-Range": "bytes 150-199/200"}, data[150:]),
    }
    registry.replies["GET /v2/one/blobs/"] = begins_with_half(data, lambda _got: replies[second])
    taken = Image("", 0, (described,))
    if second == "other part":
        with pytest.raises(StepError, match="another part than it was asked for"):
            fetch(connect(reference(registry)), taken, tmp_path / "out", {})
        assert (tmp_path / "out/model.bin").read_bytes() == data[:100]
        return
    fetch(connect(reference(registry)), taken, tmp_path / "out", {})
    assert (tmp_path / "out/model.bin").read_bytes() == data
    assert len(registry.got) == 2


@pytest.mark.parametrize(
    "reply",
    [(200, {}, b"short"), (206, {"Content-Range": "bytes 2-6/7"}, b"x"), (416, {"Content-Range": "bytes */2"}, b""),
     (200, {"Content-Encoding": "gzip"}, iter([gzip.compress(b"0123456789")]))],
)  # fmt: skip
def test_blob_of_another_size_is_refused_at_once(registry: Hostile, reply: Reply) -> None:
    blob = describe(b"0123456789", "text/plain", "model.bin")
    registry.replies["GET /v2/one/blobs/"] = reply
    with pytest.raises(IntegrityError, match=r"model\.bin does not match its digest"):
        b"".join(connect(reference(registry)).read(blob, 0))


def test_small_file_is_read_within_its_limit_and_verified(registry: Hostile, impatient: None) -> None:
    blob = describe(b"0123456789", "text/plain", "report.html")
    place = connect(reference(registry))
    with pytest.raises(IntegrityError, match="10 bytes, and 9 are allowed"):
        read_small(place, blob, 9)
    registry.replies["GET /v2/one/blobs/"] = 200, {}, b"0123456780"
    with pytest.raises(IntegrityError, match=r"report\.html does not match its digest"):
        read_small(place, blob, 10)
    registry.replies["GET /v2/one/blobs/"] = 503, {}, b""
    with pytest.raises(Broken):
        next(place.read(blob, 0))
    with pytest.raises(StepError, match=r"report\.html cannot be reached: HTTP 503"):
        read_small(place, blob, 10)


# -- answers that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["http://[", "//[", "http://[::1", "http://a..b/", "https://" + "a" * 64 + "/"])
def test_location_that_is_no_address_is_an_error_with_words(registry: Hostile, tmp_path: Path, location: str) -> None:
    registry.replies["GET /v2/one/"] = 307, {"Location": location}, b""
    registry.replies["POST /v2/one/"] = 202, {"Location": location}, b""
    with pytest.raises((IntegrityError, StepError), match=r"leads to|is not known|without TLS"):
        pull(reference(registry), tmp_path / "out")
    with pytest.raises(IntegrityError, match=r"leads to|wants the artifact sent to"):
        send(connect(reference(registry), writing=True), [Layer("one", "text/plain", b"1")], {}, ["one"])


@pytest.mark.parametrize("number", ["\u00b2", "9" * 5000, "-1", "0x10", ""])
def test_numbers_in_headers_that_are_none_are_passed_over(
    registry: Hostile, impatient: None, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    monkeypatch.setattr(upload, "UPLOAD_CHUNK", 4)
    place = {"Location": "/v2/one/blobs/uploads/u", "OCI-Chunk-Min-Length": number}
    broken = [(503, {}, b"")]
    registry.replies["POST /v2/one/blobs/uploads/"] = 202, place, b""
    registry.replies["PATCH "] = lambda _got: broken.pop() if broken else (202, {}, b"")
    registry.replies["GET /v2/one/blobs/uploads/u"] = 204, {"Range": f"0-{number}"}, b""
    registry.replies["PUT "] = 201, {}, b""
    send(connect(reference(registry), writing=True), [Layer("one", "text/plain", b"secret")], {}, ["v1"])
    registry.replies["GET /v2/one/tags/"] = 200, {"Content-Length": "11", "Link": number}, b'{"tags": 5}'
    assert connect(reference(registry)).tags() == []


@pytest.mark.parametrize("size", [b"-1", b"-5", b"zz", b""])
def test_chunk_of_no_size_ends_the_answer(size: bytes, impatient: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(StepError, match="cannot be reached"):
            connect(parse(f"oci://127.0.0.1:{server.getsockname()[1]}/one")).tags()


# -- signing in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (['Basic realm="x"'], {"basic": {"realm": "x"}}),
        (['Negotiate, Basic realm="a, b"'], {"negotiate": {}, "basic": {"realm": "a, b"}}),
        (["Negotiate YII=", "BASIC realm=x"], {"negotiate": {}, "yii=": {}, "basic": {"realm": "x"}}),
        (
            ['Basic realm="x", Bearer realm="https://h/t",service="a\\"b"'],
            {"basic": {"realm": "x"}, "bearer": {"realm": "https://h/t", "service": 'a"b'}},
        ),
        (["Bearer realm=https://h/t,service=s"], {"bearer": {"realm": "https://h/t", "service": "s"}}),
        (["", ",,", '"', "=", 'Basic realm="'], {'"': {}, "=": {}, "basic": {}, 'realm="': {}}),
    ],
)
def test_challenges_are_read_as_the_standard_has_them(headers: list[str], expected: dict[str, Any]) -> None:
    assert challenges(headers) == expected


@pytest.mark.parametrize("challenge", ['Negotiate, Basic realm="x"', 'Basic realm="x"', "bAsIc"])
def test_basic_is_found_among_other_ways_to_sign_in(
    registry: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, challenge: str
) -> None:
    basic(registry, tmp_path, monkeypatch, registry.host)
    registry.replies["GET /v2/one/tags/"] = asking(challenge, (200, {}, b'{"tags": ["v1"]}'))
    assert connect(reference(registry)).tags() == ["v1"]
    registry.replies["GET /v2/one/tags/"] = asking("Negotiate", (200, {}, b"{}"))
    with pytest.raises(ConfigError, match="asks to sign in by negotiate, which is not spoken here"):
        connect(reference(registry)).tags()


def test_longest_namespace_that_the_repository_lies_in_has_the_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("quay.io/org1", "quay.io", "quay.io/org2", "quay.io/org2/deep", "https://old.io/v1/", "new.io/v2")
    kept = {key: {"auth": base64.b64encode(f"{key}:secret".encode()).decode()} for key in keys}
    (tmp_path / "auth.json").write_text(json.dumps({"auths": kept}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    expected = {
        "quay.io/org1/a": "quay.io/org1", "quay.io/org2/a": "quay.io/org2", "quay.io/org2/deep/a": "quay.io/org2/deep",
        "quay.io/org22/a": "quay.io", "quay.io/org1": "quay.io/org1", "old.io/a": "https", "new.io/a/b": "new.io/v2",
        "other.io/org1/a": None,
    }  # fmt: skip
    for place, key in expected.items():
        host, _, repository = place.partition("/")
        found = credentials.find(host, named=True, repository=repository)
        assert (found.username if found else None) == key, place


def test_registrys_own_words_for_a_refusal_are_shown(registry: Hostile) -> None:
    words = json.dumps({"errors": [{"code": "DENIED", "message": "quota \x1b[31mexceeded"}]}).encode()
    registry.replies["GET /v2/one/"] = 403, {}, words
    with pytest.raises(ConfigError, match=r"without signing in \(HTTP 403: DENIED quota \[31mexceeded\)"):
        connect(reference(registry)).tags()


@pytest.mark.parametrize("status", [429, 503])
def test_token_service_that_is_busy_is_asked_again(registry: Hostile, status: int) -> None:
    busy = [(status, {}, b"")]
    registry.replies["GET /v2/one/tags/"] = asking(
        f'Bearer realm="http://{registry.host}/token"', (200, {}, b'{"tags": ["v1"]}')
    )
    registry.replies["GET /token"] = lambda _got: busy.pop() if busy else (200, {}, b'{"token": "good"}')
    assert connect(reference(registry)).tags() == ["v1"]


def _dripping(first: bytes, endless: bytes, every_s: float) -> Iterator[tuple[str, list[int]]]:
    """A server that answers with `first`, then `endless` again and again; its host, and how many connections came."""
    came: list[int] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            came.append(1)
            threading.Thread(target=drip, args=(connection,), daemon=True).start()

    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(1 << 16)
            connection.sendall(first)
            while endless:
                connection.sendall(endless)
                time.sleep(every_s)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}", came
    finally:
        server.close()


SLOW: dict[str, tuple[bytes, bytes]] = {
    "a status line": (b"HTTP/1.1 ", b"2"),
    "a header without end": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "headers without end": (b"HTTP/1.1 200 OK\r\n", b"X: x\r\n"),
    "interim answers without end": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"x"),
    "a body without a size": (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "a chunk's size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "nothing at all": (b"", b""),
    "an end at once": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b""),
}


@pytest.mark.parametrize("what", SLOW)
def test_answer_that_never_ends_is_given_up(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte would reset a socket's own timeout."""
    for module in (http, timed):
        monkeypatch.setattr(module, "ANSWER_S", 0.5)
    monkeypatch.setattr(Http.ask, "__defaults__", (0.5,))
    monkeypatch.setattr(Remote.ask, "__defaults__", (*(Remote.ask.__defaults__ or ())[:-1], 0.5))
    monkeypatch.setattr(Patience.__init__, "__defaults__", (1.0,))
    with contextlib.contextmanager(_dripping)(*SLOW[what], 0.05) as (host, _):
        began = time.monotonic()
        with pytest.raises(StepError, match="cannot be reached"):
            connect(parse(f"oci://{host}/one")).tags()
        assert time.monotonic() - began < 8


def test_one_byte_a_connection_is_not_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience.__init__, "__defaults__", (1.0,))
    blob = describe(b"0" * 5000, "text/plain", "model.bin")
    first = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 99\r\nContent-Range: bytes 0-98/5000\r\n\r\n0"
    with contextlib.contextmanager(_dripping)(first, b"", 0) as (host, came):
        sink = io.BytesIO()
        began = time.monotonic()
        with pytest.raises(StepError, match="cannot be reached"):
            _stream(connect(parse(f"oci://{host}/one")), blob, hashlib.sha256(), 0, sink, Meter(1, silent))
        assert time.monotonic() - began < 8 and len(came) >= 2


def test_bytes_that_come_fast_enough_renew_patience_and_others_do_not() -> None:
    waiting = Patience("here", 60.0)
    waiting._since -= 10.0
    since = waiting._since
    waiting.gained(100)
    assert waiting._since == since
    waiting.gained(20_000)
    assert waiting._since > since


def test_registry_that_asks_for_time_is_left_alone_for_that_time(
    registry: Hostile, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than patience lasts without being asked: what is asked for counts, and is asked for once."""
    monkeypatch.setattr(Patience.__init__, "__defaults__", (0.5,))
    began = time.monotonic()
    registry.replies["GET /v2/one/tags/"] = lambda _got: (
        (429, {"Retry-After": "2"}, b"") if time.monotonic() < began + 1.9 else (200, {}, b'{"tags": ["v1"]}')
    )
    assert connect(reference(registry)).tags() == ["v1"]
    assert 2.0 <= time.monotonic() - began < 10 and len(registry.got) == 2
    assert "waiting 2 s" in caplog.text and "as it asks: HTTP 429" in caplog.text


@pytest.mark.parametrize("after", ["301", "99999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_registry_that_asks_for_more_time_than_is_waited_is_named_with_that_time(registry: Hostile, after: str) -> None:
    registry.replies["GET /v2/one/tags/"] = 503, {"Retry-After": after}, b""
    with pytest.raises(StepError, match=r"asks to be left alone for \d+ s \(HTTP 503\); at most 300 s") as caught:
        connect(reference(registry)).tags()
    assert "after that time" in caught.value.fix and len(registry.got) == 1


@pytest.mark.parametrize(
    ("given", "date", "seconds"),
    [
        ("75", None, 75.0), (" 0 ", None, 0.0), ("-1", None, None), ("soon", None, None), ("", None, None),
        (None, None, None),
        ("Wed, 21 Oct 2026 07:28:30 GMT", "Wed, 21 Oct 2026 07:28:00 GMT", 30.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", "Wed, 21 Oct 2026 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", "garbage", None), ("\u0663", None, None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_by_the_servers_clock(
    given: str | None, date: str | None, seconds: float | None
) -> None:
    assert retry_after(given, date) == seconds


def test_user_without_a_home_or_with_files_that_may_not_be_read_goes_without(
    registry: Hostile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_home(_path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    def forbidden(_path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "expanduser", no_home)
        assert credentials.find(registry.host, named=True) is None
        seen.remember(reference(registry), "sha256:0", dict.fromkeys(seen.FIELDS, "1"))
        assert seen.last(reference(registry)) is None
    monkeypatch.setattr(Path, "is_file", forbidden)  # those who may read everything run this test too
    assert credentials.find(registry.host, named=True) is None
    assert "config.json may not be read" in caplog.text


# -- layouts that somebody handed over ---------------------------------------------------------------------------------


def test_links_in_a_layout_are_not_followed(tmp_path: Path, first: First, canary: Path) -> None:
    home = first.project.artifacts / "nullmodel/nulltarget/latest"
    assert command("publish", home, f"file:{tmp_path}/layout").code == 0
    layout = tmp_path / "layout"
    layer = resolve(connect(parse(f"file:{layout}")), parse(f"file:{layout}")).layers[1]
    blob = layout / "blobs/sha256" / layer.digest.removeprefix("sha256:")
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")  # its content is even right
    done = command("pull", f"file:{layout}", tmp_path / "out")
    assert done.code == 6
    assert "is a link" in done.last_lines()[1]
    assert not (tmp_path / "out").exists()
    (layout / "index.json").rename(tmp_path / "index.json")
    (layout / "index.json").symlink_to(tmp_path / "index.json")
    assert command("history", f"file:{layout}").code == 6


def test_folder_that_is_no_layout_is_not_written_to(tmp_path: Path, first: First) -> None:
    home = first.project.artifacts / "nullmodel/nulltarget/latest"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1").write_text("words")
    for verb in (("publish", home, f"file:{tmp_path}/thesis"), ("pull", f"file:{tmp_path}/thesis", tmp_path / "out")):
        done = command(*verb)
        assert done.code == 2
        assert "is no OCI image layout" in done.last_lines()[1]
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"manifests": [{"digest": 7}]}', '{"manifests": 7}', "\xff"])
def test_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(IntegrityError, match="no index of an OCI image layout"):
        Layout(tmp_path).tags()


def test_manifest_of_a_layout_is_what_its_index_says(tmp_path: Path) -> None:
    place = connect(parse(f"file:{tmp_path}/layout"), writing=True)
    manifest = image(("one", b"1"))[0]
    described = describe(manifest, oci.MANIFEST_TYPE)
    place.write(described, manifest, ["v1"], lambda _count: None)
    blob = tmp_path / "layout/blobs/sha256" / described.digest.removeprefix("sha256:")
    blob.chmod(0o644)
    blob.write_bytes(manifest.replace(b"one", b"two"))
    for name in ("v1", described.digest):
        with pytest.raises(IntegrityError, match="does not match its digest"):
            place.manifest(name)
    place.write(described, manifest, ["v1"], lambda _count: None, lambda _tag, _held: True)  # mended
    assert place.manifest("v1") == manifest
    index = tmp_path / "layout/index.json"
    index.write_text(index.read_text().replace(f'"size": {len(manifest)}', '"size": 7'))
    with pytest.raises(IntegrityError, match="does not match its digest"):
        place.manifest("v1")


def test_blob_of_a_layout_that_is_too_short_is_refused_at_once(tmp_path: Path) -> None:
    place = connect(parse(f"file:{tmp_path}/layout"), writing=True)
    blob = describe(b"0123456789", "text/plain", "model.bin")
    place.write(blob, b"0123456789", (), lambda _count: None)
    file = tmp_path / "layout/blobs/sha256" / blob.digest.removeprefix("sha256:")
    file.chmod(0o644)
    file.write_bytes(b"0123")
    with pytest.raises(IntegrityError, match="holds 4 of its 10 bytes"):
        read_small(place, blob, 10)


def test_what_a_killed_writer_left_in_a_layout_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    root = tmp_path / "layout"
    blob = describe(b"1", "text/plain", "one")
    connect(parse(f"file:{root}"), writing=True).write(blob, b"1", (), lambda _count: None)
    script = (
        "import os, signal, sys; from pathlib import Path; from compiler.registries.layout import Layout\n"
        "from compiler.registries.oci import describe\n"
        "def tell(_count):\n    print('writing', flush=True)\n    sys.stdin.read()\n"
        "Layout(Path(sys.argv[1])).write(describe(b'2', 'text/plain'), b'2', (), tell)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"

    def others_write() -> int:
        manifest = image(("one", b"1"))[0]
        place = connect(parse(f"file:{root}"), writing=True)
        place.write(describe(manifest, oci.MANIFEST_TYPE), manifest, ["v1"], lambda _count: None)
        return sum(path.name.startswith(".") for path in root.rglob("*"))

    (root / ".index.json.killed").write_text("")
    assert others_write() == 1
    writer.kill()
    writer.communicate()
    assert others_write() == 0


@pytest.mark.parametrize("rest", ["", "@sha256:" + "0" * 64])
def test_path_that_can_be_no_layout_is_an_error_with_words(tmp_path: Path, first: First, rest: str) -> None:
    (tmp_path / "file").write_text("words")
    for place in (tmp_path / "file", tmp_path / ("a" * 300), tmp_path / "file" / "below"):
        with pytest.raises(ConfigError):
            pull(parse(f"file:{place}{rest}"), tmp_path / "out")
        with pytest.raises(ConfigError):
            connect(parse(f"file:{place}"), writing=True).write(
                describe(b"1", "text/plain"), b"1", (), lambda _count: None
            )


def test_layout_that_may_not_be_read_and_a_full_disk_are_errors_with_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Layout(tmp_path / "layout")
    blob = describe(b"1", "text/plain", "one")
    place.write(blob, b"1", (), lambda _count: None)

    def fail(number: int) -> Callable[..., None]:
        def raise_it(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return raise_it

    with monkeypatch.context() as patched:
        patched.setattr(Layout, "_open", fail(errno.EACCES))  # those who may read everything run this test too
        for ask in (place.tags, lambda: place.manifest("v1"), lambda: list(place.read(blob, 0))):
            with pytest.raises(ConfigError, match="Permission denied"):
                ask()
    monkeypatch.setattr(Layout, "_store", fail(errno.ENOSPC))
    with pytest.raises(StepError, match="no space left") as caught:
        place.write(describe(b"2", "text/plain"), b"2", (), lambda _count: None)
    assert caught.value.fix == GO_ON
    assert "artifacts_dir" not in caught.value.fix


def test_partial_file_that_is_read_only_or_a_folder_is_no_obstacle(registry: Hostile, tmp_path: Path) -> None:
    data = {"half": b"0123456789", "folder": b"abc"}
    manifest, blobs = image(*data.items())
    serve(registry, manifest, blobs)
    (tmp_path / "out/folder/below").mkdir(parents=True)
    (tmp_path / "out/folder/below/file").write_text("x")
    (tmp_path / "out/half").write_bytes(b"01234")
    (tmp_path / "out/half").chmod(0o444)
    fetch(connect(reference(registry)), oci.parse(manifest, "here"), tmp_path / "out", {})
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == data
    assert (tmp_path / "out/half").stat().st_mode & 0o200  # it was made writable, for those who are not root


# -- references, addresses ------------------------------------------------------------------------------------

HOSTS = st.sampled_from(["registry.test", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "a-b.example:443"])
REPOSITORIES = st.from_regex(r"[a-z0-9]{1,5}([._-][a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,5}){0,2}", fullmatch=True)
TAGS = st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
DIGESTS = st.none() | st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)


@given(HOSTS, REPOSITORIES, TAGS, DIGESTS)
def test_reference_to_a_registry_is_read_as_it_is_written(
    host: str, repository: str, tag: str | None, digest: str | None
) -> None:
    made = Reference("oci", host, repository, tag, digest)
    assert parse(str(made)) == made


@given(
    st.from_regex(r"(/?[A-Za-z0-9._ -]{1,8}){1,3}", fullmatch=True).filter(lambda p: not p.endswith("/")), TAGS, DIGESTS
)
def test_reference_to_a_layout_is_read_as_it_is_written(path: str, tag: str | None, digest: str | None) -> None:
    made = Reference("file", path, tag=tag, digest=digest)
    assert parse(str(made)) == made


@pytest.mark.parametrize(
    "text",
    ["", "file:", "oci://", "oci://host", "oci://host/", "oci://host/UPPER", "oci://host/a//b", "oci://host/a:",
     "oci://host/a:-x", "oci://host/a@sha256:abc", "oci://host:99999/a", "oci://ho st/a", "oci://host/../a",
     "oci://a..b/r", "oci://" + "a" * 64 + "/r", "oci://" + "a.b" * 100 + "/r", "oci://[:::]/r", "oci://[1.2.3.4]/r",
     "oci://host/a?b=c", "https://host/a", "oci:host/a", "file:x@sha256:1"],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


def test_password_in_a_reference_is_refused_and_not_repeated() -> None:
    for text in ("oci://user:hunter2@host/repo", "https://user:hunter2@host/repo"):
        with pytest.raises(ConfigError) as caught:
            parse(text)
        assert "hunter2" not in str(caught.value) + caught.value.fix


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", "public"), ("2001:4860:4860::8888", "public"), ("127.0.0.1", "loopback"), ("::1", "loopback"),
        ("127.8.8.8", "loopback"), ("::ffff:127.0.0.1", "loopback"), ("10.1.2.3", "private"), ("172.16.0.1", "private"),
        ("192.168.0.1", "private"), ("100.64.0.1", "private"), ("fd12::1", "private"), ("::ffff:10.0.0.1", "private"),
        ("64:ff9b::a00:1", "private"), ("2002:a00:1::", "private"), ("169.254.169.254", "link-local"),
        ("fe80::1%eth0", "link-local"), ("0.0.0.0", "reserved"), ("::", "reserved"), ("224.0.0.1", "reserved"),
    ],
)  # fmt: skip
def test_range_of_an_address(address: str, expected: str) -> None:
    assert range_of(address) == expected


@pytest.mark.parametrize("home", ["public", "private", "loopback", "link-local"])
def test_registry_leads_to_the_public_and_to_its_own_range_only(home: str) -> None:
    places = {"public": "8.8.8.8", "private": "10.0.0.1", "loopback": "127.0.0.1", "link-local": "169.254.1.1"}
    for name, address in places.items():
        if name in ("public", home):
            check_reachable("somewhere", [address], home)
        else:
            with pytest.raises(IntegrityError, match=f"a {name} address"):
                check_reachable("somewhere", ["8.8.8.8", address], home)  # one bad among good ones is enough


@pytest.mark.parametrize(
    "url", ["https://[::1", "https://a:b/", "http:///x", "javascript:1", "https://a b/", "https://a/\r\nX: y"]
)
def test_what_is_no_web_address_is_not_led_to(url: str) -> None:
    with pytest.raises(IntegrityError):
        origin_of(url)
