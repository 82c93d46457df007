"""Keys are written nowhere: neither the environment's nor those in a URL, by any command, whatever goes wrong."""

import json
import logging
import shlex
import threading
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from openai_server import OpenAIServer

pytest.importorskip("openai", reason="needs the openai package (pip install 'fission-grpo[endpoint]')")

from fission_grpo.cli.main import main
from fission_grpo.inference.secrets import Secrets, hide_in_urls, public_url, shown_command, split_url

KEY, PASSWORD, QUERY = "Kennwort7Umgebung", "Kennwort8 Nutzer", "Kennwort9Frage"
"""Like no key's usual form, so that they are not found by how they look."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with OpenAIServer(lambda body: "error: `name` is not right.") as running:
        running.secret_url = (
            running.url.replace("127.0.0.1", f"me:{PASSWORD.replace(' ', '%20')}@127.0.0.1") + f"?api_key={QUERY}"
        )
        yield running


def written(folder):
    """All bytes of all files, and their names."""
    return b"\n".join(str(path).encode() + path.read_bytes() for path in folder.rglob("*") if path.is_file())


def assert_no_key(folder, capfd, caplog):
    told = capfd.readouterr()
    everything = written(folder) + (told.out + told.err + caplog.text).encode()
    for part in ("Kennwort7", "Kennwort8", "Kennwort9", "S2VubndvcnQ4"):  # the last: "Kennwort8" in base64
        at = everything.find(part.encode())
        assert at < 0, everything[max(0, at - 200) : at + 40]
    return told


def later_tell_key(server):
    """The next request (the check at the start) is answered; of those after it every second tells the key."""
    first = len(server.asked)
    server.faults = lambda number: "tell key" if number > first and (number - first) % 2 else None


def train(folder, url):
    feedback_model = {"url": url, "cache": str(folder / "cache"), "max_retries": 0}
    fields = {
        "model_name_or_path": "starter",
        "tasks": "desk",
        "num_tasks": 16,
        "max_steps": 2,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 64,
        "max_tool_calling_iterations": 1,
        "learning_rate": 1e-4,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_steps": 2,
        "feedback": "endpoint:small,rules",
        "feedback_model": json.dumps(feedback_model),
        "output_dir": str(folder / "run"),
    }
    return main(["train", *(part for name, value in fields.items() for part in (f"--{name}", str(value)))])


def test_training_evaluation_and_report_write_no_key_though_the_endpoint_tells_it(server, tmp_path, capfd, caplog):
    pytest.importorskip("trl")
    caplog.set_level(logging.DEBUG)
    server.faults = ["tell key"]
    assert train(tmp_path, server.secret_url) == 2  # refused at the start, with what the endpoint said
    assert "HTTP 401: " in assert_no_key(tmp_path, capfd, caplog).err
    assert "endpoint" not in [thread.name for thread in threading.enumerate()]  # closed, though no training began
    later_tell_key(server)
    assert train(tmp_path, server.secret_url) == 0
    later_tell_key(server)
    evaluation = ["--endpoint", server.secret_url, "--model", "small", "--tasks", "desk", "--num_tasks", "4"]
    assert main(["eval", *evaluation, "--output", str(tmp_path / "run"), "--timeout", "5"]) in (0, 1)
    assert main(["report", str(tmp_path / "run")]) == 0
    assert_no_key(tmp_path, capfd, caplog)
    files = {path.name for path in tmp_path.rglob("*")}
    assert {"report.html", "fission.jsonl", "cases.jsonl", "fission_state.json", "checkpoint-2"} <= files
    assert b"HTTP 401" in written(tmp_path)  # the answers that told the key were met
    assert any((tmp_path / "cache").iterdir())
    assert f"/v1/chat/completions?api_key={QUERY}" in server.paths[-1]  # and the keys were sent


@pytest.mark.parametrize("which", ["me", "nobody"])
def test_the_key_of_the_environment_is_written_nowhere_with_a_plain_url(server, tmp_path, capfd, caplog, which):
    caplog.set_level(logging.DEBUG)
    server.faults = ["tell key"] if which == "nobody" else [None, "tell key"]
    evaluation = ["--endpoint", server.url, "--model", "small", "--tasks", "desk", "--num_tasks", "2"]
    main(["eval", *evaluation, "--output", str(tmp_path), "--timeout", "5"])
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert_no_key(tmp_path, capfd, caplog)


def test_commands_are_shown_without_what_their_urls_hold():
    words = [
        "fission-grpo",
        "--url",
        "https://me:pw@host:80/v1?api_key=k1#x",
        "--feedback_model",
        '{"url": "http://k2@h/v1"}',
    ]
    assert shown_command(words) == (
        "fission-grpo --url 'https://***@host:80/v1?***' --feedback_model '{\"url\": \"http://***@h/v1\"}'"
    )
    assert shown_command(["a", "--url", "http://h/v1"]) == "a --url http://h/v1"
    assert shown_command(["simulator", "data", "--hub_token", "hf_x"]) == "simulator data --hub_token '***'"


def test_secrets_of_a_url_are_hidden_as_they_are_and_as_urls_write_them():
    url, query, secrets = split_url("https://me:a%2Fb%20c@host/v1?api_key=k5&v=2")
    assert url == "https://me:a%2Fb%20c@host/v1"
    assert query == {"api_key": "k5", "v": "2"}
    assert secrets == ("a/b c", "k5", "2", "bWU6YS9iIGM=")  # the last is what `Authorization: Basic` says
    assert Secrets(["a/b c"]).clean("a/b c, a%2Fb%20c, a/b%20c, a%2Fb+c, sk-12345") == "***, ***, ***, ***, ***"
    assert split_url(None) == (None, {}, ())


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--hub_token", "hf_x", "--seed", "1"], ["--hub_token", "***", "--seed", "1"]),
        (["--hub-token", "x"], ["--hub-token", "***"]),
        (["--hub_token=hf_x"], ["--hub_token=***"]),
        (
            ["--model_init_kwargs", '{"token": "a\\"b", "dtype": "c"}'],
            ["--model_init_kwargs", '{"token": "***", "dtype": "c"}'],
        ),
        (["--max_generated_tokens", "300"], ["--max_generated_tokens", "300"]),
        (["--hub_token", "--seed", "1"], ["--hub_token", "--seed", "1"]),
        (["--output_dir", "hf_models/run"], ["--output_dir", "hf_models/run"]),
    ],
)
def test_the_command_that_resumes_a_run_is_shown_without_tokens(capsys, words, shown):
    pytest.importorskip("trl")
    from fission_grpo.training.callbacks import print_resume_command

    print_resume_command(SimpleNamespace(global_step=1, max_steps=2), words)
    line = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(line) == [*shown, "--resume_from_checkpoint", "true"]


PATH_KEY = "a8f3k2m9q1"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:p@ss@host/v1", "https://***@host/v1"),
        ("https://me:p@s@s@host:80/v1?k=a@b", "https://***@host:80/v1?***"),
        ("HTTPS://me:pw@host", "HTTPS://***@host"),
        ("https://host/v1", "https://host/v1"),
        ("https://host/v1?v=2", "https://host/v1?***"),
        ("https://host/v1#frag", "https://host/v1?***"),
        (r"https:\/\/me:pw@host\/v1?k=1", r"https:\/\/***@host\/v1?***"),
        (r"https:\\/\\/me:pw@host", r"https:\\/\\/***@host"),
        ("https%3A%2F%2Fme%3Apw%40host%2Fv1%3Fk%3D1", "https%3A%2F%2F***@host%2Fv1?***"),
        ("https%3a%2f%2fme%3apw%40host", "https%3a%2f%2f***@host"),
        (f"https://host/{PATH_KEY}/v1", "https://host/***/v1"),
        ("https://host/openai/deployments/gpt-4o-mini/v1beta", "https://host/openai/deployments/gpt-4o-mini/v1beta"),
        ("https://host/sk-abcdef/v1", "https://host/***/v1"),
        ("http://a@b/ http://c@d/", "http://***@b/ http://***@d/"),
    ],
)
def test_urls_of_every_form_are_shown_without_secrets(url, shown):
    assert hide_in_urls(f'say "{url}" now') == f'say "{shown}" now'
    assert hide_in_urls(shown) == shown


def test_a_short_value_of_a_query_hides_nothing_but_itself():
    _, _, found = split_url("https://host/v1?v=2&n=10&on=true&key=abc")
    secrets = Secrets(found)
    assert secrets.clean("HTTP 429: 2 of 10 true tries, abc in v2") == "HTTP 429: 2 of 10 true tries, abc in v2"
    assert secrets.clean("POST https://host/v1?v=2&n=10&on=true&key=abc") == (
        "POST https://host/v1?v=***&n=***&on=***&key=***"
    )
    assert secrets.clean("v=20 key=abcd") == "v=20 key=abcd"


@pytest.mark.parametrize("secret", ["pa/ss wörd", 'qu"ote\\d', "plain-secret", "p@ss/w%rd", "ge\nheim"])
def test_a_secret_is_hidden_as_every_writer_spells_it(secret):
    spelled = [
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote(secret, safe="").lower() if secret.islower() else secret,
        quote(quote(secret, safe=""), safe=""),
        json.dumps(secret),
        json.dumps(secret).replace("/", "\\/"),
    ]
    for text in spelled:
        assert Secrets([secret]).clean(f"<{text}>") in ("<***>", '<"***">'), text


def test_keys_in_paths_and_odd_passwords_of_urls_are_written_nowhere(server, tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    url = server.url.replace("127.0.0.1", "me:p@Kennwort8s@127.0.0.1").replace("/v1", "/Kennwort7a1b2/v1")
    server.faults = [None, "tell key", "500"]
    evaluation = ["--endpoint", url + "?api_key=Kennwort9Frage&v=2", "--model", "small", "--tasks", "desk"]
    main(["eval", *evaluation, "--num_tasks", "2", "--output", str(tmp_path), "--timeout", "5"])
    assert "/Kennwort7a1b2/v1/chat/completions" in server.paths[-1]
    assert_no_key(tmp_path, capfd, caplog)
    assert b"127.0.0.1" in written(tmp_path)
    assert b"/***/v1" in written(tmp_path)


@pytest.mark.parametrize("name", ["Mixtral-8x7B-Instruct-v0.1", "Meta-Llama-3.1-70B-Instruct"])
def test_a_models_name_in_a_path_is_no_key(name):
    url = f"https://router/models/{name}/v1"
    assert public_url(url) == url
    assert split_url(url)[2] == ()


@pytest.mark.parametrize("key", ["550e8400-e29b-41d4-a716-446655440000", "a" * 24, "Kennwort7a1b2", "hf_abcd"])
def test_a_key_in_a_path_is_hidden(key):
    assert public_url(f"https://router/{key}/v1") == "https://router/***/v1"


@pytest.mark.parametrize(
    "text", ["https://proxy/https://me:pw9@h/v1", "https://a,https://me:pw9@h", "ftp://me:p@pw9@h", "x=//me:pw9@h"]
)
def test_a_user_in_a_url_within_another_is_hidden(text):
    assert "pw9" not in hide_in_urls(text)
    assert "h" in hide_in_urls(text)
