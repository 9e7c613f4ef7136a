"""Which servers give the vectors of a checkpoint folder, told from its files alone.

A server reads a sentence-transformers folder in its own way: it may apply some kinds of modules and
leave out the others without a word. Each rule names the source that it was read in, as
`repository: file`; sentence-transformers, Infinity and ONNX Runtime were also run. What neither
showed is called "not known". Vectors are called the same if they differ by rounding only:
text-embeddings-inference and vLLM may compute in fp16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ance_cli.config.sets import Side
from ance_cli.formats.checkpoint_folder import ModuleFolder
from ance_cli.interop.export_onnx import needs_two_graphs
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.tower import Module, Tower, read_object

_Rule = Callable[[Checkpoint], str | None]
"""What stands in the way of the same vectors, or what they need; None if nothing does."""

_SIDES: dict[Side, str] = {"query": "queries", "passage": "passages"}
_HEAD = ("Pooling", "Dense", "Normalize")
_OLD_SETTINGS = {"max_seq_length", "do_lower_case"}
"""The settings of `sentence_bert_config.json` before sentence-transformers 5.4."""

_MERGE = "merge the adapter first (ance checkpoint convert)"
_OLD_NAMES = "sentence_transformers.models."
"""Where the types in `modules.json` began before sentence-transformers 5.4."""


@dataclass(frozen=True)
class _Server:
    """Rules that tell why a server's vectors differ, and rules that tell what it takes."""

    refusals: tuple[_Rule, ...]
    conditions: tuple[_Rule, ...]

    def answer(self, checkpoint: Checkpoint) -> str:
        if refused := list(_told(self.refusals, checkpoint)):
            return f"no: {'; '.join(refused)}"
        if needed := list(_told(self.conditions, checkpoint)):
            return f"yes, if {'; '.join(needed)}"
        return "yes"


def _told(rules: Sequence[_Rule], checkpoint: Checkpoint) -> Iterator[str]:
    return (found for rule in rules if (found := rule(checkpoint)))


def servers(checkpoint: Checkpoint) -> dict[str, str]:
    """Server -> `yes`, `no: reason` or `yes, if ...`: whether it gives the checkpoint's vectors."""
    return {
        name: server.answer(checkpoint)
        if checkpoint.has_head
        else "no: the checkpoint has no pooling and head yet"
        for name, server in _SERVERS.items()
    }


# ---------------------------------------------------------------- the folder


def _top_config(checkpoint: Checkpoint) -> str | None:
    """The model's config is looked for at the top of the folder.

    huggingface/text-embeddings-inference: router/src/lib.rs (`run`); vllm-project/vllm:
    vllm/transformers_utils/config.py (`get_config`); michaelfeil/infinity:
    libs/infinity_emb/infinity_emb/inference/select_model.py (`get_engine_type_from_config`).
    """
    if not checkpoint.shared:
        return "it serves one tower, and the folder has two"
    tower = checkpoint.tower("query")
    if tower.is_static:
        return "it serves Transformers, and the checkpoint is a StaticEmbedding"
    if ModuleFolder(checkpoint.path).config.exists():
        return None
    merge = "" if tower.base is None else f": {_MERGE}"
    return f"it looks for config.json at the top of the folder{merge}"


def _whole_weights(checkpoint: Checkpoint) -> str | None:
    """Weights are read from `model.safetensors` or the files in its index.

    huggingface/text-embeddings-inference: backends/candle/src/lib.rs (`CandleBackend::new`);
    vllm-project/vllm: docs/features/lora.md (an adapter is an option, not a part of the model).
    """
    at_top = ModuleFolder(checkpoint.path).config.exists()
    adapted = at_top and checkpoint.tower("query").base is not None
    return f"it reads no adapter in the folder: {_MERGE}" if adapted else None


def _tokenizer_json(checkpoint: Checkpoint) -> str | None:
    """huggingface/text-embeddings-inference: router/src/lib.rs (`Tokenizer::from_file`)."""
    there = (checkpoint.tower("query").backbone / "tokenizer.json").exists()
    return None if there else "it needs tokenizer.json"


def _model_type(known: Sequence[str]) -> _Rule:
    def rule(checkpoint: Checkpoint) -> str | None:
        tower = checkpoint.tower("query")
        found = None if tower.is_static else read_object(tower.config).get("model_type")
        return None if found in known else f"it serves {found} models (not known)"

    return rule


_TEI_MODELS = (
    "bert", "camembert", "distilbert", "gemma3_text", "gte", "mistral", "modernbert", "mpnet",
    "new", "nomic_bert", "qwen2", "qwen3", "roberta", "xlm-roberta",
)  # fmt: skip
"""huggingface/text-embeddings-inference: backends/candle/src/lib.rs (`Config`)."""

_VLLM_MODELS = (
    "bert", "gemma2", "gemma3_text", "llama", "mistral", "modernbert", "nomic_bert", "qwen2",
    "roberta", "xlm-roberta",
)  # fmt: skip
"""vllm-project/vllm: vllm/model_executor/models/registry.py (`_EMBEDDING_MODELS`)."""


def _trusted_code(checkpoint: Checkpoint) -> str | None:
    for tower in _towers(checkpoint):
        own = any(not _is_library(module) for module in tower.modules)
        if own or (not tower.is_static and "auto_map" in read_object(tower.config)):
            return "it may run the checkpoint's own code (trust_remote_code)"
    return None


def _towers(checkpoint: Checkpoint) -> list[Tower]:
    sides: tuple[Side, ...] = ("query",) if checkpoint.shared else ("query", "passage")
    return [checkpoint.tower(side) for side in sides]


# ---------------------------------------------------------------- the modules


def _is_library(module: Module) -> bool:
    return not module.type or module.type.startswith("sentence_transformers.")


def _left_out(tower: Tower) -> list[str]:
    """The kinds of modules after the first one, and code of its own, that a server of `_HEAD`
    leaves out."""
    return [
        module.kind
        for place, module in enumerate(tower.modules)
        if not _is_library(module) or (place > 0 and module.kind not in _HEAD)
    ]


def _tei_modules(checkpoint: Checkpoint) -> str | None:
    """Pooling, then the Dense modules of `modules.json`. A type that it does not know, as
    LayerNorm's or Dense's name since sentence-transformers 5.4, makes it leave out every Dense.

    huggingface/text-embeddings-inference: backends/src/lib.rs (`ModuleType`,
    `parse_dense_paths_from_modules`).
    """
    tower = checkpoint.tower("query")
    if tower.is_static:
        return None
    if lost := _left_out(tower):
        dense = ["Dense"] if tower.has("Dense") else []
        return f"it leaves out {' and '.join(dict.fromkeys([*dense, *lost]))}"
    if tower.has("Dense") and _has_new_names(tower):
        return "it leaves out Dense, whose name in modules.json it does not know"
    return _order(tower)


def _vllm_modules(checkpoint: Checkpoint) -> str | None:
    """Pooling, then every Dense, then Normalize.

    vllm-project/vllm: vllm/transformers_utils/config.py (`get_pooling_config`),
    vllm/model_executor/models/adapters.py (`_load_st_projector`),
    vllm/model_executor/layers/pooler/seqwise/heads.py (`EmbeddingPoolerHead`).
    """
    tower = checkpoint.tower("query")
    if tower.is_static:
        return None
    if lost := _left_out(tower):
        return f"it leaves out {' and '.join(dict.fromkeys(lost))}"
    return _order(tower)


def _order(tower: Tower) -> str | None:
    kinds = [module.kind for module in tower.modules[1:]]
    once = kinds.count("Pooling") == 1 and kinds.count("Normalize") <= 1
    if once and kinds == sorted(kinds, key=_HEAD.index):
        return None
    return f"it applies Pooling, Dense, Normalize in this order, not {', '.join(kinds) or 'none'}"


def _has_new_names(tower: Tower) -> bool:
    return any(module.type and not module.type.startswith(_OLD_NAMES) for module in tower.modules)


def _new_names(version: str) -> _Rule:
    def rule(checkpoint: Checkpoint) -> str | None:
        return version if any(map(_has_new_names, _towers(checkpoint))) else None

    return rule


def _library_version(whose: str) -> _Rule:
    """Versions before 5.4 know neither the newer types of modules nor the newer settings."""

    def rule(checkpoint: Checkpoint) -> str | None:
        saved = _library_config(checkpoint).get("__version__") or {}
        version = saved.get("sentence_transformers", "5.4")
        newer = any(
            _has_new_names(tower) or not _texts_config(tower).keys() <= _OLD_SETTINGS
            for tower in _towers(checkpoint)
        )
        return f"{whose} is version {version} or newer" if newer else None

    return rule


def _adapter(checkpoint: Checkpoint) -> str | None:
    there = any(tower.base is not None for tower in _towers(checkpoint))
    return "peft is installed" if there else None


def _activations(known: Sequence[str]) -> _Rule:
    def rule(checkpoint: Checkpoint) -> str | None:
        for module in checkpoint.tower("query").modules:
            if module.kind == "Dense":
                named = str(_config(module).get("activation_function", "Tanh")).rsplit(".", 1)[-1]
                if named not in known:
                    return f"it does not know the activation {named} of a Dense"
        return None

    return rule


_TEI_ACTIVATIONS = ("Tanh", "Identity")
"""huggingface/text-embeddings-inference: backends/candle/src/models/dense.rs."""

_VLLM_ACTIVATIONS = ("Tanh", "Identity", "ReLU", "SiLU", "Sigmoid")
"""vllm-project/vllm: vllm/model_executor/layers/activation.py (`get_act_fn`)."""


def _config(module: Module) -> dict[str, Any]:
    return read_object(ModuleFolder(module.folder).config)


def _pooling_modes(checkpoint: Checkpoint) -> str | None:
    """One mode of three.

    huggingface/text-embeddings-inference: router/src/lib.rs (`PoolConfig`); vllm-project/vllm:
    vllm/config/pooler.py (`SEQ_POOLING_TYPES`).
    """
    for module in checkpoint.tower("query").modules:
        if module.kind == "Pooling":
            modes = _modes(_config(module))
            if len(modes) > 1 or modes[0] not in ("cls", "mean", "lasttoken"):
                return f"it pools by cls, mean or lasttoken, not by {'+'.join(modes)}"
    return None


_OLD_FLAGS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max",
              "weightedmean_tokens": "weightedmean"}  # fmt: skip


def _modes(config: dict[str, Any]) -> list[str]:
    """The modes of a Pooling's config: a name, a list of names, or the older flags."""
    found = config.get("pooling_mode")
    if found is None:
        on = [name.removeprefix("pooling_mode_") for name, value in config.items()
              if name.startswith("pooling_mode_") and value]  # fmt: skip
        found = [_OLD_FLAGS.get(name, name) for name in on] or "mean"
    return [found] if isinstance(found, str) else list(found)


def _pooled_prompt(checkpoint: Checkpoint) -> str | None:
    """No server but sentence-transformers is told which tokens are a prompt."""
    left_out = any(
        checkpoint.tower(side).leaves_prompt_out and checkpoint.settings.prefix(side)
        for side in _SIDES
    )
    if not left_out:
        return None
    return "it pools the tokens of the prompts too, which the checkpoint leaves out"


def _graph_prompt(checkpoint: Checkpoint) -> str | None:
    if needs_two_graphs(checkpoint):
        return "one graph cannot leave two different prompts out of the pooling"
    return None


# ---------------------------------------------------------------- the length of the vectors


def _is_scaled(checkpoint: Checkpoint) -> bool:
    """Whether the folder itself scales its vectors to length one, at the end."""
    return all(tower.modules[-1].kind == "Normalize" for tower in _towers(checkpoint))


def _by_cosine(checkpoint: Checkpoint) -> str | None:
    """The similarity is cosine, and no Normalize says so: we scale the vectors, a server does
    not."""
    if checkpoint.settings.similarity == "cosine" and not _is_scaled(checkpoint):
        return "the client compares by cosine (the vectors have another length)"
    return None


def _always_scaled(checkpoint: Checkpoint) -> str | None:
    """Every vector is scaled to length one.

    michaelfeil/infinity:
    libs/infinity_emb/infinity_emb/transformer/embedder/sentence_transformer.py (`encode_post`).
    """
    if checkpoint.settings.similarity == "cosine" or _is_scaled(checkpoint):
        return None
    return "it scales every vector to length one, and dot products of the checkpoint's need theirs"


def _scaled_by_default(checkpoint: Checkpoint) -> str | None:
    """A request decides whether vectors are scaled to length one, and by default they are.

    huggingface/text-embeddings-inference: router/src/http/types.rs (`EmbedRequest`).
    """
    if _always_scaled(checkpoint) is None:
        return None
    return "the client asks /embed with normalize false"


def _cut_vectors(checkpoint: Checkpoint) -> str | None:
    width = checkpoint.settings.truncate_dim
    if width is None:
        return None
    scaled = " and scales them to length one" if checkpoint.settings.similarity == "cosine" else ""
    return f"the client keeps the first {width} numbers of the vectors{scaled}"


# ---------------------------------------------------------------- the texts


def _segments(checkpoint: Checkpoint) -> str | None:
    """A server makes one vector of a text."""
    if checkpoint.settings.segments == 1:
        return None
    return (
        f"a passage has up to {checkpoint.settings.segments} vectors (--segmentation), and it "
        "makes one"
    )


def _passage_text(checkpoint: Checkpoint) -> str | None:
    settings = checkpoint.settings
    if settings.passage_template:
        return f"the client writes passages as {settings.passage_template!r}"
    if settings.separator != " ":
        return f"the client joins titles and texts by {settings.separator!r}"
    return None


def _prompts(checkpoint: Checkpoint) -> str | None:
    """A prompt is text to every server but sentence-transformers."""
    prefixes = {_SIDES[side]: checkpoint.settings.prefix(side) for side in _SIDES}
    before = [f"{prefix!r} before {texts}" for texts, prefix in prefixes.items() if prefix]
    return f"the client puts {' and '.join(before)}" if before else None


_LIBRARY_PROMPTS: dict[Side, tuple[str, ...]] = {
    "query": ("query",), "passage": ("document", "passage", "corpus"),
}  # fmt: skip
"""The names that `encode_query` and `encode_document` look for."""


def _named_prompts(checkpoint: Checkpoint) -> str | None:
    """A prompt by another name is not found: the client gives it."""
    config = _library_config(checkpoint)
    prompts = config.get("prompts") or {}
    for side, names in _LIBRARY_PROMPTS.items():
        looked_for = (*names, config.get("default_prompt_name"))
        found = next((prompts[name] for name in looked_for if name in prompts), "")
        if found != checkpoint.settings.prefix(side):
            return _prompts(checkpoint)
    return None


def _two_calls(checkpoint: Checkpoint) -> str | None:
    """sentence-transformers' two calls choose the prompt, the length and the tower of a side."""
    settings = checkpoint.settings
    alike = (settings.query_prefix, settings.query_length) == (
        settings.passage_prefix, settings.passage_length,
    )  # fmt: skip
    if checkpoint.shared and alike:
        return None
    return "queries go through encode_query and passages through encode_document"


def _lengths(limit: Callable[[Tower], int]) -> _Rule:
    """A server cuts texts at one length, and knows nothing of sides."""

    def rule(checkpoint: Checkpoint) -> str | None:
        settings, tower = checkpoint.settings, checkpoint.tower("query")
        lengths = {"queries": settings.query_length, "passages": settings.passage_length}
        cut = [f"{texts} to {length}" for texts, length in lengths.items() if length < limit(tower)]
        return f"the client cuts {' and '.join(cut)} tokens" if cut else None

    return rule


def _library_config(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.files.sentence_transformers_config
    return read_object(path) if path.exists() else {}


def _texts_config(tower: Tower) -> dict[str, Any]:
    path = ModuleFolder(tower.backbone).sentence_bert_config
    return read_object(path) if path.exists() else {}


def _tei_limit(tower: Tower) -> int:
    """huggingface/text-embeddings-inference: router/src/lib.rs (`STConfig`)."""
    return int(_texts_config(tower).get("max_seq_length") or tower.max_positions)


def _vllm_limit(tower: Tower) -> int:
    """vllm-project/vllm: vllm/transformers_utils/config.py
    (`get_sentence_transformer_tokenizer_config`)."""
    config = _texts_config(tower)
    both = "max_seq_length" in config and "do_lower_case" in config
    return int(config["max_seq_length"]) if both else tower.max_positions


def _case(reads: Callable[[dict[str, Any]], bool]) -> _Rule:
    """Texts are lower-cased by the tokenizer's own normalizer, or by a server that reads
    `do_lower_case` of sentence_bert_config.json (`reads`)."""

    def rule(checkpoint: Checkpoint) -> str | None:
        done = all(
            _lower_cases(tower) or reads(_texts_config(tower)) for tower in _towers(checkpoint)
        )
        wanted = checkpoint.settings.lowercase and not done
        return "the client lower-cases its texts" if wanted else None

    return rule


def _lower_cases(tower: Tower) -> bool:
    path = tower.backbone / "tokenizer.json"
    normalizer = (read_object(path) if path.exists() else {}).get("normalizer") or {}
    return any(
        step.get("type") == "Lowercase" or step.get("lowercase") is True
        for step in (normalizer, *normalizer.get("normalizers", ()))
    )


def _token_rows(checkpoint: Checkpoint) -> str | None:
    """A graph takes tokens: prompts, lengths, case and segments are the client's."""
    return "the client makes the token rows that ance.json describes"


_OF_LIBRARY = _case(lambda config: bool(config.get("do_lower_case")))

_SERVERS = {
    "sentence-transformers": _Server(
        (_segments,),
        (
            _library_version("it"), _adapter, _two_calls, _named_prompts, _passage_text,
            _OF_LIBRARY, _by_cosine, _trusted_code,
        ),
    ),
    "text-embeddings-inference": _Server(
        (
            _top_config, _whole_weights, _tokenizer_json, _tei_modules, _pooling_modes,
            _activations(_TEI_ACTIVATIONS), _pooled_prompt, _segments,
        ),
        (
            _new_names(
                "it reads the files of sentence-transformers 5.4 (an older version does not start)"
            ),
            _model_type(_TEI_MODELS), _prompts, _lengths(_tei_limit), _passage_text,
            _case(lambda config: False), _scaled_by_default, _cut_vectors,
        ),
    ),
    "vLLM": _Server(
        (
            _top_config, _whole_weights, _vllm_modules, _pooling_modes,
            _activations(_VLLM_ACTIVATIONS), _pooled_prompt, _segments,
        ),
        (
            _new_names(
                "it has change 54533 of its repository (an older version pools otherwise, without "
                "a word)"
            ),
            _model_type(_VLLM_MODELS), _prompts, _lengths(_vllm_limit), _passage_text,
            _case(lambda config: bool(config.get("do_lower_case") and "max_seq_length" in config)),
            _by_cosine, _cut_vectors, _trusted_code,
        ),
    ),
    "Infinity": _Server(
        (_top_config, _always_scaled, _pooled_prompt, _segments),
        (
            _library_version("its sentence-transformers"), _adapter, _prompts,
            _lengths(lambda tower: tower.max_length), _passage_text, _OF_LIBRARY, _cut_vectors,
            _trusted_code,
        ),
    ),
    "ONNX Runtime": _Server((_graph_prompt,), (_token_rows,)),
}  # fmt: skip
