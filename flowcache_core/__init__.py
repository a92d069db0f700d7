"""FlowCache: chunkwise reuse and KV-cache compression for autoregressive video diffusion (arXiv 2602.10825).

The core needs torch, numpy and safetensors, and knows nothing of ComfyUI.
"""

__version__ = "0.1.0"
