"""Latent spaces that more than one family has."""

from .family import LatentSpace

QWEN_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
QWEN_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
"""Per channel: the configuration of the VAE that came with Wan 2.1; Qwen-Image and Krea 2 have its latents."""
QWEN_LATENTS = LatentSpace(channels=16, scale=tuple(1 / std for std in QWEN_STD), shift=QWEN_MEAN)
