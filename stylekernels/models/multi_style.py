"""A generator of several styles, which share its convolutions."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stylekernels.models.generator import Generator, GeneratorConfig
from stylekernels.models.styles import style_file
from stylekernels.models.tensor_files import (
    MULTI_STYLE_FORMAT,
    check_shapes,
    read_safetensors,
    write_safetensors,
)


class MultiStyleGenerator(nn.Module):
    """One set of convolutions, and scales and shifts of the instance norms for each style.

    The scales, the shifts and the last bias of a style are those of ``shared`` plus the style's
    row of ``offsets``. What all styles have in common is thus learnt from all of them. A mixture of
    rows gives a style between styles.

    Args:
        config: of the generator.
        styles: their names, at least one, all different.

    Attributes:
        shared: the generator with what all styles share.
        offsets: a table (S, C) for each of its vectors, by name, with ``/`` in place of dots.

    Dumoulin, Shlens and Kudlur, "A learned representation for artistic style", 2017.
    """

    def __init__(self, config: GeneratorConfig, styles: Sequence[str]) -> None:
        super().__init__()
        if not styles or len({*styles}) < len(styles):
            raise ValueError(f"styles: expected different names, at least one, got {styles}")
        self.config, self.styles = config, (*styles,)
        self.shared = Generator(config)
        self.offsets = nn.ParameterDict(
            {
                name.replace(".", "/"): torch.zeros(len(styles), len(parameter))
                for name, parameter in self.shared.named_parameters()
                if parameter.dim() == 1
            }
        )

    def forward(self, x: Tensor, style: int) -> Tensor:
        """Stylise images in one style.

        Args:
            x: (N, 3, H, W), as for `Generator`.
            style: its index in ``styles``.

        Returns:
            Images of the same shape, as from `Generator`.
        """
        rows = {name: table[style] for name, table in self.offsets.items()}
        return functional_call(self.shared, self._vectors(rows), (x,))

    @torch.no_grad()
    def with_styles(self, styles: Sequence[str]) -> "MultiStyleGenerator":
        """Return a network of other styles: those that this one has keep their rows, new ones
        begin with the mean of the rows.

        Args:
            styles: their names, at least one, all different.
        """
        network = MultiStyleGenerator(self.config, styles)
        network.shared.load_state_dict(self.shared.state_dict())
        for name, table in self.offsets.items():
            rows = dict(zip(self.styles, table, strict=True))
            mean = table.mean(0)
            network.offsets[name].copy_(torch.stack([rows.get(style, mean) for style in styles]))
        return network

    @torch.no_grad()
    def mixed(self, shares: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """Return the weights of a generator of one style.

        Args:
            shares: of the styles, by name, positive; they are divided by their sum. None mixes
                all in equal shares.

        Returns:
            A state of `Generator`.

        Raises:
            ValueError: for a style that is not among ``styles``, or a share that is not positive.
        """
        shares = dict.fromkeys(self.styles, 1.0) if shares is None else shares
        for name, share in shares.items():
            if name not in self.styles:
                raise ValueError(
                    f"expected styles among {', '.join(self.styles)}, which can be mixed, got "
                    f"{name!r}"
                )
            if not 0 < share < float("inf"):
                raise ValueError(f"expected a positive share of {name}, got {share}")
        total = sum(shares.values())
        mixture = torch.tensor([shares.get(name, 0.0) / total for name in self.styles])
        rows = {name: mixture.to(table) @ table for name, table in self.offsets.items()}
        return {**self.shared.state_dict(), **self._vectors(rows)}

    def _vectors(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The vectors of a style, by their names in ``shared``."""
        shared = dict(self.shared.named_parameters())
        rows = {name.replace("/", "."): row for name, row in rows.items()}
        return {name: shared[name] + row.to(shared[name].dtype) for name, row in rows.items()}

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> "MultiStyleGenerator":
        """Open a file of :meth:`save_pretrained`.

        Args:
            path: a path, or ``base`` for the bundled one.

        Returns:
            The network in float32 on the CPU, in evaluation mode.

        Raises:
            ValueError: if there is no such file, or it holds something else.
            OSError: if the file cannot be read.
        """
        path = style_file(path)
        metadata, tensors = read_safetensors(path)
        return cls.from_tensors(metadata, tensors, path)

    @classmethod
    def from_tensors(
        cls, metadata: Mapping[str, str], tensors: Mapping[str, Tensor], path: Path
    ) -> "MultiStyleGenerator":
        """Make a network from what :meth:`save_pretrained` wrote to a path, else raise ValueError
        about it."""
        try:
            kind = metadata.get("format")
            if kind != MULTI_STYLE_FORMAT:
                raise ValueError(f"expected the format {MULTI_STYLE_FORMAT!r}, got {kind!r}")
            values = json.loads(metadata["config"])
            network = cls(GeneratorConfig.from_dict(values["generator"]), values["styles"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: not a network of several styles: {error}") from error
        check_shapes(
            network, tensors, f"{path}: expected a network of {len(network.styles)} styles"
        )
        network.load_state_dict({name: t.float() for name, t in tensors.items()})
        return network.eval()

    def save_pretrained(
        self, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32
    ) -> None:
        """Write weights, config and names to one safetensors file, whole or not at all.

        Args:
            path: file to write or replace.
            dtype: the dtype of the stored weights; float16 and bfloat16 halve the file.

        Raises:
            OSError: if the file cannot be written.
        """
        config = {"generator": self.config.to_dict(), "styles": [*self.styles]}
        write_safetensors(path, self, MULTI_STYLE_FORMAT, config, dtype)
