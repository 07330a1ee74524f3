"""Says which process of a run is gone, and ends those that are left: a watcher beside each process.

jax notices a dead process too (its time-out is in `processes.py`), but then aborts with a page of
addresses in C++, before Python could say which host it was. So each process starts this file as a
program of its own, of the standard library alone: it lives on when its process is killed or
aborts. Process 0's watcher listens, the others' connect to it; they exchange lines of JSON. A
process is gone when its connection closes without a word, and when nothing came for `SILENCE`
seconds: a host that lost its power closes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time

LOST = 76  # exit code of a process that ends because another one is gone; 75 is "preempted"
SILENCE = 20.0  # seconds without a sign of life
TICK = 0.5
PATIENCE = 2.0  # an error is told this late: it may be but the echo of another process's death


class Watch:
    """The watcher of this process; `address` is where process 0's listens, "TOKEN@PORT"."""

    def __init__(
        self, number: int, host: str, address: str | None = None, silence: float = SILENCE
    ):
        token, port = address.split("@") if address else (secrets.token_hex(8), 0)
        settings = dict(number=number, host=host, port=int(port), token=token, silence=silence)
        settings["name"] = f"process {number} (host {socket.gethostname()}, pid {os.getpid()})"
        settings["parent"] = os.getpid()
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = f"{token}@{self._watcher.stdout.readline().strip()}"
        threading.Thread(target=self._obey, name="watch", daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the watcher."""
        return self._watcher.pid

    def leave(self) -> None:
        """This process has done its part; it is not missed from now on."""
        self._say("leave")
        with contextlib.suppress(OSError):  # the watcher has ended
            self._watcher.stdin.close()

    def failed(self, why: str, code: int = LOST) -> None:
        """This process is about to end with an error: the others end too, with `code`."""
        self._say(f"failed {code} " + " ".join(why.split())[:500])

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the watcher has ended
            self._watcher.stdin.write(line + "\n")
            self._watcher.stdin.flush()

    def _obey(self) -> None:
        for line in self._watcher.stdout:
            word, _, code = line.partition(" ")
            if word == "gone":
                os._exit(int(code))  # the main thread may wait for the dead process for ever
        self._watcher.wait()


class _Peer:
    """A connection to another process's watcher."""

    def __init__(self, connection: socket.socket, name: str = "a process"):
        self.connection, self.name, self.buffer = connection, name, b""
        self.heard, self.known, self.left = time.monotonic(), False, False

    def send(self, **message) -> None:
        with contextlib.suppress(OSError):  # read() will find it closed
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def hang_up(self) -> None:
        """Closes when the other side has: what still comes would make TCP drop our last words."""
        with contextlib.suppress(OSError):  # a time-out, too
            self.connection.shutdown(socket.SHUT_WR)
            while self.connection.recv(65536):
                pass

    def read(self) -> list[dict] | None:
        """The messages that have come; None when the connection is closed."""
        try:
            data = self.connection.recv(65536)
        except (TimeoutError, BlockingIOError):
            return []
        except OSError:
            return None
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        try:
            return [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError):  # no watcher
            return None


class _Watcher:
    """The program: until its process leaves, or another one is gone."""

    def __init__(self, settings: dict):
        self.settings, self.peers = settings, []
        self.selector = selectors.DefaultSelector()
        self.left, self.failure, self.orphan = False, None, False
        os.set_blocking(0, False)
        self.selector.register(0, selectors.EVENT_READ, self._parent)
        self.input = b""
        if settings["number"] == 0:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            self.server = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
            self.selector.register(self.server, selectors.EVENT_READ, self._accept)
            print(self.server.getsockname()[1], flush=True)
        else:
            print(settings["port"], flush=True)
            self._connect()

    def run(self) -> None:
        """Returns when there is nothing left to watch."""
        said = 0.0
        while not self._done():
            for key, _ in self.selector.select(TICK):
                key.data()
            now = time.monotonic()
            if now - said > self.settings["silence"] / 8:
                said = now
                self._tell(beat=True)
            for peer in list(self.peers):
                silence = now - peer.heard
                if silence > self.settings["silence"] and not peer.known:
                    self._drop(peer)  # a stranger that says nothing: a scan of ports, perhaps
                elif silence > self.settings["silence"] and not peer.left:
                    self._gone(peer.name, f"nothing heard of it for {silence:.0f} s")
            if self.failure and now > self.failure[0]:
                self._tell(failed=self.failure[1], code=self.failure[2])
                for peer in self._known():
                    peer.hang_up()
                return

    def _done(self) -> bool:
        dead = os.getppid() != self.settings["parent"]  # its end of the pipe may be held by others
        if dead and not self.failure and 0 in self.selector.get_map():
            with contextlib.suppress(BlockingIOError):
                self._parent()  # its last words
        if dead and not self.failure:
            return not self.left or all(peer.left for peer in self._known())
        if self.settings["number"] == 0:
            return self.left and all(peer.left for peer in self._known())
        return self.left or not self.peers

    def _known(self) -> list[_Peer]:
        """The connections that have shown the run's token; a stranger hears nothing."""
        return [peer for peer in self.peers if peer.known]

    def _tell(self, **message) -> None:
        for peer in self._known():
            peer.send(**message)

    def _connect(self) -> None:
        where = (self.settings["host"], self.settings["port"])
        try:
            peer = _Peer(socket.create_connection(where, timeout=30), "process 0")
        except OSError as error:
            text = f"vla: {self.settings['name']} cannot reach the watcher of process 0 at {where}"
            print(f"{text} ({error}): only jax's own heartbeat is left", file=sys.stderr)
            return
        peer.send(token=self.settings["token"], name=self.settings["name"])
        self._add(peer)

    def _accept(self) -> None:
        self._add(_Peer(self.server.accept()[0]))

    def _add(self, peer: _Peer) -> None:
        peer.connection.settimeout(1.0)
        if self.settings["number"] != 0:
            peer.known = True
        self.peers.append(peer)
        self.selector.register(peer.connection, selectors.EVENT_READ, lambda: self._hear(peer))

    def _hear(self, peer: _Peer) -> None:
        messages = peer.read()
        if messages is None:
            self._drop(peer)
            if peer.known and not peer.left:
                self._gone(peer.name, "its connection closed")
            return
        for message in messages:
            if not peer.known:
                if message.get("token") != self.settings["token"]:
                    self._drop(peer)  # a stranger
                    return
                peer.known, peer.name = True, message["name"]
                peer.send(name=self.settings["name"])
            elif "name" in message:
                peer.name = message["name"]
            elif "leave" in message:
                peer.left = True
            elif "failed" in message:
                self._gone(peer.name, f"it failed: {message['failed']}", message["code"])
            elif "gone" in message:
                self._gone(message["gone"], message["why"], message["code"])

    def _drop(self, peer: _Peer) -> None:
        self.selector.unregister(peer.connection)
        peer.connection.close()
        self.peers.remove(peer)

    def _parent(self) -> None:
        data = os.read(0, 65536)
        if not data:
            self.selector.unregister(0)
            return
        *lines, self.input = (self.input + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "leave":
                self.left = True
                self._tell(leave=True)
            elif word == "failed":
                code, _, why = rest.partition(" ")
                self.failure = (time.monotonic() + PATIENCE, why, int(code))

    def _gone(self, name: str, why: str, code: int = LOST) -> None:
        """Says so here and to the others, and ends the process that it belongs to."""
        self._tell(gone=name, why=why, code=code)
        if not self.left:
            text = f"vla: {name} is gone: {why}. {self.settings['name']} ends too, with exit code "
            text += f"{code}."
            if code == LOST:
                text += " Give the same command again on every host: the run goes on from its last "
                text += "checkpoint."
            print(text, file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):
                print(f"gone {code}", flush=True)
            self._end_parent()
        sys.exit(0)

    def _end_parent(self) -> None:
        limit = time.monotonic() + 5
        while os.getppid() == self.settings["parent"]:
            if time.monotonic() > limit:
                os.kill(self.settings["parent"], signal.SIGKILL)
                return
            time.sleep(0.05)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the process beside it
        signal.signal(number, signal.SIG_IGN)
    _Watcher(json.loads(sys.argv[1])).run()
