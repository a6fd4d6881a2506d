"""Token routing of ComfyUI's own networks: predictions under autograd, and whether recomputed blocks take the same tokens.

    python -m tests.host.inside.token_routing NAME...

answers {toy: {"predicts": the prediction, "moves": how far it is from the plain one, "same bits": gradients with and without recomputation}}.
"""

import sys

from .gradients import _normal, adapted, gradients
from .toys import TOYS, answer, conditions, import_pack, relative, torch, toy_inputs, toy_model


def case(loom, name):
    """None for a toy that this version of ComfyUI cannot build or feed."""
    try:
        shaped = toy_inputs(TOYS[name])["latents"]
        conditions(toy_model(name), name, 0, shaped.unsqueeze(2) if TOYS[name].video else shaped)
    except (TypeError, AttributeError, KeyError):
        return None
    backend, routing = loom("nodes.host.backend.denoiser"), loom("trainer.diffusion.token_routing")
    types, seeding = loom("trainer.types"), loom("trainer.seeding")
    patcher, inputs = toy_model(name), toy_inputs(TOYS[name])
    latents = inputs["latents"].unsqueeze(2) if TOYS[name].video else inputs["latents"]
    samples = [{key: _normal(value) for key, value in conditions(patcher, name, row, latents).items()} for row in (0, 1)]  # fmt: skip
    routes, place = (types.Route(first=0, last=-1, ratio=0.5),), seeding.StepKey(seed=0, step=3, micro_batch=1)
    plain = backend.load_denoiser(patcher)
    noisy = plain.objective.add_noise(inputs["latents"], inputs["noise"], inputs["sigma"])

    def predict(denoiser, some):
        with routing.routing(denoiser.module, some, place):
            return denoiser.predict(noisy, inputs["sigma"], {"samples": samples})

    routed, usual = predict(plain, routes).detach(), predict(plain, ()).detach()
    found = {"predicts": routed.flatten().tolist(), "moves": relative(routed, usual)}
    results = []
    for recomputed in (False, True):
        denoiser = backend.load_denoiser(patcher)
        if recomputed:
            loom("nodes.host.backend.checkpointing").checkpoint_blocks(denoiser.module, denoiser.settings.blocks)
        adapter = adapted(loom, plain, denoiser.module)
        results.append(gradients(adapter, predict(denoiser, routes).square().sum()))
    return {**found, "same bits": torch.equal(*results), "size": float(results[0].norm())}


def refused(loom, name):
    """What is said of a network without routing."""
    routing, types = loom("trainer.diffusion.token_routing"), loom("trainer.types")
    denoiser = loom("nodes.host.backend.denoiser").load_denoiser(toy_model(name))
    try:
        routing.check_routes((types.Route(first=0, last=-1, ratio=0.5),), denoiser.module, denoiser.family)
    except loom("trainer.errors").ConfigError as error:
        return str(error)
    return ""


def main(names):
    loom = import_pack()
    answer({**{name: case(loom, name) for name in names}, "refused": {name: refused(loom, name) for name in ("lumina2", "sd1", names[0])}})  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
