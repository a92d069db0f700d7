import torch, hostkit
from test_multi_gpu import *


def test_measure():
    model = node("ChunkwiseReuse", model=mini(), preset={"preset": "mini: balanced"})
    model = node("KVCompressor", model=model, budget=1.5, method=METHOD, dtype=SAME, device=SAME)
    for steps, m in ((50, model), (50, mini())):
        sigmas = sigmas_of(m, steps)
        here = sample(m, ours(BLOCKWISE), sigmas=sigmas, **mini_run())[0]
        there = on_ranks(m)
        out = sample(there, ours(BLOCKWISE), sigmas=sigmas, **mini_run())[0]
        d = (out - here).abs().amax((0, 1, 3, 4))
        print("DIFF", steps, d.tolist(), here.abs().max().item())
