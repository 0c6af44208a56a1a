"""Files between machines that share no folder."""

import os

import pytest

from dllm_sweep.workers import files
from dllm_sweep.workers.depot import Depot
from dllm_sweep.workers.transfer import FileShelf, RayPeers, serve

PIECE = 16 * 2**20


def test_a_shelf_touches_nothing_outside_its_folder(tmp_path):
    (tmp_path / "secret").write_text("key")
    shelf = FileShelf(tmp_path / "files")
    for name in ("../secret", str(tmp_path / "secret")):
        with pytest.raises(ValueError, match="not a file of this folder"):
            shelf.read(name, 0)


def test_a_file_that_was_damaged_on_its_way_is_not_kept(tmp_path):
    shelf = FileShelf(tmp_path)
    shelf.write("samples/a.part", 0, b"damaged")
    assert not shelf.finish("samples/a.part", "samples/a", "0" * 64)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.fixture(scope="module")
def ray():
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def machines(ray, tmp_path):
    """The depots of two machines and of the controller's, each with a folder of its own."""
    peers, node = f"run-{tmp_path.name}", ray.get_runtime_context().get_node_id()
    shelves = [
        serve(peers, node, tmp_path / "home", home=True),
        serve(peers, node, tmp_path / "first"),
    ]
    names = ("home", "first", "second")
    yield [Depot(tmp_path / name, peers=RayPeers(peers)) for name in names]
    for shelf in shelves:
        ray.kill(shelf)


def written(depot, kind, content):
    with files.new_file(depot.root / kind, ".bin") as path:
        path.write_bytes(content)
        return depot.keep(path, kind)


@pytest.mark.ray
@pytest.mark.parametrize("size", [0, 5, PIECE, PIECE + 1])
def test_quantized_weights_are_fetched_from_the_machine_that_has_them(machines, size):
    home, first, second = machines
    content = os.urandom(size)
    artifact = written(first, "weights", content)
    with second.borrow(artifact) as path:
        assert path.read_bytes() == content
    assert not (home.root / artifact.path).exists(), "weights are moved on demand only"
    assert [path for path in second.root.rglob("*") if path.is_file()] == []


@pytest.mark.ray
def test_a_file_that_was_cut_on_its_machine_is_nowhere(machines):
    _, first, second = machines
    artifact = written(first, "weights", b"numbers")
    (first.root / artifact.path).write_bytes(b"number")
    with second.borrow(artifact) as path:
        assert path is None


@pytest.mark.ray
def test_weights_that_nobody_needs_go_from_the_machine_that_made_them(machines):
    _, first, second = machines
    artifact = written(first, "weights", b"numbers")
    second.remove(artifact.path)
    second.remove("weights/of nobody")
    # A shelf answers in order: after this answer the file is gone.
    assert second.find("weights", "nothing", ".bin") is None
    assert not (first.root / artifact.path).exists()


@pytest.mark.ray
def test_answers_to_items_end_up_on_the_controllers_machine(machines):
    home, first, _ = machines
    artifact = written(first, "samples", b"answers")
    assert files.is_whole(artifact, home.root)
    assert written(first, "samples", b"answers") == artifact, "a second time does no harm"


@pytest.mark.ray
def test_a_stage_made_on_one_machine_is_found_from_another(machines):
    _, first, second = machines
    with files.new_file(first.root, ".bin") as path:
        path.write_bytes(b"numbers")
        first.keep(path, "stages/words", name="key")
    assert second.find("stages/words", "key", ".bin").read_bytes() == b"numbers"


@pytest.mark.ray
def test_answers_that_cannot_reach_the_controllers_machine_are_an_error_that_may_pass(
    ray, tmp_path
):
    depot = Depot(tmp_path, peers=RayPeers("run-of-nobody"))
    with pytest.raises(ConnectionError, match="the controller's machine does not take samples/"):
        written(depot, "samples", b"answers")
