"""The local Hub answers huggingface_hub as the real one does, as far as pushing a folder does not show it already."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from hub import STRANGERS_TOKEN, TOKEN, Hub

PROGRAM = """
import json
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

api = HfApi()
repo = "lab/protocol"
paths = [f"data/part {number}/rows.txt" for number in range(7)] + ["weights.safetensors"]
seen = {}

def refusal(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except HfHubHTTPError as error:
        return [type(error).__name__, error.response.status_code]

seen["whoami"] = api.whoami()["name"]
api.create_repo(repo)
seen["created twice"] = refusal(api.create_repo, repo)
first = api.create_commit(repo, [CommitOperationAdd(path, path.encode() * 9) for path in paths], commit_message="Add")
api.create_tag(repo, tag="v1")
seen["tagged twice"] = refusal(api.create_tag, repo, tag="v1")
gone = [CommitOperationDelete("data/part 0/", is_folder=True), CommitOperationDelete("weights.safetensors")]
api.create_commit(repo, gone, commit_message="Remove", parent_commit=first.oid)
late = [CommitOperationAdd("late.txt", b"late")]
seen["stale parent"] = refusal(api.create_commit, repo, late, commit_message="Late", parent_commit=first.oid)

seen["tree"] = sorted(file.path for file in api.list_repo_tree(repo, "data", revision="v1", recursive=True))
seen["flat tree"] = sorted(file.path for file in api.list_repo_tree(repo, revision="v1"))
seen["files"] = sorted(set(api.list_repo_files(repo)) - {".gitattributes"})
info = api.get_paths_info(repo, ["weights.safetensors", "data", "absent"], revision="v1")
seen["paths info"] = sorted((one.path, getattr(one, "size", None)) for one in info)
seen["commits"] = [commit.title for commit in api.list_repo_commits(repo)]
refs = api.list_repo_refs(repo)
seen["refs"] = [[ref.name for ref in refs.branches], [ref.name for ref in refs.tags]]
seen["tag is the first commit"] = refs.tags[0].target_commit == first.oid == api.model_info(repo, revision="v1").sha

for name in ("data/part 3/rows.txt", "weights.safetensors"):
    with open(api.hf_hub_download(repo, name, revision="v1"), "rb") as file:
        assert file.read() == name.encode() * 9
seen["no file"] = refusal(api.hf_hub_download, repo, "weights.safetensors")
seen["no revision"] = refusal(api.model_info, repo, revision="v9")
seen["no repository"] = refusal(api.model_info, "lab/absent")

for number in range(7):
    api.create_discussion(repo, title=f"Question {number}")
pull = api.create_pull_request(repo, title="Propose")
api.create_commit(repo, late, commit_message="Late", revision=pull.git_reference)
seen["discussions"] = [one.title for one in api.get_repo_discussions(repo)]
seen["pull requests"] = [one.num for one in api.get_repo_discussions(repo, discussion_type="pull_request")]
seen["details"] = api.get_discussion_details(repo, pull.num).git_reference
seen["proposed"] = api.file_exists(repo, "late.txt", revision=pull.git_reference) and not api.file_exists(
    repo, "late.txt"
)
print(json.dumps(seen))
"""


def test_the_clients_calls_are_answered_as_on_the_hub(hub: Hub) -> None:
    folders = [f"data/part {number}" for number in range(7)]
    files = [f"{folder}/rows.txt" for folder in folders]
    assert hub.run(PROGRAM) == {
        "whoami": "ada",
        "created twice": ["HfHubHTTPError", 409],
        "tagged twice": ["HfHubHTTPError", 409],
        "stale parent": ["HfHubHTTPError", 412],
        "tree": sorted(folders + files),
        "flat tree": [".gitattributes", "data", "weights.safetensors"],
        "files": files[1:],
        "paths info": [["data", None], ["weights.safetensors", len("weights.safetensors") * 9]],
        "commits": ["Remove", "Add", "initial commit"],
        "refs": [["main"], ["v1"]],
        "tag is the first commit": True,
        "no file": ["RemoteEntryNotFoundError", 404],
        "no revision": ["RevisionNotFoundError", 404],
        "no repository": ["RepositoryNotFoundError", 404],
        "discussions": [*(f"Question {number}" for number in range(7)), "Propose"],
        "pull requests": [8],
        "details": "refs/pr/8",
        "proposed": True,
    }


def test_a_private_repository_is_hidden_from_all_but_its_owner(hub: Hub) -> None:
    program = "from huggingface_hub import create_repo; create_repo('lab/hidden', private=True); print('null')"
    hub.run(program)
    assert hub.get("/api/models/lab/hidden", TOKEN)["private"]
    for token, status in ((None, 401), (STRANGERS_TOKEN, 404)):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            hub.get("/api/models/lab/hidden", token)
        assert refusal.value.code == status
        assert refusal.value.headers["X-Error-Code"] == "RepoNotFound"
        refusal.value.close()


def test_a_part_of_a_large_file_can_be_asked_for(hub: Hub) -> None:
    program = """
import json
from huggingface_hub import create_repo, upload_file
create_repo("ada/ranges")
upload_file(path_or_fileobj=bytes(range(100)), path_in_repo="weights.safetensors", repo_id="ada/ranges")
print("null")
"""
    hub.run(program)
    for wanted, content in (("bytes=10-19", bytes(range(10, 20))), ("bytes=90-", bytes(range(90, 100)))):
        url = f"{hub.endpoint}/ada/ranges/resolve/main/weights.safetensors"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": wanted})) as answer:  # noqa: S310
            assert answer.status == 206
            assert answer.headers["Content-Range"] == f"bytes {content[0]}-{content[-1]}/100"
            assert answer.read() == content
