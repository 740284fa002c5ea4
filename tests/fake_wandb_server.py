"""W&B without W&B: a reader of the files that it writes offline, and a server that takes in runs as the real one does.

The server knows what wandb 0.31 asks of it while it sends, resumes and ends a run, and holds what it was sent. It is
written from what that client does, and tells nothing of how the real one draws it.
"""

import json
import re
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import wandb
from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768
KEY = "5ec7e7" * 7  # of the form of a key, and no one's


def environment(folder: Path) -> dict[str, str]:
    """That of a user who has a key and has asked for nothing to be sent, with nothing outside of a folder."""
    places = ("NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
    asked = {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    often = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"}  # whole seconds, not 15
    return asked | often | {name: str(folder / name) for name in places}


def records(path: Path) -> list[Record]:
    """The records of an offline file: a LevelDB log with a header of 7 bytes."""
    data, at, parts, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # no room for a header: the block ends in padding
            at += BLOCK - at % BLOCK
            continue
        check, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:
            break
        part = data[at + 7 : at + 7 + length]
        assert zlib.crc32(part, zlib.crc32(bytes([kind]))) == check
        at, parts = at + 7 + length, parts + part
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


class Offline:
    """What is in the only offline file of a run folder."""

    def __init__(self, folder: Path) -> None:
        wandb.teardown()  # its service goes on writing for a moment after a run is finished
        (path,) = folder.glob("wandb/offline-run-*/*.wandb")
        self.all = records(path)
        (self.run,) = self.of("run")
        self.config = {
            item.key: json.loads(item.value_json)
            for item in self.run.config.update
            if item.key[0] != "_"
        }
        self.history = [
            {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in row.item
            }
            for row in self.of("history")
        ]
        self.rows = [
            {k: v for k, v in row.items() if not k.startswith("_")} for row in self.history
        ]
        self.summary = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for part in self.of("summary")
            for item in part.update
        }
        self.exit_codes = [end.exit_code for end in self.of("exit")]

    def of(self, kind: str) -> list[Any]:
        return [
            getattr(record, kind) for record in self.all if record.WhichOneof("record_type") == kind
        ]


class FakeServer(ThreadingHTTPServer):
    """A server on this machine: `runs` by id, each with its history, summary and exit code; it may refuse every key."""

    refuses = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, dict[str, Any]] = {}
        self.views: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that is killed is no error here."""

    def stream(self, run: dict[str, Any], sent: dict[str, Any]) -> None:
        files = sent.get("files") or {}
        run["streamed"].update(files)
        if history := files.get("wandb-history.jsonl"):
            lines = [json.loads(line) for line in history["content"]]
            run["history"][history["offset"] : history["offset"] + len(lines)] = lines
        if summary := files.get("wandb-summary.json"):
            run["summary"] = json.loads(summary["content"][-1])
        run["exit_code"] = sent.get("exitcode", run["exit_code"])

    def answer(self, asked: str, given: dict[str, Any]) -> dict[str, Any]:
        """GraphQL's data for the operation of a name."""
        name, project = (
            given.get("name"),
            {"id": "p", "name": "p", "entity": {"id": "e", "name": "us"}},
        )
        if asked == "UpsertBucket":
            new = name not in self.runs
            run = self.runs.setdefault(
                name, {"history": [], "summary": {}, "streamed": set(), "exit_code": None}
            )
            run |= {key: given[key] for key in ("config", "groupName", "displayName") if given[key]}
            bucket = {
                "id": name,
                "name": name,
                "displayName": name,
                "config": "{}",
                "project": project,
            }
            return {
                "upsertBucket": {
                    "bucket": bucket | {"historyLineCount": len(run["history"])},
                    "inserted": new,
                }
            }
        if asked == "RunResumeStatus":
            run = self.runs.get(name)
            bucket = run and {
                "id": name,
                "name": name,
                "summaryMetrics": json.dumps(run["summary"]),
                "displayName": name,
                "logLineCount": 0,
                "historyLineCount": len(run["history"]),
                "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]),
                "eventsTail": "[]",
                "config": run["config"],
                "tags": [],
                "wandbConfig": '{"t": 1}',
            }
            return {"model": project | {"bucket": bucket}}
        if asked == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if asked in ("Viewer", "GetDefaultEntity"):
            return {
                "viewer": {
                    "id": "u",
                    "entity": "us",
                    "username": "us",
                    "flags": "{}",
                    "teams": {"edges": []},
                }
            }
        if asked == "UpsertView2":
            view = given | {"id": given.get("id") or f"view {len(self.views)}"}
            self.views[view["id"]] = view
            return {"upsertView": {"view": {"id": view["id"], "name": name}, "inserted": True}}
        if asked == "View":
            found = [view for view in self.views.values() if view["name"] == given["viewName"]]
            return {"project": {"allViews": {"edges": [{"node": view} for view in found]}}}
        return {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path.endswith("file_stream"):
            self.server.stream(self.server.runs[self.path.split("/")[-2]], json.loads(body))
            self.reply({})
        elif self.path == "/graphql" and self.server.refuses:
            self.reply({"errors": [{"message": "permission denied"}]}, 401)
        elif self.path == "/graphql":
            asked = json.loads(body)
            name = re.search(r"(?:query|mutation) (\w+)", asked["query"])
            self.reply(
                {"data": self.server.answer(name[1] if name else "", asked.get("variables") or {})}
            )
        else:
            self.reply({})

    do_PUT = do_GET = do_POST

    def reply(self, answer: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
