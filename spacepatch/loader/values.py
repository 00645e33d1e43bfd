"""The numbers that models take of tokens as stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spacepatch.loader.model_space import LatentSpace
from spacepatch.normalization import Normalization, normalize_tokens


class TokenValues:
    """By the constants of a dataset; of tokens of packs, or of batches of them."""

    document: dict[str, Any]
    """dataset.json: settings, fingerprints, constants, totals."""
    folder: Path

    def normalize(self, tokens: torch.Tensor) -> torch.Tensor:
        """Make the numbers that the dataset's `normalize` setting says, from stored tokens.

        Args:
            tokens: ``(.., D)`` uint8 of one token width, on any device: a pack's, or a batch's.
                Where an encoder made the tokens, ``pixels`` of ``--also pixels``.

        Returns:
            The same shape in float32. Zeros of padding become other numbers, which mean nothing.

        Raises:
            ValueError: the tokens are not uint8: they may be normalized already; or they are
                latents or codes.
        """
        kind = self.document.get("kind", "pixels")
        # Not every dataset says so.
        pixels = self.document.get("pixels")
        if kind != "pixels" and (pixels is None or tokens.shape[-1] != pixels["token_width"]):
            wanted = {
                "latents": "to_model_space() brings them to what a model takes",
                "codes": "take them as tokens.long()",
            }
            raise ValueError(f"{self.folder}: normalize takes pixels, not {kind}: {wanted[kind]}")
        if tokens.dtype != torch.uint8:
            raise ValueError(f"tokens are {tokens.dtype}: normalize takes them as stored, uint8")
        constants = pixels or self.document["constants"]
        fields = {name: value for name, value in constants["normalize"].items() if name != "name"}
        made = normalize_tokens(
            tokens.reshape(-1, tokens.shape[-1]),
            constants=Normalization(**fields),
            channels=constants.get("channels", 3),
            layout=self.document["settings"]["layout"],
        )
        return made.view(tokens.shape)

    def to_model_space(self, tokens: torch.Tensor) -> torch.Tensor:
        """Latents as the model takes them that the encoder was made for, from stored tokens.

        Each channel is shifted and scaled by the constants of the encoder's own config, as
        `scale_of_config` says; nothing is assumed that it does not say.

        Args:
            tokens: ``(.., D)`` as stored, on any device. What is scaled already is refused: it is
                float32. Where that is what is stored, only the tensor itself that this function
                returned is known, and no copy of it.

        Returns:
            The same shape in float32. With ``--posterior mean_logvar`` the means, ``(.., D / 2)``.
            Zeros of padding become other numbers, which mean nothing.

        Raises:
            ValueError: the config does not say how (`standardize` needs none); or the tokens are
                not those of this dataset, or no latents.
        """
        space = self._latent_space()
        return space.scaled(tokens, space.config_scale())

    def from_model_space(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_model_space`: what the encoder's decoder takes, in float32.

        Args:
            latents: what `to_model_space` or `sample_latents` returns, or a model, in any float.
        """
        space = self._latent_space()
        return space.unscaled(latents, space.config_scale())

    def sample_latents(
        self, tokens: torch.Tensor, *, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """A draw from the distribution of each latent, in model space: of ``--posterior
        mean_logvar`` mean + exp(log variance / 2) * N(0, 1), and then as `to_model_space`.

        Args:
            tokens: ``(.., D)`` as stored.
            generator: of the device of the tokens; None: torch's own.

        Returns:
            ``(.., D / 2)`` float32.
        """
        space = self._latent_space()
        return space.drawn(tokens, space.config_scale(), generator)

    def standardize(self, tokens: torch.Tensor) -> torch.Tensor:
        """As `to_model_space`, but to mean 0 and standard deviation 1 in each channel, as measured
        over this dataset: for models that are trained from nothing, and need no other's constants.
        """
        space = self._latent_space()
        return space.scaled(tokens, space.measured_scale())

    def unstandardize(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `standardize`."""
        space = self._latent_space()
        return space.unscaled(latents, space.measured_scale())

    def _latent_space(self) -> LatentSpace:
        return LatentSpace.of_dataset(self.document, where=str(self.folder))
