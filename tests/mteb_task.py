"""Tasks of the package mteb that are made of a dataset folder, known by their names in this
process."""

import importlib

from ance_cli.formats.dataset import locate, queries_of_split, read_corpus, read_qrels


def add_task(monkeypatch, cls):
    """Let mteb find the task by its name."""
    registry = importlib.import_module("mteb.get_tasks")
    monkeypatch.setitem(registry._TASKS_REGISTRY, cls.metadata.name, cls)
    return cls.metadata.name


def retrieval_task(folder, name, split="dev"):
    """A class of retrieval tasks whose data are the folder's, read when it is measured."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.mocks.mock_tasks.retrieval import MockRetrievalTask

    class Task(AbsTaskRetrieval):
        metadata = MockRetrievalTask.metadata.model_copy(
            update={"name": name, "eval_splits": [split]}
        )

        def load_data(self, num_proc=None, **_):
            data = locate(folder, split)
            queries = queries_of_split(data)
            corpus = [{"id": p.doc_id, "title": p.title, "text": p.text}
                      for p in read_corpus(data.corpus)]  # fmt: skip
            self.dataset = {"default": {split: RetrievalSplitData(
                corpus=Dataset.from_list(corpus),
                queries=Dataset.from_list([{"id": q, "text": t} for q, t in queries.items()]),
                relevant_docs=read_qrels(data.qrels),
                top_ranked=None,
            )}}  # fmt: skip
            self.data_loaded = True

    return Task
