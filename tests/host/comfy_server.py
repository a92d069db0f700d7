"""A real ComfyUI server on a free loopback port, with a base directory of its own and the pack linked into it.

Standard library only: the browser tests use it too, where the host's modules are not importable.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACK_NAME = "flowcache"
FOLDERS = ("custom_nodes", "input", "output", "models/diffusion_models", "models/vae", "models/text_encoders")
PATIENCE = 600.0  # seconds for a start or a prompt: generous, for a machine with other work


class ServerError(Exception):
    """The server did not start, or a prompt failed; with what it said."""


@dataclass(frozen=True)
class ComfyServer:
    """cancel_route: where a host takes the end of one job; older ones have no such route."""

    url: str
    base: Path
    cancel_route: str = "/api/jobs/{}/cancel"

    def get(self, path: str) -> Any:
        """JSON of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def status(self, path: str) -> int:
        """HTTP status of a GET request."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def send(self, path: str, content: Mapping[str, Any]) -> bytes:
        """The answer to a POST of JSON; HTTPError where the host refuses it."""
        body = json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: bytes = answer.read()
        return found

    def queue(self, prompt: Mapping[str, Any]) -> str:
        """Post a prompt in API format; its id. ServerError with the host's own words."""
        try:
            return str(json.loads(self.send("/prompt", {"prompt": prompt}))["prompt_id"])
        except urllib.error.HTTPError as error:
            raise ServerError(error.read().decode()) from error

    def run(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """Post a prompt in API format and wait; its outputs by node id. ServerError with the host's own words."""
        return self.outputs(self.queue(prompt))

    def cancel(self, prompt_id: str) -> None:
        """End a prompt that is queued or running, and no other."""
        try:
            self.send(self.cancel_route.format(prompt_id), {})
        except urllib.error.HTTPError as error:
            if error.code not in (404, 405):
                raise
            self.send("/queue", {"delete": [prompt_id]})
            self.send("/interrupt", {"prompt_id": prompt_id})

    def outputs(self, prompt_id: str) -> dict[str, Any]:
        """Wait for a prompt that is queued or running."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id, {})
            status = entry.get("status", {})
            if status.get("status_str") == "error":
                told = dict(status["messages"])
                if "execution_interrupted" in told:
                    raise ServerError(f"interrupted in {told['execution_interrupted']['node_type']}")
                error = told["execution_error"]
                raise ServerError(f"{error['node_type']}: {error['exception_message']}")
            if status.get("completed"):
                outputs: dict[str, Any] = entry["outputs"]
                return outputs
            time.sleep(0.2)
        self.cancel(prompt_id)
        raise ServerError(f"no result within {PATIENCE:.0f} s")

    def file(self, entry: Mapping[str, str]) -> Path:
        """The file that an output names."""
        folder = {"output": "output", "temp": "temp"}[entry["type"]]
        return self.base / folder / entry["subfolder"] / entry["filename"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lay_out(base: Path) -> None:
    """The folders that the host expects, and the pack by a link."""
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / "custom_nodes" / PACK_NAME).symlink_to(ROOT, target_is_directory=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"Comfy.TutorialCompleted": true}', encoding="utf-8")


@contextlib.contextmanager
def comfy_server(host: Path, python: Path, base: Path, *options: str) -> Iterator[ComfyServer]:
    """A running server over ``base``, which :func:`lay_out` has prepared; stopped at the end. options: of its own."""
    port = free_port()
    command = [
        str(python), str(host / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(port),
        "--disable-api-nodes", "--base-directory", str(base), "--database-url", "sqlite:///:memory:", *options,
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    log = base / "server.log"
    with open(log, "wb") as sink:
        process = subprocess.Popen(command, cwd=host, env=environment, stdout=sink, stderr=subprocess.STDOUT)
        try:
            server = ComfyServer(f"http://127.0.0.1:{port}", base)
            wait_until_up(server, process, log)
            yield server
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def wait_until_up(server: ComfyServer, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            if server.status("/system_stats") == 200:
                return
        time.sleep(0.2)
    tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
    raise ServerError(f"ComfyUI did not start:\n{tail}")
