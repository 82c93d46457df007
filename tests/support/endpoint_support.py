"""Support for tests of endpoint policies: what is asked, a policy with short waits, one reply."""

from fission_grpo.inference.base import Request
from fission_grpo.inference.endpoint import EndpointOptions, EndpointPolicy

ASK = [{"role": "user", "content": "Add 1."}]
TOOL = {"name": "add", "description": "Add", "parameters": {"type": "object", "properties": {}}, "return": {}}
KEY = "sk-x7very-secret-0123456789"


def policy_of(server, tokenizer=None, **options):
    given = {"timeout": 5.0, "tries": 3, "backoff": 0.01, "max_wait": 0.02, "patience": 10.0}
    return EndpointPolicy("small", server.url, EndpointOptions(**given | options), tokenizer)


def one_reply(server, request=None, **options):
    """The reply to a request, and the counts."""
    with policy_of(server, **options) as policy:
        return policy.submit(request or Request(ASK, [TOOL])).result(timeout=20), policy.counts
