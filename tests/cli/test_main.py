"""The door itself: compiled programs are kept where a user would look for them."""

import os
import shlex
import subprocess
import sys

from vla_jax.cli import main

COMPILE = """
import os, sys, time
from vla_jax.cli import main
main.keep_compiled(os.environ)
import jax, jax.numpy as jnp
begin = time.time()
print(jax.jit(lambda x: jnp.linalg.svd(x @ x)[1].sum())(jnp.eye(64)))
"""


def test_compiled_programs_are_kept_and_shared(tmp_path):
    quiet = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERS"))}
    environment = {
        **quiet,
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-W", "error", "-c", COMPILE]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and said[0] == said[1]
    (folder,) = (tmp_path / "vla_jax").iterdir()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")}
    assert kept and (folder / ".lockfile").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == said[0]
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("*-cache")} == kept


def test_what_the_user_has_set_stays(tmp_path):
    mine = {"JAX_COMPILATION_CACHE_DIR": "/mine"}
    main.keep_compiled(mine)
    assert mine == {"JAX_COMPILATION_CACHE_DIR": "/mine"}
    (tmp_path / "file").write_text("")
    nowhere = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    main.keep_compiled(nowhere)
    assert set(nowhere) == {"XDG_CACHE_HOME"}


def test_a_group_lists_its_verbs(capsys):
    for argv in (["data"], ["data", "--help"]):
        assert main.main(argv) == 0
        said = capsys.readouterr().out
        assert "data doctor" in said and "vla data VERB" in said and "  train " not in said
    assert main.main(["data", "inspekt"]) == 2
    assert "did you mean 'data inspect'" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    script = "import sys; from vla_jax.cli import main; sys.exit(main.main(['data', 'rows']))"
    command = f"{shlex.join([sys.executable, '-u', '-c', script])} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")
