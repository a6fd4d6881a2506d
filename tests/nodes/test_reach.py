"""How long an image's side may be for a network: asked of networks with and without a table of positions."""

from types import SimpleNamespace

import pytest


@pytest.mark.parametrize(
    ("network", "pixels"),
    [
        (SimpleNamespace(pos_embed=object(), pos_embed_max_size=192, patch_size=2), 192 * 2 * 8),  # SD3
        (SimpleNamespace(patch_size=(1, 2, 2)), 0),  # Wan: positions are computed, patches are of frames, rows, columns
        (SimpleNamespace(), 0),  # a UNet
    ],
)
def test_the_longest_side_of_an_image(host, network, pixels):
    assert host("runs.session").longest_side(network, 8) == pixels
