"""What llama-server is started with in the random test: flags that are drawn, and the model that they are for."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from feature_gguf import write_drafts
from mtp_gguf import write_mtp
from server_checks import PROMPTS

import llamackpt

ARCHS = ["llama-dense", "gemma3-dense", "mamba2-dense", "jamba-dense", "falcon-h1-dense", "lfm2-dense", "qwen4exp-moe",
         "deepseek4-moe"]  # fmt: skip
ATTENTION = ["llama-dense", "gemma3-dense"]  # --cache-reuse is an approximation there
FEATURES = ["eagle3", "dflash", "dspark"]


@dataclass(frozen=True)
class Config:
    """What a server is started with."""

    parallel: int
    n_slot: int  # tokens that one slot has room for; all of them together where the cache is unified
    unified: bool
    draft: str
    n_checkpoints: int
    device: int
    host: int
    ram: int
    reuse: int
    min_step: int
    n_batch: int
    arch: str  # "" for the shipped model

    @staticmethod
    def draw(rng: random.Random, arch: str) -> Config:
        unified = rng.random() < 0.5
        return Config(
            parallel=rng.choice([1, 1, 2, 3]),
            n_slot=256 if arch else rng.choice([256, 512, 768] if not unified else [512, 768, 1280]),
            unified=unified,
            draft=rng.choice(["none", "n-gram", "wild", "model"] + ([] if arch else ["mtp", "mixed", *FEATURES])),
            n_checkpoints=rng.choice([0, 1, 3, 32, 32]),
            device=rng.choice([0, 1, -1, -1]),
            host=rng.choice([0, 1, 8192, 8192]),
            ram=rng.choice([0, 1, 64]),
            reuse=rng.choice([0, 0, 8]) if arch not in ATTENTION else 0,
            min_step=rng.choice([1, 16, 8192]),
            n_batch=rng.choice([32, 64, 2048]),
            arch=arch,
        )

    @property
    def n_parts(self) -> int:
        """How many the attention's cache is split into: a slot file fits no other number."""
        return 1 if self.unified else self.parallel

    def model(self, directory: Path) -> Path:
        if self.arch:
            return directory / f"{self.arch}.told"
        f32, mtp = directory / "f32.gguf", directory / "mtp.gguf"
        if self.draft not in ("mtp", "mixed"):
            return f32
        return mtp if mtp.exists() else write_mtp(f32, mtp, PROMPTS[::2])

    def features(self, directory: Path) -> str:
        """A draft model that reads hidden states, and n-grams that are longer than its drafts."""
        model = directory / f"{self.draft}.gguf"
        if not model.exists():
            write_drafts(self.model(directory), directory, PROMPTS[::2])
        return (
            f"--spec-type draft-{self.draft},ngram-simple --model-draft {model} --spec-draft-n-max 2 --spec-draft-p-min 0"
            " --spec-ngram-simple-size-n 1 --spec-ngram-simple-size-m 8"
        )

    def flags(self, directory: Path) -> list[str]:
        drafts = {
            "none": "",
            "n-gram": "--spec-type ngram-simple --spec-ngram-simple-size-n 2 --spec-ngram-simple-size-m 8",
            "wild": "--spec-type ngram-simple --spec-ngram-simple-size-n 1 --spec-ngram-simple-size-m 12",
            "model": "--spec-type draft-simple --spec-draft-n-max 6 --spec-draft-p-min 0 --model-draft "
            + str(self.model(directory) if self.arch else llamackpt.default_model()),
            "mtp": "--spec-type draft-mtp --spec-draft-n-max 3",
            "mixed": "--spec-type draft-mtp,ngram-simple --spec-draft-n-max 2 --spec-ngram-simple-size-n 1"
            " --spec-ngram-simple-size-m 8",
        }
        flags = (
            f"--threads 1 --metrics --cache-type-k f32 --cache-type-v f32 --flash-attn off --jinja --parallel {self.parallel}"
            f" --ctx-size {self.n_slot * self.n_parts} --{'' if self.unified else 'no-'}kv-unified"
            f" --ctx-checkpoints {self.n_checkpoints} --ckpt-device-mem {self.device} --ckpt-host-mem {self.host}"
            f" --cache-ram {self.ram} --cache-reuse {self.reuse} --checkpoint-min-step {self.min_step}"
            f" --batch-size {self.n_batch} --ubatch-size {min(self.n_batch, 512)} "
            + (self.features(directory) if self.draft in FEATURES else drafts[self.draft])
        )
        return [*flags.split(), "--slot-save-path", f"{directory}/slots", "--chat-template-file", f"{directory}/template"]
