"""langchain-tests' ChatModelIntegrationTests with langchain-openai's ChatOpenAI; collected by pytest."""

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from report import MODEL, URL


class TestChatOpenAI(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": MODEL,
            "base_url": URL + "/v1",
            "api_key": "none",
            "temperature": 0,
            "max_tokens": 200,
            "timeout": 300,
            "max_retries": 0,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self):
        return True

    @property
    def structured_output_kwargs(self):
        return {"method": "json_schema"}

    @property
    def model_override_value(self):
        return MODEL

    @property
    def supports_anthropic_inputs(self):
        return False
