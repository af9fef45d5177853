"""Tiny encoders in folders as transformers and sentence-transformers save them, and the engine that serves one."""

import json
from array import array
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.encoder_build import EncoderBuilder
from plugserve.core.model_files.model_source import resolve
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings
from tests.core.harness import randomise

VOCAB_SIZE = 120
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "vocab_size": VOCAB_SIZE, "max_position_embeddings": 66, "pad_token_id": 0,
}  # fmt: skip
TYPES = {
    "bert": SIZES,
    "roberta": {**SIZES, "pad_token_id": 1},
    "xlm-roberta": {**SIZES, "pad_token_id": 1},
    "mpnet": {**SIZES, "pad_token_id": 1},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": VOCAB_SIZE,
                   "max_position_embeddings": 66, "pad_token_id": 0},
    "electra": {**SIZES, "embedding_size": 16},
    "albert": {**SIZES, "embedding_size": 16},
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 2,
                   "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "nomic_bert": SIZES,
    "camembert": {**SIZES, "pad_token_id": 1},
    "deberta": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "ernie": SIZES,
    "roberta-prelayernorm": {**SIZES, "pad_token_id": 1},
    "xlm-roberta-xl": {**SIZES, "pad_token_id": 1},
}  # fmt: skip


def build(model_type="bert", *, num_labels=None, seed=0, **changes):
    """A tiny model with every parameter random; with num_labels, a cross-encoder."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**TYPES[model_type], **changes})
    if num_labels is None:
        return randomise(AutoModel.from_config(config).float().eval())
    config.num_labels = num_labels
    return randomise(AutoModelForSequenceClassification.from_config(config).float().eval())


def save(folder, model, *, config=None, **files):
    """The model's folder; config overrides keys of config.json, files are JSON files by path without .json."""
    model.save_pretrained(folder)
    word_tokenizer().save(str(folder / "tokenizer.json"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(config or {})}))
    for name, content in files.items():
        write(folder / f"{name.replace('__', '/')}.json", content)
    return folder


def write(path: Path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def modules(*kinds):
    """modules.json: Transformer, then kinds, each in the folder N_Kind."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, kind in enumerate(kinds, 1):
        listed.append(
            {
                "idx": number,
                "name": str(number),
                "path": f"{number}_{kind}",
                "type": f"sentence_transformers.models.{kind}",
            }
        )
    return listed


def word_tokenizer():
    """BERT's form: [CLS] a [SEP] b [SEP], words w4 to w119."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {word: id for id, word in enumerate([*special, *(f"w{id}" for id in range(4, VOCAB_SIZE))])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


class LocalEncoder:
    """The engine of the encoder in folder, in this process."""

    def __init__(self, folder, **settings):
        settings = Settings(**{"dtype": "float32", **settings})
        host = PluginHost.load(settings.selection())
        host.configure(settings)
        source = resolve(str(folder), load_format=settings.load_format)
        self.engine, self.runner, self.info = EncoderBuilder(settings, host, source).build()
        self.batches = []
        encode = self.runner.encode

        def noted(batch):
            self.batches.append([len(one.token_ids) for one in batch])
            return encode(batch)

        self.runner.encode = noted

    def admit(self, number, token_ids, pooling="model", second_start=0, worker=b"w", **options):
        params = SamplingParams(max_tokens=0, seed=0, pooling=pooling, second_start=second_start)
        self.engine.admit((worker, number), array("i", token_ids), params, **options)

    def run(self):
        """(vectors, errors) by number of everything that waits."""
        vectors, errors = {}, {}
        while True:
            for _, outputs in self.engine.take_outputs():
                vectors |= {id: np.frombuffer(vector, "<f4") for id, vector in outputs.pooled.items()}
                errors |= outputs.errors
            if not self.engine.has_work:
                return vectors, errors
            self.engine.step()

    def encode(self, inputs, **options):
        for number, one in enumerate(inputs):
            self.admit(number, one, **options)
        vectors, errors = self.run()
        assert not errors
        return np.stack([vectors[number] for number in range(len(inputs))])


def inputs_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, VOCAB_SIZE, length).tolist() for length in lengths]


@torch.no_grad()
def hidden_states(model, token_ids, second_start=0):
    """transformers' last hidden states of one input alone, [T, H]."""
    options = {}
    if second_start:
        options["token_type_ids"] = torch.tensor([[int(i >= second_start) for i in range(len(token_ids))]])
    return model(torch.tensor([token_ids]), **options).last_hidden_state[0]
