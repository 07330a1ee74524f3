"""Says which process of a run is gone, and ends those that are left: a watcher beside each process.

jax notices a dead process too (its time-out is in `processes.py`), but then aborts with a page of
addresses in C++, before Python could say which host it was. So each process starts this file as a
program of its own, of the standard library alone: it lives on when its process is killed or
aborts. Process 0's watcher listens, the others' connect to it; they exchange lines of JSON. A
process is gone when its connection closes without a word, and when nothing came for `SILENCE`
seconds: a host that lost its power closes nothing.

A process that ends by an error of its own takes its leave: it says why and with which code it ends,
and the others end with that code too, for launchers take the highest code of all, or any. It waits
until that is said; in a container the watcher ends with it. Process 0 ends last, since the death of
jax's coordinator aborts the others (134).
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

FAILED = 1  # exit code of a process that ends with a traceback, and of those that it takes along
LOST = 76  # exit code of a process that ends because another one is gone; 75 is "preempted"
SILENCE = 20.0  # seconds without a sign of life
TICK = 0.5
PATIENCE = 2.0  # an error is told this late: it may be but the echo of another process's death
GRACE = 3.0  # and then it has so long to end
FAREWELL = 5.0  # seconds that process 0 waits for the ends of the others


def name(number: int) -> str:
    """What people are told that process `number`, this one, is."""
    return f"process {number} (host {socket.gethostname()}, pid {os.getpid()})"


class Watch:
    """The watcher of this process; `address` is where process 0's listens, "TOKEN@PORT"."""

    def __init__(
        self, number: int, host: str, address: str | None = None, silence: float = SILENCE
    ):
        token, port = address.split("@") if address else (secrets.token_hex(8), 0)
        settings = dict(number=number, host=host, port=int(port), token=token, silence=silence)
        settings |= dict(name=name(number), parent=os.getpid())
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = f"{token}@{self._watcher.stdout.readline().strip()}"
        self._code, self._unsaid, self._told = None, "", threading.Event()
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

    def failed(self, why: str, code: int = FAILED, unsaid: str = "") -> None:
        """This process is about to end with an error: the others end too, with `code`.

        `unsaid` (a traceback) is written to stderr if it must end before `linger` is called.
        """
        self._code, self._unsaid = code, unsaid
        self._say(f"failed {code} " + " ".join(why.split())[:500])

    def linger(self) -> None:
        """Ends a process that has failed, once the others know; does nothing for another.

        For `atexit`, when all has been said. Its error may yet prove to be the echo of another
        process's death: then it ends as one that is left.
        """
        if self._code is None:
            return
        self._unsaid = ""
        self._told.wait(PATIENCE + FAREWELL + GRACE)
        self._end(self._code)  # jax's own farewell would wait for the others

    def _end(self, code: int) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the watcher has ended
            self._watcher.stdin.write(line + "\n")
            self._watcher.stdin.flush()

    def _obey(self) -> None:
        for line in self._watcher.stdout:
            word, _, code = line.strip().partition(" ")
            if word == "told":
                self._told.set()
            elif word == "gone":  # the main thread may wait for the dead process for ever
                sys.stderr.write(self._unsaid)
                self._end(int(code))
        self._told.set()
        self._watcher.wait()


class _Peer:
    """A connection to another process's watcher."""

    def __init__(self, connection: socket.socket, name: str = "a process"):
        self.connection, self.name, self.buffer = connection, name, b""
        self.heard, self.known, self.left = time.monotonic(), False, False

    def send(self, **message) -> None:
        with contextlib.suppress(OSError):  # read() will find it closed
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def hang_up(self, limit: float) -> None:
        """Closes when the other side has: what still comes would make TCP drop our last words."""
        with contextlib.suppress(OSError):  # a time-out, too
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(max(0.05, limit - time.monotonic()))
            while self.connection.recv(65536) and time.monotonic() < limit:
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
                self._take_leave(*self.failure[1:])
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

    def _take_leave(self, why: str, code: int) -> None:
        """Tells the others that our process has failed, and sees to its end."""
        self._tell(failed=why, code=code)
        if self.settings["number"] == 0:
            self._see_off()
        with contextlib.suppress(OSError):
            print("told", flush=True)
        if not self._await_end(GRACE):
            text = f"vla: {self.settings['name']} failed ({why}) and does not end by itself; it is"
            print(f"{text} ended with exit code {code}.", file=sys.stderr, flush=True)
            self._end_parent(code)
        self._see_off()

    def _see_off(self) -> None:
        """Returns when the others' watchers have closed, which they do after their processes."""
        limit = time.monotonic() + FAREWELL
        for peer in self._known():
            peer.hang_up(limit)

    def _gone(self, name: str, why: str, code: int = LOST) -> None:
        """Says so here and to the others, and ends the process that it belongs to."""
        self._tell(gone=name, why=why, code=code)
        if code != LOST and self.settings["number"] == 0:
            self._see_off()
        if not self.left:
            text = f"vla: {name} is gone: {why.rstrip('.')}. {self.settings['name']} ends too, "
            text += "with exit code "
            if code == LOST:
                text += f"{code}. Give the same command again on every host: the run goes on from "
                text += "its last checkpoint."
            else:
                text += f"{code}: begun again, it would end the same."
            print(text, file=sys.stderr, flush=True)
            self._end_parent(code)
        sys.exit(0)

    def _end_parent(self, code: int) -> None:
        with contextlib.suppress(OSError):
            print(f"gone {code}", flush=True)
        if not self._await_end(5.0):
            os.kill(self.settings["parent"], signal.SIGKILL)

    def _await_end(self, seconds: float) -> bool:
        """Whether our process has ended within `seconds`."""
        limit = time.monotonic() + seconds
        while os.getppid() == self.settings["parent"]:
            if time.monotonic() > limit:
                return False
            time.sleep(0.05)
        return True


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the process beside it
        signal.signal(number, signal.SIG_IGN)
    _Watcher(json.loads(sys.argv[1])).run()
