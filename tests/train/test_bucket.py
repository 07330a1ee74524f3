"""A run whose workdir is a bucket, against an emulator; what no bucket can hold is refused."""

import json
import os
import sys
import threading
import time

import jax
import numpy as np
import pytest

from tests import launched, two_streams
from tests.train import bucket, toy
from vla_jax import plugin, storage
from vla_jax.cli import main as cli
from vla_jax.train import checkpoint, examine, lock
from vla_jax.train.writers import jsonl

ONE = jax.devices()[:1]
pytestmark = bucket.MARKS


@pytest.fixture(scope="module")
def store():
    with bucket.emulated() as emulator:
        yield emulator


@pytest.fixture(scope="module")
def done(store, tmp_path_factory):
    """(URL of a run of 4 train_steps, its state; the state of the same run on a local disk)."""
    keep = dict(every=2, keep=2, checksums=True)
    config = toy.config(checkpoint=keep, writers=("jsonl", "tensorboard"))
    here = toy.run(config, tmp_path_factory.mktemp("here"), devices=ONE)
    return f"{bucket.NAME}/runs/x", toy.run(config, f"{bucket.NAME}/runs/x", devices=ONE), here


def same(a, b):
    pairs = zip(jax.tree.leaves(a.variables), jax.tree.leaves(b.variables))
    return all(np.array_equal(x, y) for x, y in pairs)


def test_a_run_leaves_there_what_it_leaves_on_a_disk(done, tmp_path):
    url, state, here = done
    assert same(state, here)
    files = storage.sizes(url)
    assert lock.FILE not in files and "started.json" in files
    assert any(name.startswith("tensorboard/events") and size for name, size in files.items())
    assert [row["step"] for row in jsonl.read(url)] == [1, 2, 3, 4]
    loaded = checkpoint.load(url)
    assert loaded.meta.step == 4 and str(loaded.folder) == f"{url}/checkpoints/4"
    assert not os.path.exists("gs:") and not list(tmp_path.iterdir())


def test_it_goes_on_and_keeps_the_newest(done):
    url, _, _ = done
    # Also over a save of train_step 6 that broke off: all its files but the last are there.
    whole = f"{url}/checkpoints/4"
    for name in storage.sizes(whole):
        if name != "commit_success.txt":
            storage.write(f"{url}/checkpoints/6/{name}", storage.read(f"{whole}/{name}"))
    assert checkpoint.load(url).meta.step == 4
    config = toy.config(steps=8, checkpoint=dict(every=2, keep=2, checksums=True))
    further = toy.run(config, url, devices=ONE)
    assert int(further.step) == 8
    assert storage.names(f"{url}/checkpoints") == ["6", "8"] and checkpoint.load(url, 6)
    assert [row["step"] for row in jsonl.read(url)] == [1, 2, 3, 4, 5, 6, 7, 8]


def ckpt(capsys, *words):
    code = cli.main(["ckpt", *words])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_vla_ckpt_reads_it(store, capsys, tmp_path):
    url = f"{bucket.NAME}/runs/looked/at"
    toy.saved(url, checkpoint=dict(keep=2, checksums=True))
    code, found = ckpt(capsys, "ls", url)
    assert [row["train_step"] for row in found["steps"]] == [1, 2] and code == 0
    assert all(row["complete"] and row["checksums"] for row in found["steps"])
    code, found = ckpt(capsys, "show", url)
    assert found["train_step"] == 2 and len(found["arrays"]) > 3
    code, found = ckpt(capsys, "verify", url)
    assert (code, found["wrong"], found["hashed"]) == (0, [], True)
    out = tmp_path / "out"
    assert ckpt(capsys, "export", url, "--out", str(out))[0] == 0
    assert (out / "model.safetensors").exists()
    data = max(storage.sizes(f"{url}/checkpoints/2/params/d").items(), key=lambda item: item[1])[0]
    broken = f"{url}/checkpoints/2/params/d/{data}"
    storage.write(broken, storage.read(broken)[:-9] + b"9 bytes..")
    code, found = ckpt(capsys, "verify", url)
    assert code == 1 and any(data in line for line in found["wrong"])
    with pytest.raises(plugin.UserError, match="gcloud storage mv .*/2 .*/2.damaged"):
        checkpoint.load(url)


def test_one_run_at_a_time(store, monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 0.2)
    monkeypatch.setattr(lock, "LEASE", 4.0)
    monkeypatch.setattr(lock, "SETTLE", 0.1)
    url = f"{bucket.NAME}/runs/held"
    with lock.hold(url):
        with pytest.raises(plugin.UserError, match=f"process {os.getpid()} on .* trains there"):
            with lock.hold(url):
                pass
        assert storage.is_file(f"{url}/{lock.FILE}")
    assert storage.names(url) == []


def test_a_dead_run_s_lock_is_taken_over_by_one(store, monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 0.2)
    monkeypatch.setattr(lock, "LEASE", 4.0)
    url, taken = f"{bucket.NAME}/runs/dead", []
    storage.write(f"{url}/{lock.FILE}", json.dumps(dict(pid=1, host="gone", since="then")))

    def take():
        try:
            with lock.hold(url):
                taken.append(time.monotonic())
                time.sleep(5)
        except plugin.UserError as error:
            assert "trains there" in str(error)

    threads = [threading.Thread(target=take) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(taken) == 1 and storage.names(url) == []


def test_a_lock_that_was_swept_away_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 0.05)
    ended = threading.Event()
    monkeypatch.setattr(lock._Lease, "_lost", lambda self: ended.set())
    held, file = lock._Lease(tmp_path), tmp_path / lock.FILE

    def until(met):
        limit = time.monotonic() + 20
        while not met() and time.monotonic() < limit:
            time.sleep(0.01)
        return met()

    mine = json.loads(file.read_bytes())["token"]
    file.unlink()
    assert until(file.exists) and not ended.is_set()
    assert until(lambda: mine in file.read_text())
    storage.write(file, json.dumps(dict(token="another's")))
    assert until(ended.is_set), "another's token is still no mistake"
    held.release()


@pytest.mark.parametrize("url", ["s3://bucket/run", "az://bucket/run", "memory://run"])
def test_what_orbax_does_not_know_is_refused_at_once(url, capsys, tmp_path):
    config = toy.config()
    with pytest.raises(plugin.UserError, match="knows local paths and gs://, no other URLs"):
        toy.run(config, url, devices=ONE, ready=pytest.fail)
    for words in (["ckpt", "ls", url], ["ckpt", "show", url]):
        assert cli.main(words) == 2
        assert "knows local paths and gs://" in capsys.readouterr().err
    words = ["train", "--config", "configs/demo_pretrain.py:out=nowhere", "--workdir", url]
    assert cli.main(words) == 2, "before any data are looked for"
    assert "knows local paths and gs://" in capsys.readouterr().err


@pytest.mark.timeout(1800)
def test_two_processes_data_words_and_workdir_in_it(store, fixtures_dir, tmp_path):
    data, url = f"{bucket.NAME}/bridge/1.0.0", f"{bucket.NAME}/runs/two"
    for file in (fixtures_dir / "bridge_dataset/1.0.0").iterdir():
        storage.write(f"{data}/{file.name}", file.read_bytes())
    words = f"{bucket.NAME}/words.model"
    with open(two_streams.text_tokenizer(tmp_path), "rb") as file:
        storage.write(words, file.read())
    keep = dict(every=2, keep=2, checksums=True)
    mesh = dict(data=1, fsdp=2)
    tree = two_streams.tree(fixtures_dir, words, vl=False, mesh=mesh, checkpoint=keep)
    tree["sharding"] = dict(small=16)
    tree["streams"]["robot"]["mixture"]["bridge"]["source"] |= dict(
        path=data, access="contiguous", num_runs=2, run_bytes=200_000
    )
    (tmp_path / "both.py").write_text(launched.CONFIG)
    program = "import sys; from vla_jax.cli import main; sys.exit(main.main())"
    command = [sys.executable, "-c", program, "train", "--config", str(tmp_path / "both.py")]
    for steps in (4, 6):  # the second goes on from the first
        (tmp_path / "both.json").write_text(json.dumps(tree | dict(steps=steps)))
        done = launched.local(2, *command, "--workdir", url, timeout=800)
        assert done.returncode == 0, done.stdout[-6000:]
        saved = checkpoint.load(url).meta
        assert saved.step == steps and saved.n == {"robot": 4 * steps}
        assert saved.provenance["processes"] == 2
    lines = storage.read(f"{url}/metrics.jsonl").decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert storage.names(f"{url}/checkpoints") == ["4", "6"]
    assert examine.verify(storage.path(f"{url}/checkpoints/6"))["wrong"] == []
    assert lock.FILE not in storage.names(url) and not os.path.exists("gs:")
