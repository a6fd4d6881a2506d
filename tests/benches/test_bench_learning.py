"""The settings of other trainers that bench/learning.py measures: all are valid here, and each names its source."""

from pathlib import Path

import pytest
import torch

from bench import learning
from bench.bases import RECIPES, projection
from bench.learning import config_of, table
from bench.peers import PEERS
from lora_loom.trainer import families


@pytest.mark.parametrize("base", PEERS)
def test_settings_are_valid_and_name_their_source(base):
    for name, settings in PEERS[base].items():
        config = config_of(settings, Path("base"), Path("data"), "run", 0)
        assert config.training.batch_size == 1
        assert "/" in settings.source or "." in settings.source or "default" in settings.source, name


def test_the_rows_of_a_table_are_means_over_the_seeds_that_ran():
    one = {"base": {"even levels": 0.5, "family's levels": 0.4}, "LoRA": {"even levels": 0.25, "family's levels": 0.2}}
    two = {**one, "LoRA": {"even levels": 0.35, "family's levels": 0.3}}
    rows = table(
        "unet",
        {"unet, ours, the defaults, 0": one, "unet, ours, the defaults, 1": two, "flux, ours, the defaults, 0": one},
        3,
    )
    assert rows["unet: ours, the defaults, even levels"] == "0.3000 +- 0.0707 (2)"
    assert rows["unet: the base, family's levels"] == 0.4
    assert len(rows) == 4


def test_runs_of_another_length_are_other_cells(monkeypatch):
    assert learning.cell_of("unet", "ours", 0) == "unet, ours, 0"
    monkeypatch.setattr(learning, "STEPS", 1000)
    monkeypatch.setattr(learning, "BATCH", 8)
    assert learning.cell_of("unet", "ours", 0) == "unet, ours, 1000 steps, batch 8, 0"


def test_the_toy_bases_are_of_their_families():
    for name, recipe in RECIPES.items():
        with torch.device("meta"):
            network = recipe.network(**recipe.config)
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        assert families.get(recipe.family).detect(shapes), name


def test_latents_with_fewer_channels_keep_the_largest_components():
    spread = torch.tensor([1.0, 5.0, 2.0, 9.0]).reshape(1, 4, 1, 1)
    latents = torch.randn(200, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * spread
    made = torch.einsum("oc,nchw->nohw", projection(latents, 2), latents)
    assert torch.allclose(torch.cov(made.transpose(0, 1).flatten(1)), torch.eye(2), atol=1e-4)
    assert abs(projection(latents, 2)[1]).argmax() == 3
    assert torch.equal(projection(latents, 4), torch.eye(4))
