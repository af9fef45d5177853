"""An EngineClient over an encoder's engine in this process, and a served model of it."""

import asyncio
from array import array

from plugserve.core.engine.build import engine_info
from plugserve.core.model_files.encoder_files import encoder_facts
from plugserve.core.model_files.model_source import read_config, resolve
from plugserve.core.wire.messages import AbortRequests, GenerateRequest, decode_to_engine
from plugserve.server.text.detokenizer import Vocabulary
from plugserve.server.text.encoder_text import EncoderText
from plugserve.server.worker.engine_client import ZmqEngineClient
from plugserve.server.worker.served_models import ServedModel, TextSide
from tests.backends.torch.encoders.encoder_samples import LocalEncoder, word_tokenizer

WORKER = b"worker"


class _Socket:
    def close(self, linger=0): ...


class EncoderClient(ZmqEngineClient):
    """Sends to the engine directly; a batch runs in the event loop's next turn."""

    def __init__(self, local, model="encoder"):
        super().__init__(model, None, WORKER)
        self.local = local
        self.aborted = []
        self.is_paused = False
        self._socket = _Socket()
        self._state = "up"
        self._info = engine_info(self.local.info, {}, 0.0)

    async def stats(self):
        return self.local.engine.snapshot()

    def _send(self, frames):
        message = decode_to_engine(frames[0])
        if isinstance(message, GenerateRequest):
            prompt = array("i")
            prompt.frombytes(frames[1])
            self.local.engine.admit((WORKER, message.id), prompt, message.params, priority=message.priority)
        elif isinstance(message, AbortRequests):
            for id in message.ids:
                self.aborted.append(id)
                self.local.engine.abort((WORKER, id))
        if not self.is_paused:
            asyncio.get_running_loop().call_soon(self.run)

    def run(self):
        if self.local.engine.has_work:
            self.local.engine.step()
        for _, outputs in self.local.engine.take_outputs():
            self._deliver(outputs)
        if self.local.engine.has_work and not self.is_paused:
            asyncio.get_running_loop().call_soon(self.run)


def served_encoder(folder, names=("encoder",), tokenizer=None, local=None):
    """The model of an encoder's folder, ready to be served; local is its engine, where there is one already."""
    tokenizer = tokenizer if tokenizer is not None else word_tokenizer()
    model = ServedModel(names, EncoderClient(local if local is not None else LocalEncoder(folder), names[0]))
    text = EncoderText(tokenizer, encoder_facts(folder, read_config(resolve(str(folder)))))
    model.text = TextSide(text.encode, Vocabulary(tokenizer), None, {}, encoder=text)
    return model
