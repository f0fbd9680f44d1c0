"""The command line: arguments in, one call, exit code out.

The work is in demo, info, verify, generate, bench and server.

Exit codes: 0 done, 1 a check of `verify` failed or `demo` was not identical, 2 bad input,
130 interrupted. `serve` ends with the code of llama-server.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__, default_model, demo, info, verify
from .errors import LlamaError
from .generate import stream_generate
from .model import Model

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors are one line on stderr."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        why = "; MODEL comes first, as in `serve MODEL --port 8080`" if args.run is _serve else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{why}")
    try:
        code = int(args.run(args))
        if sys.stdout is not None:  # closed from the start, as by >&-
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except (
        BrokenPipeError
    ):  # the reader has gone, as in `| head`; nothing to say, and nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (LlamaError, ValueError, OSError, ImportError) as error:
        if sys.stderr is not None:
            print(f"llamackpt: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llamackpt", description="Checkpoints of a language model's state, for llama.cpp."
    )
    parser.add_argument("--version", action="version", version=f"llamackpt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = _shared_options()

    cmd = commands.add_parser("demo", parents=[shared], help="what this is for, in under 20 seconds")
    cmd.add_argument(
        "model", nargs="?", metavar="MODEL", help="a GGUF (default: the one in the package)"
    )
    cmd.set_defaults(run=_demo)

    cmd = commands.add_parser(
        "info", parents=[shared], help="a model, and what a checkpoint of it costs"
    )
    cmd.add_argument("model", metavar="MODEL", help="a GGUF")
    cmd.add_argument("--json", action="store_true", help="one JSON document")
    cmd.set_defaults(run=_info)

    cmd = commands.add_parser(
        "verify", parents=[shared], help="prove on a model that its checkpoints are exact"
    )
    cmd.add_argument(
        "model", nargs="?", metavar="MODEL", help="a GGUF (default: the one in the package)"
    )
    cmd.add_argument("--json", action="store_true", help="one JSON document")
    cmd.set_defaults(run=_verify)

    cmd = commands.add_parser("bench", help="what checkpoints cost and save on this machine")
    _add_benches(cmd.add_subparsers(required=True, metavar="WHAT"), shared)

    cmd = commands.add_parser(
        "serve", help="llama-server, with checkpoints", usage="llamackpt serve MODEL [FLAG OF LLAMA-SERVER ...]"
    )
    cmd.add_argument("model", metavar="MODEL", help="a GGUF")
    flags = cmd.add_argument(
        "flags", nargs=argparse.REMAINDER, metavar="FLAG", help="passed on; `serve MODEL --help` lists them"
    )
    flags.required = False  # REMAINDER is, and is asked for where MODEL is missing
    cmd.set_defaults(run=_serve)

    cmd = commands.add_parser("generate", parents=[shared], help="continue a prompt")
    cmd.add_argument("model", metavar="MODEL", help="a GGUF")
    cmd.add_argument(
        "prompt", metavar="PROMPT", help="the text to continue; - reads it from standard input"
    )
    cmd.add_argument(
        "--ctx",
        type=_positive,
        default=0,
        metavar="N",
        help="tokens of context (default: the model's own)",
    )
    cmd.add_argument(
        "-n", "--max-tokens", type=_positive, default=128, metavar="N", help="(default: 128)"
    )
    cmd.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)"
    )
    cmd.add_argument("--top-k", type=int, default=40, metavar="K", help="0 is off (default: 40)")
    cmd.add_argument("--top-p", type=float, default=0.95, metavar="P", help="1 is off (default: 0.95)")
    cmd.add_argument("--min-p", type=float, default=0.05, metavar="P", help="0 is off (default: 0.05)")
    cmd.add_argument("--seed", type=int, metavar="SEED", help="(default: another one each time)")
    cmd.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before it; repeatable"
    )
    cmd.set_defaults(run=_generate)
    return parser


def _add_benches(benches: Any, shared: argparse.ArgumentParser) -> None:
    written = "a GGUF (default: one with a 150 MiB state, written with gguf)"

    cmd = benches.add_parser("latency", parents=[shared], help="save, restore and the decodes around them")
    cmd.add_argument("model", nargs="?", metavar="MODEL", help=written)
    cmd.add_argument("--runs", type=_positive, default=50, metavar="N", help="(default: 50)")
    cmd.add_argument("--ctx", type=_positive, default=512, metavar="N", help="(default: 512)")
    cmd.set_defaults(run=_bench, bench=_bench_latency)

    cmd = benches.add_parser("long-context", parents=[shared], help="the same with 100000 tokens held")
    cmd.add_argument("model", nargs="?", metavar="MODEL", help=written)
    cmd.add_argument("--runs", type=_positive, default=50, metavar="N", help="(default: 50)")
    cmd.add_argument("--ctx", type=_positive, default=262144, metavar="N", help="(default: 262144)")
    cmd.add_argument("--tokens", type=_positive, default=100_000, metavar="N", help="held (default: 100000)")
    cmd.set_defaults(run=_bench, bench=_bench_long_context)

    cmd = benches.add_parser("server", parents=[shared], help="llama-server beside a stock one")
    cmd.add_argument("model", nargs="?", metavar="MODEL", help=written)
    cmd.add_argument("--runs", type=_positive, default=4, metavar="N", help="texts, of 8 (default: 4)")
    cmd.add_argument("--tokens", type=_positive, default=128, metavar="N", help="of each text (default: 128)")
    cmd.add_argument("--draft", type=_positive, default=8, metavar="N", help="most tokens of one (default: 8)")
    cmd.add_argument("--history", type=_positive, default=8192, metavar="N", help="tokens (default: 8192)")
    cmd.add_argument("--stock", metavar="PROGRAM", help="the stock llama-server (default: what ./build.sh stock built)")
    cmd.add_argument("--rpc", action="store_true", help="over loopback RPC, a ggml-rpc-server for each")
    cmd.add_argument("--flags", type=_words, default=[], metavar="TEXT", help="more flags for all of them, as one argument")
    cmd.set_defaults(run=_bench, bench=_bench_server)

    for cmd in benches.choices.values():
        cmd.add_argument("--json", action="store_true", help="one JSON document")


def _shared_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--n-gpu-layers", type=int, default=-1, metavar="N", help="layers on the GPU (default: all)"
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="(default: one per processor)")
    return parser


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error} in {text!r}") from None


def _open(args: argparse.Namespace) -> tuple[Model, str]:
    path = str(args.model or default_model())
    return Model(path, n_gpu_layers=args.n_gpu_layers), path


def _demo(args: argparse.Namespace) -> int:
    model, _ = _open(args)
    with model:
        result = demo.run_demo(model, n_threads=args.threads)
    print(demo.format_demo(result))
    return OK if result.identical else FAILED


def _info(args: argparse.Namespace) -> int:
    model, path = _open(args)
    with model:
        result = info.model_info(model, path, args.threads)
    print(json.dumps(info.as_json(result), indent=2) if args.json else info.format_info(result))
    return OK


def _verify(args: argparse.Namespace) -> int:
    model, path = _open(args)
    checks = []
    with model:
        if not args.json:
            print(f"{path}: {model.desc}", flush=True)
        for check in verify.verify_checks(model, args.threads):
            checks.append(check)
            if not args.json:
                print(verify.format_check(check), flush=True)
    document = verify.as_json(path, checks)
    print(json.dumps(document, indent=2) if args.json else verify.format_summary(checks))
    return OK if document["ok"] else FAILED


def _bench(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as directory:
        return int(args.bench(args, Path(directory)))


def _bench_latency(args: argparse.Namespace, directory: Path) -> int:
    from .bench import latency, state_heavy

    if args.model is None:
        args.model = str(directory / "state-heavy.gguf")
        state_heavy.write_state_heavy(args.model)
    model, _ = _open(args)
    with model:
        result = latency.measure_latency(model, args.ctx, args.runs, args.threads)
    print(json.dumps(latency.as_json(result), indent=2) if args.json else latency.format_latency(result))
    return OK


def _bench_long_context(args: argparse.Namespace, directory: Path) -> int:
    from .bench import long_context, state_heavy

    if args.model is None:
        args.model = str(directory / "long-context.gguf")
        state_heavy.write_state_heavy(args.model, shape=state_heavy.LONG_CONTEXT)
    model, _ = _open(args)
    with model:
        result = long_context.measure_long_context(model, args.ctx, args.tokens, args.runs, args.threads)
    print(json.dumps(long_context.as_json(result), indent=2) if args.json else long_context.format_long_context(result))
    return OK


def _bench_server(args: argparse.Namespace, directory: Path) -> int:
    from .bench import run_server, server

    flags = ["--n-gpu-layers", str(args.n_gpu_layers)] if args.n_gpu_layers >= 0 else []
    flags += ["--threads", str(args.threads)] if args.threads else []
    result = run_server.measure_server(
        args.model,
        directory,
        stock=args.stock,
        flags=[*flags, *args.flags],
        draft=args.draft,
        rpc=args.rpc,
        runs=args.runs,
        n_tokens=args.tokens,
        n_history=args.history,
    )
    print(json.dumps(server.as_json(result), indent=2) if args.json else server.format_server(result))
    return OK


def _serve(args: argparse.Namespace) -> int:
    from .server.serve import serve

    return serve(args.model, args.flags)


def _generate(args: argparse.Namespace) -> int:
    model, _ = _open(args)
    if args.prompt == "-" and sys.stdin is None:
        raise ValueError("standard input is closed, and the prompt is to be read from it: pass it as an argument")
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    options: dict[str, Any] = {} if args.threads is None else {"n_threads": args.threads}
    with model, model.context(n_ctx=args.ctx, **options) as ctx:
        stream = stream_generate(
            ctx,
            prompt,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            min_p=args.min_p,
            seed=args.seed,
            stop=args.stop,
        )
        for item in stream:
            print(item.text, end="", flush=True)
    print()
    return OK
