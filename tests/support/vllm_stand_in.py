"""A local HTTP server that answers TRL's vLLM client, by sampling with a model of transformers. Test support.

TRL's own client, its slicing of prompts among ranks and its correction for the sampler's log-probabilities run for
real against it. What cannot run without vLLM and a GPU is replaced by `without_vllm`: the NCCL communicator, and with
it the transfer of weights, which are copied inside the process instead.
"""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from trl.generation import vllm_client, vllm_generation


class VLLMStandIn:
    """Serves `model` (a copy of the policy). `asked` holds (prompts, n) of each request, `synced` counts transfers."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.asked, self.synced = model.eval(), tokenizer, [], 0
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def take_weights(self, metadata, parameters):
        """In place of `VLLMClient.update_named_params`."""
        named = {name: value.detach().clone() for name, value in parameters}
        assert list(named) == [name for name, *_ in metadata]
        self.model.load_state_dict(named, strict=False)
        self.synced += 1

    @torch.no_grad()
    def complete(self, body):
        """The answer to a request for completions, n for each prompt, prompt by prompt."""
        self.asked.append((len(body["prompt"]), body["n"]))
        prompts = [ids for ids in body["prompt"] for _ in range(body["n"])]
        width, pad, eos = max(map(len, prompts)), self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        said = self.model.generate(
            torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts]),
            attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
            do_sample=True,
            temperature=body["temperature"],
            top_k=body["top_k"],
            top_p=body["top_p"],
            max_new_tokens=body["max_tokens"],
            pad_token_id=pad,
            eos_token_id=eos,
            output_scores=True,
            return_dict_in_generate=True,
        )
        tokens = said.sequences[:, width:]
        scores = torch.stack(said.scores, 1).log_softmax(-1).gather(2, tokens[:, :, None])[:, :, 0]
        return {"choices": [self._choice(*row, eos) for row in zip(prompts, tokens.tolist(), scores, strict=True)]}

    def _choice(self, prompt, tokens, scores, eos):
        length = tokens.index(eos) + 1 if eos in tokens else len(tokens)
        tokens, scores, names = tokens[:length], scores.tolist(), [f"token_id:{token}" for token in tokens[:length]]
        top = [{name: score} for name, score in zip(names, scores, strict=False)]
        logprobs = {"tokens": names, "token_logprobs": scores[:length], "top_logprobs": top}
        return {"prompt_token_ids": prompt, "token_ids": tokens, "logprobs": logprobs}


class _Handler(BaseHTTPRequestHandler):
    owner: VLLMStandIn
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        known = {
            "/health": {},
            "/v1/models": {"data": [{"id": "policy"}]},
            "/server_info": {"vllm_config": {"model_config": {"logprobs_mode": "processed_logprobs"}}},
        }
        self._send(known[self.path.partition("?")[0]])

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        self._send(self.owner.complete(body) if self.path == "/v1/completions" else {"success": True})

    def _send(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_): ...


@contextlib.contextmanager
def without_vllm(stand_in):
    """TRL believes that vLLM is installed, and its client hands weights over inside this process."""
    client = vllm_client.VLLMClient
    put = [(module, "is_vllm_available", lambda *_, **__: True) for module in (vllm_client, vllm_generation)]
    put += [
        (client, "init_communicator", lambda self, device: None),
        (client, "close_communicator", lambda self: None),
    ]
    if stand_in is not None:
        put += [(client, "update_named_params", lambda self, metadata, named: stand_in.take_weights(metadata, named))]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in put]
    for owner, name, value in put:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
