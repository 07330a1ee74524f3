"""Every command that docs/pods.md tells a user to type exists, with these flags."""

import pathlib
import re
import shlex
import subprocess

import pytest

from launch import gke, slurm, tpu_pod
from vla_jax.cli import main as cli

PAGE = pathlib.Path(__file__).resolve().parent.parent.parent / "docs/pods.md"
LAUNCHERS = {"gke": gke, "slurm": slurm, "tpu_pod": tpu_pod}


def commands(whole: bool) -> list[list[str]]:
    """The words of each command: whole ones of the blocks, else what sentences say of them."""
    if whole:
        lines = re.findall(r"^    (.*)", PAGE.read_text().replace("\\\n", " "), re.MULTILINE)
    else:
        lines = re.findall(r"`([^`]+)`", PAGE.read_text().replace("\n", " "))
    found = [shlex.split(line.replace("…", "x"), comments=True) for line in lines]
    starts = (["vla"], *([f"launch/{name}.py"] for name in LAUNCHERS))
    found = [words[1:] if words[:1] == ["python"] else words for words in found]
    return [words for words in found if words[:1] in starts and words != ["vla"]]


def named(whole: bool):
    return [pytest.param(words, id=" ".join(words)) for words in commands(whole)]


def test_the_page_has_commands():
    found = commands(True)
    assert {words[1] for words in found if words[0] == "vla"} == {
        *("plan", "smoke", "train", "data", "eval")
    }
    assert {pathlib.Path(words[0]).stem for words in found} - {"vla"} == set(LAUNCHERS)


@pytest.mark.parametrize("words", named(True))
def test_a_command_is_understood(words, capsys):
    if words[0] == "vla":
        verb, rest = split(words)
        cli.parser_of(verb).parse_args([w for w in rest if not w.startswith("--config.")])
        return
    where = words.index("--")
    launcher = LAUNCHERS[pathlib.Path(words[0]).stem]
    assert launcher.main([*words[1:where], "--dry-run", *words[where:]]) == 0
    assert "vla train" in capsys.readouterr().out


@pytest.mark.parametrize("words", named(False))
def test_a_verb_and_its_flags_exist(words, monkeypatch):
    if words[0] != "vla":
        if len(words) > 1:  # `--delete`
            called = []
            monkeypatch.setattr(subprocess, "run", lambda c: called.append(c) or Done)
            assert LAUNCHERS[pathlib.Path(words[0]).stem].main(words[1:]) == 0 and called
        return
    verb, rest = split(words)
    said = cli.parser_of(verb).format_help()
    if verb == "ckpt" and rest:
        assert rest.pop(0) in said
    for flag in (word.partition("=")[0] for word in rest if word.startswith("--")):
        assert re.search(rf"{flag}\b", said) or flag.startswith("--config.")


class Done:
    returncode = 0


def split(words: list[str]) -> tuple[str, list[str]]:
    """(verb, its arguments) of a `vla` command."""
    count = 2 if " ".join(words[1:3]) in cli.VERBS else 1
    assert " ".join(words[1 : 1 + count]) in cli.VERBS
    return " ".join(words[1 : 1 + count]), words[1 + count :]
