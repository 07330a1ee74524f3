"""Small files: one way for local paths and URLs, and nothing that goes round it."""

import ast
import os
import pathlib
import signal
import subprocess
import sys
import threading
import uuid

import pytest

from vla_jax import plugin, storage

PROJECT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "deep")
    return f"memory://{uuid.uuid4().hex}/deep"


def test_a_folder_of_files(root):
    first = storage.join(root, "a", "one.bin")
    assert not storage.is_dir(root) and not storage.is_file(first) and storage.names(root) == []
    storage.write(first, b"0123456789")
    storage.write(storage.join(root, "b"), lambda path: pathlib.Path(path).write_bytes(b"made"))
    assert storage.is_dir(root) and storage.is_file(first) and not storage.is_file(root)
    assert storage.names(root) == ["a", "b"] and storage.read(storage.join(root, "b")) == b"made"
    assert (storage.name(first), storage.parent(first)) == ("one.bin", storage.join(root, "a"))
    assert storage.normal(root + "/") == root
    with pytest.raises(plugin.UserError, match=r"deep/a/oen.bin.*did you mean 'one.bin'"):
        storage.read(storage.join(root, "a", "oen.bin"))


KILLED = """
import pathlib, sys, time
from vla_jax import storage

def slow(path):
    with open(path, "wb") as file:
        file.write(b"half")
        file.flush()
        print("begun", flush=True)
        time.sleep(60)

storage.write(sys.argv[1], slow)
"""


def test_a_killed_writer_leaves_no_half_file(tmp_path):
    path = tmp_path / "index"
    program = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    (leftover,) = tmp_path.iterdir()
    os.utime(leftover, (0, 0))
    storage.write(path, b"whole")
    assert path.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [path], "swept"


def test_a_failed_write_leaves_what_was_there(tmp_path):
    storage.write(tmp_path / "f", b"old")

    def fail(path):
        pathlib.Path(path).write_bytes(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        storage.write(tmp_path / "f", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


def test_where_one_can_write(tmp_path):
    assert storage.writable(tmp_path / "not" / "yet") and storage.writable("memory://anywhere")
    assert not storage.writable("/proc/nowhere") or os.getuid() == 0


def test_an_unknown_kind_of_url_is_said():
    with pytest.raises(plugin.UserError, match="nosuch://.*expected a local path or a URL"):
        storage.is_file("nosuch://bucket/file")


def test_several_files_are_put_in_place_together(root, tmp_path):
    one, two = (storage.join(root, name) for name in ("one", "two"))
    storage.write_all({one: "1", two: "2"})
    assert (storage.read(one), storage.read(two)) == (b"1", b"2")
    assert storage.sizes(root) == {"one": 1, "two": 1}

    def fail(path):
        raise OSError("disk full")

    if not storage.is_url(root):
        with pytest.raises(OSError, match="disk full"):
            storage.write_all({one: "new", two: fail})
        assert storage.read(one) == b"1" and storage.names(root) == ["one", "two"]


def test_of_many_that_create_one_succeeds(root):
    path = storage.join(root, "lock")
    storage.write(storage.join(root, "other"), b"")
    won = []

    def attempt(i):
        try:
            storage.create(path, b"%d" % i)
            won.append(i)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=attempt, args=(i,)) for i in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(won) == 1 and storage.read(path) == b"%d" % won[0]
    storage.remove(path)
    storage.remove(path)
    storage.create(path, b"again")


def test_a_file_that_grows(root, monkeypatch):
    path = storage.join(root, "log", "metrics.jsonl")
    for text in (b"a\n", b"b\n"):
        log = storage.Appending(path)
        log.write(text)
        log.close()
    assert storage.read(path) == b"a\nb\n", "what was there stays"
    log = storage.Appending(path)
    log.write(b"c\n")
    log.flush()
    late = storage.is_url(root)
    assert storage.read(path) == (b"a\nb\n" if late else b"a\nb\nc\n")
    monkeypatch.setattr(storage, "PERIOD", 0.0)
    log.flush()
    assert storage.read(path) == b"a\nb\nc\n"
    with storage.reader(path) as file:
        assert file.read(3) == b"a\nb"
    log.close()


def test_paths_to_compute_with(tmp_path):
    bucket = storage.path("gs://bucket/run/")
    assert str(bucket / "checkpoints" / "7") == "gs://bucket/run/checkpoints/7"
    assert (bucket / "7").name == "7" and str((bucket / "7").relative_to(bucket)) == "7"
    assert storage.absolute("gs://bucket/run") == "gs://bucket/run"
    assert storage.path(tmp_path / "a") == tmp_path / "a" and storage.path("x").is_absolute()
    with pytest.raises(plugin.UserError, match="memory://.*expected a local path, gs://"):
        storage.path("memory://run")
    with pytest.raises(plugin.UserError, match="--out: got gs://b/x, expected a local path"):
        storage.local("--out", "gs://b/x")


# What reads or writes a file without storage.py, and would take a URL for a local name.
METHODS = (
    "write_text write_bytes read_text read_bytes mkdir unlink touch rename rmdir rmtree rglob "
    "iterdir makedirs symlink_to hardlink_to"
).split()
OF_PATHS = ("is_file", "is_dir", "exists", "glob", "stat")  # storage has the first two as well
# Folders and files all of whose paths are on this machine, and why.
WITHIN = {
    "storage.py": "the door itself",
    "plugin.py": "files of this package",
    "data/sources/_files.py": "the door for byte ranges",
    "data/writers/": "the spool's `out` is storage.local",
    "data/convert.py": "its --out is storage.local; hashes of this package's code",
    "data/cache.py": "cache.path is storage.local",
    "data/mapped.py": "temporary files of this process",
    "data/runs.py": "temporary files of this host",
    "data/pages.py": "templates of this package",
    "data/sources/_emoji.py": "its root is storage.local",
    "models/importers/_folder.py": "vla import's folder is storage.local",
}
# (file, function): what it opens is on this machine by its nature
LOCAL = {
    ("train/agree.py", "on_start"): "the code of this package",
    ("train/agree.py", "on_data"): "files that Python imported",
    ("train/trash.py", "close"): "of local folders alone",
    ("train/trash.py", "_work"): "of local folders alone",
    ("train/lock.py", "hold"): "makes and removes empty folders, which buckets have not",
    ("train/lock.py", "__init__"): "flock, of local folders alone",
    ("train/lock.py", "_take"): "flock, of local folders alone",
    ("train/lock.py", "release"): "flock, of local folders alone",
    ("train/checkpoint.py", "close"): "removes empty folders, which buckets have not",
    ("train/export.py", "write"): "its --out is storage.local",
    ("cli/import_checkpoint.py", "check_out"): "its --out is storage.local",
    ("cli/import_checkpoint.py", "write"): "its --out is storage.local",
    ("train/writers/wandb.py", "__init__"): "its own local files; none for a bucket",
    ("cli/main.py", "keep_compiled"): "the compile cache of this machine",
    ("cli/main.py", "_cpu"): "/proc",
    ("cli/plan.py", "_peak_mb"): "/proc",
    ("cli/main.py", "main"): "/dev/null",
    ("data/dump.py", "save"): "the local file that storage.write hands it",
    ("data/recordings.py", "_nothing"): "URLs have been answered above",
    ("data/sources/_lerobot_table.py", "open_table"): "the code of this package",
    ("data/sources/_rlds_table.py", "kept"): "a local folder; `cached` gives one for a URL",
    ("data/sources/_rlds_table.py", "code"): "the code of standardizers",
    ("data/sources/_rlds_table.py", "_own_code"): "the code of this package",
    ("data/sources/_tar.py", "_matching"): "URLs are matched below",
    ("data/sources/_tfrecord.py", "unpack"): "writes a local copy of what _files.File reads",
    ("data/sources/_tfrecord.py", "scan"): "unpacks what _files.File reads",
    ("data/sources/hdf5.py", "recorded"): "the code of this package",
    ("data/standardizers/_table.py", "_source"): "the code of a standardizer's functions",
}


def goes_round(path: str, source: str) -> list[str]:
    """ "file:line what" of each call in `source` that opens, lists or changes files by itself."""
    found = []

    def visit(node, function):
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Call):
            called = node.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            of = called.value.id if isinstance(getattr(called, "value", None), ast.Name) else ""
            plain = isinstance(called, ast.Name) and name == "open"
            pathlike = of not in ("storage", "statistics_file", "_files") and name in (
                *METHODS,
                *OF_PATHS,
                *(("replace", "open", "link") if of in ("os", "io", "gzip") else ()),
            )
            if (plain or pathlike) and (path, function) not in LOCAL:
                found.append(f"{path}:{node.lineno} {of}.{name}")
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(source), "")
    return found


def test_what_must_be_local_is_refused_as_a_url(tmp_path, monkeypatch):
    """A pathlib.Path of a URL is a folder called "gs:" where the program was started."""
    from vla_jax.data import cache, convert
    from vla_jax.data.sources import collage
    from vla_jax.data.writers import lerobot, rlds
    from vla_jax.models.importers import octo

    monkeypatch.chdir(tmp_path)
    for attempt in (
        lambda: cache.Settings.make("bridge", dict(path="gs://bucket/cache")),
        lambda: convert.convert("absent", "gs://bucket/made", to="rlds"),
        lambda: collage.texts(root="gs://bucket/emoji", archives=("twemoji",)),
        lambda: rlds.Writer("gs://bucket/made"),
        lambda: lerobot.Writer("gs://bucket/made"),
        lambda: octo.read("gs://bucket/octo-small"),
    ):
        with pytest.raises(plugin.UserError, match="got gs://.*expected a local path"):
            attempt()
    assert not list(tmp_path.iterdir())


def test_a_file_fetched_for_a_library_that_opens_names(root):
    path = storage.join(root, "a.bin")
    storage.write(path, b"0123456789")
    with storage.fetched(path) as local:
        assert pathlib.Path(local).read_bytes() == b"0123456789"
    assert os.path.exists(local) != storage.is_url(root), "a copy goes, the file itself stays"


def test_a_file_to_fetch_that_is_not_there_is_named_with_its_nearest():
    storage.write("memory://fetched/frames.mp4", b"0")
    with pytest.raises(plugin.UserError, match="no such file.*did you mean 'frames.mp4'"):
        with storage.fetched("memory://fetched/frame.mp4"):
            pass


def test_nothing_of_a_run_is_opened_another_way():
    root, found = PROJECT / "vla_jax", []
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        if not path.startswith(tuple(WITHIN)):
            found += goes_round(path, file.read_text())
    assert not found, "\n".join(found)


def test_the_exceptions_are_there():
    assert all((PROJECT / "vla_jax" / path).exists() for path in WITHIN)
    for path, function in LOCAL:
        names = {
            node.name
            for node in ast.walk(ast.parse((PROJECT / "vla_jax" / path).read_text()))
            if isinstance(node, ast.FunctionDef)
        }
        assert function in names, (path, function)


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "pathlib.Path(workdir).mkdir()",
        "(folder / 'x').read_text()",
        "os.replace(a, b)",
        "folder.glob('*')",
        "path.is_file()",
        "os.makedirs(workdir)",
    ],
)
def test_the_test_can_fail(source):
    assert goes_round("train/loop.py", f"def f():\n  {source}")
    assert not goes_round("cli/main.py", f"def keep_compiled():\n  {source}")


def test_what_is_allowed_passes():
    source = "storage.is_file(p)\nstorage.read(p)\ndataclasses.replace(c)\n'a'.replace('a', 'b')"
    assert goes_round("train/loop.py", source) == []
