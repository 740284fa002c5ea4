"""A stand-in for W&B's server, and a reader of the files that the wandb package writes offline.

The server answers what wandb 0.31 asks while it sends, resumes and ends a run, and keeps what it
receives. It is written after that client, and shows nothing of how the real server draws a run.
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

BLOCK_SIZE, HEADER_SIZE = 32768, 7  # of LevelDB's log format
FULL_RECORD, LAST_PART = 1, 4  # types of parts after which a record is complete
KEY = "5ec7e7" * 7  # has the form of a key, but is nobody's


def environment(directory: Path) -> dict[str, str]:
    """Return the variables of a user with a key who wants nothing sent; all files are in here."""
    places = ("NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
    settings = {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    interval = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"}  # seconds; 15 by default
    return settings | interval | {name: str(directory / name) for name in places}


def read_records(path: Path) -> list[Record]:
    """Return the records of an offline file: a log in LevelDB's format after W&B's own header."""
    data, position, parts, records = path.read_bytes(), HEADER_SIZE, b"", []
    assert data[:4] == b":W&B"
    while position + HEADER_SIZE <= len(data):
        remaining = BLOCK_SIZE - position % BLOCK_SIZE
        if remaining < HEADER_SIZE:  # no room for another header: the block ends in padding
            position += remaining
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + HEADER_SIZE])
        if kind == 0:
            break
        position += HEADER_SIZE
        part = data[position : position + length]
        assert zlib.crc32(part, zlib.crc32(bytes([kind]))) == checksum
        position += length
        parts += part
        if kind in (FULL_RECORD, LAST_PART):
            records.append(Record.FromString(parts))
            parts = b""
    return records


class OfflineRun:
    """The content of the only offline file of a run directory.

    Attributes:
        records: all records of the file.
        run: the record of the run itself.
        config, summary: what W&B's tables show.
        history: the logged rows, with W&B's own columns; `rows` is without those.
        exit_codes: how the run ended, once for each end.
    """

    def __init__(self, directory: Path) -> None:
        wandb.teardown()  # its service writes for a moment after a run is finished
        (path,) = directory.glob("wandb/offline-run-*/*.wandb")
        self.records = read_records(path)
        (self.run,) = self.of_kind("run")
        config = {item.key: json.loads(item.value_json) for item in self.run.config.update}
        self.config = {key: value for key, value in config.items() if key[0] != "_"}
        self.history = [
            {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in row.item
            }
            for row in self.of_kind("history")
        ]
        self.rows = [
            {k: v for k, v in row.items() if not k.startswith("_")} for row in self.history
        ]
        self.summary = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for part in self.of_kind("summary")
            for item in part.update
        }
        self.exit_codes = [end.exit_code for end in self.of_kind("exit")]

    def of_kind(self, kind: str) -> list[Any]:
        """Return the records of one kind."""
        return [
            getattr(record, kind)
            for record in self.records
            if record.WhichOneof("record_type") == kind
        ]


class FakeServer(ThreadingHTTPServer):
    """A server on this machine.

    Attributes:
        rejects_keys: whether it answers that permission is denied.
        default_entity: the user's; None for one that exists in teams only.
        deleted: ids of runs that were deleted, which it never accepts again.
        operations: all GraphQL operations it was asked for, with the run they are about.
        uploads: the content of the files it received, by their path.
        runs: what it received of each run, by the run's id: history, summary, exit code and more.
        views: the saved workspaces, by their id.
    """

    rejects_keys = False
    default_entity: str | None = "us"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.deleted: set[str] = set()
        self.operations: list[tuple[str, str | None]] = []
        self.uploads: dict[str, bytes] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.views: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """No-op: a client that is killed is no error."""

    def receive(self, run: dict[str, Any], sent: dict[str, Any]) -> None:
        """Store what a client streams of a run."""
        files = sent.get("files") or {}
        run["streamed"].update(files)
        if history := files.get("wandb-history.jsonl"):
            lines = [json.loads(line) for line in history["content"]]
            run["history"][history["offset"] : history["offset"] + len(lines)] = lines
        if summary := files.get("wandb-summary.json"):
            run["summary"] = json.loads(summary["content"][-1])
        run["exit_code"] = sent.get("exitcode", run["exit_code"])
        run["preempting"] |= sent.get("preempting", False)

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a GraphQL operation with given variables."""
        name = given.get("name")
        entity = given.get("entity") or self.default_entity
        project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": entity}}
        if operation == "UpsertBucket":
            new = name not in self.runs
            empty = {"history": [], "summary": {}, "streamed": set(), "exit_code": None}
            run = self.runs.setdefault(name, empty | {"preempting": False})
            kept = ("config", "groupName", "displayName", "tags", "project", "entity", "jobType")
            run |= {key: given[key] for key in kept if given.get(key)}
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
        if operation == "RunResumeStatus":
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
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if operation in ("Viewer", "GetDefaultEntity"):
            return {
                "viewer": {
                    "id": "u",
                    "entity": self.default_entity,
                    "username": "us",
                    "flags": "{}",
                    "teams": {"edges": []},
                }
            }
        if operation == "Runs":
            filters = json.loads(given["filters"])
            nodes = [
                {
                    **{"id": id, "name": id, "projectId": 1, "tags": [], "config": "{}"},
                    "state": "finished" if run["exit_code"] == 0 else "failed",
                    "summaryMetrics": json.dumps(run["summary"]),
                }
                for id, run in self.runs.items()
                if run["project"] == given["project"]
                and id in filters.get("name", {"$in": self.runs})["$in"]
                and run["jobType"] == filters.get("jobType", run["jobType"])
            ]
            edges = [{"node": node, "cursor": node["id"]} for node in nodes]
            runs = {"edges": edges, "pageInfo": {"hasNextPage": False}}
            return {"project": {"internalId": 1, "runCount": len(edges), "runs": runs}}
        if operation == "ArtifactType":
            return {"project": None}  # the table of a chart has no artifact yet
        if operation == "CreateArtifact":
            latest = {"id": "a", "versionIndex": 0}
            artifact = {"id": "a", "state": "COMMITTED"}  # as if it were there: nothing is sent
            artifact["artifactSequence"] = {"id": "s", "latestArtifact": latest}
            return {"createArtifact": {"artifact": artifact}}
        if operation == "UpsertView2":
            view = given | {"id": given.get("id") or f"view {len(self.views)}"}
            self.views[view["id"]] = view
            return {"upsertView": {"view": {"id": view["id"], "name": name}, "inserted": True}}
        if operation == "View":
            found = [
                view
                for view in self.views.values()
                if (view["name"], view["projectName"]) == (given["viewName"], given["projectName"])
            ]
            return {"project": {"allViews": {"edges": [{"node": view} for view in found]}}}
        return {}


class Handler(BaseHTTPRequestHandler):
    """Reads a request, and replies with what its server answers."""

    protocol_version = "HTTP/1.1"
    server: FakeServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path.endswith("file_stream"):
            self.server.receive(self.server.runs[self.path.split("/")[-2]], json.loads(body))
            self.reply({})
        elif self.path == "/graphql" and self.server.rejects_keys:
            self.reply({"errors": [{"message": "permission denied"}]}, 401)
        elif self.path == "/graphql":
            request = json.loads(body)
            name = re.search(r"(?:query|mutation) (\w+)", request["query"])
            operation, variables = name[1] if name else "", request.get("variables") or {}
            self.server.operations.append((operation, variables.get("name")))
            if operation == "UpsertBucket" and variables["name"] in self.server.deleted:
                message = "run was previously created and deleted; try a new run name"
                self.reply({"errors": [{"message": message}]}, 409)
            else:
                self.reply({"data": self.server.answer(operation, variables)})
        else:
            self.server.uploads[self.path] = body
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
