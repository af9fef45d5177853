"""The sizes of a decoder that step times and memory follow from."""

from __future__ import annotations

from dataclasses import dataclass

from plugserve.core.contracts.model import DecoderSpec


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Parameters of matrices, by part. num_kv_heads bounds the cuts of the KV cache; sizes are one number's bytes."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layer_parameters: int
    head_parameters: int
    has_own_head: bool
    weight_size: float
    kv_size: float

    @classmethod
    def of(cls, spec: DecoderSpec, weight_size: float = 2.0, kv_size: float = 2.0) -> ModelShape:
        head = spec.vocab_size * spec.hidden_size
        embeddings = head if spec.ties_embeddings else 2 * head
        return cls(
            num_layers=spec.num_layers,
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            layer_parameters=(spec.num_parameters - embeddings) // spec.num_layers,
            head_parameters=head,
            has_own_head=not spec.ties_embeddings,
            weight_size=weight_size,
            kv_size=kv_size,
        )

    def divides(self, tp: int) -> bool:
        """tp GPUs can share each layer (the rule of --tensor-parallel-size)."""
        kv = self.num_kv_heads
        return not (self.num_heads % tp or self.intermediate_size % tp or (kv % tp and tp % kv))

    def kv_bytes(self, num_layers: int, tp: int) -> float:
        """Of one token on one GPU."""
        heads = max(1, self.num_kv_heads // tp)
        return 2 * heads * self.head_dim * self.kv_size * num_layers
