"""Serve the forecasts of an exported model over HTTP, with Python's own server.

    python docs/examples/serve.py models/modernn --port 8000

    GET  /          what the model takes and gives, as JSON
    POST /forecast  a NumPy file (.npy) of codes, uint8 or uint16 [context, C, H, W], or of fractions, float32 in 0..1
                    -> a NumPy file, float32 [horizon, C, H, W] in 0..1; ?horizon=N for another number of frames

It listens on this machine alone. Others reach it through a web server that knows who may.
"""

from __future__ import annotations

import argparse
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch

import toolkit

LARGEST = 256 * 2**20  # bytes of a request
LONGEST = 1000  # frames of a forecast


class Forecaster:
    """A model, used by one request at a time."""

    def __init__(self, folder: Path, model_file: Path | None = None) -> None:
        self.model = toolkit.load(folder, model_file)
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.facts = {
            "model": record["config"]["model"]["name"],
            "context": record["config"]["data"]["context"],
            "horizon": record["config"]["data"]["horizon"],
            "frames": record["frames"],
            "scale": record["scale"],
        }
        if (choice := self.model.channel_choice) is not None:
            self.facts["channels"] = {"frames": choice.names, "forecast": choice.target_names}
            self.facts["frames"] |= {"channels": len(choice.inputs), "names": choice.names}
        self.lock = threading.Lock()

    def forecast(self, body: bytes, horizon: int) -> bytes:
        """Return the .npy file of the forecast; raise ValueError for frames that the model doesn't take."""
        frames = np.load(io.BytesIO(body), allow_pickle=False)
        if not isinstance(frames, np.ndarray):
            raise ValueError("an .npz archive is not taken: send one array as .npy")
        if frames.dtype in (np.uint8, np.uint16):
            frames = frames / np.float32(self.facts["scale"]["max_code"])
        context = torch.from_numpy(np.ascontiguousarray(frames, np.float32))[None]
        with self.lock:
            made = self.model.predict(context, horizon)[0, 0]
        answer = io.BytesIO()
        np.save(answer, made.numpy())
        return answer.getvalue()


def make_server(forecaster: Forecaster, port: int) -> ThreadingHTTPServer:
    """Return a server on 127.0.0.1; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 60

        def do_GET(self) -> None:
            self.answer(200, "application/json", json.dumps(forecaster.facts).encode())

        def do_POST(self) -> None:
            address = urlsplit(self.path)
            if address.path != "/forecast":
                return self.answer(404, "text/plain", b"POST to /forecast")
            try:
                horizon = int(parse_qs(address.query).get("horizon", [forecaster.facts["horizon"]])[0])
                length = int(self.headers.get("Content-Length", 0))
                if not 0 < length <= LARGEST or not 0 < horizon <= LONGEST:
                    raise ValueError(f"1 to {LARGEST} bytes and 1 to {LONGEST} frames are taken")
                return self.answer(
                    200, "application/octet-stream", forecaster.forecast(self.rfile.read(length), horizon)
                )
            except (ValueError, EOFError, MemoryError) as error:
                return self.answer(400, "text/plain", str(error).encode())
            except RuntimeError as error:  # of torch
                return self.answer(500, "text/plain", str(error).encode())

        def answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main(argv: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description="Serve the forecasts of an exported model.")
    parser.add_argument("folder", type=Path, help="made by launch/export.py")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model-file", type=Path, help="the file that the model is from, if it is one of your own")
    arguments = parser.parse_args(argv)
    server = make_server(Forecaster(arguments.folder, arguments.model_file), arguments.port)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
