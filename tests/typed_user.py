"""What users write, for the type checker: nothing runs it. To it an array is no Sequence, which annotations have to know."""

from __future__ import annotations

import numpy as np

import llamackpt
from llamackpt.server import Client


def local(model: llamackpt.Model, ctx: llamackpt.Context, sampler: llamackpt.Sampler) -> llamackpt.Result:
    tokens = model.tokenize("def read(self, size")
    logits = ctx.decode(tokens[:-1], logits=np.ones(len(tokens) - 1, dtype=bool))
    ctx.decode(token for token in (1, 2))
    for item in llamackpt.stream_generate(ctx, tokens, max_tokens=4):
        print(item.text, model.detokenize(tokens))
    batch = llamackpt.Batch()
    batch.add(1, 0, np.arange(2))
    batch.add(np.int64(1), np.int32(0), np.int64(1))
    batch.add(sampler.sample(logits), 1, (0, 1), True)
    batch.add(sampler.sample([1.0, 2.0]), 2)
    with ctx.checkpoint(full=True, tier="host") as ck:
        state = ck.state_get()
    for data in (state, bytearray(state), memoryview(state)):
        ctx.state_set(0, data)
    ctx.state_set(1, np.frombuffer(state, np.uint8))
    return llamackpt.generate(ctx, [int(np.argmax(logits))], max_tokens=4)


def remote(model: llamackpt.Model, client: Client) -> str:
    tokens = model.tokenize("def read(self, size")
    for chunk in client.stream(tokens, max_tokens=40):
        print(chunk.text)
    return client.completion(tokens, max_tokens=40, temperature=0).text + client.detokenize(tokens)
