"""Layers told from structure in ComfyUI's own networks: what runs in the blocks trains, modulation and surroundings are told apart."""

import pytest

from .programs import run_inside

pytestmark = pytest.mark.comfyui
# {network: (attention, mlp, modulation, outside)}, counted by which layers run with the image's and the text's tokens
EXPECTED = {
    "Flux dev": (152, 76, 76, 10),
    "FLUX.2 Klein 4B": (60, 20, 0, 9),
    "Lumina 2": (52, 78, 26, 28),
    "Z-Image": (60, 90, 30, 28),
    "Qwen-Image": (480, 240, 120, 6),
    "Wan 2.1 14B": (320, 80, 0, 6),
    "AuraFlow": (160, 120, 40, 6),
    "HiDream I1": (256, 768, 48, 56),
    "Omnigen2": (128, 96, 32, 53),
    "Anima": (224, 56, 168, 67),
    "Krea 2": (140, 84, 0, 40),
    "SDXL": (560, 140, 0, 43),
}


@pytest.fixture(scope="module")
def found():
    return run_inside("roles")


@pytest.mark.parametrize("network", EXPECTED)
def test_roles_of_comfyuis_networks(found, network):
    if network not in found:
        pytest.skip("this version of ComfyUI does not have it")
    roles = ("attention", "mlp", "modulation", "outside")
    assert tuple(found[network].get(role, 0) for role in roles) == EXPECTED[network]
