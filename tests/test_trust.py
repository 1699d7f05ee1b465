"""Files, then signature, then provenance, then the user's policy: what does not fit is refused by name, unopened."""

from __future__ import annotations

import base64
import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, First, Project, command, environment

from compiler import provenance, runtime, signing
from compiler.canonical import file_digest
from compiler.errors import ConfigError, IntegrityError, MissingToolError
from compiler.runtime import loader, signatures
from compiler.runtime.policy import VARIABLE, Policy, chosen
from compiler.runtime.trust import check
from compiler.runtime.verify import PROVENANCE, SIGNATURE, files_digest
from compiler.versions import folder_of

TOOL = Path(sys.prefix) / "signing" / "bin" / "python"
"""`make setup` makes it."""
SECRET = "correct horse battery staple"


@dataclasses.dataclass
class Signed:
    """A published version, which no test may change, and the keys."""

    folder: Path
    keys: Path

    def copy(self, to: Path) -> Path:
        """The version under another name, to be spoiled."""
        folder = to / "pulled"
        shutil.copytree(self.folder, folder)
        for path in folder.iterdir():
            path.chmod(0o644)
        return folder

    @property
    def policy(self) -> Policy:
        return Policy.of_keys([self.keys / "team.pub"])


@pytest.fixture(scope="module")
def signed(first: First, tmp_path_factory: pytest.TempPathFactory) -> Signed:
    home = tmp_path_factory.mktemp("signed")
    (home / "keys").mkdir()
    subprocess.run([TOOL, ROOT / "tests/certificates.py", home / "keys", SECRET], check=True)
    folder = home / "version"
    shutil.copytree(folder_of(first.project.artifacts, first.manifest), folder)
    attest(folder)
    signing.sign(folder, folder / SIGNATURE, home / "keys" / "team.key")
    return Signed(folder, home / "keys")


def attest(folder: Path) -> None:
    """Writes the provenance of what lies there."""
    manifest = json.loads((folder / "manifest.json").read_text())
    made = provenance.statement(manifest, file_digest(folder / "manifest.json"))
    (folder / PROVENANCE).write_text(json.dumps(made))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest so that it is whole in itself and fits the files that lie there."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    for entry in manifest["files"]:
        entry |= {"size_bytes": (folder / entry["path"]).stat().st_size, "sha256": file_digest(folder / entry["path"])}
    manifest["digest"] = files_digest(manifest["files"])
    file.write_text(json.dumps(manifest))


def refused(folder: Path, *words: str, policy: Policy | None = None, installed: dict[str, Any] | None = None) -> str:
    """The error's text, which has all the words."""
    with pytest.raises(IntegrityError) as error:
        check(folder, policy, installed)
    assert all(word in error.value.what for word in words), error.value.what
    assert error.value.fix and error.value.what.isprintable()
    return error.value.what


def test_signed_version_verifies_with_the_key_under_any_folder_name(signed: Signed, tmp_path: Path) -> None:
    folder = signed.copy(tmp_path)
    done = command("verify", folder, "--key", signed.keys / "team.pub")
    assert done.code == 0, done.err
    files, signature, statement = done.out.splitlines()
    assert files.startswith("files: 5 match the manifest, digest ")
    assert signature == "signature: verified, made with the key team.pub"
    assert statement == "provenance: agrees with the files and the manifest, and is signed with them"
    record = json.loads(command("verify", folder, "--key", signed.keys / "team.pub", "--json").out)
    assert record["signature"] == record["provenance"] == "verified" and record["files"] == 5


def test_signature_without_a_trusted_key_is_said_to_be_unchecked(signed: Signed, first: First) -> None:
    done = command("verify", signed.folder)
    assert done.code == 0 and "signature: not checked: no trusted key was given (made with the key " in done.out
    assert "no verified signature covers it" in done.out
    found = check(folder_of(first.project.artifacts, first.manifest))
    assert (found.signature, found.provenance) == ("absent", "absent")


TAMPER: dict[str, tuple[Callable[[Path], object], str]] = {
    "altered": (lambda f: (f / "labels.txt").write_bytes(b"A" + (f / "labels.txt").read_bytes()[1:]), "labels.txt"),
    "longer": (lambda f: (f / "labels.txt").write_bytes((f / "labels.txt").read_bytes() + b"x"), "labels.txt"),
    "added": (lambda f: (f / "extra.bin").write_bytes(b"x"), "extra.bin"),
    "added below .git": (lambda f: ((f / ".git").mkdir(), (f / ".git" / "x").write_bytes(b"x")), ".git/x"),
    "added git file": (lambda f: (f / ".gitignore").write_bytes(b"x"), ".gitignore"),
    "sidecar below": (lambda f: ((f / "sub").mkdir(), (f / "sub" / SIGNATURE).write_bytes(b"x")), f"sub/{SIGNATURE}"),
    "renamed": (lambda f: (f / "labels.txt").rename(f / "other.txt"), "other.txt"),
    "removed": (lambda f: (f / "labels.txt").unlink(), "labels.txt"),
    "swapped": (
        lambda f: [
            (f / "model.npz").rename(f / "t"), (f / "latencies.npz").rename(f / "model.npz"),
            (f / "t").rename(f / "latencies.npz"),
        ],
        "latencies.npz",
    ),
    "link": (lambda f: ((f / "labels.txt").unlink(), (f / "labels.txt").symlink_to("/etc/passwd")), "labels.txt"),
    "signature is a link": (
        lambda f: ((f / SIGNATURE).rename(f.parent / "s"), (f / SIGNATURE).symlink_to("../s")),
        SIGNATURE,
    ),
    "control characters": (lambda f: (f / "\x1b[2J").write_bytes(b"x"), "?[2J"),
    "signature garbled": (lambda f: (f / SIGNATURE).write_bytes(b"\x00"), SIGNATURE),
    "signature too deep": (lambda f: (f / SIGNATURE).write_bytes(b"[" * 200_000), SIGNATURE),
    "signature too large": (lambda f: (f / SIGNATURE).write_bytes(b" " * (5 << 20)), SIGNATURE),
    "manifest altered": (lambda f: rewrite(f, lambda m: m.update(status="pass")), "manifest.json"),
    "provenance altered": (
        lambda f: (f / PROVENANCE).write_text((f / PROVENANCE).read_text().replace("pypi/numpy@", "pypi/numpx@")),
        PROVENANCE,
    ),
    "provenance removed": (lambda f: (f / PROVENANCE).unlink(), PROVENANCE),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPER)
def test_tampered_version_is_refused_by_name_with_a_key_and_without(what: str, signed: Signed, tmp_path: Path) -> None:
    spoil, name = TAMPER[what]
    folder = signed.copy(tmp_path)
    spoil(folder)
    refused(folder, name)
    refused(folder, name, policy=signed.policy)


def test_tampering_ends_verify_and_run_with_6(signed: Signed, tmp_path: Path) -> None:
    folder = signed.copy(tmp_path)
    (folder / ".git").mkdir()
    (folder / ".git" / "hook").write_text("x")
    for arguments in (["verify"], ["run", "--input", "x.npy", "--output", "y.npy"]):
        done = command(arguments[0], folder, *arguments[1:], cwd=tmp_path)
        assert done.code == 6 and done.last_lines()[1] == "error: .git/hook is not named by the manifest"


def test_empty_folder_holds_nothing_and_is_allowed(signed: Signed, tmp_path: Path) -> None:
    folder = signed.copy(tmp_path)
    (folder / ".git" / "objects").mkdir(parents=True)
    assert check(folder, signed.policy).signature == "verified"


def test_manifest_that_names_a_sidecar_is_refused(signed: Signed, tmp_path: Path) -> None:
    folder = signed.copy(tmp_path)
    entry = {"role": "labels", "media_type": "x", "portable": True}
    rewrite(folder, lambda m: m["files"].append({"path": SIGNATURE, **entry}))
    refused(folder, SIGNATURE)


def test_only_the_signature_catches_a_manifest_that_fits_a_changed_file(signed: Signed, tmp_path: Path) -> None:
    folder = signed.copy(tmp_path)
    (folder / "model.npz").write_bytes((folder / "latencies.npz").read_bytes())
    rewrite(folder, lambda m: None)
    text = refused(folder, "model.npz", policy=signed.policy)
    assert text == "model.npz, manifest.json: not what was signed"
    (folder / PROVENANCE).unlink()
    bare = folder / SIGNATURE
    bare.unlink()
    assert check(folder).signature == "absent"  # whole in itself: nothing else can tell
    refused(folder, f"{SIGNATURE} is missing", policy=signed.policy)


def test_signature_of_another_key_is_refused_whatever_it_claims(signed: Signed, tmp_path: Path) -> None:
    folder = signed.copy(tmp_path)
    team = json.loads((folder / SIGNATURE).read_text())
    (folder / "labels.txt").write_text("evil\n")
    rewrite(folder, lambda m: None)
    attest(folder)
    signing.sign(folder, folder / SIGNATURE, signed.keys / "other.key")
    done = command("verify", folder, "--key", signed.keys / "team.pub")
    assert done.code == 6 and f"{SIGNATURE} is refused: it was made with the key" in done.last_lines()[1]
    both = Policy.of_keys([signed.keys / "team.pub", signed.keys / "other.pub"])
    assert check(folder, both).signer == "key other.pub"
    forged = json.loads((folder / SIGNATURE).read_text())
    forged["verificationMaterial"] = team["verificationMaterial"]
    (folder / SIGNATURE).write_text(json.dumps(forged))
    refused(folder, f"{SIGNATURE} is refused", "not signed", policy=signed.policy)
    forged["dsseEnvelope"]["signatures"] = team["dsseEnvelope"]["signatures"]
    (folder / SIGNATURE).write_text(json.dumps(forged))
    refused(folder, f"{SIGNATURE} is refused", policy=signed.policy)


@pytest.mark.parametrize("change", ["algorithm", "method", "ignore"])
def test_signature_that_covers_less_or_otherwise_is_refused(change: str, signed: Signed, tmp_path: Path) -> None:
    """A trusted key may have signed something else, by another tool: every file must be covered, by SHA-256."""
    folder = signed.copy(tmp_path)
    code = (
        "import sys, pathlib; from model_signing import hashing, signing\n"
        "folder, key, change = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]\n"
        "h = hashing.Config()\n"
        "h = h.use_file_serialization(hashing_algorithm='blake3') if change == 'algorithm' else h\n"
        "h = h.use_shard_serialization(shard_size=1000) if change == 'method' else h\n"
        "left_out = ['model.sig', 'model.npz'] if change == 'ignore' else ['model.sig']\n"
        "h = h.set_ignored_paths(paths=left_out)\n"
        "c = signing.Config().use_elliptic_key_signer(private_key=key)\n"
        "c.set_hashing_config(h).sign(folder, folder / 'model.sig')"
    )
    subprocess.run([TOOL, "-c", code, folder, signed.keys / "team.key", change], check=True)
    refused(folder, "model.npz" if change == "ignore" else SIGNATURE, policy=signed.policy)


def test_signature_by_the_signing_tool_itself_is_accepted(signed: Signed, tmp_path: Path) -> None:
    folder = signed.copy(tmp_path)
    (folder / SIGNATURE).unlink()
    line = ["-m", "model_signing", "sign", "key", folder, "--private_key", signed.keys / "team.key"]
    subprocess.run([TOOL, *line, "--signature", folder / SIGNATURE], check=True, capture_output=True)
    assert check(folder, signed.policy).signature == "verified"


def test_certificates_are_followed_to_a_trusted_root_and_no_other(
    signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(signing.PASSWORD, SECRET)
    folder, keys = signed.copy(tmp_path), signed.keys
    trusted = Policy(require_signature=True, trusted_certificates=(keys / "root.pem",))
    signing.sign(folder, folder / SIGNATURE, keys / "locked.key", [keys / "release.pem", keys / "middle.pem"])
    found = check(folder, trusted)
    assert (found.signature, found.signer) == ("verified", "certificate CN=release")
    assert check(folder).signer.startswith("certificate ")
    stranger = Policy(require_signature=True, trusted_certificates=(keys / "stranger.pem",))
    refused(folder, f"{SIGNATURE} is refused", "certificate", policy=stranger)
    refused(folder, "no certificate is trusted", policy=signed.policy)
    signing.sign(folder, folder / SIGNATURE, keys / "locked.key", [keys / "release.pem"])
    refused(folder, f"{SIGNATURE} is refused", policy=trusted)  # what leads to the root is not there
    both = dataclasses.replace(trusted, trusted_certificates=(keys / "root.pem", keys / "middle.pem"))
    assert check(folder, both).signature == "verified"
    signing.sign(folder, folder / SIGNATURE, keys / "locked.key", [keys / "direct.pem"])
    assert check(folder, trusted).signer == "certificate CN=direct"
    refused(signed.folder, "not trusted", policy=trusted)


def test_web_servers_certificate_under_the_same_root_signs_nothing(signed: Signed, tmp_path: Path) -> None:
    folder, keys = signed.copy(tmp_path), signed.keys
    with pytest.raises(ConfigError, match="not for signing code"):
        signing.sign(folder, folder / SIGNATURE, keys / "web.key", [keys / "web.pem"])
    code = (
        "import sys; from model_signing import hashing, signing\n"
        "folder, key, cert = sys.argv[1:]\n"
        "h = hashing.Config().set_ignored_paths(paths=['model.sig'])\n"
        "named = {'signing_certificate': cert, 'certificate_chain': [cert]}\n"
        "c = signing.Config().use_certificate_signer(private_key=key, **named)\n"
        "c.set_hashing_config(h).sign(folder, folder + '/model.sig')"
    )
    subprocess.run([TOOL, "-c", code, folder, keys / "web.key", keys / "web.pem"], check=True)
    trusted = Policy(require_signature=True, trusted_certificates=(keys / "root.pem",))
    refused(folder, f"{SIGNATURE} is refused", "not for signing code", policy=trusted)


def test_password_of_the_key_comes_from_the_environment_and_goes_nowhere(
    signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, key = signed.copy(tmp_path), signed.keys / "locked.key"
    said = []
    for value, word in (("", "no password"), ("wrong " + SECRET, "password is wrong")):
        monkeypatch.setenv(signing.PASSWORD, value)
        with pytest.raises(ConfigError, match=word) as error:
            signing.sign(folder, folder / SIGNATURE, key)
        said += [str(error.value.to_json())]
    monkeypatch.setenv(signing.PASSWORD, SECRET)
    signing.sign(folder, folder / SIGNATURE, key)
    assert check(folder, Policy.of_keys([signed.keys / "locked.pub"])).signature == "verified"
    said += [*capfd.readouterr(), *(str(check(folder)).splitlines())]
    done = command("verify", folder, "--key", signed.keys / "locked.pub", env=environment())
    said += [done.out, done.err, *(path.read_bytes().decode(errors="replace") for path in folder.iterdir())]
    assert done.code == 0 and not any(SECRET in text or "PRIVATE KEY" in text for text in said)


def test_signing_process_sees_no_environment_but_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import os, json; print(json.dumps(dict(os.environ)))'\n")
    fake.chmod(0o755)
    for name in (signing.PASSWORD, "REGISTRY_TOKEN", "PYTHONSTARTUP", "LD_PRELOAD"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv(signatures.PYTHON, str(fake))
    assert set(signatures.ask({"do": "version"})) <= {*signatures.PASSED_ON, "LC_ALL", "PWD", "SHLVL", "_"}


def test_unfit_folder_and_unfit_keys_are_not_signed(signed: Signed, tmp_path: Path) -> None:
    folder, out = signed.copy(tmp_path), tmp_path / "out.sig"
    for name, word in (
        ("rsa.key", "elliptic curve"), ("k1.key", "secp256k1"), ("team.pub", "no private key"), ("gone.key", "No such"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=word):
            signing.sign(folder, out, signed.keys / name)
    with pytest.raises(ConfigError, match="cannot sign with"):
        signing.sign(folder, out, signed.keys / "team.key", [signed.keys / "direct.pem"])
    with pytest.raises(ConfigError, match="no certificate"):
        signing.sign(folder, out, signed.keys / "team.key", [signed.keys / "team.pub"])
    (folder / "labels.txt").write_text("other")
    with pytest.raises(IntegrityError, match=r"labels\.txt"):
        signing.sign(folder, out, signed.keys / "team.key")
    assert not out.exists()


def test_earlier_signed_version_does_not_replace_a_later_one(signed: Signed, tmp_path: Path) -> None:
    newer = signed.copy(tmp_path)
    rewrite(newer, lambda m: m.update(created="2099-01-01T00:00:00Z"))
    installed = json.loads((newer / "manifest.json").read_text())
    own = json.loads((signed.folder / "manifest.json").read_text())
    policy = Policy(refuse_older=True)
    refused(signed.folder, "before what is installed", policy=policy, installed=installed)
    assert check(signed.folder, Policy(), installed)  # the policy does not ask
    assert check(signed.folder, policy, own)
    offset = {**own, "created": own["created"].replace("Z", "+14:00")}  # the same hour elsewhere: earlier
    assert check(signed.folder, policy, offset)
    for name in ("model", "target"):
        refused(signed.folder, name, "installed", policy=policy, installed={**own, name: "another"})
    done = command("verify", signed.folder, "--key", signed.keys / "team.pub", "--installed", newer)
    assert done.code == 6 and "before what is installed" in done.err
    for created in ("yesterday", "2026-01-01T00:00:00", 7):
        refused(signed.folder, "when it was created", policy=policy, installed={**own, "created": created})


PROVENANCES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "type": (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "_type"),
    "predicate type": (lambda s: s.update(predicateType="https://slsa.dev/provenance/v0.2"), "predicateType"),
    "build type": (lambda s: s["predicate"]["buildDefinition"].update(buildType="x"), "buildType"),
    "digest": (lambda s: s["subject"][0]["digest"].update(sha256="0" * 64), "labels.txt"),
    "subject missing": (lambda s: s["subject"].pop(0), "labels.txt"),
    "subject added": (lambda s: s["subject"].append({"name": "x\x1b", "digest": {"sha256": "0" * 64}}), "x"),
    "subject twice": (lambda s: s["subject"].append(s["subject"][0]), "twice"),
    "config": (lambda s: s["predicate"]["buildDefinition"]["externalParameters"]["config"].update(seed=1), "config"),
    "config's type": (
        lambda s: s["predicate"]["buildDefinition"]["externalParameters"]["config"].update(seed=False), "config",
    ),
    "model": (lambda s: s["predicate"]["buildDefinition"]["externalParameters"].update(model="x"), "model"),
    "version": (lambda s: s["predicate"]["runDetails"]["metadata"].update(invocationId="x"), "version"),
    "no predicate": (lambda s: s.pop("predicate"), "no provenance"),
    "no subjects": (lambda s: s.update(subject=7), "no provenance"),
}  # fmt: skip


@pytest.mark.parametrize("what", PROVENANCES)
def test_provenance_that_does_not_agree_is_refused_without_any_signature(
    what: str, signed: Signed, tmp_path: Path
) -> None:
    change, word = PROVENANCES[what]
    folder = signed.copy(tmp_path)
    (folder / SIGNATURE).unlink()
    assert check(folder).provenance == "unsigned"
    statement = json.loads((folder / PROVENANCE).read_text())
    change(statement)
    (folder / PROVENANCE).write_text(json.dumps(statement))
    refused(folder, PROVENANCE, word)


def test_provenance_of_another_build_is_refused(signed: Signed, project: Project, tmp_path: Path) -> None:
    folder = signed.copy(tmp_path)
    (folder / SIGNATURE).unlink()
    other = project.build("seed=7").manifest_path.parent
    made = provenance.statement(json.loads((other / "manifest.json").read_text()), file_digest(other / "manifest.json"))
    (folder / PROVENANCE).write_text(json.dumps(made))
    refused(folder, f"{PROVENANCE} is not this artifact's")
    for text in ("", "[" * 100_000, "{}", '{"_type": NaN}', "null"):
        (folder / PROVENANCE).write_text(text)
        refused(folder, PROVENANCE)
    (folder / PROVENANCE).unlink()
    refused(folder, "the policy requires it", policy=Policy(require_provenance=True))


def test_provenance_is_in_toto_with_slsa_v1_and_the_same_each_time(signed: Signed) -> None:
    manifest = json.loads((signed.folder / "manifest.json").read_text())
    manifest["inputs"] = {"export.weights": {"path": "w.safetensors", "sha256": "a" * 64}}
    manifest["environment"]["packages"]["Torch_X"] = "2.1+cpu"
    made = provenance.statement(manifest, "b" * 64)
    assert json.dumps(made) == json.dumps(provenance.statement(json.loads(json.dumps(manifest)), "b" * 64))
    code = (
        "import json, sys\n"
        "from google.protobuf import json_format\n"
        "from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance\n"
        "from in_toto_attestation.v1 import statement, statement_pb2\n"
        "made = json.load(sys.stdin)\n"
        "read = json_format.ParseDict(made, statement_pb2.Statement())\n"
        "statement.Statement.copy_from_pb(read).validate()\n"
        "p = json_format.ParseDict(made['predicate'], Provenance())\n"
        "d = p.build_definition.resolved_dependencies\n"
        "assert all(x.uri or x.digest for x in d) and p.run_details.builder.id and p.build_definition.build_type\n"
        "assert all(x.digest for x in p.run_details.byproducts) and p.run_details.metadata.HasField('finished_on')\n"
        "print(json.dumps([[x.name, x.uri, dict(x.digest)] for x in d]))\n"
    )
    done = subprocess.run([TOOL, "-c", code], input=json.dumps(made), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert ["Torch_X", "pkg:pypi/torch-x@2.1%2Bcpu", {}] in found
    assert ["export.weights", "", {"sha256": "a" * 64}] in found
    commit = manifest["environment"]["git_commit"]
    assert found[0][2] == ({"gitCommit": commit} if commit else {})


def test_nothing_is_opened_before_signature_and_provenance_are_checked(
    signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary is an artifact whose opening is seen: first that it is seen at all, then that it is not."""
    opened: list[Path] = []
    real = loader.open_model
    monkeypatch.setattr(loader, "open_model", lambda *a, **k: (opened.append(a[1]), real(*a, **k))[1])
    runtime.load(signed.folder, policy=signed.policy)
    assert opened and opened.pop()
    other = Policy.of_keys([signed.keys / "other.pub"])
    with pytest.raises(IntegrityError):
        runtime.load(signed.folder, policy=other)
    folder = signed.copy(tmp_path)
    (folder / SIGNATURE).unlink()
    (folder / PROVENANCE).write_text("{}")
    with pytest.raises(IntegrityError):
        runtime.load(folder)
    assert not opened


def test_model_that_would_crash_the_runtime_is_refused_first(signed: Signed, tmp_path: Path) -> None:
    folder = signed.copy(tmp_path)
    (folder / "model.npz").write_bytes(b"\x00")
    rewrite(folder, lambda m: None)
    for name in (SIGNATURE, PROVENANCE):
        (folder / name).unlink()
    line = ["run", folder, "--input", "x.npy", "--output", "y.npy"]
    assert command(*line, cwd=tmp_path).code not in (0, 6)  # it does crash
    done = command(*line, "--key", signed.keys / "team.pub", cwd=tmp_path)
    assert done.code == 6 and done.last_lines()[1] == f"error: {SIGNATURE} is missing: a signature is required"


def test_policy_of_the_environment_holds_for_every_verb_that_opens_an_artifact(
    signed: Signed, built: Project, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    shutil.copy(signed.keys / "team.pub", tmp_path / "team.pub")
    policy.write_text("trusted_keys: [team.pub]\n")
    folder = built.artifacts / "nullmodel" / "nulltarget" / "latest"
    within = {**environment(), VARIABLE: str(policy)}
    for arguments in (["verify"], ["run", "--input", "x", "--output", "y"], ["measure"], ["rebuild"], ["profile"]):
        done = command(arguments[0], folder, *arguments[1:], env=within)
        assert done.code == 6 and f"{SIGNATURE} is missing" in done.err, done.err
    assert command("verify", signed.folder, env=within).out.splitlines()[1].endswith("team.pub")
    policy_of_others = tmp_path / "other.yaml"
    policy_of_others.write_text("require_provenance: false\n")
    assert command("verify", folder, "--policy", policy_of_others, env=within).code == 0


def test_policy_allows_models_targets_and_statuses(signed: Signed) -> None:
    manifest = json.loads((signed.folder / "manifest.json").read_text())
    for name, own in (("models", "model"), ("targets", "target"), ("statuses", "status")):
        assert check(signed.folder, Policy(**{name: (manifest[own],)})).files == 5
        other = "budget_failed" if name == "statuses" else "another"
        refused(signed.folder, "does not allow", own, policy=Policy(**{name: (other,)}))


BAD_POLICIES = {
    "require_signatur: true": "did you mean 'require_signature'",
    "require_signature: 'yes'": "require_signature",
    "require_signature: true": "nobody is trusted",
    "trusted_keys: team.pub": "trusted_keys",
    "trusted_keys: []": "trusted_keys",
    "trusted_keys: [7]": "trusted_keys",
    "trusted_keys: [gone.pub]": "gone.pub",
    "statuses: [passed]": "did you mean 'pass'",
    "refuse_older: true\nrefuse_older: false": "twice",
    "- a": "no table",
    "": "no table",
    "7: a": "no table",
    "a: [": "not plain YAML",
    "[" * 20_000: "not plain YAML",
    "\x00": "not plain YAML",
    "# " + "x" * 70_000: "bytes",
    "!!python/object/apply:os.system ['touch canary']": "tags are not allowed",
    "models: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [canary]]": "tags",
    "a: &a [x, x, x, x, x]\nb: &b [*a, *a, *a, *a]\nmodels: [*b, *b]": "unknown key",
}


@pytest.mark.parametrize("text", BAD_POLICIES, ids=range(len(BAD_POLICIES)))
def test_policy_that_is_none_is_a_usage_error_and_runs_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        Policy.read(tmp_path / "policy.yaml")
    assert BAD_POLICIES[text] in f"{error.value.what} {error.value.fix}" and error.value.fix
    assert not (tmp_path / "canary").exists()


class Canary:
    """Unpickled, it leaves a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("canary"),)


def test_pickle_in_place_of_any_of_our_files_is_never_loaded(signed: Signed, tmp_path: Path) -> None:
    data = pickle.dumps(Canary())
    (tmp_path / "policy.yaml").write_bytes(data)
    assert command("verify", signed.folder, "--policy", tmp_path / "policy.yaml", cwd=tmp_path).code == 2
    for number, name in enumerate((SIGNATURE, PROVENANCE, "manifest.json")):
        folder = signed.copy(tmp_path / str(number))
        (folder / name).write_bytes(data)
        with pytest.raises(IntegrityError):
            check(folder, signed.policy)
    assert not list(tmp_path.rglob("canary")) and not Path("canary").exists()


def test_trusted_key_that_is_none_is_a_usage_error(signed: Signed, tmp_path: Path) -> None:
    for name, word in (("team.key", "no public key"), ("rsa.pub", "elliptic"), ("k1.pub", "secp256k1")):
        with pytest.raises(ConfigError, match=word):
            check(signed.folder, Policy.of_keys([signed.keys / "team.pub", signed.keys / name]))
    with pytest.raises(ConfigError, match=r"gone\.pub"):
        Policy.of_keys([tmp_path / "gone.pub"])


def test_keys_and_policy_together_trust_both(signed: Signed, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(f"trusted_keys: [{signed.keys / 'other.pub'}]\nrequire_signature: false\n")
    policy = chosen(tmp_path / "policy.yaml", [signed.keys / "team.pub"])
    assert policy is not None and policy.require_signature and len(policy.trusted_keys) == 2
    assert chosen() is None


def test_signature_that_nothing_here_can_check_is_a_missing_tool(
    signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(signatures, "LEAST_SECONDS", 0.2)
    monkeypatch.setattr(signatures, "SLOWEST_BYTES_PER_S", 1 << 40)
    for python, word in (("/no/such/python", "cannot be started"), ("/bin/false", "ended with 1"), (slow, "answer")):
        monkeypatch.setenv(signatures.PYTHON, str(python))
        with pytest.raises(MissingToolError, match=word):
            check(signed.folder, signed.policy)
    monkeypatch.undo()
    without = {**environment(), signatures.PYTHON: sys.executable}
    done = command("verify", signed.folder, "--key", signed.keys / "team.pub", env=without)
    assert done.code == 4 and "target-model-compiler[signing]" in done.last_lines()[0]
    assert command("verify", signed.folder, env=without).code == 0  # nothing is to be checked
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(MissingToolError, match="not installed"):
        check(signed.folder, signed.policy)


def test_policy_without_a_yaml_library_is_a_missing_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingToolError, match="PyYAML") as error:
        Policy.read(tmp_path / "policy.yaml")
    assert "pip install" in error.value.fix


def test_doctor_says_whether_signatures_can_be_checked() -> None:
    done = command("doctor", "target=xeon")
    assert f"ok    signatures: model-signing 1.1.1 in {TOOL}" in done.out
    without = command("doctor", "target=xeon", env={**environment(), signatures.PYTHON: sys.executable})
    assert "LACK  signatures: " in without.out and "[signing]" in without.out and without.code == done.code


def test_signature_beside_the_model_is_no_part_of_it(signed: Signed, built: Project, tmp_path: Path) -> None:
    """`model.sig` shares its stem with `model.npz`, as weights beside a model do."""
    folder = (built.artifacts / "nullmodel" / "nulltarget" / "latest").resolve()
    folder.chmod(0o755)
    signing.sign(folder, folder / SIGNATURE, signed.keys / "team.key")
    done = command("measure", folder, "--write-bundle", tmp_path / "bundle")
    assert done.code == 0, done.err
    assert not [path for path in (tmp_path / "bundle").rglob("*") if path.name == SIGNATURE]


def test_bundle_says_what_it_covers(signed: Signed) -> None:
    bundle = signatures.read_bundle(signed.folder / SIGNATURE)
    names = {path.name for path in signed.folder.iterdir()}
    assert set(bundle.files) == names - {SIGNATURE} and bundle.kind == "key"
    envelope = json.loads(bundle.text)["dsseEnvelope"]
    assert json.loads(base64.b64decode(envelope["payload"]))["predicateType"] == "https://model_signing/signature/v1.0"


def test_candidate_whose_artifact_would_be_taken_for_a_sidecar_is_refused(project: Project) -> None:
    for name in (SIGNATURE, "my model.npz", "Manifest.json"):
        done = command("plan", *project.base, f"candidate.null_fp32.artifact='{name}'")
        assert done.code == 2 and "candidate.null_fp32.artifact" in done.err, done.err
