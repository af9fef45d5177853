"""Runs the real engine and torch runner in this process, for tests that compare with Hugging Face."""

from __future__ import annotations

from array import array
from functools import partial

import torch

from plugserve.backends.torch.runner.load_choices import RunnerSettings
from plugserve.backends.torch.runner.memory_plan import MemoryRequest
from plugserve.backends.torch.runner.model_sources import ModelSources
from plugserve.backends.torch.runner.torch_runner import TorchRunner
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.engine import Engine
from plugserve.core.engine.engine_state import EngineLimits
from plugserve.core.model_files.families import FAMILIES
from plugserve.core.wire.failures import FINISH_REASONS
from plugserve.plugins.attention.torch_sdpa import make_torch_sdpa
from plugserve.plugins.attention.triton_paged import make_triton_paged
from plugserve.plugins.lora.gathered import GatheredLora
from plugserve.plugins.schedulers.fcfs import make_fcfs
from plugserve.testing.contexts import attention_context, scheduler_context
from tests.core.thread_ranks import ThreadRanks


class LocalEngine:
    """Engine + TorchRunner over a Hugging Face config dict and a state dict (or any iterable of weights).

    proposer makes a DraftProposer from what the runner knows; draft_policy says how much it drafts, draft_files are
    what its draft model is made of.
    """

    def __init__(
        self,
        config,
        weights,
        *,
        max_num_seqs=16,
        tokens=512,
        num_blocks=256,
        block_size=16,
        max_model_len=512,
        eos=(),
        prefix_cache=None,
        attention=None,
        device="cpu",
        dtype="float32",
        enforce_eager=False,
        architectures=FAMILIES,
        host_bytes=0,
        offload_bytes=0,
        proposer=None,
        draft_policy=None,
        draft_files=None,
        max_loras=0,
        max_lora_rank=16,
        make_lora=GatheredLora,
        num_ranks=1,
        num_stages=1,
        compiler=None,
    ):
        num_ranks *= num_stages
        managers = [None] * num_ranks

        def make_lora_manager(spec, rank):
            managers[rank] = make_lora(spec)
            return managers[rank]

        attention = attention or (make_torch_sdpa if device == "cpu" else make_triton_paged)

        def sources(rank):
            return ModelSources(
                config,
                open_weights=lambda: weights.items() if isinstance(weights, dict) else weights,
                choose_attention=lambda spec: attention(attention_context(spec, block_size=block_size)),
                architectures=architectures,
                make_proposer=proposer,
                open_draft=lambda reference: draft_files,
                make_lora_manager=partial(make_lora_manager, rank=rank) if max_loras else None,
            )

        settings = RunnerSettings(
            dtype=dtype,
            device=device,
            enforce_eager=enforce_eager,
            num_threads=None,  # torch's own choice: tests that run side by side set OMP_NUM_THREADS
            max_model_len=max_model_len,
            model_max_len=max_model_len,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=tokens,
            memory=MemoryRequest(None, num_blocks, 0.9, host_bytes, offload_bytes),
            max_num_drafts=draft_policy.max_num_drafts if draft_policy else 0,
            max_loras=max_loras,
            max_lora_rank=max_lora_rank,
        )
        if num_ranks == 1:
            self.runner = TorchRunner(sources(0), settings)
        else:
            readers = [lambda folder, rank=rank: managers[rank].read(folder) for rank in range(num_ranks)]
            self.runner = ThreadRanks(
                num_ranks,
                lambda placement: TorchRunner(sources(placement.rank), settings, placement),
                readers,
                num_stages,
            )
        self._read = (lambda folder: managers[0].read(folder)) if num_ranks == 1 else self.runner.read
        self._managers = managers
        self.engine = Engine(
            runner=self.runner,
            info=self.runner.load(),
            scheduler=make_fcfs(scheduler_context(block_size=block_size)),
            scheduler_name="fcfs",
            compiler=compiler,
            limits=EngineLimits(tokens, max_num_seqs, max_loras=max_loras),
            eos_ids=eos,
            prefix_cache=prefix_cache,
            draft_policy=draft_policy,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.engine.drain()
        self.engine.check_integrity()
        assert self.engine.stats.num_integrity_errors == 0
        assert self.engine.kv.num_free == self.engine.kv.num_blocks
        self.runner.close()

    @property
    def lora(self):
        """The LoRA manager, rank 0's."""
        return self._managers[0]

    def load_adapter(self, id, folder):
        self.engine.adapters.add(id, f"adapter {id}", self._read(folder))

    def generate(self, prompts, max_tokens=16, **params):
        """Tokens by prompt; all prompts at once."""
        return [done["tokens"] for done in self.generate_all(prompts, max_tokens=max_tokens, **params)]

    def generate_all(self, prompts, params=None, *, adapters=None, **common):
        """adapters: the adapter id of each prompt, 0 for none."""
        done = [{"tokens": [], "logprobs": [], "finish": None, "prompt_logprobs": None, "error": None} for _ in prompts]
        for id, prompt in enumerate(prompts):
            own = {"max_tokens": 16, "seed": 0, "temperature": 0.0} | common | (params[id] if params else {})
            adapter_id = adapters[id] if adapters else 0
            self.engine.admit((b"w", id), array("i", prompt), SamplingParams(**own), adapter_id=adapter_id)
        while self.engine.has_work or self.engine.is_compiling:
            self.engine.admit_compiled()
            self.engine.step()
            for _, message in self.engine.take_outputs():
                tokens, at = array("i", message.tokens), 0
                for id, count, finish in zip(message.ids, message.num_tokens, message.finish, strict=True):
                    entry = done[id]
                    entry["tokens"] += tokens[at : at + count]
                    entry["logprobs"] += message.logprobs.get(id, [])
                    entry["prompt_logprobs"] = message.prompt_logprobs.get(id, entry["prompt_logprobs"])
                    entry["pooled"] = message.pooled.get(id)
                    entry["finish"] = FINISH_REASONS[finish] or entry["finish"]
                    entry["error"] = message.errors.get(id, entry["error"])
                    at += count
        return done


def randomise(model, seed=0):
    """Every parameter random, norms and biases too, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(noise * scale + (1.0 if "norm" in name else 0.0))
    return model.eval()


@torch.no_grad()
def hugging_face_greedy(model, prompt, max_tokens):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        min_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()
