"""Judges behind an endpoint, and judges that run here."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from builders import build_tiny_llava
from builders.parts import build_tokenizer, finish, text_config
from transformers import LlamaConfig, LlamaForCausalLM

from sugar_hf.evaluation.benchmarks.judges import EndpointJudge, Judge, LocalJudge, RefusedPromptError, open_judge

KEY = "sk-a-secret-of-this-test"


class Server:
    """An OpenAI-compatible endpoint that gives prepared replies: (status, body), the last one again and again."""

    def __init__(self):
        self.replies, self.asked = [(200, completion("9 8"))], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append((self.path, json.loads(body), self.headers.get("Authorization")))
                status, text = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                self.send_response(status)
                if status in (301, 302, 307):
                    self.send_header("Location", "/elsewhere")
                data = text.encode()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def completion(text):
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.stop()


def quick(server, **options):
    return EndpointJudge(server.url, "wise-1", wait=0.0, **options)


def test_an_endpoint_is_asked_as_the_protocol_says(server):
    judge = quick(server)
    assert isinstance(judge, Judge)
    assert judge.name == "wise-1"
    assert judge("Which?", system="Be just.", temperature=0.2, max_tokens=7) == "9 8"
    path, body, key = server.asked[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "wise-1",
        "messages": [{"role": "system", "content": "Be just."}, {"role": "user", "content": "Which?"}],
        "temperature": 0.2,
        "max_tokens": 7,
    }
    assert key == f"Bearer {KEY}"
    EndpointJudge(f"{server.url}/chat/completions", "wise-1")("Which?")  # the whole URL is taken, too
    assert server.asked[1][0] == path
    assert server.asked[1][1]["messages"] == [{"role": "user", "content": "Which?"}]
    assert server.asked[1][1]["temperature"] == 0


def test_no_key_is_sent_if_there_is_none(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("HF_TOKEN", "hf_a_token_for_another_host")
    quick(server)("Which?")
    assert server.asked[0][2] is None
    monkeypatch.setenv("MY_KEY", "mine")
    quick(server, key_variable="MY_KEY")("Which?")
    assert server.asked[1][2] == "Bearer mine"


def test_failures_that_pass_are_tried_again(server):
    server.replies = [(429, "too many"), (503, "busy"), (200, completion("5 5"))]
    assert quick(server)("Which?") == "5 5"
    assert len(server.asked) == 3


def test_waits_grow_up_to_what_the_server_asks(server, monkeypatch):
    waited = []
    monkeypatch.setattr("sugar_hf.evaluation.benchmarks.judges.time.sleep", waited.append)
    server.replies = [(500, "")]
    with pytest.raises(ConnectionError, match=r"says 500 .*\(4 tries\).*the same command goes on"):
        EndpointJudge(server.url, "wise-1", tries=4, wait=20.0)("Which?")
    assert waited == [20, 40, 60]


def test_no_server_is_an_error_of_connection(server):
    judge = quick(server, tries=2)
    server.stop()
    with pytest.raises(ConnectionError, match=r"/v1/chat/completions.*\(2 tries\)"):
        judge("Which?")


def test_a_wrong_key_is_said_at_once_and_without_the_key(server):
    server.replies = [(401, f"Incorrect API key provided: {KEY}")]
    with pytest.raises(ValueError, match="401") as caught:
        quick(server)("Which?")
    assert not isinstance(caught.value, RefusedPromptError)
    assert len(server.asked) == 1
    assert "Incorrect API key provided: ***" in str(caught.value)
    assert KEY not in str(caught.value)
    assert KEY not in repr(quick(server))


def test_a_prompt_that_is_not_taken_is_told_apart(server):
    server.replies = [(400, "content policy")]
    with pytest.raises(RefusedPromptError, match=r"400 .*content policy"):
        quick(server)("Which?")
    assert len(server.asked) == 1


def test_the_key_does_not_follow_a_redirect(server):
    server.replies = [(302, "")]
    with pytest.raises(ValueError, match="says 302"):
        quick(server)("Which?")
    assert [path for path, _, _ in server.asked] == ["/v1/chat/completions"]


def test_replies_that_are_none(server):
    server.replies = [(200, completion(None)), (200, "<html>"), (200, '{"choices": []}')]
    judge = quick(server)
    assert judge("Which?") == ""
    for _ in range(2):
        with pytest.raises(ValueError, match="no chat completion but"):
            judge("Which?")


TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE


def write_language_model(folder, template=None):
    tokenizer = build_tokenizer(())
    tokenizer.chat_template = template
    torch.manual_seed(0)
    model = finish(LlamaForCausalLM(LlamaConfig(**text_config(tokenizer))), tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def greedy(model, tokenizer, text, count, **options):
    ids = tokenizer(text, return_tensors="pt", **options)["input_ids"]
    output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_language_model_judges_by_its_template(tmp_path):
    model, tokenizer = write_language_model(tmp_path, TEMPLATE)
    judge = LocalJudge(str(tmp_path), device="cpu")
    assert isinstance(judge, Judge)
    said = judge("Which one?", system="Be just.", max_tokens=6)
    text = "[system] Be just.\n[user] Which one?\n[assistant] "
    assert said
    assert said == greedy(model, tokenizer, text, 6, add_special_tokens=False)


def test_a_template_without_system_message(tmp_path):
    model, tokenizer = write_language_model(tmp_path, NO_SYSTEM)
    said = LocalJudge(str(tmp_path), device="cpu")("Which one?", system="Be just.", max_tokens=6)
    text = "[user] Be just.\n\nWhich one?\n[assistant] "
    assert said == greedy(model, tokenizer, text, 6, add_special_tokens=False)


def test_a_language_model_without_template_continues_the_prompt(tmp_path):
    model, tokenizer = write_language_model(tmp_path)
    judge = LocalJudge(str(tmp_path), device="cpu")
    assert judge("Which one?", max_tokens=6) == greedy(model, tokenizer, "Which one?", 6)
    assert judge("B", system="A", max_tokens=6) == greedy(model, tokenizer, "A\n\nB", 6)


def test_sampling_depends_on_prompt_and_temperature_alone(tmp_path):
    write_language_model(tmp_path)
    judge = LocalJudge(str(tmp_path), device="cpu")
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = [judge(prompt, temperature=heat, max_tokens=8) for prompt in ("Which?", "Who?") for heat in (1.0, 1.5)]
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    again = [judge(prompt, temperature=heat, max_tokens=8) for prompt in ("Which?", "Who?") for heat in (1.0, 1.5)]
    assert first == again
    assert len(set(first)) == 4
    other = LocalJudge(str(tmp_path), device="cpu", seed=1)
    assert other("Which?", temperature=1.0, max_tokens=8) != first[0]


def test_a_prompt_that_is_too_long_is_refused(tmp_path):
    write_language_model(tmp_path)
    with pytest.raises(RefusedPromptError, match=r"and 2040 of the reply are over 2048"):
        LocalJudge(str(tmp_path), device="cpu")("Which one of these is right?", max_tokens=2040)


def test_a_vision_language_model_judges_too(tmp_path):
    model, processor = build_tiny_llava(seed=0)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    chat = [{"role": "user", "content": [{"type": "text", "text": "Which one?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert "Which one?" in text
    said = open_judge(str(tmp_path), device="cpu")("Which one?", max_tokens=4)
    assert said == greedy(model, processor.tokenizer, text, 4, add_special_tokens=False)


def test_what_a_user_writes_opens_a_judge(server, monkeypatch):
    judge = open_judge(f"{server.url}#org/wise-2")
    assert (judge.name, judge("Which?")) == ("org/wise-2", "9 8")
    assert open_judge("openai:gpt-4").url == "https://api.openai.com/v1/chat/completions"
    with pytest.raises(ValueError, match=r"which model\? Write it as https://host/v1#model"):
        open_judge("https://host/v1")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match=r"no key. Set OPENAI_API_KEY"):
        open_judge("openai:gpt-4")
    with pytest.raises(ValueError, match="judge nobody/has-this: no endpoint, and no language model"):
        open_judge("nobody/has-this")
    with pytest.raises(ValueError, match="is no endpoint"):
        EndpointJudge("host/v1", "wise-1")
