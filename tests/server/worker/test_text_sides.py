"""Settings that a model's text side is made from."""

import pytest

from plugserve.core.model_files.model_source import resolve
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings
from plugserve.server.pipeline.limits import num_new_tokens
from plugserve.server.worker.served_models import ServedModel
from plugserve.server.worker.text_sides import load_text_side
from tests.server.fakes import FakeEngine

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def load(smollm2_gguf, cache_home):
    loaded = []

    async def load(**given):
        settings = Settings(**given)
        loaded.append(await load_text_side(resolve(None), settings, PluginHost.load(settings.selection())))
        return loaded[-1]

    yield load
    for text in loaded:
        await text.close()


async def test_generation_config_and_its_overrides_become_defaults_and_limits(load):
    text = await load(generation_config="none", override_generation_config={"temperature": 0.3, "max_new_tokens": 5})
    assert text.sampling_defaults == {"temperature": 0.3}
    model = ServedModel(("m",), FakeEngine(lambda call: []))
    model.text = text
    limits = model.limits(20)
    names = {"field_name": "max_tokens", "prompt_field": "prompt"}
    assert num_new_tokens(None, 10, limits, default=None, **names) == 5
    assert num_new_tokens(None, 10, limits, default=16, **names) == 5
    assert num_new_tokens(3, 10, limits, default=16, **names) == 3
    assert num_new_tokens(100, 10, limits, default=16, **names) == 5


async def test_the_templates_variables_and_content_format_are_the_settings(load):
    source = "{{ mood }}{{ messages[0].content is string }}"
    text = await load(
        chat_template=source, default_chat_template_kwargs={"mood": "calm"}, chat_template_content_format="openai"
    )
    assert await text.template.render(MESSAGES) == "calmFalse"
