"""Starts a server from its settings: finds the models, binds the port, runs the supervisor."""

from __future__ import annotations

import asyncio
import logging
import os

from plugserve.core.errors import EngineError
from plugserve.core.model_files.draft_source import check_draft, find_draft
from plugserve.core.model_files.encoder_files import GENERATE
from plugserve.core.model_files.generation_defaults import generation_defaults
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.key_file import all_keys
from plugserve.core.settings.model_entries import settings_of
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.runtime_folder import RuntimeFolder
from plugserve.core.wire.trace_file import check_trace_path
from plugserve.server.operations.service_manager import ServiceManager
from plugserve.server.operations.tls import tls_context
from plugserve.server.operations.tracing.make_tracer import announce_destination, make_tracer
from plugserve.server.supervisor.files_folder import held_files_folder
from plugserve.server.supervisor.kept_flights import check_flights_folder
from plugserve.server.supervisor.listener import listening
from plugserve.server.supervisor.memory_plan import plan_memory
from plugserve.server.supervisor.model_table import ModelTable, make_table
from plugserve.server.supervisor.startup_lines import announce_settings
from plugserve.server.supervisor.supervisor import Supervisor
from plugserve.server.text.chat_template import check_template_variables
from plugserve.server.text.parser_choice import check_parser_flags

log = logging.getLogger(__name__)


def serve(settings: Settings, host: PluginHost) -> int:
    """Serve until a signal. Returns the exit code; raises UserError for faults that the user can fix."""
    table = start_table(settings, host)
    check_flights_folder(settings.flight_recorder_dir)
    with listening(settings) as listener, held_files_folder(settings.files_dir):
        announce_settings(settings, host, table.preloaded)
        plan = plan_memory(settings, table)
        folder = RuntimeFolder.create(settings, table.entries)
        try:
            supervisor = Supervisor(
                settings,
                plan.slots,
                folder,
                listener,
                host.plugins,
                budget_bytes=plan.budget_bytes,
                service=ServiceManager.of(os.environ),
                tracer=make_tracer(settings, os.environ, part="supervisor"),
            )
            asyncio.run(supervisor.run())
        except EngineError as error:
            log.error("%s", error)
            return 1
        finally:
            folder.remove()
    return 0


def start_table(settings: Settings, host: PluginHost) -> ModelTable:
    """Configure the plugins, make all checks that need no model in memory, and find the models. Raises UserError."""
    host.configure(settings)
    check_parser_flags(settings, host)
    all_keys(settings.api_key, settings.api_key_file)  # a bad file is reported before anything is loaded
    tls_context(settings)
    announce_destination(settings, os.environ)
    table = make_table(settings)
    _check_text_settings(settings, table)
    if settings.speculative_model is not None:
        draft = find_draft(
            settings.speculative_model, download_dir=settings.download_dir, load_format=settings.load_format
        )
        for source in table.preloaded:
            if source.task == GENERATE:
                check_draft(draft, source)
    if settings.record_trace is not None:
        check_trace_path(settings.record_trace)
    return table


def _check_text_settings(settings: Settings, table: ModelTable) -> None:
    """Raise for each model's settings that its text side would refuse, before anything is loaded."""
    for entry in table.entries:
        own = settings_of(settings, entry)
        check_template_variables(own.default_chat_template_kwargs)
        if entry.name in table.sources:
            source = table.sources[entry.name]
            generation_defaults(source, own.generation_config, own.override_generation_config)
