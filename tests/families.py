"""Small random models of many families, saved as sentence-transformers saves them.

`FAMILIES` maps the name of a row to what builds its folder: a transformer of two layers with
weights large enough for texts to differ, a tokenizer of the family's kind trained on a few lines,
and the modules after it. torch and the libraries are imported when a folder is built.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.world import FILLER, TOPICS

WIDTH = 32
LENGTH = 24
"""The longest text in tokens, where a row does not say another one."""

_LINES = [
    *(f"The {topic} is old and the {topic}s of 1{len(topic)} are new." for topic in TOPICS),
    *(f"{topic} word3 found {filler} large" for topic in TOPICS for filler in FILLER),
    "Zürich naïve café ÀÉÎ Straße Ω ∑ 東京 Москва",
    "query: what is a comet? passage: a small body of ice",
    "task: search result title: none text: Instruct: retrieve passages Query: Represent the",
    "0 1 2 3 4 5 6 7 8 9 , . ; : ! ? ( ) - A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
]
"""What the tokenizers are trained on."""

_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
"""Special tokens in the order of their ids."""


# tokenizers


def _template(tokenizer: Any, single: str, pair: str | None = None) -> Any:
    """Put special tokens around texts: `single` is as in `$A:0 </s>:0`."""
    from tokenizers import processors

    words = {word.split(":")[0] for word in f"{single} {pair or ''}".split()}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair or f"{single} $B:0",
        special_tokens=[(word, tokenizer.token_to_id(word)) for word in words if word[0] != "$"],
    )
    return tokenizer


def _wrapped(tokenizer: Any, special: dict[str, str], types: bool = False, **settings: Any) -> Any:
    """The tokenizer as transformers saves it; `types` if the model takes token types."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", *["token_type_ids"][:types], "attention_mask"],
        **{f"{name}_token": token for name, token in special.items()},
        **settings,
    )


def _words(tokenizer: Any) -> tuple[list[str], list[str]]:
    """The words of the lines and their characters, in a fixed order.

    The libraries' trainers of WordPiece and of unigrams find others at each call.
    """
    words = {
        word
        for line in _LINES
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(
            tokenizer.normalizer.normalize_str(line)
        )
    }
    return sorted(words), sorted({character for word in words for character in word})


def _wordpiece(special: dict[str, str], single: str, pair: str, types: bool = True) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words, characters = _words(tokenizer)
    pieces = [*special.values(), *characters, *(f"##{each}" for each in characters), *words]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer.model = models.WordPiece(vocabulary, unk_token=special["unk"])
    return _wrapped(_template(tokenizer, single, pair), special, types)


def bert_tokenizer(types: bool = True) -> Any:
    pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    return _wordpiece(_BERT, "[CLS]:0 $A:0 [SEP]:0", pair, types)


def _mpnet_tokenizer() -> Any:
    special = {**_ROBERTA, "unk": "[UNK]"}
    pair = "<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0"
    return _wordpiece(special, "<s>:0 $A:0 </s>:0", pair, types=False)


def _byte_level(special: dict[str, str], single: str, **settings: Any) -> Any:
    """Byte-level BPE, as GPT-2 introduced it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES, trainer)
    return _wrapped(_template(tokenizer, single), special, **settings)


def _roberta_tokenizer() -> Any:
    return _byte_level(_ROBERTA, "<s>:0 $A:0 </s>:0")


def modernbert_tokenizer() -> Any:
    return _byte_level(_BERT, "[CLS]:0 $A:0 [SEP]:0")


def qwen_tokenizer(**settings: Any) -> Any:
    """Adds the end of text, which is the padding too, as Qwen's embedding models do."""
    special = {"eos": "<|im_end|>", "pad": "<|endoftext|>"}
    return _byte_level(special, "$A:0 <|endoftext|>:0", padding_side="left", **settings)


def _neox_tokenizer() -> Any:
    """Adds no special token."""
    return _byte_level({"eos": "<|endoftext|>", "pad": "<|padding|>"}, "$A:0")


def _unigram(
    special: dict[str, str],
    single: str,
    types: bool = False,
    lowercase: bool = False,
    split: bool = True,
    **settings: Any,
) -> Any:
    """SentencePiece's unigram model; with `split`, runs of whitespace are one space."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram())
    lower = [normalizers.StripAccents(), normalizers.Lowercase()][: 2 * lowercase]
    strip = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")][: 2 * (not split)]
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *lower, *strip])
    marks = pre_tokenizers.Metaspace(prepend_scheme="always")
    spaces = [pre_tokenizers.WhitespaceSplit()][:split]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*spaces, marks])
    words, characters = _words(tokenizer)
    scores = dict.fromkeys(special.values(), 0.0)
    for size, pieces in ((-9.0, characters), (-6.0, words)):
        scores |= {piece: size - place / 100 for place, piece in enumerate(pieces)}
    unknown = list(scores).index(special["unk"])
    tokenizer.model = models.Unigram(list(scores.items()), unknown)
    return _wrapped(_template(tokenizer, single), special, types, **settings)


def _xlmr_tokenizer() -> Any:
    return _unigram(_ROBERTA, "<s>:0 $A:0 </s>:0")


def _t5_tokenizer() -> Any:
    return _unigram({"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}, "$A:0 </s>:0")


def _albert_tokenizer() -> Any:
    return _unigram(_BERT, "[CLS]:0 $A:0 [SEP]:0", types=True, lowercase=True)


def _deberta_tokenizer() -> Any:
    special = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
    return _unigram(special, "[CLS]:0 $A:0 [SEP]:0", types=True, split=False)


def _xlnet_tokenizer() -> Any:
    """The class token is the last one, and of token type 2."""
    special = {"unk": "<unk>", "cls": "<cls>", "sep": "<sep>", "pad": "<pad>", "mask": "<mask>"}
    single = "$A:0 <sep>:0 <cls>:2"
    return _unigram(special, single, types=True, padding_side="left", pad_token_type_id=3)


def _sentencepiece_bpe(special: dict[str, str], single: str, prefix: bool, **settings: Any) -> Any:
    """SentencePiece's BPE with bytes for unknown characters; with `prefix`, the first word is as
    after a space."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    first = [normalizers.Prepend("▁")][:prefix]
    tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*special.values(), *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES, trainer)
    return _wrapped(_template(tokenizer, single), special, **settings)


def _llama_tokenizer() -> Any:
    special = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    return _sentencepiece_bpe(special, "<s>:0 $A:0", prefix=True)


def _mistral_tokenizer() -> Any:
    """Adds the end of text, as E5-Mistral's does."""
    special = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    return _sentencepiece_bpe(special, "<s>:0 $A:0 </s>:0", prefix=True, padding_side="left")


def _gemma_tokenizer() -> Any:
    special = {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"}
    return _sentencepiece_bpe(special, "<bos>:0 $A:0 <eos>:0", prefix=False)


# modules


def _randomise(module: Any, seed: int = 0) -> Any:
    """Draw weights with which the values keep their size from layer to layer, biases and norms
    included; returns the module in evaluation mode."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in module.named_parameters():
            if values.ndim < 2:
                values.add_(torch.randn(values.shape, generator=generator), alpha=0.1)
            else:
                size = 1.0 if "embed" in name else values.shape[-1] ** -0.5
                values.normal_(0.0, size, generator=generator)
    return module.eval()


_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_T5_SIZES = {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_DECODER_SIZES = {**_SIZES, "num_key_value_heads": 2}
_LLAMA_SIZES = {**_DECODER_SIZES, "head_dim": 8}
_MODERNBERT_SIZES = {
    **_SIZES,
    "global_attn_every_n_layers": 2,
    "local_attention": 8,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def save_bare(
    folder: Path, family: str, tokenizer: Any, model: str = "", seed: int = 0, **config: Any
) -> Path:
    """Save a random model of one of transformers' families, such as `Bert`, with its tokenizer."""
    import transformers

    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
        for name in ("pad", "bos", "eos")
        if getattr(tokenizer, f"{name}_token_id") is not None
    }
    found = getattr(transformers, f"{family}Config")(
        **{"vocab_size": len(tokenizer), **ids, **config}
    )
    made = getattr(transformers, model or f"{family}Model")(found)
    _randomise(made, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _transformer(
    family: str,
    tokenizer: Any,
    length: int | None = LENGTH,
    settings: dict[str, Any] | None = None,
    **config: Any,
) -> Any:
    """The module of a random transformer that cuts texts to `length` tokens."""
    from sentence_transformers.models import Transformer

    with TemporaryDirectory() as bare:
        save_bare(Path(bare), family, tokenizer, **config)
        return Transformer(bare, max_seq_length=length, **settings or {})


def _bert(length: int | None = LENGTH, seed: int = 0, **settings: Any) -> Any:
    return _transformer("Bert", bert_tokenizer(), length, settings, seed=seed, **_SIZES)


def _pooling(*modes: str, **settings: Any) -> Any:
    from sentence_transformers.models import Pooling

    return Pooling(WIDTH, modes, **settings)


def _dense(width: int, out: int, activation: str = "Identity", **settings: Any) -> Any:
    from sentence_transformers.models import Dense
    from torch import nn

    function = getattr(nn, activation)()
    return _randomise(Dense(width, out, activation_function=function, **settings))


def _layer_norm(width: int) -> Any:
    from sentence_transformers.models import LayerNorm

    return _randomise(LayerNorm(width))


def _normalize() -> Any:
    from sentence_transformers.models import Normalize

    return Normalize()


def _save(folder: Path, *modules: Any, **settings: Any) -> None:
    """Save modules as sentence-transformers does, with its settings of the whole model."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(modules=list(modules), device="cpu", **settings)
    model.save(str(folder), create_model_card=False)


# rows


def _old_layout(folder: Path) -> None:
    """A folder as sentence-transformers 2 wrote it: other names of modules and of settings, no
    prompts, no similarity, and the length only in sentence_bert_config.json."""
    _save(folder, _bert(length=None), _pooling("mean"), _dense(WIDTH, 16, "Tanh"))
    listing = json.loads((folder / "modules.json").read_text())
    for module in listing:
        module["type"] = f"sentence_transformers.models.{module['type'].rsplit('.', 1)[-1]}"
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    pooling = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in modes}
    versions = {"sentence_transformers": "2.2.2", "transformers": "4.28.1", "pytorch": "2.0.1"}
    for name, content in {
        "modules.json": listing,
        "1_Pooling/config.json": {"word_embedding_dimension": WIDTH, **pooling},
        "2_Dense/config.json": {
            "in_features": WIDTH,
            "out_features": 16,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        },
        "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False},
        "config_sentence_transformers.json": {"__version__": versions},
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2))


def _passage_prompt(folder: Path) -> None:
    """The prompts of a folder from before version 5, which names none `document`."""
    prompts = {"query": "query: ", "passage": "passage: "}
    _save(folder, _bert(), _pooling("mean"), prompts=prompts)
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": prompts}))


def _static() -> Any:
    from sentence_transformers.models import StaticEmbedding

    tokenizer = bert_tokenizer().backend_tokenizer
    return _randomise(StaticEmbedding(tokenizer, embedding_dim=WIDTH))


def _router(query: list[Any], document: list[Any]) -> Any:
    from sentence_transformers.models import Router

    return Router.for_query_document(query, document)


def _adapter(folder: Path, with_base: bool) -> None:
    """A LoRA adapter of a BERT in the folder `NAME-base`; `with_base` has the base's files next to
    the adapter's too."""
    from peft import LoraConfig, get_peft_model
    from sentence_transformers.models import Transformer
    from transformers import AutoModel

    base = folder.with_name(f"{folder.name}-base")
    save_bare(base, "Bert", bert_tokenizer(), **_SIZES)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"])
    adapted = get_peft_model(AutoModel.from_pretrained(base), config)
    for part in adapted.modules():
        if hasattr(part, "lora_B"):
            _randomise(part.lora_A)
            _randomise(part.lora_B, seed=1)
    _save(folder, Transformer(str(base), max_seq_length=LENGTH), _pooling("mean"))
    for name in ("config.json", "model.safetensors")[2 * with_base :]:
        (folder / name).unlink()
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()


def _clip() -> Any:
    """CLIP with both its towers; texts take one of them."""
    import transformers
    from sentence_transformers.models import Transformer

    sizes = {key: value for key, value in _SIZES.items() if key != "max_position_embeddings"}
    special = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "pad": "<|endoftext|>"}
    tokenizer = _byte_level(special, "<|startoftext|>:0 $A:0 <|endoftext|>:0")
    texts = {**_SIZES, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    images = {**sizes, "image_size": 8, "patch_size": 4}
    with TemporaryDirectory() as bare:
        save_bare(
            Path(bare),
            "CLIP",
            tokenizer,
            text_config=texts,
            vision_config=images,
            projection_dim=16,
        )
        images = transformers.CLIPImageProcessor(size=8, crop_size=8)
        transformers.CLIPProcessor(images, tokenizer).save_pretrained(bare)
        return Transformer(bare, max_seq_length=LENGTH)


_REMOTE_CODE = '''"""An encoder that transformers has no class for."""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class NewConfig(PretrainedConfig):
    model_type = "new"

    def __init__(self, vocab_size=8, hidden_size=8, max_position_embeddings=8, **others):
        super().__init__(**others)
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.max_position_embeddings = max_position_embeddings


class NewModel(PreTrainedModel):
    config_class = NewConfig

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, width)
        self.projection = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **others):
        hidden = self.embeddings(input_ids)
        query, key, value = self.projection(hidden).chunk(3, -1)
        scores = query @ key.transpose(1, 2) / hidden.shape[-1] ** 0.5
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None] == 0, torch.finfo(scores.dtype).min)
        return BaseModelOutput(self.norm(hidden + scores.softmax(-1) @ value))
'''


def _remote_code(folder: Path) -> None:
    """A model whose code is in its folder."""
    import transformers
    from sentence_transformers.models import Transformer

    with TemporaryDirectory() as bare:
        tokenizer = _xlmr_tokenizer()
        config = {
            "model_type": "new",
            "auto_map": {"AutoConfig": "modeling.NewConfig", "AutoModel": "modeling.NewModel"},
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "max_position_embeddings": 64,
        }
        (Path(bare) / "config.json").write_text(json.dumps(config))
        (Path(bare) / "modeling.py").write_text(_REMOTE_CODE)
        trusted = {"trust_remote_code": True}
        read = transformers.AutoConfig.from_pretrained(bare, **trusted)
        model = transformers.AutoModel.from_config(read, **trusted)
        _randomise(model).save_pretrained(bare)
        tokenizer.save_pretrained(bare)
        transformer = Transformer(
            bare,
            max_seq_length=LENGTH,
            model_kwargs=trusted,
            config_kwargs=trusted,
            processor_kwargs={**trusted, "model_max_length": LENGTH},
        )
        _save(folder, transformer, _pooling("cls"), _normalize())
        shutil.copy(Path(bare) / "modeling.py", folder)


_E5 = {"query": "query: ", "document": "passage: "}
_INSTRUCTION = "Instruct: retrieve passages\nQuery:"
_CHAT = "{% for message in messages %}<|im_end|>{{ message.content }}{% endfor %}"


def bare_qwen3(folder: Path) -> Path:
    """A causal Qwen3 as transformers saves it: without a pooling."""
    return save_bare(folder, "Qwen3", qwen_tokenizer(), **_LLAMA_SIZES)


def bare_modernbert(folder: Path) -> Path:
    """A ModernBERT as transformers saves it: without a pooling."""
    return save_bare(folder, "ModernBert", modernbert_tokenizer(), **_MODERNBERT_SIZES)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "bert": lambda folder: _save(folder, _bert(), _pooling("mean")),
    "roberta": lambda folder: _save(
        folder,
        _transformer("Roberta", _roberta_tokenizer(), **{**_SIZES, "max_position_embeddings": 66}),
        _pooling("mean"),
        _normalize(),
    ),
    "xlm-roberta": lambda folder: _save(
        folder, _transformer("XLMRoberta", _xlmr_tokenizer(), **_SIZES), _pooling("mean")
    ),
    "bge-m3": lambda folder: _save(
        folder,
        _transformer("XLMRoberta", _xlmr_tokenizer(), **_SIZES),
        _pooling("cls"),
        _normalize(),
    ),
    "mpnet": lambda folder: _save(
        folder, _transformer("MPNet", _mpnet_tokenizer(), **_SIZES), _pooling("mean"), _normalize()
    ),
    "distilbert": lambda folder: _save(
        folder,
        _transformer(
            "DistilBert", bert_tokenizer(types=False), dim=WIDTH, hidden_dim=48, n_layers=2,
            n_heads=4, max_position_embeddings=64,
        ),
        _pooling("mean"),
    ),
    "electra": lambda folder: _save(
        folder,
        _transformer("Electra", bert_tokenizer(), embedding_size=16, **_SIZES),
        _pooling("mean"),
    ),
    "albert": lambda folder: _save(
        folder,
        _transformer("Albert", _albert_tokenizer(), embedding_size=16, **_SIZES),
        _pooling("mean"),
    ),
    "deberta-v3": lambda folder: _save(
        folder,
        _transformer(
            "DebertaV2", _deberta_tokenizer(), type_vocab_size=0, relative_attention=True,
            pos_att_type=["p2c", "c2p"], share_att_key=True, position_buckets=8,
            norm_rel_ebd="layer_norm", position_biased_input=False, **_SIZES,
        ),
        _pooling("mean"),
    ),
    "xlnet": lambda folder: _save(
        folder,
        _transformer(
            "XLNet", _xlnet_tokenizer(), d_model=WIDTH, d_inner=48, n_layer=2, n_head=4
        ),
        _pooling("mean"),
    ),
    "modernbert": lambda folder: _save(
        folder,
        _transformer("ModernBert", modernbert_tokenizer(), **_MODERNBERT_SIZES),
        _pooling("cls"),
        _normalize(),
    ),
    "nomic-bert": lambda folder: _save(
        folder,
        _transformer("NomicBert", bert_tokenizer(), **_SIZES),
        _pooling("mean"),
        _normalize(),
        prompts={"query": "search_query: ", "document": "search_document: "},
    ),
    "gte": lambda folder: _save(
        folder,
        _transformer("Gte", _xlmr_tokenizer(), **_SIZES),
        _pooling("cls"),
        _normalize(),
    ),
    "gte-remote-code": _remote_code,
    "t5": lambda folder: _save(
        folder,
        _transformer("T5", _t5_tokenizer(), model="T5EncoderModel", **_T5_SIZES),
        _pooling("mean"),
        _dense(WIDTH, 16, bias=False),
        _normalize(),
    ),
    "mt5": lambda folder: _save(
        folder,
        _transformer(
            "MT5", _t5_tokenizer(), length=None, model="MT5EncoderModel",
            feed_forward_proj="gated-gelu", **_T5_SIZES,
        ),
        _pooling("mean"),
    ),
    "qwen2": lambda folder: _save(
        folder,
        _transformer("Qwen2", qwen_tokenizer(), **_DECODER_SIZES),
        _pooling("lasttoken"),
        _normalize(),
        prompts={"query": _INSTRUCTION},
    ),
    "qwen3": lambda folder: _save(
        folder,
        _transformer("Qwen3", qwen_tokenizer(), **_LLAMA_SIZES),
        _pooling("lasttoken"),
        _normalize(),
        prompts={"query": _INSTRUCTION, "document": ""},
        similarity_fn_name="cosine",
    ),
    "embedding-gemma": lambda folder: _save(
        folder,
        _transformer(
            "Gemma3Text", _gemma_tokenizer(), use_bidirectional_attention=True, sliding_window=8,
            layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8,
            model="Gemma3TextModel", **_LLAMA_SIZES,
        ),
        _pooling("mean"),
        _dense(WIDTH, 48, bias=False),
        _dense(48, WIDTH, bias=False),
        _normalize(),
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
    ),
    "llama": lambda folder: _save(
        folder,
        _transformer("Llama", _llama_tokenizer(), **_LLAMA_SIZES),
        _pooling("lasttoken"),
        similarity_fn_name="dot",
    ),
    "mistral": lambda folder: _save(
        folder,
        _transformer("Mistral", _mistral_tokenizer(), sliding_window=8, **_LLAMA_SIZES),
        _pooling("lasttoken"),
        _normalize(),
        prompts={"query": _INSTRUCTION},
    ),
    "gpt-neox": lambda folder: _save(
        folder,
        _transformer("GPTNeoX", _neox_tokenizer(), **_SIZES),
        _pooling("weightedmean"),
    ),
    "static-embedding": lambda folder: _save(folder, _static()),
    "static-embedding-prompts": lambda folder: _save(
        folder, _static(), _normalize(), prompts=_E5
    ),
    "router": lambda folder: _save(
        folder,
        _router([_bert(seed=1), _pooling("mean")], [_bert(seed=2), _pooling("cls")]),
        prompts=_E5,
    ),
    "router-shared-dense": lambda folder: _save(
        folder,
        _router([_bert(seed=1), _pooling("mean")], [_bert(seed=2), _pooling("mean")]),
        _dense(WIDTH, 16, "Tanh"),
        _normalize(),
    ),
    "router-static-query": lambda folder: _save(
        folder,
        _router([_static(), _normalize()], [_bert(), _pooling("mean"), _normalize()]),
        similarity_fn_name="dot",
    ),
    "lora-alone": lambda folder: _adapter(folder, with_base=False),
    "lora-with-its-base": lambda folder: _adapter(folder, with_base=True),
    "dense-tanh": lambda folder: _save(
        folder, _bert(), _pooling("mean"), _dense(WIDTH, 16, "Tanh")
    ),
    "ance-head": lambda folder: _save(
        folder,
        _bert(),
        _pooling("cls"),
        _dense(WIDTH, 16),
        _layer_norm(16),
        similarity_fn_name="dot",
    ),
    "layer-norm": lambda folder: _save(folder, _bert(), _pooling("mean"), _layer_norm(WIDTH)),
    "max": lambda folder: _save(folder, _bert(), _pooling("max")),
    "mean-sqrt-len": lambda folder: _save(
        folder, _bert(), _pooling("mean_sqrt_len_tokens"), similarity_fn_name="dot"
    ),
    "cls-and-mean": lambda folder: _save(folder, _bert(), _pooling("cls", "mean")),
    "without-prompt": lambda folder: _save(
        folder, _bert(), _pooling("mean", include_prompt=False), prompts=_E5
    ),
    "without-prompt-left-padding": lambda folder: _save(
        folder,
        _transformer("Qwen3", qwen_tokenizer(), **_LLAMA_SIZES),
        _pooling("mean", include_prompt=False),
        prompts={"query": _INSTRUCTION},
    ),
    "default-prompt": lambda folder: _save(
        folder,
        _bert(),
        _pooling("mean"),
        prompts={"clustering": "task: "},
        default_prompt_name="clustering",
    ),
    "prompts-of-other-names": lambda folder: _save(
        folder,
        _bert(),
        _pooling("mean"),
        prompts={"search_query": "query: ", "search_document": "passage: "},
    ),
    "prompt-passage": _passage_prompt,
    "e5": lambda folder: _save(folder, _bert(), _pooling("mean"), _normalize(), prompts=_E5),
    "snowflake-arctic": lambda folder: _save(
        folder,
        _bert(),
        _pooling("cls"),
        _normalize(),
        prompts={"query": "Represent the search: "},
    ),
    "truncate-dim": lambda folder: _save(
        folder, _bert(), _pooling("mean"), _normalize(), truncate_dim=16
    ),
    "do-lower-case": lambda folder: _save(
        folder,
        _transformer(
            "Roberta", _roberta_tokenizer(), settings={"do_lower_case": True}, **_SIZES
        ),
        _pooling("mean"),
    ),
    "short": lambda folder: _save(folder, _bert(length=8), _pooling("mean")),
    "lengths-by-side": lambda folder: _save(
        folder,
        _transformer(
            "Bert", bert_tokenizer(), settings={"query_length": 8, "document_length": 16}, **_SIZES
        ),
        _pooling("mean"),
    ),
    "clip-text": lambda folder: _save(folder, _clip()),
    "old-layout": _old_layout,
    "chat-template": lambda folder: _save(
        folder,
        _transformer("Qwen3", qwen_tokenizer(chat_template=_CHAT), **_LLAMA_SIZES),
        _pooling("lasttoken"),
        _normalize(),
    ),
    "euclidean": lambda folder: _save(
        folder, _bert(), _pooling("mean"), similarity_fn_name="euclidean"
    ),
}  # fmt: skip

REMOTE_CODE = {"gte-remote-code"}
"""Rows that load only where the code in their folder is trusted."""

NO_EMPTY_TEXT = {"gpt-neox"}
"""Rows whose tokenizer adds no special token: the library fails on a batch of empty texts."""

REFUSED = {
    "chat-template": "chat template",
    "euclidean": "euclidean",
}
"""Rows that are refused, with words of the reason."""


def library(name: str, folder: Path) -> Any:
    """A row's folder, or a checkpoint trained from it, as sentence-transformers loads it."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=name in REMOTE_CODE)
