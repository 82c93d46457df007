"""Support for tests of endpoint policies: a dialogue, a policy with short waits, one reply and its counts."""

from types import SimpleNamespace

from fission_grpo.inference.base import Request
from fission_grpo.inference.endpoint import EndpointOptions, EndpointPolicy

ASK = [{"role": "user", "content": "Add 1."}]
TOOL = {"name": "add", "description": "Add", "parameters": {"type": "object", "properties": {}}, "return": {}}
KEY = "sk-x7very-secret-0123456789"


def retry_at_once():
    """Shorten the `openai` client's first wait, which is half a second and cannot be set."""
    try:
        import openai._base_client as client
    except ModuleNotFoundError:  # tests of endpoints are skipped then
        return
    assert client.INITIAL_RETRY_DELAY == 0.5
    client.INITIAL_RETRY_DELAY = 0.01


retry_at_once()


def policy_of(server, tokenizer=None, **options):
    given = {"timeout": 5.0, "max_retries": 2, "patience": 10.0}
    return EndpointPolicy("small", server.url, EndpointOptions(**given | options), tokenizer)


def counts_of(policy):
    """The policy's counts, with retries and lost requests as dictionaries by reason."""
    counts = policy.counts
    by_reason = {
        kind: {name.removeprefix(f"{kind}/"): n for name, n in counts.items() if name.startswith(f"{kind}/")}
        for kind in ("retries", "lost")
    }
    names = ("requests", "prompt_tokens", "completion_tokens", "uncounted", "empty", "cut", "too_long")
    return SimpleNamespace(**by_reason, **{name: counts[name] for name in names})


def one_reply(server, request=None, **options):
    """The reply to a request, and the counts."""
    with policy_of(server, **options) as policy:
        return policy.submit(request or Request(ASK, [TOOL])).result(timeout=20), counts_of(policy)
