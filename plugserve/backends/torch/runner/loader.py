"""Loads a model for the torch runner: device and dtype, weights, the memory plan, KV tensors, and the parts of a
step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from plugserve.backends.torch.models.collectives import SINGLE_RANK, Collectives
from plugserve.backends.torch.parallel.process_group import ProcessGroup, device_of
from plugserve.backends.torch.runner.adapter_rows import AdapterRows
from plugserve.backends.torch.runner.described_model import DescribedModel
from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.runner.devices import DeviceKind, choose_device
from plugserve.backends.torch.runner.draft_loader import DraftLoader
from plugserve.backends.torch.runner.kv_tensors import kv_tensors
from plugserve.backends.torch.runner.load_choices import RunnerSettings, asked_length, choose_dtype, fit_length
from plugserve.backends.torch.runner.loaded_model import LoadedModel
from plugserve.backends.torch.runner.memory_estimate import MemoryEstimate
from plugserve.backends.torch.runner.memory_plan import plan_blocks, plan_host_slots
from plugserve.backends.torch.runner.model_sources import ModelSources
from plugserve.backends.torch.runner.out_of_memory import MemoryReport
from plugserve.backends.torch.runner.pooler import Pooler
from plugserve.backends.torch.runner.prompt_logprobs import PromptLogprobs
from plugserve.backends.torch.runner.row_forward import RowForward
from plugserve.backends.torch.runner.row_passes import RowPasses
from plugserve.backends.torch.runner.speculator import Speculator
from plugserve.backends.torch.runner.stage_tokens import stage_tokens
from plugserve.backends.torch.runner.step_runner import StepRunner
from plugserve.backends.torch.runner.switched_off import NoAdapterRows
from plugserve.backends.torch.runner.weight_offload import NoOffload, WeightOffload
from plugserve.backends.torch.sampling.sampler import Sampler
from plugserve.core.contracts.attention import AttentionBackend, AttentionSpec, KVLayout
from plugserve.core.contracts.drafting import DraftProposer
from plugserve.core.contracts.lora import LoraManager, LoraSpec
from plugserve.core.contracts.memory import MemoryLedger
from plugserve.core.contracts.model import ModelDefinition
from plugserve.core.contracts.parallel import ALONE, RankPlacement
from plugserve.core.contracts.runner import RunnerInfo
from plugserve.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class _Plan:
    """The memory plan: sizes in bytes, lengths in tokens."""

    num_blocks: int
    bytes_per_block: int
    draft_bytes_per_block: int
    max_model_len: int
    max_num_batched_tokens: int


class Loader:
    """Loads once, step by step."""

    def __init__(self, sources: ModelSources, settings: RunnerSettings, placement: RankPlacement = ALONE) -> None:
        self._sources = sources
        self._settings = settings
        self._kind: DeviceKind = choose_device(device_of(settings.device, placement))
        self._num_ranks = placement.num_ranks
        self._ranks: Collectives = SINGLE_RANK
        if placement.num_ranks > 1:
            self._ranks = ProcessGroup(placement, self._kind.device)
        self._dtype = choose_dtype(settings.dtype, sources.config, self._kind.default_dtype)
        self._max_positions = asked_length(settings)

    def load(self) -> LoadedModel:
        """Raises ModelError or ConfigError with one line."""
        self._ranks.join()
        described = self._described
        model, spec, attention, layout = described.model, described.spec, described.attention, described.layout
        offload = self._offload()
        offload.prepare(model)
        model.allocate(dtype=self._dtype, device=self._kind.device, max_positions=self._max_positions)
        model.load(self._sources.open_weights())
        offload.finish(model)
        manager = self._lora_manager(model, spec)
        first_layer = described.layer_numbers.start
        adapters = NoAdapterRows() if manager is None else AdapterRows(manager, first_layer)
        drafts = DraftLoader(self._sources, self._settings, self._kind, model, spec)
        proposer = self._proposer(spec, drafts)
        plan = self._plan(model, layout, drafts)
        num_blocks = plan.num_blocks + self._kind.num_padding_blocks
        kv = kv_tensors(layout, num_blocks, spec.num_layers, self._dtype, self._kind)
        steps = self._steps(model, attention, kv, layout, adapters, plan)
        drafts.attach(steps, num_blocks, plan.max_num_batched_tokens, self._settings.max_num_seqs)
        if proposer is not None:
            steps.speculator = Speculator(proposer, steps.state, steps.sampler, model.vocab_size)
        attention.prepare(plan.max_num_batched_tokens, self._settings.max_num_seqs)
        return LoadedModel(
            info=self._info(model, plan, drafts, offload.num_bytes, has_proposer=proposer is not None),
            model=model,
            attention=attention,
            kv=kv,
            steps=steps,
            draft=drafts.runner,
            device=self._kind.device,
            max_num_seqs=self._settings.max_num_seqs,
            enforce_eager=self._settings.enforce_eager,
        )

    def _most(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        return -self._ranks.least(-number)

    @cached_property
    def _described(self) -> DescribedModel:
        return DescribedModel(self._sources.config, self._dtype, self._kind.device, self._sources, self._ranks)

    @cached_property
    def estimate(self) -> MemoryEstimate:
        """The memory that the model will take. Raises ModelError or ConfigError with one line."""
        return MemoryEstimate(self._described, self._sources, self._settings, self._kind)

    @cached_property
    def ledger(self) -> MemoryLedger:
        """As it was when it was first asked for: before loading, if core checks it."""
        return self.estimate.ledger()

    @property
    def kind(self) -> DeviceKind:
        """The device that was chosen."""
        return self._kind

    def _offload(self) -> WeightOffload | NoOffload:
        num_bytes = self._settings.memory.offload_bytes
        link = self._kind.weight_link() if num_bytes else None
        return NoOffload() if link is None else WeightOffload(num_bytes, link)

    def _lora_manager(self, model: ModelDefinition, spec: AttentionSpec) -> LoraManager | None:
        if self._sources.make_lora_manager is None:
            return None
        if not model.lora_sites:
            raise ConfigError(f"{model.architecture} takes no LoRA adapters: leave --enable-lora out")
        num_stages, own_layers = self._ranks.pipeline.num_stages, self._described.layer_numbers
        lora = LoraSpec(
            num_layers=self._described.num_model_layers,
            sites=tuple(model.lora_sites),
            dtype=spec.dtype,
            device=spec.device,
            max_loras=self._settings.max_loras,
            max_rank=self._settings.max_lora_rank,
            weight_prefixes=model.weight_prefixes,
            stage_layers=own_layers if num_stages > 1 else None,
        )
        return self._sources.make_lora_manager(lora)

    def _proposer(self, spec: AttentionSpec, drafts: DraftLoader) -> DraftProposer | None:
        if self._sources.make_proposer is None:
            return None
        return self._sources.make_proposer(
            spec=spec, max_model_len=self._max_positions, build_runner=drafts.build, reserve_kv=drafts.reserve_kv
        )

    def _plan(self, model: ModelDefinition, layout: KVLayout, drafts: DraftLoader) -> _Plan:
        settings, kind = self._settings, self._kind
        max_num_tokens = settings.max_num_batched_tokens or kind.default_num_batched_tokens
        draft_bytes = drafts.reserved_bytes_per_token * settings.block_size
        bytes_per_block = layout.bytes_per_block + draft_bytes
        num_blocks = self._ranks.least(plan_blocks(settings.memory, bytes_per_block, self._default_kv_bytes))
        max_model_len = fit_length(settings, num_blocks * settings.block_size)
        return _Plan(num_blocks, bytes_per_block, draft_bytes, max_model_len, max_num_tokens)

    def _default_kv_bytes(self) -> int:
        """Of what is free now that weights are loaded."""
        free_bytes = self._kind.memory.free_bytes(self._settings.memory)
        return self.estimate.kv_share(free_bytes - self.estimate.later_bytes)

    def _steps(
        self,
        model: ModelDefinition,
        attention: AttentionBackend,
        kv: list[torch.Tensor],
        layout: KVLayout,
        adapters: AdapterRows | NoAdapterRows,
        plan: _Plan,
    ) -> StepRunner:
        settings = self._settings
        state = DeviceState(
            settings.max_num_seqs, plan.max_model_len, settings.block_size, model.vocab_size, self._kind.device
        )
        forward = RowForward(model, state, attention, kv)
        memory = MemoryReport(lambda: self.ledger)
        return StepRunner(
            state=state,
            forward=forward,
            sampler=Sampler(state),
            adapters=adapters,
            host_copies=self._kind.host_copies(kv, layout.shape.index("num_blocks")),
            pooler=Pooler(state, model.normed),
            prompt_logprobs=PromptLogprobs(state, forward, memory),
            passes=RowPasses(state, forward, adapters, memory, can_split=self._ranks.pipeline.num_stages == 1),
            memory=memory,
            stage=stage_tokens(state, self._ranks.pipeline),
        )

    def _info(
        self, model: ModelDefinition, plan: _Plan, drafts: DraftLoader, offloaded_bytes: int, has_proposer: bool
    ) -> RunnerInfo:
        settings = self._settings
        kv_bytes = self._most(plan.bytes_per_block - plan.draft_bytes_per_block)
        return RunnerInfo(
            vocab_size=model.vocab_size,
            max_model_len=plan.max_model_len,
            max_num_batched_tokens=plan.max_num_batched_tokens,
            num_blocks=plan.num_blocks,
            block_size=settings.block_size,
            kv_cache_bytes=plan.num_blocks * (kv_bytes + plan.draft_bytes_per_block),
            weight_bytes=self._most(model.weight_bytes() + drafts.weight_bytes),
            dtype=str(self._dtype).removeprefix("torch."),
            device=str(self._kind.device),
            length_rule=model.length_rule,
            num_host_slots=self._ranks.least(
                plan_host_slots(settings.memory, kv_bytes * self._num_ranks, self._kind.default_host_bytes)
            ),
            num_ranks=self._num_ranks,
            num_stages=self._ranks.pipeline.num_stages,
            max_num_drafts=settings.max_num_drafts if has_proposer else 0,
            draft_weight_bytes=drafts.weight_bytes,
            draft_kv_bytes=plan.num_blocks * plan.draft_bytes_per_block,
            offloaded_weight_bytes=offloaded_bytes,
        )
