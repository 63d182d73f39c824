r"""Top-K sparse softmax gate.

Density: the softmax gate over the K experts with the largest logits at x, K fixed,

.. math:: \pi_i(x) = \mathrm{softmax}_i(\mathrm{TopK}(\beta_1^\top x + \beta_0)_i), \qquad
          \mathrm{TopK}(z)_i = z_i \text{ if } z_i \text{ is among the } K \text{ largest, else } -\infty

At a tie the lower index is kept; ties have measure zero, but the density jumps across them, and
so does the likelihood as a function of the gate: a fit may stop at a jump, and then says so.

Reference: Nguyen, Akbarian, Yan & Ho, "Statistical Perspective of Top-K Sparse Softmax Gating
Mixture of Experts", ICLR 2024 (arXiv 2309.13850).

Sites of the program, invariances: as the softmax gate.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from bayesmoe.models.softmax import Softmax
from jax import Array

from bayesmoe.core.measure import GateParameters, MixingMeasure
from bayesmoe.core.priors import Prior, sample_experts, sample_gate
from bayesmoe.core.program import observe
from bayesmoe.core.scaling import Scaling


@dataclasses.dataclass(frozen=True)
class TopKSparse(Softmax):
    """The top-K sparse softmax gate; see the module's docstring.

    Parameters
    ----------
    top_k
        K, the number of experts active at each x.

    Raises
    ------
    ValueError
        If ``top_k`` is not a positive whole number.
    """

    name: ClassVar[str] = "top_k_sparse"
    top_k: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1:
            raise ValueError(f"top_k must be a whole number of at least 1, got {self.top_k!r}")

    @property
    def subset_size(self) -> int:
        return self.top_k

    @property
    def label(self) -> str:
        return f"top-{self.top_k} sparse"

    def check(self, n_experts: int) -> None:
        if self.top_k > n_experts:
            raise ValueError(
                f"top_k = {self.top_k} exceeds n_experts = {n_experts}: "
                "at most all experts can be active; lower top_k or add experts"
            )

    def logits(self, parameters: GateParameters, x: Array) -> Array:
        logits = super().logits(parameters, x)
        _, kept = jax.lax.top_k(logits.T, self.top_k)
        active = jnp.any(kept[:, :, None] == jnp.arange(logits.shape[0]), axis=1)
        return jnp.where(active.T, logits, -jnp.inf)

    def program(
        self, x: Array, y: Array | None, *, n_experts: int, prior: Prior, scaling: Scaling
    ) -> None:
        gate = sample_gate(self, prior, scaling, n_experts, x.shape[1])
        experts = sample_experts(prior, scaling, n_experts, x.shape[1])
        observe(self, MixingMeasure(*gate, *experts), x, y)
