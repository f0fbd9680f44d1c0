"""build.sh does the same whatever is in the environment of its user, and however it is called. Nothing is built here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

COMMIT = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q"]


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """build.sh with a small tree of one commit to export; another directory of its name is in tmp_path/other."""
    checkout, tree = tmp_path / "here" / "checkout", tmp_path / "here" / "checkout" / "vendor" / "llama.cpp"
    tree.mkdir(parents=True)
    shutil.copy(ROOT / "build.sh", checkout)
    for path in (ROOT / "vendor").glob("*.*"):
        if path.is_file():
            shutil.copy(path, checkout / "vendor")
    (tmp_path / "other" / "checkout").mkdir(parents=True)
    lines = [f"{i}\n" for i in range(40)]
    run("git", "init", "-q", ".", cwd=tree)
    for message, line in (("upstream", "20\n"), ("a : change", "changed\n")):
        lines[20] = line
        (tree / "file.txt").write_text("".join(lines))
        run("git", "add", "file.txt", cwd=tree)
        run("git", *COMMIT, "-m", message, cwd=tree)
    return checkout


def test_an_export_is_the_same_whatever_git_is_told_in_the_environment(checkout: Path) -> None:
    patches = []
    for env in ({}, {"GIT_DIFF_OPTS": "-u9"}, {"GIT_EXTERNAL_DIFF": "false"}):
        done = run("./build.sh", "export", cwd=checkout, **env)
        assert done.returncode == 0, done.stderr
        patches.append((checkout / "patches" / "a-change.patch").read_text())
    assert "+changed\n" in patches[0]
    assert patches == [patches[0]] * 3


def test_the_headings_of_the_series_stay_where_they_were(checkout: Path) -> None:
    tree, order = checkout / "vendor" / "llama.cpp", checkout / "patches" / "series"
    run("./build.sh", "export", cwd=checkout)
    order.write_text("# first\n" + order.read_text())
    for name, heading in (("b-0", "\n# second\n"), ("b-1", "")):
        (tree / name).touch()
        run("git", "add", ".", cwd=tree)
        run("git", *COMMIT, "-m", name.replace("-", " : "), cwd=tree)
        assert run("./build.sh", "export", cwd=checkout).returncode == 0
        order.write_text(order.read_text().replace(f"{name}.patch", f"{heading}{name}.patch"))
    assert order.read_text().split("\n") == ["# first", "a-change.patch", "", "# second", "b-0.patch", "b-1.patch", ""]


def test_it_works_in_its_own_directory_however_it_is_called(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("here/checkout/build.sh")
    for program, where in (("checkout/build.sh", tmp_path / "here"), ("./link", tmp_path)):
        done = run(program, "export", cwd=where, CDPATH=str(tmp_path / "other"))
        assert (done.returncode, done.stderr) == (0, "")
    assert not list((tmp_path / "other" / "checkout").iterdir())


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--cuda", "wheel"], "wheel builds for the CPU alone: leave out --cuda"),
        (["--metal", "wheel"], "wheel builds for the CPU alone: leave out --metal"),
        (["--cuda", "export"], "export builds nothing: leave out --cuda"),
        (["reset", "--cpu"], "reset builds nothing: leave out --cpu"),
        (["--cuda-arch", "90", "build"], "--cuda-arch goes with --cuda"),
    ],
)
def test_a_flag_that_the_command_has_no_use_for_is_refused(checkout: Path, args: list[str], why: str) -> None:
    done = run("./build.sh", *args, cwd=checkout)
    assert (done.returncode, done.stdout) == (1, "")
    assert why in done.stderr


STAGE = """
die() { echo "$*" >&2; exit 1; }
ROOT=$PWD TREE=vendor/llama.cpp PROGRAMS="llama-server ggml-rpc-server" HALF_MADE=
. vendor/native.sh
build_json() { echo {}; }
stage_libraries cpu package
"""


def test_a_staged_file_that_was_deleted_is_staged_again(checkout: Path) -> None:
    built, tree = checkout / "build" / "cpu" / "bin", checkout / "vendor" / "llama.cpp"
    licenses = [tree / "LICENSE", tree / "licenses" / "LICENSE-a", tree / "vendor" / "cpp-httplib" / "LICENSE"]
    for path in (*licenses, built / "libllama.so.0", built / "llama-server", built / "ggml-rpc-server"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    (built / "libllama.so").symlink_to("libllama.so.0")
    for lost in (None, "lib/libllama.so.0", "lib/libllama.so", "lib/LICENSE.llama.cpp", "bin/llama-server"):
        if lost:
            (checkout / "package" / lost).unlink()
        done = run("bash", "-euc", STAGE, cwd=checkout)
        assert done.returncode == 0, done.stderr
        names = {str(path.relative_to(checkout / "package")) for path in (checkout / "package").glob("*/*")}
        assert names == {
            "lib/libllama.so", "lib/libllama.so.0", "lib/BUILD.json", "lib/LICENSE.llama.cpp", "lib/LICENSE.third-party",
            "bin/llama-server", "bin/ggml-rpc-server",
        }  # fmt: skip
