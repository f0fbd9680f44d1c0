"""The command line as a user meets it: most of it in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import llamackpt
from llamackpt import cli, demo

MODEL = str(llamackpt.default_model())


def run(*args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llamackpt", *args],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=80,
    )


def test_the_version_is_that_of_the_package() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"llamackpt {llamackpt.__version__}")


@pytest.mark.parametrize(
    "args", [[], ["nonsense"], ["info"], ["generate", MODEL], ["generate", MODEL, "x", "-n", "0"]]
)
def test_a_wrong_command_line_is_exit_code_2(args: list[str]) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert "usage" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("model_first", [True, False])
def test_a_benchmark_says_what_it_measured_wherever_its_model_stands(model_first: bool) -> None:
    options = ["--json", "--runs", "1", "--ctx", "300", "--threads", "1"]
    args = [MODEL, *options] if model_first else [*options, MODEL]
    assert json.loads(run("bench", "latency", *args).stdout)["n_ctx"] == 512


@pytest.mark.parametrize("args", [["latency", "--rpc"], ["long-context", "--draft", "2"], ["server", "--ctx", "8"]])
def test_an_option_of_another_benchmark_is_not_ignored(args: list[str]) -> None:
    done = run("bench", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"unrecognized arguments: {args[1]}" in done.stderr


@pytest.mark.parametrize("command", ["info", "verify", "demo", "generate"])
def test_a_missing_file_is_one_line_and_exit_code_2(command: str, tmp_path: Path) -> None:
    done = run(command, str(tmp_path / "none.gguf"), *(["x"] if command == "generate" else []))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "none.gguf" in done.stderr


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"GGUF\x03\x00\x00\x00"])
def test_a_file_that_is_no_model_is_one_line_and_exit_code_2(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    done = run("info", str(path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("llamackpt: ")


@pytest.mark.parametrize(("value", "why"), [("0", "must be 1 or more, not 0"), ("many", "must be a number, not 'many'")])
def test_a_count_that_is_none_says_what_it_must_be(value: str, why: str) -> None:
    done = run("generate", MODEL, "import ", "-n", value)
    assert done.returncode == 2
    assert why in done.stderr


def test_a_directory_is_not_said_to_be_missing(tmp_path: Path) -> None:
    done = run("info", str(tmp_path))
    assert (done.returncode, done.stderr) == (2, f"llamackpt: {tmp_path}: is a directory, not a GGUF file\n")


def test_a_closed_standard_output_is_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llamackpt", "info", MODEL],
        preexec_fn=lambda: os.close(1), stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("args", "closed", "code", "said"),
    [
        (["generate", MODEL, "-"], 0, 2, "llamackpt: standard input is closed, and the prompt is to be read from it"),
        (["info", "none.gguf"], 2, 2, ""),
    ],
)
def test_a_closed_stream_is_said_or_goes_without_saying(args: list[str], closed: int, code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llamackpt", *args],
        preexec_fn=lambda: os.close(closed), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr


def test_a_sampling_parameter_out_of_range_is_exit_code_2() -> None:
    done = run("generate", MODEL, "x", "--top-p", "7")
    assert done.returncode == 2
    assert "top_p" in done.stderr


def test_info_names_the_memory_and_the_cost_of_a_checkpoint() -> None:
    done = run("info", MODEL)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hybrid" in done.stdout
    assert "MiB" in done.stdout


@pytest.mark.parametrize("option", [("--threads", "9999"), ("--n-gpu-layers", "99999999999")])
def test_an_option_out_of_range_is_one_line_and_exit_code_2(option: tuple[str, str]) -> None:
    done = run("info", MODEL, *option)
    assert done.returncode == 2
    assert done.stderr.startswith("llamackpt: ")
    assert done.stderr.count("\n") == 1


def test_info_as_json_is_one_document() -> None:
    document = json.loads(run("info", MODEL, "--json").stdout)
    assert (document["arch"], document["memory"]) == ("qwen35", "hybrid")
    assert {ck["kind"] for ck in document["checkpoints"]} == {"rollback", "full"}
    assert all(ck["nbytes"] > 0 for ck in document["checkpoints"])


def test_generate_repeats_itself_and_writes_only_the_text(tmp_path: Path) -> None:
    args = [
        "generate",
        MODEL,
        "import ",
        "-n",
        "8",
        "--temperature",
        "0.7",
        "--seed",
        "3",
        "--ctx",
        "256",
    ]
    first, second = run(*args), run(*args)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == second.stdout
    assert first.stdout.strip()


def test_generate_reads_its_prompt_from_standard_input() -> None:
    args = ["-n", "8", "--ctx", "256"]
    assert (
        run("generate", MODEL, "-", *args, stdin="import ").stdout
        == run("generate", MODEL, "import ", *args).stdout
    )


def test_an_empty_prompt_is_exit_code_2() -> None:
    done = run("generate", MODEL, "-", stdin="")
    assert (done.returncode, done.stdout) == (2, "")
    assert "empty" in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [
        sys.executable,
        "-m",
        "llamackpt",
        "generate",
        MODEL,
        "import ",
        "-n",
        "200",
        "--ctx",
        "512",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
def test_an_interrupt_is_exit_code_130_without_a_traceback() -> None:
    command = [sys.executable, "-m", "llamackpt", "generate", MODEL, "import ", "-n", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 130


def test_the_demo_finds_its_text_again_and_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo"]) == 0
    out = capsys.readouterr().out
    assert "identical" in out and "NOT IDENTICAL" not in out
    assert "host serialisation" in out


def test_the_demo_says_so_when_the_text_is_not_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = demo.Row("checkpoint", 1.0, 1.0, 1.0)
    result = demo.Demo("m", "p", 1, "shared", [(1, "a"), (2, "b")], 1, "c", False, [row, row], 1)
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: result)
    assert cli.main(["demo"]) == 1
    assert "NOT IDENTICAL" in capsys.readouterr().out
