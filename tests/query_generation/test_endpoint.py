"""The client against a real HTTP server on loopback: what is asked, and what fails how."""

import threading
import time

import pytest

from ance_cli.config import QueryConfig
from ance_cli.errors import BadInput, ResourceExhausted, UsageProblem
from ance_cli.formats.dataset import Passage
from ance_cli.query_generation import endpoint
from ance_cli.query_generation.endpoint import Endpoint, in_order
from ance_cli.query_generation.writing import Written
from tests.chat_server import KEY, MODEL, chat_that_is_asked_once  # noqa: F401  (a fixture)

pytest.importorskip("openai")

PASSAGES = [Passage(f"d{n}", "", f"river word{n} flows") for n in range(12)]


def write(chat, passages=PASSAGES, start=0, skips_refused=False, **settings):
    config = QueryConfig(**{"model": MODEL, "endpoint": chat.url, **settings})
    return list(Endpoint(config, skips_refused).open()(passages, start))


def test_each_passage_is_asked_with_its_own_seed_and_the_settings(chat):
    found = write(chat, start=2, prompt="Ask: {text}", temperature=0.5, max_new_tokens=9,
                  per_passage=2, seed=3)  # fmt: skip
    assert found == [Written([f"river word{n}"] * 2) for n in range(2, 12)]
    assert sorted(chat.prompts) == sorted(f"Ask: {p.text}" for p in PASSAGES[2:] * 2)
    for body in chat.bodies:
        assert (body["model"], body["temperature"], body["max_tokens"]) == (MODEL, 0.5, 9)
    seeds = {body["seed"] for body in chat.bodies}
    assert len(seeds) == 20
    write(chat, start=2, prompt="{text}", temperature=0.5, per_passage=2, seed=3)
    assert {body["seed"] for body in chat.bodies[20:]} == seeds


def test_several_requests_are_on_their_way_at_once(chat):
    chat.delay = 0.05
    write(chat, concurrency=3)
    assert chat.most == 3


def test_an_answer_without_text_is_an_empty_query(chat):
    chat.answer = lambda prompt: None if "word3" in prompt else " \n"
    assert write(chat, PASSAGES[2:4]) == [Written([""])] * 2


def test_a_wrong_key_is_not_shown(chat, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-and-secret")
    with pytest.raises(UsageProblem, match=f"{chat.url}: the endpoint refused the key") as found:
        write(chat)
    assert "secret" not in found.value.what and "OPENAI_API_KEY" in found.value.hint
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UsageProblem, match="the endpoint refused the key"):
        write(chat)


def test_another_model_another_address_and_a_page_of_html(chat):
    with pytest.raises(UsageProblem, match="has no model 'gpt-none'"):
        write(chat, model="gpt-none")
    with pytest.raises(UsageProblem, match="or is not the base URL of an API"):
        write(chat, endpoint=chat.url.removesuffix("/v1"))
    with pytest.raises(UsageProblem, match="the answer is not a chat completion"):
        write(chat, endpoint=chat.url.replace("/v1", "/page"))


def test_an_endpoint_that_fails_or_is_silent_or_is_not_there(chat, monkeypatch):
    chat.error = lambda prompt: (500, "out of order")
    with pytest.raises(ResourceExhausted, match="no answer after 0 retries .*out of order"):
        write(chat)
    monkeypatch.setattr(endpoint, "_SECONDS", 0.1)
    chat.error, chat.delay = lambda prompt: None, 0.5
    with pytest.raises(ResourceExhausted, match="timed out") as found:
        write(chat)
    assert "finished passages are kept" in found.value.hint
    with pytest.raises(ResourceExhausted, match="no answer"):
        write(chat, endpoint="http://127.0.0.1:9/v1")


def test_a_failed_request_is_repeated_by_the_client(chat, monkeypatch):
    monkeypatch.setattr(endpoint, "_RETRIES", 1)
    chat.error = lambda prompt: (500, "busy") if chat.prompts.count(prompt) < 2 else None
    assert write(chat, PASSAGES[:2]) == [Written(["river word0"]), Written(["river word1"])]
    assert len(chat.bodies) == 4


def test_a_passage_that_is_refused(chat):
    chat.error = lambda prompt: (400, "not this one") if "word3 " in prompt else None
    with pytest.raises(
        BadInput, match="document 'd3': the endpoint refused it .*not this"
    ) as found:
        write(chat)
    assert "--skip-bad" in found.value.hint
    found = write(chat, skips_refused=True)
    assert found[4].queries == ["river word4"] and found[3].queries == []
    assert "not this one" in found[3].refused
    assert sum(written.refused is not None for written in found) == 1


def test_in_order_yields_in_order_and_stops_at_the_first_error():
    seen, lock = [], threading.Lock()

    def work(item):
        time.sleep(0.02 if item == 0 else 0)
        with lock:
            seen.append(item)
        if item == 7:
            raise ValueError("seven")
        return item * item

    assert list(in_order(work, range(7), 3)) == [n * n for n in range(7)]
    assert seen[0] != 0, "later ones do not wait for the first"
    assert list(in_order(work, [], 3)) == []
    found = in_order(work, [7, *range(100, 2000)], 1)
    with pytest.raises(ValueError, match="seven"):
        list(found)
    assert len(seen) < 1900, "what waited is dropped"
