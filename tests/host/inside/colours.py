"""Rough pictures of latents, ours and those of ComfyUI's sampler nodes, for every latent format that has factors.

    python -m tests.host.inside.colours

answers {format: largest difference, of 255}.
"""

import inspect

from .toys import answer, import_pack, torch


def difference(to_rgb, form):
    import latent_preview
    import numpy

    latents = torch.randn(1, form.latent_channels, 6, 8, generator=torch.Generator().manual_seed(0))
    theirs = latent_preview.Latent2RGBPreviewer(form.latent_rgb_factors, form.latent_rgb_factors_bias, form.latent_rgb_factors_reshape)  # fmt: skip
    film = form.latent_dimensions == 3 and not form.latent_rgb_factors_reshape
    image = theirs.decode_latent_to_preview(latents.unsqueeze(2) if film else latents)
    return float(numpy.abs(to_rgb(latents, form).numpy() * 255 - numpy.asarray(image)).max())


def main():
    from comfy import latent_formats

    to_rgb = import_pack()("nodes.host.forming").to_rgb
    found = {}
    for name, kind in vars(latent_formats).items():
        if not inspect.isclass(kind) or not issubclass(kind, latent_formats.LatentFormat):
            continue
        form = kind()
        factors = form.latent_rgb_factors
        if factors is not None and form.latent_dimensions in (2, 3) and (len(factors) == form.latent_channels or form.latent_rgb_factors_reshape):  # fmt: skip
            found[name] = difference(to_rgb, form)
    answer(found)


if __name__ == "__main__":
    main()
