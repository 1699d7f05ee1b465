"""A real OCI registry (Debian's docker-registry) on loopback, started, killed and looked into by tests."""

from __future__ import annotations

import base64
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

CONFIG = """version: 0.1
log: {{accesslog: {{disabled: true}}, level: error}}
storage:
  filesystem: {{rootdirectory: {root}}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "127.0.0.1:{port}", secret: for-uploads-that-outlive-the-server, draintimeout: 1s{tls}}}
{auth}"""
USER, PASSWORD = "builder", "correct horse battery"


def needs(*programs: str) -> None:
    """Skips the test where a program is absent, with the line that installs it."""
    packages = {"docker-registry": "docker-registry", "skopeo": "skopeo", "htpasswd": "apache2-utils"}
    absent = [packages[name] for name in programs if shutil.which(name) is None]
    if absent:
        pytest.skip(f"apt-get install {' '.join(absent)}")


class Server:
    """One registry with its storage; `start` and `kill` as often as a test likes, on one port."""

    def __init__(self, folder: Path, auth: bool = False, tls: tuple[Path, Path] | None = None) -> None:
        needs("docker-registry", *(("htpasswd",) if auth else ()))
        folder.mkdir(parents=True, exist_ok=True)
        self.root = folder / "storage"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.host = f"127.0.0.1:{self.port}"
        self._folder, self._process = folder, None
        signing_in = ""
        if auth:
            made = subprocess.run(
                ["htpasswd", "-nbB", USER, PASSWORD], capture_output=True, text=True, check=True
            ).stdout.strip()
            (folder / "htpasswd").write_text(made + "\n")
            signing_in = f"auth: {{htpasswd: {{realm: tests, path: {folder / 'htpasswd'}}}}}\n"
        secured = f", tls: {{certificate: {tls[0]}, key: {tls[1]}}}" if tls else ""
        (folder / "config.yml").write_text(CONFIG.format(root=self.root, port=self.port, auth=signing_in, tls=secured))

    def start(self) -> Server:
        """Runs it, and waits until it listens."""
        self._log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(
            ["docker-registry", "serve", self._folder / "config.yml"], stdout=self._log, stderr=self._log
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            time.sleep(0.05)
        raise AssertionError("the registry does not listen")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
            self._log.close()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def reference(self, repository: str = "models/one", rest: str = "") -> str:
        """A reference to a repository of it."""
        return f"oci://{self.host}/{repository}{rest}"

    def blob(self, digest: str) -> Path:
        """Where it stores a blob."""
        hexa = digest.removeprefix("sha256:")
        return self.root / "docker/registry/v2/blobs/sha256" / hexa[:2] / hexa / "data"

    def docker_config(self, folder: Path) -> Path:
        """A folder with a Docker configuration that holds its credentials."""
        folder.mkdir(parents=True, exist_ok=True)
        secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (folder / "config.json").write_text(f'{{"auths": {{"{self.host}": {{"auth": "{secret}"}}}}}}')
        return folder
