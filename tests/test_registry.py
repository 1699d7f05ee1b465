"""Artifacts through a real registry server: published, pulled, verified, run; and what happens when it lies or dies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import First, Project, command, environment
from registry_server import PASSWORD, Server, needs

from compiler import runtime
from compiler.errors import IntegrityError, StepError
from compiler.registries import connect, oci, remote, upload
from compiler.registries.oci import digest_of
from compiler.registries.patience import Patience
from compiler.registries.reference import parse
from compiler.registries.transfer import Layer, fetch, resolve, send
from compiler.runtime.fetch import cached, pull

MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Neither this user's credentials nor what was pulled before."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A registry that lets everybody in."""
    with Server(tmp_path / "server") as running:
        yield running


@pytest.fixture(scope="module")
def two(first: First, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two versions of one model for one target, the older first."""
    project = Project(tmp_path_factory.mktemp("two"))
    shutil.copytree(first.project.artifacts, project.artifacts, symlinks=True)
    time.sleep(1)  # versions are told apart by the second
    done = project.build("steps.export.scale=0.5")
    assert done.code == 0, done.err
    home = project.artifacts / "nullmodel" / "nulltarget"
    older, newer = sorted(path for path in home.iterdir() if path.name[0].isdigit())
    return older, newer


def version_of(folder: Path) -> str:
    """The version that a folder holds."""
    return str(json.loads((folder / "manifest.json").read_text())["version"])


def no_trace(folder: Path) -> bool:
    """Whether nothing lies at a place, nor beside it."""
    return not folder.exists() and not folder.with_name(f".{folder.name}.partial").exists()


def flip(path: Path) -> None:
    """One bit of a file, which may be read-only."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# -- there and back --------------------------------------------------------------------------------------------------


def test_version_is_published_pulled_verified_and_run_with_credentials_of_docker(
    tmp_path: Path, two: tuple[Path, Path]
) -> None:
    with Server(tmp_path / "server", auth=True) as server:
        reference = server.reference()
        refused = command("publish", two[1], reference)
        assert refused.code == 2
        assert f"docker login {server.host}" in refused.last_lines()[0]

        env = {**environment(), "DOCKER_CONFIG": str(server.docker_config(tmp_path / "docker"))}
        published = command("publish", two[1], reference, env=env)
        assert published.code == 0, published.err
        pinned = published.out.strip()
        assert pinned.startswith(f"{reference}@sha256:")
        pulled = command("pull", reference, tmp_path / "out", env=env)
        assert pulled.code == 0, pulled.err
        assert pulled.out.strip() == str(tmp_path / "out")
        for name in (
            "manifest.json",
            *(f["path"] for f in json.loads((two[1] / "manifest.json").read_text())["files"]),
        ):
            assert (tmp_path / "out" / name).read_bytes() == (two[1] / name).read_bytes(), name
        assert command("verify", tmp_path / "out").code == 0

        signature = json.loads((two[1] / "manifest.json").read_text())["signature"]["inputs"][0]
        np.save(tmp_path / "x.npy", np.zeros((3, *signature["shape"][1:]), signature["dtype"]))
        outputs = []
        for place in (str(two[1]), pinned):
            done = command("run", place, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy", env=env)
            assert done.code == 0, done.err
            outputs.append(np.load(tmp_path / "y.npy"))
        assert np.array_equal(*outputs)
        assert (tmp_path / "home/.cache/target-model-compiler/artifacts" / pinned.rpartition(":")[2]).is_dir()


def test_wrong_password_is_refused_and_shown_nowhere(tmp_path: Path, two: tuple[Path, Path]) -> None:
    with Server(tmp_path / "server", auth=True) as server:
        env = {
            **environment(), "MODEL_COMPILER_REGISTRY_USERNAME": "builder",
            "MODEL_COMPILER_REGISTRY_PASSWORD": "planted-secret",
        }  # fmt: skip
        done = command("publish", two[1], server.reference(), env=env)
        assert done.code == 2
        assert "does not let you" in done.last_lines()[1]
        good = command("publish", two[1], server.reference(), env={**env, "MODEL_COMPILER_REGISTRY_PASSWORD": PASSWORD})
        assert good.code == 0, good.err
        said = done.out + done.err + good.out + good.err
        stored = b"".join(path.read_bytes() for path in server.root.rglob("*") if path.is_file())
        for secret in ("planted-secret", PASSWORD):
            assert secret not in said
            assert secret.encode() not in stored


def test_credentials_come_from_a_helper_program_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(tmp_path / "server", auth=True) as server:
        helper = tmp_path / "bin" / "docker-credential-kept"
        helper.parent.mkdir()
        answer = json.dumps({"Username": "builder", "Secret": PASSWORD})
        helper.write_text(f"#!/bin/sh\nread host\n[ \"$1 $host\" = 'get {server.host}' ] && echo '{answer}'\n")
        helper.chmod(0o755)
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker/config.json").write_text('{"credsStore": "kept"}')
        monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        registry = connect(parse(server.reference()), writing=True)
        send(registry, [Layer("one", "text/plain", b"1")], {}, ["v1"])
        assert registry.tags() == ["v1"]


def test_what_is_there_is_not_sent_again(server: Server, two: tuple[Path, Path]) -> None:
    first = command("publish", two[0], server.reference(), "--json")
    again = command("publish", two[0], server.reference(), "--json")
    other = command("publish", two[1], server.reference(), "--json")
    records = [json.loads(done.out) for done in (first, again, other)]
    assert records[0]["bytes_sent"] == records[0]["bytes"] > 0
    assert records[1]["bytes_sent"] == 0
    assert records[1]["digest"] == records[0]["digest"]
    assert 0 < records[2]["bytes_sent"] < records[2]["bytes"]  # labels and the like are the same


def test_tags_are_version_content_latest_and_the_one_asked_for(server: Server, two: tuple[Path, Path]) -> None:
    assert command("publish", two[1], server.reference(rest=":stable")).code == 0
    older = command("publish", two[0], server.reference())
    assert older.code == 0
    assert "latest stays" in older.err
    listed = json.loads(command("history", server.reference(), "--json").out)
    assert [row["version"] for row in listed] == [two[1].name, two[0].name]
    manifest = json.loads((two[1] / "manifest.json").read_text())
    assert listed[0]["tags"] == sorted([two[1].name, f"content-{manifest['digest'][:16]}", "latest", "stable"])
    back = command("publish", two[0], server.reference(rest=":latest"))  # to go back is possible, and has to be said
    assert back.code == 0
    listed = json.loads(command("history", server.reference(), "--json").out)
    assert "latest" in listed[1]["tags"]
    shown = command("history", server.reference()).out
    assert two[0].name in shown
    assert two[1].name in shown


def test_two_publications_to_one_tag_at_the_same_time_leave_both_versions_whole(
    tmp_path: Path, server: Server, two: tuple[Path, Path]
) -> None:
    for place in (server.reference(), f"file:{tmp_path}/layout"):
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "compiler", "publish", str(version), f"{place}:shared"],
                env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for version in (*two, *two)
        ]  # fmt: skip
        for process in running:
            said, _ = process.communicate(timeout=60)
            assert process.returncode == 0, said
        for number, tag in enumerate(("shared", *(version.name for version in two))):
            pulled = pull(parse(f"{place}:{tag}"), tmp_path / f"{place[:3]}{number}")
            assert pulled.manifest["version"] in [version.name for version in two]


def test_pull_into_an_older_version_replaces_it_and_fetches_what_differs(
    tmp_path: Path, server: Server, two: tuple[Path, Path]
) -> None:
    assert command("publish", two[0], server.reference()).code == 0
    pull(parse(server.reference()), tmp_path / "out")
    assert command("publish", two[1], server.reference()).code == 0
    same = {f["sha256"] for f in json.loads((two[0] / "manifest.json").read_text())["files"]}
    for digest in same & {f["sha256"] for f in json.loads((two[1] / "manifest.json").read_text())["files"]}:
        server.blob(digest).unlink()  # nobody will ask for it
    pulled = pull(parse(server.reference()), tmp_path / "out")
    assert pulled.new
    assert version_of(tmp_path / "out") == two[1].name
    assert "has moved since it was last pulled" in pulled.notes[0]
    assert not pull(parse(server.reference()), tmp_path / "out").new
    assert command("verify", tmp_path / "out").code == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_pull_leaves_a_folder_of_other_things_alone(tmp_path: Path, server: Server, two: tuple[Path, Path]) -> None:
    assert command("publish", two[0], server.reference()).code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    done = command("pull", server.reference(), tmp_path / "mine")
    assert done.code == 2
    assert "something else than an artifact" in done.last_lines()[1]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_artifact_that_is_pinned_and_cached_needs_no_registry(server: Server, two: tuple[Path, Path]) -> None:
    pinned = command("publish", two[0], server.reference()).out.strip()
    model = runtime.load(pinned)
    server.kill()
    assert runtime.load(pinned).manifest == model.manifest
    file = cached(parse(pinned)).folder / "model.npz"
    file.chmod(0o644)
    file.write_bytes(b"rot")
    server.start()
    assert runtime.load(pinned).manifest == model.manifest  # what had rotted was fetched again


def test_verify_show_and_rebuild_take_references(server: Server, two: tuple[Path, Path]) -> None:
    assert command("publish", two[0], server.reference()).code == 0
    assert "match the manifest" in command("verify", server.reference()).out
    assert two[0].name in command("show", server.reference(), "--json").out
    assert "portable files have the recorded digests" in command("rebuild", server.reference()).out


# -- gates ------------------------------------------------------------------------------------------------------------


def test_build_publishes_what_it_built_to_a_repository_of_its_own(
    tmp_path: Path, server: Server, built: Project
) -> None:
    where = f"registry=oci://{server.host}/${{model.name}}/${{target.name}}"
    done = built.build("publish=true", where)
    assert done.code == 0, done.err
    assert done.out.strip().endswith("manifest.json")
    assert done.manifest_path.is_file()
    assert pull(parse(server.reference("nullmodel/nulltarget")), tmp_path / "out").manifest == done.manifest
    again = built.build("publish=true", where)
    assert again.code == 0
    assert "all of it was there" in again.err
    assert "Nothing to do" in again.out


def test_nothing_is_published_whose_budget_is_not_met_unless_forced(
    tmp_path: Path, server: Server, built: Project
) -> None:
    tight = ("budget.size_mb=0.0000001", "publish=true", f"registry={server.reference()}")
    failed = built.build(*tight)
    assert failed.code == 3
    version = failed.manifest_path.parent
    assert connect(parse(server.reference())).tags() == []
    by_hand = command("publish", version, server.reference())
    assert by_hand.code == 3
    assert "budget_failed" in by_hand.last_lines()[1]
    assert connect(parse(server.reference())).tags() == []

    assert "force" not in command("publish", version).last_lines()[1]  # nobody is taught to
    forced = built.build(*tight, "force=true")
    assert forced.code == 3  # it still fails its gate
    done = command("pull", server.reference(), tmp_path / "out")
    assert done.code == 0, done.err
    assert "note: it was published by force" in done.err
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["forced"] is True
    assert "forced" not in json.loads((version / "manifest.json").read_text())  # a version is never changed
    assert "budget_failed, forced" in command("history", server.reference()).out
    assert command("publish", tmp_path / "out", f"file:{tmp_path}/on").code == 3  # to hand it on takes force again
    assert command("publish", tmp_path / "out", f"file:{tmp_path}/on", "force=true").code == 0


def test_forced_manifest_is_valid_by_the_schema(tmp_path: Path, built: Project, schema: dict[str, Any]) -> None:
    import jsonschema

    place = f"file:{tmp_path}/layout"
    built.build("budget.size_mb=0.0000001", "publish=true", "force=true", f"registry={place}")
    jsonschema.validate(pull(parse(place), tmp_path / "out").manifest, schema)


def test_one_repository_holds_one_model_for_one_target(server: Server, built: Project, two: tuple[Path, Path]) -> None:
    assert command("publish", two[0], server.reference()).code == 0
    done = built.build("model.name=other", "publish=true", f"registry={server.reference()}")
    assert done.code == 2
    assert "holds the model nullmodel, and this is other" in done.last_lines()[1]


def test_registry_that_cannot_be_is_refused_before_anything_is_built(tmp_path: Path, project: Project) -> None:
    for wrong in ("oci://user:planted-secret@host/repo", "ftp://somewhere", "oci://host/UPPER"):
        done = project.build("publish=true", f"registry='{wrong}'")
        assert done.code == 2, wrong
        assert "planted-secret" not in done.out + done.err
    done = project.build("publish=true", f"registry=file:{tmp_path}/r", "signing.key=nowhere.pem")
    assert done.code == 2
    assert "nowhere.pem is not there" in done.last_lines()[1]
    assert not project.artifacts.exists()


# -- signatures -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the key pairs `team` and `other`."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("team", "other"):
        made = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"]
        subprocess.run([*made, folder / f"{name}.key"], check=True, capture_output=True)
        taken = ["openssl", "pkey", "-in", folder / f"{name}.key", "-pubout", "-out", folder / f"{name}.pub"]
        subprocess.run(taken, check=True, capture_output=True)
    return folder


def test_signed_artifact_is_pulled_by_those_who_trust_its_key_and_by_nobody_who_trusts_another(
    server: Server, tmp_path: Path, two: tuple[Path, Path], keys: Path
) -> None:
    unsigned = json.loads(command("publish", two[0], server.reference(), "--json").out)
    assert unsigned["signed"] is False
    refused = command("pull", server.reference(), tmp_path / "out", "--key", keys / "team.pub")
    assert refused.code == 6
    assert "model.sig is missing" in refused.last_lines()[1]
    assert no_trace(tmp_path / "out")

    sign = ("publish", two[0], server.reference(), "--key", keys / "team.key", "--json")
    signed = [json.loads(command(*sign).out) for _ in range(2)]
    assert signed[0]["signed"] is True
    assert signed[0]["digest"] == signed[1]["digest"] != unsigned["digest"]
    assert signed[1]["bytes_sent"] == 0
    for verb in (("pull", server.reference(), tmp_path / "bad"), ("verify", server.reference())):
        refused = command(*verb, "--key", keys / "other.pub")
        assert refused.code == 6
        assert "is not trusted" in refused.last_lines()[1]
    assert no_trace(tmp_path / "bad")
    pulled = command("pull", server.reference(), tmp_path / "out", "--key", keys / "team.pub")
    assert pulled.code == 0, pulled.err
    assert "signature: verified, made with the key team.pub" in pulled.err

    # an artifact that was pulled can be handed on, with the signature that it has
    handed = command("publish", tmp_path / "out", f"file:{tmp_path}/layout", "--json")
    assert json.loads(handed.out)["digest"] == signed[0]["digest"]
    resigned = command("publish", tmp_path / "out", f"file:{tmp_path}/layout", "--key", keys / "other.key", "--json")
    assert json.loads(resigned.out)["digest"] != signed[0]["digest"]


def test_build_signs_what_it_publishes(server: Server, built: Project, keys: Path) -> None:
    done = built.build("publish=true", f"registry={server.reference()}", f"signing.key={keys / 'team.key'}")
    assert done.code == 0, done.err
    assert command("verify", server.reference(), "--key", keys / "team.pub").code == 0
    assert str(keys) not in command("show", server.reference(), "--json").out


def test_older_signed_version_behind_a_moved_tag_is_refused_where_the_policy_says_so(
    server: Server, tmp_path: Path, two: tuple[Path, Path], keys: Path
) -> None:
    (keys / "policy.yaml").write_text("trusted_keys: [team.pub]\nrefuse_older: true\n")
    policy = ("--policy", keys / "policy.yaml")
    digests = {}
    for version in two:
        done = command("publish", version, server.reference(rest=":stable"), "--key", keys / "team.key", "--json")
        digests[version] = json.loads(done.out)["digest"]
    assert command("pull", server.reference(rest=":stable"), tmp_path / "out", *policy).code == 0
    x = np.zeros((1, 8, 8, 3), np.uint8)
    np.save(tmp_path / "x.npy", x)
    run = ("run", server.reference(rest=":stable"), "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    assert command(*run, *policy).code == 0

    replayed = command("publish", two[0], server.reference(rest=":stable"), "--key", keys / "team.key")
    assert replayed.code == 0
    for verb in (("pull", server.reference(rest=":stable"), tmp_path / "out"), run):
        refused = command(*verb, *policy)
        assert refused.code == 6, refused.err
        assert "before what is installed" in refused.last_lines()[1]
    assert version_of(tmp_path / "out") == two[1].name
    assert command("verify", tmp_path / "out", *policy).code == 0
    assert not (tmp_path / ".out.partial").exists()


def poison(registry: Any, image: Any, name: str, data: bytes) -> None:
    """Puts other bytes under a layer's name into what `latest` and the version's tag lead to."""
    made = oci.describe(data, "application/json", name)
    registry.write(made, data, [], lambda _count: None)
    layers = [made if layer.name == name else layer for layer in image.layers]
    manifest = oci.encode(layers, image.annotations)
    tags = ["latest", image.annotations["org.opencontainers.image.version"]]
    registry.write(oci.describe(manifest, oci.MANIFEST_TYPE), manifest, tags, lambda _count: None)


def test_signature_and_report_that_somebody_else_put_there_are_not_published_on(
    server: Server, tmp_path: Path, two: tuple[Path, Path], keys: Path
) -> None:
    publish = ("publish", two[0], server.reference(), "--key", keys / "team.key")
    good = command(*publish)
    assert good.code == 0
    reference = parse(server.reference())
    registry = connect(reference, writing=True)
    image = resolve(registry, reference)
    bundle = json.loads(b"".join(registry.read(image.layer("model.sig"), 0)))  # type: ignore[arg-type]
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = "AAAA"
    poison(registry, image, "model.sig", json.dumps(bundle).encode())
    assert command("verify", server.reference(), "--key", keys / "team.pub").code == 6
    assert command(*publish).code == 0
    assert command("verify", server.reference(), "--key", keys / "team.pub").code == 0

    poison(registry, resolve(registry, reference), "report.html", b"<script>alert(1)</script>")
    assert command(*publish).code == 0
    assert command("pull", server.reference(), tmp_path / "out", "--report", tmp_path / "report.html").code == 0
    assert "alert(1)" not in (tmp_path / "report.html").read_text()


def test_publishing_again_mends_what_the_registry_has_lost(
    server: Server, tmp_path: Path, two: tuple[Path, Path]
) -> None:
    for place in (server.reference(), f"file:{tmp_path}/layout"):
        assert command("publish", two[0], place).code == 0
        layer = resolve(connect(parse(place)), parse(place)).layer("model.npz")
        assert layer is not None
        blobs = tmp_path / "layout/blobs/sha256"
        (server.blob(layer.digest) if place.startswith("oci") else blobs / layer.digest[7:]).unlink()
        again = command("publish", two[0], place)
        assert again.code == 0, again.err
        assert command("pull", place, tmp_path / f"out-{place[:3]}").code == 0
    flip(blobs / layer.digest[7:])  # in a folder, nobody but the publisher looks after that
    assert command("publish", two[0], place).code == 0
    assert command("pull", place, tmp_path / "mended").code == 0


def test_policy_of_the_environment_holds_for_references_and_not_for_what_one_publishes(
    tmp_path: Path, two: tuple[Path, Path], keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (keys / "strict.yaml").write_text("trusted_keys: [team.pub]\nrefuse_older: true\n")
    monkeypatch.setenv("MODEL_COMPILER_POLICY", str(keys / "strict.yaml"))
    place = f"file:{tmp_path}/layout"
    for version in two:
        assert command("publish", version, f"{place}:stable", "--key", keys / "team.key").code == 0
    newest = runtime.load(f"{place}:stable")
    assert newest.manifest["version"] == two[1].name
    assert command("publish", two[0], f"{place}:stable", "--key", keys / "team.key").code == 0
    for again in (f"{place}:stable", f"file:{tmp_path}/../{tmp_path.name}/layout:stable"):
        with pytest.raises(IntegrityError, match="before what is installed"):
            runtime.load(again)


def test_tag_that_leads_to_another_model_is_refused_where_the_policy_says_so(
    tmp_path: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policy.yaml").write_text("refuse_older: true\n")
    monkeypatch.setenv("MODEL_COMPILER_POLICY", str(tmp_path / "policy.yaml"))
    place = parse(f"file:{tmp_path}/layout")
    assert command("publish", two[0], str(place)).code == 0
    runtime.load(str(place))
    other = tmp_path / "other"
    shutil.copytree(two[1], other)
    manifest = json.loads((other / "manifest.json").read_text()) | {"model": "another"}
    (other / "manifest.json").chmod(0o644)
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert command("publish", other, f"file:{tmp_path}/second").code == 0
    shutil.rmtree(tmp_path / "layout")
    (tmp_path / "second").rename(tmp_path / "layout")
    with pytest.raises(IntegrityError, match="the model is 'another'"):
        runtime.load(str(place))


@pytest.mark.parametrize(
    "field, value", [("version", "../../x"), ("version", "stable"), ("created", None), ("created", 7)]
)
def test_version_and_date_that_no_build_writes_are_refused(
    tmp_path: Path, two: tuple[Path, Path], field: str, value: object
) -> None:
    shutil.copytree(two[0], tmp_path / "odd")
    manifest = json.loads((tmp_path / "odd/manifest.json").read_text()) | {field: value}
    (tmp_path / "odd/manifest.json").chmod(0o644)
    (tmp_path / "odd/manifest.json").write_text(json.dumps(manifest))
    for verb in (("verify", tmp_path / "odd"), ("publish", tmp_path / "odd", f"file:{tmp_path}/layout")):
        assert command(*verb).code == 6


def test_places_that_cannot_be_exchanged_are_refused_before_anything_is_fetched(
    tmp_path: Path, two: tuple[Path, Path]
) -> None:
    place = f"file:{tmp_path}/layout"
    assert command("publish", two[0], place).code == 0
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "here").mkdir()
    for folder, said in (
        (tmp_path / "link", "is a link"),
        (Path(), "is the working folder"),
        (Path("/proc"), "mounted"),
    ):
        done = command("pull", place, folder, cwd=tmp_path / "here")
        assert done.code == 2
        assert said in done.last_lines()[1]
    (tmp_path / ".theirs.partial").mkdir(mode=0o777)
    (tmp_path / ".theirs.partial").chmod(0o777)
    done = command("pull", place, tmp_path / "theirs")
    assert done.code == 2
    assert "somebody else's" in done.last_lines()[1]
    assert command("pull", place, tmp_path / ("n" * 250)).code == 0
    assert (tmp_path / ("n" * 250)).stat().st_mode & 0o777 == 0o755


# -- when it dies ---------------------------------------------------------------------------------------------------


class Killer:
    """Kills the server once so many bytes have gone through, and starts it again a while later."""

    def __init__(self, server: Server, at: int) -> None:
        self._server, self._at = server, at
        self.done: list[int] = []
        self._thread: threading.Thread | None = None

    def __call__(self, done: int, _total: int) -> None:
        self.done.append(done)
        if done >= self._at and self._thread is None:
            self._server.kill()
            self._thread = threading.Thread(target=self._restart)
            self._thread.start()

    def _restart(self) -> None:
        time.sleep(1)
        self._server.start()


@pytest.mark.parametrize("inside", [False, True])
def test_upload_is_completed_after_the_server_was_killed_and_started_again(
    inside: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two chunks it goes on where it was. This server cannot after it died inside one: the file begins anew."""
    monkeypatch.setattr(upload, "UPLOAD_CHUNK", 2 * MEGABYTE)
    files = [tmp_path / "large", tmp_path / "small"]
    for number, file in enumerate(files):
        file.write_bytes(np.random.default_rng(number).bytes((40, 3)[number] * MEGABYTE))
    registry = connect(parse(server.reference()), writing=True)
    small = Layer("small", "application/octet-stream", files[1])
    send(registry, [small], {}, ["v0"])
    killer = Killer(server, 24 * MEGABYTE + 3 * MEGABYTE)
    if not inside:
        send_chunk = upload.Upload._send

        def and_die(sending: upload.Upload, count: int) -> None:
            send_chunk(sending, count)
            killer(sending._there + 3 * MEGABYTE, 0)

        monkeypatch.setattr(upload.Upload, "_send", and_die)
    told: list[int] = []
    layers = [Layer("large", "application/octet-stream", files[0]), small]
    sent = send(registry, layers, {}, ["v1"], killer if inside else lambda done, _total: told.append(done))
    assert sent.bytes_sent == 40 * MEGABYTE  # the other was there
    again = max((before - after for before, after in pairwise(told)), default=0)
    assert inside or again <= 2 * MEGABYTE  # a chunk at most was on its way in vain
    image = resolve(registry, parse(server.reference(rest=":v1")))
    assert server.blob(image.layers[0].digest).read_bytes() == files[0].read_bytes()


def test_download_goes_on_where_it_was_after_the_server_was_killed_and_started_again(
    server: Server, tmp_path: Path
) -> None:
    large = np.random.default_rng(1).bytes(40 * MEGABYTE)
    registry = connect(parse(server.reference()), writing=True)
    send(registry, [Layer("large", "application/octet-stream", large)], {}, ["v1"])
    image = resolve(registry, parse(server.reference(rest=":v1")))
    killer = Killer(server, 10 * MEGABYTE)
    (tmp_path / "out").mkdir()
    fetch(registry, image, tmp_path / "out", {}, killer)
    assert (tmp_path / "out/large").read_bytes() == large
    assert killer.done == sorted(killer.done)  # no byte came twice
    assert killer.done[-1] == 40 * MEGABYTE


def test_pull_that_was_broken_off_is_gone_on_with_by_the_next(
    server: Server, tmp_path: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("publish", two[0], server.reference()).code == 0
    image = resolve(connect(parse(server.reference())), parse(server.reference()))
    last = server.blob(image.layers[-2].digest)
    last.rename(last.with_name("aside"))
    monkeypatch.setattr(Patience.__init__, "__defaults__", (1.0,))
    with pytest.raises(StepError, match=r"cannot be reached|answers HTTP"):
        pull(parse(server.reference()), tmp_path / "out")
    partial = tmp_path / ".out.partial"
    assert not (tmp_path / "out").exists()
    assert (partial / "manifest.json").is_file()
    monkeypatch.undo()
    last.with_name("aside").rename(last)
    manifest = resolve(connect(parse(server.reference())), parse(server.reference())).layer("manifest.json")
    assert manifest is not None
    server.blob(manifest.digest).unlink()  # it is here already
    pull(parse(server.reference()), tmp_path / "out")
    assert not partial.exists()


def test_registry_that_stays_away_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(tmp_path / "server")
    monkeypatch.setattr("compiler.registries.patience.PATIENCE_S", 0.5)
    monkeypatch.setattr(Patience.__init__, "__defaults__", (0.5,))
    with pytest.raises(StepError, match="cannot be reached: Connection refused"):
        pull(parse(server.reference()), tmp_path / "out")
    assert no_trace(tmp_path / "out") or not any((tmp_path / ".out.partial").iterdir())


# -- when it lies ---------------------------------------------------------------------------------------------------


def test_flipped_bit_in_any_blob_of_the_registry_is_found_and_nothing_is_left(
    server: Server, tmp_path: Path, two: tuple[Path, Path]
) -> None:
    assert command("publish", two[0], server.reference()).code == 0
    image = resolve(connect(parse(server.reference())), parse(server.reference()))
    for layer in image.layers:
        blob = server.blob(layer.digest)
        whole = blob.read_bytes()
        if layer.name == "report.html" or not whole:
            continue
        flip(blob)
        with pytest.raises(IntegrityError, match=f"^{layer.name} does not match its digest"):
            pull(parse(server.reference()), tmp_path / "out")
        assert no_trace(tmp_path / "out"), layer.name
        blob.write_bytes(whole[:-1])
        with pytest.raises((IntegrityError, StepError)):
            pull(parse(server.reference()), tmp_path / "out")
        assert no_trace(tmp_path / "out") or not (tmp_path / "out").exists()
        blob.write_bytes(whole)
    done = command("pull", server.reference(), tmp_path / "out")
    assert done.code == 0, done.err


def test_flipped_bit_is_exit_code_6_on_the_command_line(server: Server, tmp_path: Path, two: tuple[Path, Path]) -> None:
    assert command("publish", two[0], server.reference()).code == 0
    layer = resolve(connect(parse(server.reference())), parse(server.reference())).layer("model.npz")
    assert layer is not None
    flip(server.blob(layer.digest))
    done = command("pull", server.reference(), tmp_path / "out")
    assert done.code == 6
    assert done.last_lines()[1].startswith("error: model.npz does not match its digest")
    assert no_trace(tmp_path / "out")


def test_tag_that_was_moved_is_reported_and_the_pinned_digest_still_pulled(
    server: Server, tmp_path: Path, two: tuple[Path, Path]
) -> None:
    pinned = parse(command("publish", two[0], server.reference(rest=":stable")).out.strip()).digest
    assert command("pull", server.reference(rest=":stable"), tmp_path / "one").code == 0
    assert command("publish", two[1], server.reference(rest=":stable")).code == 0
    both = command("pull", server.reference(rest=f":stable@{pinned}"), tmp_path / "two")
    assert both.code == 0, both.err
    assert "note: the tag stable has moved to sha256:" in both.err
    assert version_of(tmp_path / "two") == two[0].name
    plain = command("pull", server.reference(rest=":stable"), tmp_path / "three")
    assert "note: stable has moved since it was last pulled" in plain.err
    assert two[0].name in plain.err
    assert version_of(tmp_path / "three") == two[1].name


def test_version_tag_that_holds_another_version_is_refused(
    server: Server, tmp_path: Path, two: tuple[Path, Path]
) -> None:
    for version in two:
        assert command("publish", version, server.reference()).code == 0
    registry = connect(parse(server.reference()), writing=True)
    assert isinstance(registry, remote.Remote)
    newer = registry.manifest(two[1].name)
    assert newer is not None
    registry._put_manifest(two[0].name, newer)
    pull(parse(server.reference(rest=":latest")), tmp_path / "there")  # what it holds now is here already
    for take in (lambda r: pull(r, tmp_path / "out"), lambda r: pull(r, tmp_path / "there"), cached):
        with pytest.raises(IntegrityError, match=f"the tag {two[0].name} holds the version {two[1].name}"):
            take(parse(server.reference(rest=f":{two[0].name}")))
    assert no_trace(tmp_path / "out")


def test_annotations_that_do_not_agree_with_the_artifact_are_refused(
    server: Server, tmp_path: Path, two: tuple[Path, Path]
) -> None:
    assert command("publish", two[0], server.reference()).code == 0
    registry = connect(parse(server.reference()), writing=True)
    assert isinstance(registry, remote.Remote)
    data = registry.manifest("latest")
    assert data is not None
    changed = data.replace(b'"target-model-compiler.status": "pass"', b'"target-model-compiler.status": "fail"')
    changed = changed.replace(b'.status": "provisional"', b'.status": "pass"') if changed == data else changed
    assert digest_of(changed) != digest_of(data)
    registry._put_manifest("latest", changed)
    with pytest.raises(IntegrityError, match=r"the registry says target-model-compiler\.status"):
        pull(parse(server.reference()), tmp_path / "out")


# -- what else reads and writes it ------------------------------------------------------------------------------------


def test_skopeo_copies_an_artifact_to_a_layout_and_back_with_the_same_digest(
    server: Server, tmp_path: Path, two: tuple[Path, Path]
) -> None:
    needs("skopeo")
    digest = parse(command("publish", two[0], server.reference()).out.strip()).digest

    def skopeo(*arguments: str) -> str:
        done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    here, layout = f"docker://{server.host}", f"oci:{tmp_path}/layout:one"
    skopeo("copy", "--src-tls-verify=false", f"{here}/models/one:latest", layout)
    skopeo("copy", "--dest-tls-verify=false", layout, f"{here}/models/two:copied")
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"{here}/models/two:copied")
    assert digest_of(raw.encode()) == digest
    assert json.loads(raw)["layers"][0]["annotations"]["org.opencontainers.image.title"] == "manifest.json"
    for number, place in enumerate((f"file:{tmp_path}/layout:one", server.reference("models/two", ":copied"))):
        pulled = pull(parse(place), tmp_path / str(number))
        assert pulled.digest == digest
        assert pulled.manifest["version"] == two[0].name
    ours = tmp_path / "ours"
    assert command("publish", two[0], f"file:{ours}:mine").code == 0
    skopeo("copy", "--dest-tls-verify=false", f"oci:{ours}:mine", f"{here}/models/three:mine")
    assert pull(parse(server.reference("models/three", ":mine")), tmp_path / "three").digest == digest


def test_tls_is_verified_and_a_certificate_authority_of_ones_own_can_be_named(
    tmp_path: Path, two: tuple[Path, Path]
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    with Server(tmp_path / "server", tls=(certificate, key)) as server:
        refused = command("publish", two[0], server.reference())
        assert refused.code == 5
        assert "is not trusted" in refused.last_lines()[1]
        done = command("publish", two[0], server.reference(), env={**environment(), "SSL_CERT_FILE": str(certificate)})
        assert done.code == 0, done.err
