"""A bucket on this machine: gcp-storage-emulator, with what it lacks of GCS.

Preconditions of writes and reads, and the generation beside what is read: TensorStore writes a
manifest that it has read again only over that generation, and finds it malformed without one.
"""

import contextlib
import http.server
import logging
import os
import threading
import urllib.parse
from functools import partial

import pytest

NAME = "gs://bucket"
# Of tests that use it: the clients leave sockets to the collector.
MARKS = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
# What gcsfs, google-cloud-storage and TensorStore are told of an emulator.
SETTINGS = {
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
}


def _strict():
    """(storage, handler of requests) that keep to generations."""
    from gcp_storage_emulator import server
    from gcp_storage_emulator.storage import Storage

    class Refused(Exception):
        pass

    class Strict(Storage):
        """An object is written only over the generation that the request names (0: none)."""

        wanted = None

        def create_file(self, bucket_name, file_name, content, file_obj, file_id=None):
            there = self.objects.get(bucket_name, {}).get(file_name, {"generation": "0"})
            if self.wanted not in (None, there["generation"]):
                raise Refused
            super().create_file(bucket_name, file_name, content, file_obj, file_id)

    class Handler(server.RequestHandler):
        generation = None  # of the object that is being read

        def do_GET(self):
            url = urllib.parse.urlsplit(self.path)
            named = urllib.parse.unquote(url.path.rpartition("/o/")[2])
            there = self.storage.objects.get(NAME.removeprefix("gs://"), {}).get(named, {})
            asked = urllib.parse.parse_qs(url.query)
            self.generation = there.get("generation")
            if self.generation and asked.get("ifGenerationNotMatch") == [self.generation]:
                self.send_response(304)
                self.end_headers()
                return
            super().do_GET()

        def end_headers(self):
            if self.generation:
                self.send_header("x-goog-generation", self.generation)
            super().end_headers()

        def do_POST(self):
            asked = server.Request(self, "POST").query
            self.storage.wanted = asked.get("ifGenerationMatch", [None])[0]
            try:
                super().do_POST()
            except Refused:
                self.send_error(412)

        def handle(self):
            with contextlib.suppress(ConnectionError):  # a client that has read enough
                super().handle()

    return Strict(use_memory_fs=True), Handler


@contextlib.contextmanager
def emulated():
    """The emulator's storage, with an empty bucket, and the environment that leads there.

    Skips the test that asks where the packages are missing.
    """
    for name in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(name, reason=f"needs {name} (extra dev): pip install -e .[gcs,dev]")
    # It logs what is looked for in vain.
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    from gcp_storage_emulator.handlers import buckets

    storage, handler = _strict()
    buckets.create_bucket(NAME.removeprefix("gs://"), storage)
    # One thread: a precondition and its upload are one, as in GCS.
    running = http.server.HTTPServer(("127.0.0.1", 0), partial(handler, storage))
    url = f"http://127.0.0.1:{running.server_address[1]}"
    leads = SETTINGS | {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}
    before = {name: os.environ.get(name) for name in leads}
    os.environ.update(leads)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield storage
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
