"""How much is read of what others wrote, and why no honest file needs more."""

from __future__ import annotations

# JSON: the largest index of a model that we load (40 blocks, one line per tensor) has 0.2 MB.
JSON_BYTES = 4 * 2**20
JSON_DEPTH = 32  # our deepest file, a calibrated preset, has 8 levels
JSON_DIGITS = 1000  # of a number; what a number may be is its field's own business

# Tensors of one model, all shards together: MAGI-1 24B in fp8 has about 3,000. Trainers put several models in a file.
TENSORS = 20_000
TENSOR_NAME = 500  # characters; the longest official names have 80
DIMENSIONS = 8  # the most that any tensor of these models has is 5
WIDEST = 2**18  # numbers side by side in one layer; the widest feed-forward has 16,384
LAYERS = 256  # blocks of one model; the largest published one has 48, the cost of building them is linear in it

# The pickle inside a .pt: about 30 instructions and 300 bytes per tensor.
PICKLE_BYTES = 64 * 2**20
PICKLE_INSTRUCTIONS = 2_000_000
NESTED = 8  # dictionaries inside one another until the weights come

# MAGI-1's special_tokens.npz holds 102 rows of 4096 numbers, 3.3 MB if they were float64.
TABLE_BYTES = 16 * 2**20
