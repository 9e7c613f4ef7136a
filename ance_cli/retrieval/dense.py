"""Dense retrieval: query texts in, ranked documents out, from embeddings or from an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ance_cli.config import ComputeConfig
from ance_cli.errors import Mismatch, UsageProblem
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.manifest import read_manifest
from ance_cli.formats.row_format import ROW_FORMATS
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.texts import TextEncoder
from ance_cli.progress import Reporter, Silent


@dataclass(frozen=True)
class VectorSource:
    """A folder of passage vectors: embeddings, which are searched exactly, or an index.

    Only the manifest is read here; `DenseRetriever` opens the vectors.
    """

    path: Path
    kind: str

    @property
    def fingerprint(self) -> str:
        return str(read_manifest(self.path, self.kind)["fingerprint"])

    @property
    def rounded_to(self) -> str | None:
        """`int8` or `binary`, if these are embeddings whose vectors were rounded to that."""
        if self.kind != "embeddings":
            return None
        content = read_manifest(self.path, self.kind)["content"]
        is_rounded = ROW_FORMATS[content["dtype"]](content["dim"]).rounds
        return str(content["dtype"]) if is_rounded else None

    def need_floats(self, purpose: str) -> None:
        """Raises `Mismatch` if the vectors were rounded; `purpose` is what needs them as the model
        made them."""
        if rounded_to := self.rounded_to:
            raise Mismatch(
                f"{self.path}: the vectors were rounded to {rounded_to}, and {purpose} needs them "
                "as the model made them",
                hint="encode the corpus to another folder: ance encode --output-dtype float16",
            )

    def check(self, checkpoint: Checkpoint, corpus_hash: str | None) -> None:
        """Raises `Mismatch` if another passage tower made the vectors, or if they are of another
        corpus."""
        inputs = read_manifest(self.path, self.kind)["inputs"]
        if inputs.get("tower") != checkpoint.tower_hash("passage"):
            raise Mismatch(
                f"{self.path}: the vectors were made by another passage encoder than "
                f"{checkpoint.shown} (tower {inputs.get('tower', '?')[:12]}, the checkpoint's is "
                f"{checkpoint.tower_hash('passage')[:12]}): scores between the two mean nothing",
                hint=f"encode again: ance encode --ckpt {checkpoint.shown} --data DATASET -o DIR, "
                "with the same --passage-length",
            )
        if corpus_hash is not None:
            self.check_corpus(corpus_hash)

    def check_corpus(self, corpus_hash: str) -> None:
        """Raises `Mismatch` if the vectors are of another corpus."""
        inputs = read_manifest(self.path, self.kind)["inputs"]
        if inputs.get("corpus") != corpus_hash:
            raise Mismatch(
                f"{self.path}: the vectors are of another corpus than the dataset's",
                hint="encode the dataset's corpus: ance encode --data DATASET -o DIR",
            )

    def check_same_corpus(self, other: VectorSource) -> None:
        """Raises `Mismatch` if the vectors of `other` are of another corpus than these."""
        corpora = [read_manifest(it.path, it.kind)["inputs"].get("corpus") for it in (self, other)]
        if corpora[0] != corpora[1]:
            raise Mismatch(
                f"{self.path}: the vectors are of another corpus than those of {other.path}",
                hint="encode one corpus to both: ance encode --data DATASET -o DIR",
            )


def vector_source(embeddings: Path | None, index: Path | None) -> VectorSource:
    """The folder that `--embeddings` or `--index` names."""
    if (embeddings is None) == (index is None):
        raise UsageProblem(
            "name the passage vectors with exactly one of --embeddings DIR and --index DIR",
            hint="make them with: ance encode --ckpt CHECKPOINT --data DATASET -o DIR",
        )
    if embeddings is not None:
        return VectorSource(embeddings, "embeddings")
    assert index is not None
    return VectorSource(index, "index")


class DenseRetriever:
    """A checkpoint's query encoder over passage vectors that its passage encoder made."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        source: VectorSource,
        config: ComputeConfig = ComputeConfig(),
        probes: int | None = None,
    ) -> None:
        self._encoder = TextEncoder(checkpoint, "query", config)
        self.devices = self._encoder.devices
        self.device = self.devices[0]
        self.dtype = self._encoder.dtype
        self._is_cosine = checkpoint.is_cosine
        self.embeddings: Embeddings | None = None
        if source.kind == "embeddings":
            self.embeddings = Embeddings(source.path)
            self.doc_ids = self.embeddings.ids
        else:
            from ance_cli.retrieval.faiss_index import FaissIndex

            self._index = FaissIndex(source.path)
            self._index.set_probes(probes)
            self.doc_ids = self._index.ids

    def encode_queries(
        self, texts: Sequence[str], reporter: Reporter = Silent()
    ) -> npt.NDArray[np.float32]:
        """(nq, d) float32 query vectors."""
        return self._encoder.queries(texts, reporter)

    def place(self, depth: int, reporter: Reporter = Silent()) -> None:
        """Copy an index to the GPUs; otherwise the first search to this depth does it."""
        if self.embeddings is None:
            self._index.place(self.devices, min(depth, len(self.doc_ids)), reporter.say)

    def search(
        self,
        xq: npt.NDArray[np.float32],
        depth: int,
        reporter: Reporter = Silent(),
        out: tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]] | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """(nq, depth) scores and document positions in corpus order, best first, -1 = none.

        The depth is at most the number of documents, unless `out` is given: then the results are
        written to it, for instance to memory-mapped arrays.
        """
        from ance_cli.retrieval.exact import exact_top_docs

        depth = depth if out else min(depth, len(self.doc_ids))
        if self.embeddings is not None:
            with reporter.task("searching", self.embeddings.num_rows, "row") as bar:
                return exact_top_docs(
                    xq, self.embeddings, depth, self.devices, bar.advance, out, say=reporter.say
                )
        self._index.place(self.devices, depth, reporter.say)
        with reporter.task("searching", len(xq), "query") as bar:
            return self._index.top_docs(xq, depth, bar.advance, out)

    def search_by_width(
        self,
        xq: npt.NDArray[np.float32],
        depth: int,
        widths: Sequence[int],
        reporter: Reporter = Silent(),
    ) -> Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]]:
        """What `search` finds with vectors cut to each of `widths`; embeddings only."""
        from ance_cli.retrieval.exact import exact_top_docs_by_width

        assert self.embeddings is not None, "an index has its vectors in one width"
        depth = min(depth, len(self.doc_ids))
        with reporter.task("searching", self.embeddings.num_rows, "row") as bar:
            return exact_top_docs_by_width(
                xq, self.embeddings, depth, widths, self._is_cosine, self.devices, bar.advance,
                say=reporter.say,
            )  # fmt: skip
