"""`visglm web`: the page that answers in the browser alone. This serves its files, and is asked nothing else."""

from __future__ import annotations

import argparse
import mimetypes
import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError, VisGLMError
from ..settings import Rule
from .flags import show_status

PAGE = Path(__file__).parents[2] / "demos" / "web"
RUNTIME = PAGE / "node_modules" / "onnxruntime-web" / "dist"
STATIC = (
    *("index.html", "style.css", "app.js", "texts.js"),
    *("sw.js", "worker.js", "files.js", "sha256.js", "network.js", "picture.js", "prompt.js", "tokenizer.js"),
)
OF_RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}
# Nothing may be fetched from anywhere else, nor sent there; and a page that is alone may use several threads.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
BLOCK = 2**20
OWN_HOSTS = ("127.0.0.1", "localhost", "::1")  # for which browsers keep pages without https


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="PATH", help="folder that `visglm export` wrote (default: the embedded visglm-tiny)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8502, help="port to listen on (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    from ..light.chat import EMBEDDED_MODEL
    from ..light.manifest import Manifest

    if not PAGE.is_dir():
        raise ConfigError(f"the page's files are not at {PAGE}: `visglm web` works in a clone of the repository.")
    folder = Path(arguments.model).expanduser() if arguments.model else EMBEDDED_MODEL
    manifest = Manifest(folder)
    fetch_runtime()
    files = served(folder, manifest.files)
    server = listen(arguments.host, arguments.port, files)
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    show_status(f"http://{host}:{server.server_port} (Ctrl-C ends it; the page then goes on without it)")
    if arguments.host not in OWN_HOSTS:
        show_status(
            "On other devices browsers keep nothing of a page that comes by http: there it needs this command each "
            "time. Behind a proxy with https it works without it."
        )
    with server:
        server.serve_forever()
    return 0


def listen(host: str, port: int, files: dict[str, Path]) -> Server:
    """A server of these files.

    Raises:
        ConfigError: there is no such port. VisGLMError: somebody has it, or the host is none of this machine's.
    """
    Rule(int, 0, 2**16 - 1).take("port", port)
    try:
        [(family, *_, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return Server(family, address, partial(Handler, files))
    except OSError as error:
        raise VisGLMError(f"cannot listen on {host}:{port} ({error}). Name another --port, or --host.") from None


def fetch_runtime() -> None:
    """Have npm bring the runtime, once; what it brings is compared with the hashes in package-lock.json.

    Raises:
        VisGLMError: there is no npm, or it failed.
    """
    if all((RUNTIME / name).is_file() for name in OF_RUNTIME):
        return
    if (npm := shutil.which("npm")) is None:
        raise VisGLMError(
            "the page needs onnxruntime-web, which npm brings once, and there is no npm here. Install Node.js, or copy "
            f"the package to {RUNTIME.parent}."
        )
    show_status("Bringing onnxruntime-web by npm, once …")
    words = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(PAGE)]
    result = subprocess.run(words, capture_output=True, text=True)
    if result.returncode:
        raise VisGLMError(f"npm could not bring onnxruntime-web: {result.stderr.strip()[-500:]}")


def served(folder: Path, names: frozenset[str]) -> dict[str, Path]:
    """Path in an address → file. There are no others, whatever somebody writes into an address."""
    files = {f"/{name}": PAGE / name for name in STATIC} | {"/": PAGE / "index.html"}
    files |= {f"/runtime/{name}": RUNTIME / name for name in OF_RUNTIME}
    return files | {f"/model/{name}": folder / name for name in (*names, "light.json")}


class Server(ThreadingHTTPServer):
    """Goes on, whatever a visitor does."""

    def __init__(self, family: socket.AddressFamily, address: Any, handler: Any):
        self.address_family = family
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who reloads the page or closes it leaves in the middle of a file: no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Gives files, and takes nothing."""

    protocol_version = "HTTP/1.1"
    timeout = 60

    def __init__(self, files: dict[str, Path], *arguments: object):
        self.files = files
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._give(has_body=True)

    def do_HEAD(self) -> None:
        self._give(has_body=False)

    def _give(self, has_body: bool) -> None:
        path = self.files.get(unquote(urlsplit(self.path).path))
        try:
            file = None if path is None else path.open("rb")
        except OSError:  # the folder has changed since
            file = None
        if path is None or file is None:
            self.send_error(404)
            return
        with file:
            status = os.fstat(file.fileno())
            tag = f'"{status.st_size:x}-{status.st_mtime_ns:x}"'
            is_known = self.headers.get("If-None-Match") == tag
            self.send_response(304 if is_known else 200)
            self.send_header("ETag", tag)
            kind = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "text/plain"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", "0" if is_known else str(status.st_size))
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            while has_body and not is_known and (block := file.read(BLOCK)):
                self.wfile.write(block)

    def log_message(self, *arguments: object) -> None:
        """Nothing: who looks at the page is nobody's business."""
