r"""Top-K sparse softmax gate.

Density: the softmax gate over the K experts with the largest logits at x, K fixed,

.. math:: \pi_i(x) = \mathrm{softmax}_i(\mathrm{TopK}(\beta_1^\top x + \beta_0)_i), \qquad
          \mathrm{TopK}(z)_i = \begin{cases} z_i & \text{if among the } K \text{ largest} \\
                                             -\infty & \text{otherwise} \end{cases}

At a tie the lower index is kept; ties have measure zero, but the density jumps across them, and
so does the likelihood as a function of the gate: a fit may stop at a jump, and then says so, and
posteriors are sampled by steps that need no gradient of the gate.

Reference: Nguyen, Akbarian, Yan & Ho, "Statistical Perspective of Top-K Sparse Softmax Gating
Mixture of Experts", ICLR 2024 (arXiv 2309.13850).

Sites of the program, which is the softmax gate's over these logits

===================  ======  ========  ========================
gate_slope_free      (k-1,d) real      ``prior.gate_slope``
gate_intercept_free  (k-1,)  real      ``prior.gate_intercept``
slope                (k, d)  real      ``prior.slope``
intercept            (k,)    real      ``prior.intercept``
variance             (k,)    positive  ``prior.variance``
===================  ======  ========  ========================

Invariances. Gauge: permutation of experts; translation of all (β1_i, β0_i) by one vector, which
the reference expert β1_k = 0, β0_k = 0 pins. Rays: none for K >= 2. With K = 1 the gate knows only
which logit is largest: (cβ1, cβ0), c > 0, has the same density, and no data determine the scale.
The losses do not take an infimum over it, and so have no rate. The prior's mode being zero, the
posterior density rises towards it along this ray: the MAP's scale is zero but for rounding.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from bayesmoe.core.gate import NO_RATE, Rate
from bayesmoe.core.measure import GateParameters
from bayesmoe.core.validate import check_whole
from bayesmoe.models.softmax import Softmax


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
        object.__setattr__(self, "top_k", check_whole("top_k", self.top_k, least=1))

    @property
    def subset_size(self) -> int:
        return self.top_k

    @property
    def label(self) -> str:
        return f"top-{self.top_k} sparse"

    def expected_rate(self, quantity: str, over_specified: bool) -> Rate:
        if self.top_k == 1 and quantity in ("loss", "identified_loss", "gate_slope"):
            return NO_RATE
        return super().expected_rate(quantity, over_specified)

    def check(self, n_experts: int) -> None:
        if self.top_k > n_experts:
            raise ValueError(
                f"top_k = {self.top_k} exceeds n_experts = {n_experts}: "
                "at most all experts can be active; lower top_k or add experts"
            )

    def logits(self, parameters: GateParameters, x: Array) -> Array:
        logits = super().logits(parameters, x)
        index = jnp.arange(logits.shape[0])
        # the rank of expert i counts the experts j before it: for few experts faster than sorting
        larger = logits[None] > logits[:, None]
        tied = (logits[None] == logits[:, None]) & (index[None] < index[:, None])[..., None]
        rank = jnp.sum(larger | tied, axis=1)
        return jnp.where(rank < self.top_k, logits, -jnp.inf)
