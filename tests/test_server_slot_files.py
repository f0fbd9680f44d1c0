"""Slots on disk: what a file brings back, and which files are refused before anything changes."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
from f32_gguf import write_f32
from lora_gguf import write_lora
from server_checks import (
    DRAFTS,
    PROMPTS,
    assert_same,
    counted,
    greedy,
    held,
    in_turns,
    start,
)  # fmt: skip

import llamackpt
from llamackpt.errors import RequestError
from llamackpt.server import Client


def test_a_restored_slot_goes_on_as_the_saved_one(plain: Client, drafting: Client) -> None:
    prompt = "".join(PROMPTS)
    first = greedy(drafting, prompt, 8, cache_prompt=True)
    saved = drafting.save_slot(0, "one")
    assert saved.nbytes > 0 and saved.n_tokens >= first.n_prompt
    drafting.erase_slot(0)
    restored = drafting.restore_slot(0, "one")
    assert restored.n_tokens == saved.n_tokens
    longer = prompt + first.text + "\n# and then\n"
    assert_same(plain, longer, greedy(plain, longer), greedy(drafting, longer, cache_prompt=True))


def test_a_slot_file_carries_its_checkpoints_to_another_server(plain: Client, hybrid: Path, slots: Path) -> None:
    prompt = "".join(PROMPTS) * 2
    with start(hybrid, *DRAFTS, "--slot-save-path", str(slots)) as server:
        greedy(server.client(), prompt, 24, cache_prompt=True)
        server.client().save_slot(0, "carried")
    changed = prompt + "\n# something else\n"
    with start(hybrid, *DRAFTS, "--slot-save-path", str(slots)) as server:
        server.client().restore_slot(0, "carried")
        found = greedy(server.client(), changed, cache_prompt=True)
    assert found.timings.prompt_n < 0.2 * found.n_prompt
    assert_same(plain, changed, greedy(plain, changed), found)


@pytest.mark.parametrize("flags", [(), ("--ckpt-host-mem", "0"), ("--ckpt-device-mem", "0")], ids=["all", "device", "host"])
def test_a_restored_slot_has_its_newest_checkpoints_on_the_device(
    plain: Client, hybrid: Path, slots: Path, flags: tuple[str, ...]
) -> None:
    """As many as there is room for: three states, and one in flight."""
    with start(hybrid, *DRAFTS, "--checkpoint-min-step", "1", "--slot-save-path", str(slots), n_ctx=2048) as server:
        prompt = in_turns(server.client(), 6)
        full = held(server.client())
        server.client().save_slot(0, "turns")
    with start(hybrid, *DRAFTS, *flags, "--slot-save-path", str(slots), n_ctx=2048) as server:
        client = server.client()
        client.restore_slot(0, "turns")
        restored = held(client)
        assert (restored["shared"] > 0) == ("--ckpt-device-mem" not in flags)
        assert (restored["host"] > 0) == ("--ckpt-host-mem" not in flags)
        if not flags:
            assert restored == full
        used = counted(client, lambda: greedy(client, prompt + "# else\n", cache_prompt=True))
        assert used["llamacpp:checkpoint_hits_total"] == 1
        assert used["llamacpp:prompt_tokens_total"] < 32
        for end in ("# else\n", "# other\n"):
            assert_same(plain, prompt + end, greedy(plain, prompt + end), greedy(client, prompt + end, cache_prompt=True))


def test_a_restored_slot_leaves_the_checkpoints_of_others_where_they_are(plain: Client, hybrid: Path, slots: Path) -> None:
    flags = ("--kv-unified", "--checkpoint-min-step", "1", "--slot-save-path", str(slots))
    with start(hybrid, *DRAFTS, *flags, n_ctx=4096, parallel=2) as server:
        client = server.client()
        prompt = in_turns(client, 6, id_slot=0)
        client.save_slot(0, "turns")
        before = held(client)
        client.restore_slot(1, "turns")
        after = held(client)
        assert after["shared"] == before["shared"]
        assert after["host"] > before["host"]
        client.erase_slot(0)
        client.restore_slot(1, "turns")  # now there is room, of which half is for this slot
        assert 0 < held(client)["shared"] < before["shared"]
        for slot in (0, 1):
            found = greedy(client, prompt + "# else\n", cache_prompt=True, id_slot=slot)
            assert_same(plain, prompt + "# else\n", greedy(plain, prompt + "# else\n"), found)


def test_a_checkpoint_of_a_restored_slot_moves_to_room_that_comes_later(plain: Client, hybrid: Path, slots: Path) -> None:
    """When it is used: there was none on the device for this slot."""
    flags = ("--kv-unified", "--checkpoint-min-step", "1", "--slot-save-path", str(slots))
    with start(hybrid, *flags, n_ctx=4096, parallel=2) as server:
        client = server.client()
        prompt = in_turns(client, 6, id_slot=0)
        client.save_slot(0, "turns")
        full = held(client)
        client.restore_slot(1, "turns")
        assert held(client)["shared"] == full["shared"]  # all of the other slot
        client.erase_slot(0)
        assert client.metrics()["llamacpp:checkpoint_held_count"] == 0
        first = prompt[: prompt.index("# 1\n")]
        for end in ("# one\n", "# another\n"):
            found = greedy(client, first + end, 24, cache_prompt=True, id_slot=1)
            assert found.timings.prompt_n < 16
            assert client.metrics()["llamacpp:checkpoint_held_count"] == 1  # the prompt is too short for a new one
            assert_same(plain, first + end, greedy(plain, first + end, 24), found)


def test_a_cut_or_changed_slot_file_is_refused_and_changes_nothing(hybrid: Path, slots: Path) -> None:
    prompt = "".join(PROMPTS[:4])
    with start(hybrid, *DRAFTS, "--slot-save-path", str(slots)) as server:
        client = server.client()
        greedy(client, prompt, 16, cache_prompt=True)
        client.save_slot(0, "whole")
        warm = greedy(client, prompt, 16, cache_prompt=True)
        before = held(client)
        for index, content in enumerate(broken_copies((slots / "whole").read_bytes())):
            (slots / "broken").write_bytes(content)
            with pytest.raises(RequestError) as caught:
                client.restore_slot(0, "broken")
            assert caught.value.code == 400, index
        assert held(client) == before
        again = greedy(client, prompt, 16, cache_prompt=True)
        assert again.tokens == warm.tokens
        assert again.timings.prompt_n == warm.timings.prompt_n
        assert client.restore_slot(0, "whole").n_tokens > 0


def test_a_slot_file_of_another_model_or_cache_is_refused(plain: Client, hybrid: Path, transformer: Path, slots: Path) -> None:
    with start(hybrid, *DRAFTS, "--slot-save-path", str(slots), n_ctx=2048, parallel=2) as server:
        client = server.client()
        greedy(client, PROMPTS[0], 24, cache_prompt=True, id_slot=0)
        client.save_slot(0, "of two")
        assert client.restore_slot(1, "of two").n_tokens > 24
        longer = PROMPTS[0] + greedy(plain, PROMPTS[0], 24).text + "\n#"
        assert_same(plain, longer, greedy(plain, longer), greedy(client, longer, cache_prompt=True, id_slot=1))
    with start(hybrid, "--slot-save-path", str(slots), n_ctx=512, parallel=2) as server:  # another size, and no drafts
        assert server.client().restore_slot(0, "of two").n_tokens > 24
        assert_same(plain, longer, greedy(plain, longer), greedy(server.client(), longer, cache_prompt=True, id_slot=0))
    others: list[tuple[Path, tuple[str, ...]]] = [
        (llamackpt.default_model(), ()),
        (transformer, ()),
        (hybrid, ("--cache-type-k", "f16", "--cache-type-v", "f16")),
    ]
    for model, flags in others:
        with start(model, "--slot-save-path", str(slots), *flags, n_ctx=2048, parallel=2) as server:
            with pytest.raises(RequestError, match="another model or of another type of cache") as caught:
                server.client().restore_slot(0, "of two")
            assert caught.value.code == 400
            assert len(greedy(server.client(), PROMPTS[0], 8).tokens) == 8
    with start(hybrid, "--slot-save-path", str(slots)) as server:
        with pytest.raises(RequestError, match="split into 2 parts in the file and into 1 here") as caught:
            server.client().restore_slot(0, "of two")
        assert caught.value.code == 400


@pytest.mark.parametrize("n_tensors", [0, 40], ids=["one file", "several files"])
def test_a_slot_file_of_other_weights_is_refused(tmp_path: Path, slots: Path, n_tensors: int) -> None:
    """Same metadata, same size, one matrix changed."""
    write_f32(tmp_path / "model.gguf", n_tensors)
    files = sorted(tmp_path.glob("*.gguf"))
    assert (len(files) > 1) == (n_tensors > 0)
    with start(files[0], "--slot-save-path", str(slots)) as server:
        greedy(server.client(), PROMPTS[0], 8, cache_prompt=True)
        server.client().save_slot(0, "weights")
    with start(files[0], "--slot-save-path", str(slots)) as server:
        assert server.client().restore_slot(0, "weights").n_tokens > 8
    matrix = max(gguf.GGUFReader(files[-1]).tensors, key=lambda tensor: tensor.n_bytes)
    with files[-1].open("r+b") as file:
        file.seek(matrix.data_offset)
        file.write((-matrix.data).tobytes())
    with start(files[0], "--slot-save-path", str(slots)) as server:
        with pytest.raises(RequestError, match="another model"):
            server.client().restore_slot(0, "weights")


def test_a_slot_file_of_other_adapters_is_refused(hybrid: Path, slots: Path, tmp_path: Path) -> None:
    """By what is in them and how strong they are, not by where they are; unless the restore says that they are meant."""
    one, other = write_lora(tmp_path / "one.gguf"), write_lora(tmp_path / "other.gguf", 2)
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(one.read_bytes())
    prompt = "".join(PROMPTS)
    more = {"temperature": 0, "max_tokens": 24}
    refused = "other LoRA adapters: .* \\(expected: "

    def lora(*scales: float) -> dict[str, object]:
        return {"lora": [{"id": index, "scale": scale} for index, scale in enumerate(scales)]}

    def restore(client: Client, name: str, **body: object) -> None:
        client._json("POST", "/slots/0?action=restore", {"filename": name, **body})

    texts = {}
    flags = ("--slot-save-path", str(slots))
    with start(hybrid, *flags, "--lora", str(one)) as server:
        client = server.client()
        for name, body in {"adapted": {}, "plain": lora(0.0), "half": lora(0.5)}.items():
            texts[name] = client.completion(prompt, cache_prompt=False, **more, **body).text
            client.save_slot(0, name)
        assert len(set(texts.values())) == 3
        restore(client, "adapted")
        client._json("POST", "/lora-adapters", [{"id": 0, "scale": 0.5}])
        with pytest.raises(RequestError, match=refused):
            restore(client, "adapted")
        restore(client, "half")

    with start(hybrid, *flags, "--lora", f"{other},{moved}") as server:
        client = server.client()
        for name in texts:
            with pytest.raises(RequestError, match=refused) as caught:
                restore(client, name)
            assert caught.value.code == 400
        for name, body in {"adapted": lora(0.0, 1.0), "half": lora(0.0, 0.5), "plain": lora(0.0)}.items():
            restore(client, name, **body)
            found = client.completion(prompt, **more, **body)
            assert (found.text, found.timings.prompt_n <= 4) == (texts[name], True)
        with pytest.raises(RequestError, match="'lora' must be an array"):
            restore(client, "plain", lora=1)

    for flag, value in (("--lora-scaled", f"{one}:0.5"), ("--lora", str(other)), ("--threads", "1")):
        with start(hybrid, *flags, flag, value) as server:
            for name in texts:
                expected = {"half": "--lora-scaled", "plain": "--threads"}.get(name, "")
                if flag == expected:
                    restore(server.client(), name)
                else:
                    with pytest.raises(RequestError, match=refused):
                        restore(server.client(), name)


def test_a_slot_file_of_another_control_vector_is_refused(hybrid: Path, slots: Path, tmp_path: Path) -> None:
    vectors = [tmp_path / "one.gguf", tmp_path / "other.gguf"]
    for strength, path in enumerate(vectors):
        writer = gguf.GGUFWriter(str(path), "controlvector")
        writer.add_tensor("direction.1", np.full(192, 0.01 * (1 + strength), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    flags = ("--slot-save-path", str(slots), "--control-vector")
    with start(hybrid, *flags, str(vectors[0])) as server:
        greedy(server.client(), PROMPTS[0], 8, cache_prompt=True)
        server.client().save_slot(0, "vector")
        assert server.client().restore_slot(0, "vector").n_tokens > 8
    for more in (flags[:2], (*flags, str(vectors[1]))):
        with start(hybrid, *more) as server:
            with pytest.raises(RequestError, match="another model"):
                server.client().restore_slot(0, "vector")


def test_saving_a_slot_leaves_its_checkpoints_where_they_are(plain: Client, hybrid: Path, slots: Path) -> None:
    with start(hybrid, *DRAFTS, "--slot-save-path", str(slots)) as server:
        client = server.client()
        prompt = "".join(PROMPTS)
        greedy(client, prompt, 24, cache_prompt=True)
        before = held(client)
        assert before["shared"] > before["host"] == 0
        client.save_slot(0, "kept")
        assert held(client) == before
        for end in ("# one\n", "# another\n"):
            found = greedy(client, prompt + end, 24, cache_prompt=True)
            assert found.timings.prompt_n < 16
            assert_same(plain, prompt + end, greedy(plain, prompt + end, 24), found)


def broken_copies(whole: bytes) -> list[bytes]:
    """Cut at every twentieth, one byte short, one byte more, and with a bit flipped in the header and anywhere."""
    rng = random.Random(5)
    copies = [whole[: len(whole) * part // 20] for part in range(20)] + [whole[:-1], whole + b"\0"]
    for at in [*range(0, 64, 4), *(rng.randrange(len(whole)) for _ in range(24))]:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        copies.append(bytes(flipped))
    return copies


def test_a_slot_file_that_is_not_there_or_not_allowed_is_refused(drafting: Client) -> None:
    for name in ("none", "../whole", "/etc/passwd", ""):
        with pytest.raises(RequestError) as caught:
            drafting.restore_slot(0, name)
        assert caught.value.code == 400
    with pytest.raises(RequestError):
        drafting.restore_slot(7, "none")


def test_a_name_of_files_that_are_not_complete_is_refused(drafting: Client, slots: Path) -> None:
    """And one that leaves no room for what is added to it until then, before anything is written."""
    before = sorted(slots.iterdir())
    for name in ("some.tmp", "some.01234567.tmp", "n" * 243, "é" * 121 + "n"):
        with pytest.raises(RequestError, match="Invalid filename") as caught:
            drafting.save_slot(0, name)
        assert caught.value.code == 400
    assert sorted(slots.iterdir()) == before
    for name in ("n" * 242, "é" * 121):
        saved = drafting.save_slot(0, name)
        assert saved.nbytes == (slots / name).stat().st_size
        (slots / name).unlink()
    (slots / "taken").mkdir()
    with pytest.raises(RequestError):
        drafting.save_slot(0, "taken")
    (slots / "taken").rmdir()
    assert sorted(slots.iterdir()) == before  # and so nothing of what could not get its name


def test_servers_that_save_to_one_name_do_not_disturb_each_other(tmp_path: Path) -> None:
    """What is read meanwhile is complete, whoever it is of, and nothing else stays."""
    flags, n_rounds = ("--slot-save-path", str(tmp_path)), 60
    model = llamackpt.default_model()
    with start(model, *flags, n_ctx=4096) as one, start(model, *flags, n_ctx=4096) as other, start(model, *flags) as reader:
        clients = [one.client(), other.client()]
        counts = [greedy(client, PROMPTS[n], 4).n_prompt for n, client in enumerate(clients)]
        sizes = {clients[n].save_slot(0, "one").n_tokens for n in range(2)}
        assert len(sizes) == len(set(counts)) == 2

        def save(client: Client) -> None:
            for _ in range(n_rounds):
                client.save_slot(0, "one")

        with ThreadPoolExecutor(2) as threads:
            saving = [threads.submit(save, client) for client in clients]
            for _ in range(n_rounds):
                assert reader.client().restore_slot(0, "one").n_tokens in sizes
            for done in saving:
                done.result()
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


ROPE = [("--rope-freq-base", "500"), ("--rope-scaling", "linear", "--rope-scale", "8")]
OVERRIDE = [
    ("--override-kv", "llama.rope.freq_base=float:500"),
    ("--override-kv", "llama.attention.layer_norm_rms_epsilon=float:0.1"),
]


def test_a_slot_file_of_other_positions_or_metadata_is_refused(transformer: Path, slots: Path) -> None:
    for flags in ((), *ROPE, *OVERRIDE):
        with start(transformer, "--slot-save-path", str(slots), *flags) as server:
            client = server.client()
            if not flags:
                greedy(client, PROMPTS[0], 4, cache_prompt=True)
                client.save_slot(0, "positions")
                continue
            with pytest.raises(RequestError, match="of another model"):
                client.restore_slot(0, "positions")


def test_a_slot_file_is_of_the_weights_that_were_loaded(hybrid: Path, slots: Path, tmp_path: Path) -> None:
    """And not of those that took their place in the directory since."""
    model, flags = tmp_path / "model.gguf", ("--slot-save-path", str(slots))
    data = bytearray(hybrid.read_bytes())
    model.write_bytes(data)
    with start(model, *flags) as server:
        greedy(server.client(), PROMPTS[0], 4, cache_prompt=True)
        data[-4096:] = bytes(4096)
        (tmp_path / "new").write_bytes(data)
        (tmp_path / "new").replace(model)
        server.client().save_slot(0, "weights")
    with start(model, *flags) as server, pytest.raises(RequestError, match="of another model"):
        server.client().restore_slot(0, "weights")


def test_a_slot_file_is_of_the_adapters_that_were_loaded(hybrid: Path, slots: Path, tmp_path: Path) -> None:
    """And not of those that took their place in the directory since."""
    path = write_lora(tmp_path / "lora.gguf")
    loaded, flags = path.read_bytes(), ("--slot-save-path", str(slots), "--lora", str(path))
    with start(hybrid, *flags) as server:
        greedy(server.client(), PROMPTS[0], 4, cache_prompt=True)
        write_lora(tmp_path / "new", 2).replace(path)
        server.client().save_slot(0, "adapters")
        server.client().restore_slot(0, "adapters")
    with start(hybrid, *flags) as server, pytest.raises(RequestError, match="other LoRA adapters"):
        server.client().restore_slot(0, "adapters")
    path.write_bytes(loaded)
    with start(hybrid, *flags) as server:
        assert server.client().restore_slot(0, "adapters").n_tokens > 4


def test_a_slot_file_of_other_factors_of_the_positions_is_refused(archs: Path, slots: Path) -> None:
    """With LongRoPE the size of the context chooses them: up to the one of the training, here 256, they are the short ones."""
    key = "phi3.rope.scaling.original_context_length"
    prompt = [1 + 7 * i % 90 for i in range(40)]
    restored = {}
    for n_ctx in (256, 128, 512, 1024):
        flags = ("--override-kv", f"{key}=int:256", "--slot-save-path", str(slots))
        with start(archs / "phi3-dense.gguf", *flags, n_ctx=n_ctx) as server:
            client = server.client()
            for name in ("256", "512"):
                try:
                    restored[name, n_ctx] = (slots / name).exists() and client.restore_slot(0, name).n_tokens > len(prompt) - 2
                except RequestError as error:
                    assert "another model or of another type of cache" in str(error)
                    restored[name, n_ctx] = False
            if n_ctx in (256, 512):
                client.completion(prompt, max_tokens=2, ignore_eos=True)
                client.save_slot(0, str(n_ctx))
    assert [pair for pair, ok in restored.items() if ok] == [("256", 128), ("512", 1024)]


def test_a_slot_file_of_a_draft_with_another_type_of_cache_is_refused(hybrid: Path, slots: Path) -> None:
    flags = ("--spec-type", "draft-simple", "--model-draft", str(llamackpt.default_model()), "--slot-save-path", str(slots))
    for more in ((), ("--cache-type-k-draft", "q8_0")):
        with start(hybrid, *flags, *more) as server:
            if not more:
                greedy(server.client(), PROMPTS[0], 4, cache_prompt=True)
                server.client().save_slot(0, "of a draft")
                continue
            with pytest.raises(RequestError, match="another type of cache"):
                server.client().restore_slot(0, "of a draft")


@pytest.mark.parametrize("flags", [(), ("--ckpt-host-mem", "0")], ids=["all", "device"])
def test_a_file_that_cannot_be_restored_leaves_the_checkpoints_on_the_device(
    plain: Client, hybrid: Path, slots: Path, flags: tuple[str, ...]
) -> None:
    """All of them. There is no room for the tokens beside those of another slot, which is noticed while the state is read."""
    flags = ("--checkpoint-min-step", "1", "--kv-unified", "--slot-save-path", str(slots), *flags)
    with start(hybrid, *flags, parallel=2) as server:
        client = server.client()
        text = client.tokenize("".join(PROMPTS) * 4)
        client.completion(text[:700], max_tokens=1, id_slot=0)
        client.save_slot(0, "long")
        client.erase_slot(0)
        client.completion(text[10:510], max_tokens=1, id_slot=1)
        prompt = in_turns(client, 5, id_slot=0)
        before = held(client)
        assert before["shared"] > 0
        n_moves = counted(client, lambda: in_vain(client, "long"))["llamacpp:checkpoint_move_count"]
        assert n_moves == 2 * client.metrics()["llamacpp:checkpoint_held_count"] > 2
        assert held(client) == before
        found = greedy(client, prompt + "# else\n", cache_prompt=True, id_slot=0)
        assert found.timings.prompt_n < 32
        assert_same(plain, prompt + "# else\n", greedy(plain, prompt + "# else\n"), found)


def in_vain(client: Client, name: str) -> None:
    with pytest.raises(RequestError, match="the log says why"):
        client.restore_slot(0, name)


def test_a_slot_file_of_another_attention_is_refused(hybrid: Path, slots: Path) -> None:
    """Without flash attention the values are stored in another order. The error names what differs and nothing else."""
    for value in ("on", "off", "auto"):
        with start(hybrid, "--slot-save-path", str(slots), "--flash-attn", value) as server:
            client = server.client()
            if value == "on":
                greedy(client, PROMPTS[0], 4, cache_prompt=True)
                client.save_slot(0, "in order")
            elif value == "off":
                with pytest.raises(RequestError) as caught:
                    client.restore_slot(0, "in order")
                differs = "model flash attention = on (expected: model flash attention = off)"
                assert str(caught.value).endswith(f"the file is of another model or of another type of cache: {differs}")
            else:
                assert client.restore_slot(0, "in order").n_tokens > 4  # decided to be on


def test_a_slot_file_of_other_norms_is_refused(tmp_path: Path, slots: Path) -> None:
    """One small tensor is changed, in a file whose name, metadata and size stay."""
    model = write_f32(tmp_path / "model.gguf")
    with start(model, "--slot-save-path", str(slots)) as server:
        greedy(server.client(), PROMPTS[0], 4, cache_prompt=True)
        server.client().save_slot(0, "norms")
    reader = gguf.GGUFReader(model, "r+")
    next(tensor for tensor in reader.tensors if tensor.name == "blk.1.attn_norm.weight").data[...] *= 3
    reader.data.flush()
    with start(model, "--slot-save-path", str(slots)) as server, pytest.raises(RequestError, match="model weights = "):
        server.client().restore_slot(0, "norms")


def test_only_a_regular_file_is_read(drafting: Client, slots: Path) -> None:
    """A pipe that nobody writes to would stop the server, and a device has no end."""
    os.mkfifo(slots / "pipe")
    (slots / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(RequestError, match="not a regular file"):
            drafting.restore_slot(0, name)
        (slots / name).unlink()


def test_what_a_restore_from_a_file_does_is_not_of_the_next_request(hybrid: Path, slots: Path) -> None:
    """Its checkpoints move to the device, none is taken, and no request had to wait for that."""
    with start(hybrid, "--checkpoint-min-step", "1", "--slot-save-path", str(slots)) as server:
        client = server.client()
        prompt = in_turns(client, 4)
        client.save_slot(0, "moved")
        grown = counted(client, lambda: [client.restore_slot(0, "moved") for _ in range(3)])
        assert grown["llamacpp:checkpoint_save_count"] == grown["llamacpp:checkpoint_restore_count"] == 0
        assert grown["llamacpp:checkpoint_move_count"] > 3
        assert grown["llamacpp:checkpoint_move_seconds_total"] > 0
        before = client.metrics()
        raw = greedy(client, prompt + "# else\n", 1, cache_prompt=True).timings.raw
        for name in ("save", "restore"):
            total = f"llamacpp:checkpoint_{name}_count"
            assert raw[f"checkpoint_{name}_n"] == client.metrics()[total] - before[total]
