"""Released parts of every kind are loaded without a request to the network."""

import socket
from functools import partial

import pytest

for name in ("transformers", "diffusers", "peft", "accelerate"):
    pytest.importorskip(name)

import huggingface_hub  # noqa: E402
import transformers  # noqa: E402

import worldenv  # noqa: E402
from worldenv.assemble import POLICIES, REFLECTORS, WORLDS  # noqa: E402
from worldenv.reflector.vlm.families import FAMILIES  # noqa: E402


def write_policy(folder, kind, writers, path):
    return writers(folder).write_release(path, kind).path


def write_latents(writers, path):
    path.mkdir()
    return writers("worlds/causal").write_latents(path)


def write_judge(family, writers, path):
    writers("reflector/vlm").write_model(path, family)
    return path


def write_wan(writers, path):
    return writers("worlds/wan").write_folder(path)


RELEASES = [  # role, kind, what writes the folder
    ("policy", "openvla-oft", partial(write_policy, "policy/openvla_oft", "tokens")),
    ("policy", "pi0", partial(write_policy, "policy/flow", "pi0")),
    ("policy", "smolvla", partial(write_policy, "policy/flow", "smolvla")),
    ("world", "rlinf-wan", write_wan),
    ("world", "svd", lambda writers, path: writers("worlds/video").write_pipeline(path)),
    ("world", "causal-latents", write_latents),
    *(("reflector", "vlm", partial(write_judge, family)) for family in FAMILIES),
    ("reflector", "rlinf-wan", write_wan),
]


@pytest.fixture
def asked(monkeypatch):
    """What was asked of the network, by a library too that catches the error and goes on."""
    found = []

    def refuse(*given, **_):
        found.append(given)
        raise OSError("there is no network in this test")

    for owner, function in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, function, refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # as if no variable forbade it
    return found


def test_there_is_a_folder_of_every_kind():
    kinds = ("policy", POLICIES), ("world", WORLDS), ("reflector", REFLECTORS)
    known = {(role, name.partition(":")[0]) for role, names in kinds for name in names if name.endswith(":FOLDER")}
    assert {(role, kind) for role, kind, _ in RELEASES} == known


def test_a_request_of_the_library_would_be_seen(asked):
    with pytest.raises(OSError):
        transformers.AutoConfig.from_pretrained("nobody/nothing")
    assert asked


@pytest.mark.parametrize(("role", "kind", "write"), RELEASES)
def test_nothing_is_asked_of_the_network(writers, tmp_path, asked, role, kind, write):
    folder = write(writers, tmp_path / "release")
    part = getattr(worldenv.load(**{role: f"{kind}:{folder}"}), role)
    assert type(part).__module__.startswith("worldenv.") and not asked
