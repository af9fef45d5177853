"""An architecture in one file: Seed-OSS. Start it with `plugserve ./Seed-OSS-36B --plugin ./seed_oss.py`.

A function from config.json to a DecoderSpec: llama_like sets fields as for Llama, its arguments are the differences.
"""

from plugserve import DecoderSpec, hookimpl, llama_like


def seed_oss(config: dict) -> DecoderSpec:
    """Seed-OSS: a Llama whose biases are set one by one"""
    return llama_like(
        config,
        "SeedOssForCausalLM",
        has_qkv_bias=config.get("attention_bias", True),
        has_output_bias=config.get("attention_out_bias", False),
        has_mlp_bias=config.get("mlp_bias", False),
    )


@hookimpl
def plugserve_architectures() -> dict:
    return {"SeedOssForCausalLM": seed_oss}
